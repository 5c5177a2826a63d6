"""The network has torchvision's parameters, its documented options, and reproducible random weights."""

import pytest
import torch

from clvr_model.backbones.inception import InceptionV3
from clvr_model.network import Architecture, Clvr


@pytest.fixture(scope="module")
def network() -> Clvr:
    return Clvr(228).eval()


def test_the_network_has_the_size_and_names_of_the_published_one(network: Clvr) -> None:
    parameters = sum(parameter.numel() for parameter in network.parameters())
    # Inception-V3 without head and auxiliary classifier, Dense-1024, 228 classes.
    assert parameters == 21_785_568 + (2048 * 1024 + 1024) + (1024 * 228 + 228)
    names = network.backbone.state_dict()
    assert len(names) == 94 * 6  # 94 convolutions, each with its weight and five values of its normalisation
    for name in ("Conv2d_1a_3x3.conv.weight", "Mixed_6e.branch7x7dbl_5.bn.running_var"):
        assert name in names
    assert names["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    assert {module.eps for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)} == {1e-3}


@pytest.mark.parametrize("channels_last", [False, True])
def test_random_weights_give_outputs_of_the_right_shape_and_scale(network: Clvr, channels_last: bool) -> None:
    x = torch.rand(2, 3, 299, 299, generator=torch.Generator().manual_seed(0)) * 2 - 1
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        pooled = network.backbone(x)
        feature, logits = network(x)
    assert pooled.shape == (2, 2048)
    assert feature.shape == (2, 1024)
    assert logits.shape == (2, 228)
    assert 0.01 < float(pooled.mean()) < 10
    assert (feature >= 0).all()
    assert float(logits.std()) > 0.01


def test_random_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = InceptionV3(seed=4).state_dict()
    torch.manual_seed(2)
    again, other = InceptionV3(seed=4).state_dict(), InceptionV3(seed=5).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["Conv2d_1a_3x3.conv.weight"], other["Conv2d_1a_3x3.conv.weight"])


def test_the_pool_option_changes_features_and_the_relu_option_their_sign() -> None:
    x = torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        counting = Clvr(2, 64).eval()(x)[0]
        ignoring = Clvr(2, 64, pool_counts_padding=False).eval()(x)[0]
        signed = Clvr(2, 64, feature_relu=False).eval()(x)[0]
    assert not torch.allclose(counting, ignoring)
    assert torch.equal(signed.clamp_min(0), counting)
    assert (signed < 0).any()


def test_the_architecture_rebuilds_the_network() -> None:
    architecture = Architecture(classes=5, feature_dim=32, feature_relu=False, pool_counts_padding=False)
    rebuilt = Clvr.of(architecture)
    assert rebuilt.architecture == architecture
    assert architecture.as_dict()["backbone"] == "inception_v3"


def test_the_meta_device_allocates_no_weights() -> None:
    with torch.device("meta"):
        network = Clvr(3)
    assert all(parameter.is_meta for parameter in network.parameters())
