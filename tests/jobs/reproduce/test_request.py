"""Options of `clvr reproduce`: per method, and only of chosen methods."""

from typing import Any

import pytest

from clvr_model.checkpoint import Card, save_checkpoint
from clvr_model.network import Architecture, Clvr
from infra.errors import BadSetting
from infra.settings import load_settings
from infra.store import open_store
from jobs.reproduce.request import METHODS, ReproduceRequest
from jobs.reproduce.training import checkpoint_of


def request(**values: Any) -> ReproduceRequest:
    return ReproduceRequest("data", "to", **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"methods": ("triplet",)}, "--method names the method 'triplet'"),
        ({"overrides": ("stage1.epochs=2",)}, "--set names the method 'stage1'"),
        ({"overrides": ("batch=2",)}, "--set is 'batch=2'"),
        ({"overrides": ("clvr.batch",)}, "--set is 'clvr.batch'"),
        ({"checkpoints": ("models/clvr",)}, "--checkpoint is 'models/clvr'"),
        ({"methods": ("ccl",), "overrides": ("clvr.batch=2",)}, "the method is not chosen"),
        ({"checkpoints": ("clvr=a",), "overrides": ("clvr.batch=2",)}, "whose checkpoint is given"),
    ],
)
def test_options_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        request(**values).chosen()


def test_each_method_has_its_own_recipe_changes_and_folder(tmp_path) -> None:
    chosen = request(
        methods=("clvr", "ccl"),
        checkpoints=("ccl=s3://models/a=b",),
        overrides=("clvr.stage2.epochs=5", "clvr.backbone=random"),
    )
    assert [method.title for method in chosen.chosen()] == ["CCL", "CLVR"]
    ccl, _, clvr = METHODS
    assert chosen.checkpoint_of(ccl) == "s3://models/a=b"
    training = chosen.training_of(clvr, open_store(str(tmp_path)))
    assert (training.recipe, training.overrides) == ("paper", ("stage2.epochs=5", "backbone=random"))
    assert training.output == str(tmp_path / "clvr")
    assert training.split is None
    assert ReproduceRequest("a.csv", "to").training_of(clvr, open_store(str(tmp_path))).split == "train"


def test_a_checkpoint_of_other_labels_is_not_taken_for_a_method(tmp_path) -> None:
    network = Clvr.of(Architecture(classes=2, feature_dim=8, backbone="vgg_m"))
    folder = str(tmp_path / "model")
    save_checkpoint(folder, network, Card(label_ids=(0, 1)))
    given = request(checkpoints=(f"ccl={folder}",))
    with pytest.raises(BadSetting, match="on the labels model, and CCL learns from vehicle"):
        checkpoint_of(METHODS[0], given, open_store(str(tmp_path)), load_settings())
