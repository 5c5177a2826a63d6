"""VGG-M has Caffe's maps and arithmetic, its own input size, and no pool."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clvr_model.backbones import check_last_stride, check_pooling, imagenet_weights, input_size
from clvr_model.backbones.vgg_m import VggM, _caffe_pixels, _normalized
from clvr_model.checkpoint import Card, load_checkpoint, save_checkpoint
from clvr_model.embedder import Embedder
from clvr_model.engines import openvino
from clvr_model.network import Clvr
from clvr_model.normalization import to_input
from clvr_model.weights import load_backbone
from infra.errors import BadInput, BadSetting

ENGINES = ["torch", "openvino"] if openvino() else ["torch"]


@pytest.fixture(scope="module")
def backbone() -> VggM:
    return VggM(seed=1).eval()


def test_maps_have_caffes_sides_and_fc6_its_size(backbone: VggM) -> None:
    sides: list[int] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
        for module in (backbone.conv1, backbone.conv2, backbone.conv3, backbone.fc6)
    ]
    with torch.inference_mode():
        output = backbone(torch.zeros(1, 3, 224, 224))
    for hook in hooks:
        hook.remove()
    assert sides == [224, 54, 13, 18_432]
    assert output.shape == (1, 4096)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 82_030_208
    assert set(backbone.state_dict()) == {
        f"{layer}.{kind}"
        for layer in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6")
        for kind in ("weight", "bias")
    }


def test_pixels_are_blue_green_red_without_their_means() -> None:
    images = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    images[..., 0], images[..., 1], images[..., 2] = 10, 20, 30
    pixels = _caffe_pixels(to_input(images))[0, :, 0, 0]
    assert pixels.tolist() == pytest.approx([30 - 102.9801, 20 - 115.9465, 10 - 122.7717], abs=1e-4)


def test_normalization_is_caffes() -> None:
    x = torch.randn(2, 12, 3, 3, generator=torch.Generator().manual_seed(0)) * 50
    expected = torch.empty_like(x)
    for channel in range(12):
        window = x[:, max(0, channel - 2) : channel + 3].square().sum(dim=1)
        expected[:, channel] = x[:, channel] / (2 + 5e-4 / 5 * window) ** 0.75
    assert torch.allclose(_normalized(x), expected, rtol=1e-5)


def test_random_weights_keep_the_activations_size(backbone: VggM) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    with torch.inference_mode():
        output = backbone(to_input(torch.from_numpy(noise)))
    assert 0.05 < float(output.std()) < 5


def test_half_of_the_last_layer_is_dropped_in_training_only(backbone: VggM) -> None:
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain = backbone.eval()(images)
        assert torch.equal(plain, backbone(images))
        torch.manual_seed(1)
        dropped = backbone.train()(images)
        backbone.eval()
    active = plain > 0
    share = float((dropped[active] == 0).float().mean())
    assert 0.4 < share < 0.6
    kept = active & (dropped > 0)
    assert torch.allclose(dropped[kept], 2 * plain[kept], rtol=1e-4)


def test_caffes_weights_load_under_their_names(backbone: VggM, tmp_path: Path) -> None:
    published = {**backbone.state_dict(), "fc7.weight": torch.zeros(2, 2), "fc8.bias": torch.zeros(2)}
    save_file(published, tmp_path / "vgg_m.safetensors")
    network = VggM(seed=2)
    source = load_backbone(network, str(tmp_path / "vgg_m.safetensors"))
    assert source.ignored == ("fc7.weight", "fc8.bias")
    assert torch.equal(network.fc6.weight, backbone.fc6.weight)


def test_what_it_cannot_take_is_refused() -> None:
    assert (input_size("vgg_m"), input_size("inception_v3")) == (224, 299)
    with pytest.raises(BadSetting, match="last_stride"):
        check_last_stride("vgg_m", 1)
    with pytest.raises(BadSetting, match="has no pool"):
        check_pooling("vgg_m", "gem")
    with pytest.raises(BadSetting, match="no weights of vgg_m"):
        imagenet_weights("vgg_m")


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_embed_images_of_its_size(engine: str, tmp_path: Path) -> None:
    network = Clvr(3, 16, backbone="vgg_m", seed=3).eval()
    save_checkpoint(str(tmp_path), network, Card(label_ids=(5, 6, 7)))
    embedder = Embedder(load_checkpoint(str(tmp_path)), device="cpu", engine=engine, batch_size=2)  # type: ignore[arg-type]
    images = np.random.default_rng(1).integers(0, 256, (2, 224, 224, 3), np.uint8)
    with torch.inference_mode():
        feature, _ = network(to_input(torch.from_numpy(images)))
    embedded = embedder(images)
    assert np.abs(embedded.features - feature.numpy()).max() < 1e-4 * float(feature.abs().max())
    with pytest.raises(BadInput, match="224"):
        embedder(np.zeros((1, 299, 299, 3), np.uint8))
