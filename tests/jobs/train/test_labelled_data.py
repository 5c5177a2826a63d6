"""The labelled images of a training: from any release, a table or folders, and refused without models."""

from pathlib import Path

import pytest
from dataset_releases import LAYOUTS, write_release

from infra.errors import BadLabels
from jobs.train.dataset import read_labelled

WITHOUT_MODELS = ("AI City", "VeRi-CARLA", "VRIC")


@pytest.mark.parametrize(
    "layout", [name for name in LAYOUTS if name not in (*WITHOUT_MODELS, "VERI-Wild 2.0")]
)
def test_a_release_with_models_gives_images_to_train_on(layout: str, tmp_path: Path) -> None:
    labelled = read_labelled(write_release(str(tmp_path), LAYOUTS[layout][1]))
    assert labelled.classes
    assert (labelled.model_ids >= 0).all()
    assert {*labelled.classes} <= {*labelled.model_names} or layout == "VehicleID"


@pytest.mark.parametrize("layout", WITHOUT_MODELS)
def test_a_release_without_models_is_refused(layout: str, tmp_path: Path) -> None:
    with pytest.raises(BadLabels, match="labels vehicles, but has no vehicle models to train on") as caught:
        read_labelled(write_release(str(tmp_path), LAYOUTS[layout][1]))
    assert "model_id" in caught.value.remedy


def test_a_release_with_tests_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadLabels, match=r"is VERI-Wild 2.0, which has test lists only"):
        read_labelled(write_release(str(tmp_path), LAYOUTS["VERI-Wild 2.0"][1]))


def test_folders_of_models_are_read_as_before(tmp_path: Path) -> None:
    labelled = read_labelled(write_release(str(tmp_path), {"golf/1.jpg": b"", "polo/2.jpg": b""}))
    assert labelled.model_names == {0: "golf", 1: "polo"}
