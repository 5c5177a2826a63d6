"""Options of `clvr reproduce`: per method, and only of chosen methods."""

from typing import Any

import pytest

from infra.errors import BadSetting
from infra.store import open_store
from jobs.reproduce.request import METHODS, ReproduceRequest


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
