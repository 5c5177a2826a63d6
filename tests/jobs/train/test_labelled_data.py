"""The labelled images of a training: from any release, a table or folders, and refused without models."""

from pathlib import Path

import pytest
from dataset_releases import LAYOUTS, write_release

from infra.errors import BadLabels
from jobs.train.dataset import data_digest, read_labelled

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


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "VERI-Wild 2.0"])
def test_vehicles_of_a_release_are_read_for_recipes_that_learn_from_them(layout: str, tmp_path: Path) -> None:
    root = write_release(str(tmp_path), LAYOUTS[layout][1])
    try:
        labelled = read_labelled(root, labels="vehicle")
    except BadLabels as error:
        assert "which vehicle it shows" in error.message
        assert layout not in (*WITHOUT_MODELS, "VehicleID")
        return
    assert labelled.vehicle_ids is not None
    assert (labelled.vehicle_ids >= 0).all()
    with_models = [] if layout in WITHOUT_MODELS else read_labelled(root, labels="both").uris
    assert set(with_models) <= set(labelled.uris)


def test_model_recipes_have_no_vehicles_and_the_digest_that_they_always_had(tmp_path: Path) -> None:
    root = write_release(str(tmp_path), LAYOUTS["VehicleID"][1])
    models, both = read_labelled(root), read_labelled(root, labels="both")
    assert models.vehicle_ids is None
    assert models.uris == both.uris
    assert data_digest(models) != data_digest(both)


def test_a_release_with_tests_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadLabels, match=r"is VERI-Wild 2.0, which has test lists only"):
        read_labelled(write_release(str(tmp_path), LAYOUTS["VERI-Wild 2.0"][1]))


def test_folders_of_models_are_read_as_before(tmp_path: Path) -> None:
    labelled = read_labelled(write_release(str(tmp_path), {"golf/1.jpg": b"", "polo/2.jpg": b""}))
    assert labelled.model_names == {0: "golf", 1: "polo"}
