"""A training that starts from a checkpoint takes its network, and all layers but the classifier."""

from pathlib import Path

import pytest

from clvr_model.checkpoint import Card, save_checkpoint
from clvr_model.network import Architecture, Clvr
from clvr_model.recipe import load_recipe
from clvr_model.start import load_start, starting_from
from infra.errors import BadSetting


def test_a_recipe_and_its_first_weights_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    architecture = Architecture(
        3, backbone="efficientnet_lite0", bnneck=True, l2_normalized=True, classifier="cosine"
    )
    start = Clvr.of(architecture, seed=5)
    uri = save_checkpoint(str(tmp_path), start, Card(label_ids=(4, 7, 9))).uri
    recipe = starting_from(load_recipe("unlabelled", ["stage1.epochs=2"]), architecture, uri)
    assert (recipe.bnneck, recipe.feature_relu, recipe.stages[0].epochs) == (True, True, 2)
    assert recipe.labels_used == "none"
    network = Clvr.of(recipe.architecture(0), seed=1)
    load_start(network, recipe.pretrained)
    expected = start.state_dict()
    assert all(tensor.equal(expected[name]) for name, tensor in network.state_dict().items())

    labelled = starting_from(load_recipe("lite"), architecture, uri)
    other = Clvr.of(labelled.architecture(5), seed=1)
    load_start(other, labelled.pretrained)
    assert other.head.dense.weight.equal(start.head.dense.weight)
    assert other.head.classifier is not None and other.head.classifier.weight.shape[0] == 5

    with pytest.raises(BadSetting, match="another architecture"):
        load_start(Clvr.of(Architecture(0, backbone="efficientnet_lite0")), recipe.pretrained)


def test_a_mixed_head_is_no_start() -> None:
    with pytest.raises(BadSetting, match="mixed head"):
        starting_from(load_recipe("unlabelled"), Architecture(3, head="mixed"), "models/m")
