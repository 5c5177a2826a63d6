"""Every backbone takes published weights as they are, and embeds the same on every engine."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clvr_model.backbones import BACKBONES, imagenet_weights
from clvr_model.backbones.resnet import InstanceBatchNorm
from clvr_model.checkpoint import Card, fingerprint_of, load_checkpoint, save_checkpoint
from clvr_model.embedder import Embedder
from clvr_model.engines import openvino
from clvr_model.network import Architecture, Clvr
from clvr_model.normalization import to_input
from clvr_model.serving import folded_copy
from clvr_model.weights import load_backbone
from infra.errors import BadCheckpoint, BadSetting

ENGINES = ["torch", "openvino"] if openvino() else ["torch"]
STRONG: dict[str, Any] = {
    "pooling": "gem",
    "last_stride": 1,
    "bnneck": True,
    "l2_normalized": True,
    "classifier": "cosine",
    "feature_relu": False,
}
# Of the last map, at a last stride of 2 and of 1.
MAP_SIDES = {
    "inception_v3": (8, 17),
    "resnet50": (10, 19),
    "resnet50_ibn_a": (10, 19),
    "vgg16": (9, 18),
    "efficientnet_lite0": (7, 14),
    "efficientnet_lite1": (8, 15),
    "efficientnet_lite2": (9, 17),
}
NOISE = np.random.default_rng(5).integers(0, 256, (299, 299, 3), np.uint8)
IMAGES = np.stack([NOISE, np.where(NOISE[:, :, :1] > 250, 250, 10 + NOISE // 100)]).astype(np.uint8)


def network_of(**switches: Any) -> Clvr:
    """A network whose batch statistics are unlike the initial 0 and 1, so that folding them is a test."""
    network = Clvr(3, 16, seed=3, **switches).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.uniform_(-0.1, 0.1, generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(1.8, 2.2, generator=generator)  # residual branches would grow under 1
    return network


@pytest.mark.parametrize(
    ("name", "count", "parameters", "some"),
    [
        ("resnet50", 318, 23_508_032, ("layer1.0.downsample.1.running_var", "layer4.2.conv3.weight")),
        # Counted in the release of IBN-Net, without its fc: 13 of its normalizations are split into two.
        ("resnet50_ibn_a", 344, 23_508_032, ("layer3.5.bn1.IN.weight", "layer1.0.bn1.BN.running_var")),
        ("vgg16", 26, 14_714_688, ("features.0.bias", "features.28.weight")),
    ],
)
def test_parameters_are_those_of_torchvision(
    name: str, count: int, parameters: int, some: tuple[str, ...]
) -> None:
    backbone = Clvr(2, 8, backbone=name).backbone
    names = backbone.state_dict().keys()
    assert len(names) == count
    assert sum(parameter.numel() for parameter in backbone.parameters()) == parameters
    assert names >= set(some)


@pytest.mark.parametrize(("name", "head"), [("resnet50", "fc.weight"), ("vgg16", "classifier.0.weight")])
def test_published_weights_load_unchanged_also_with_a_learnt_pooling(
    name: str, head: str, tmp_path: Path
) -> None:
    published = Clvr(2, 8, backbone=name, seed=9).backbone.state_dict()
    save_file({**published, head: torch.zeros(4)}, tmp_path / "w.safetensors")
    network = Clvr(2, 8, backbone=name, pooling="gem", last_stride=1)
    source = load_backbone(network, str(tmp_path / "w.safetensors"))
    state = network.backbone.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in published.items() if "tracked" not in key)
    assert head in source.ignored
    other = "vgg16" if name == "resnet50" else "resnet50"
    with pytest.raises(BadCheckpoint, match="lacks") as caught:
        load_backbone(Clvr(2, 8, backbone=other), str(tmp_path / "w.safetensors"))
    assert f"weights of {other}" in caught.value.remedy


@pytest.mark.parametrize("name", [name for name, backbone in BACKBONES.items() if backbone.has_pool])
def test_a_last_stride_of_one_gives_finer_maps_and_adds_no_parameter(name: str) -> None:
    sizes = {}
    for stride in (1, 2):
        backbone = Clvr(2, 8, backbone=name, last_stride=stride).eval().backbone
        backbone.pool.register_forward_pre_hook(
            lambda _, inputs, stride=stride: sizes.update({stride: tuple(inputs[0].shape[2:])})
        )
        with torch.inference_mode():
            backbone(torch.zeros(1, 3, backbone.input_size, backbone.input_size))
    coarse, fine = MAP_SIDES[name]
    assert sizes == {1: (fine, fine), 2: (coarse, coarse)}


@pytest.mark.parametrize(
    "switches",
    [
        STRONG,
        {"backbone": "resnet50", **STRONG},
        {"backbone": "vgg16", "pooling": "gem"},
        {"backbone": "resnet50_ibn_a", "input_size": 128},
    ],
    ids=["inception strong", "resnet strong", "vgg gem", "ibn of 128 pixels"],
)
def test_checkpoint_and_both_engines_give_the_plain_networks_features(
    switches: dict[str, Any], tmp_path: Path
) -> None:
    network = network_of(**switches)
    saved = save_checkpoint(str(tmp_path), network, Card(label_ids=(5, 6, 7)))
    loaded = load_checkpoint(str(tmp_path))
    assert loaded.network.architecture == network.architecture
    assert loaded.fingerprint == saved.fingerprint
    size = network.architecture.image_size
    images = np.ascontiguousarray(IMAGES[:, :size, :size])
    with torch.inference_mode():
        feature, logits = network(to_input(torch.from_numpy(images)))
    assert (feature[0] - feature[1]).abs().max() > 1e-3 * feature.abs().max()  # ten times the tolerance
    if network.architecture.l2_normalized:
        assert torch.allclose(feature.norm(dim=1), torch.ones(2), atol=1e-5)
    for engine in ENGINES:
        embedded = Embedder(loaded, device="cpu", engine=engine, batch_size=2)(images)
        assert np.abs(embedded.features - feature.numpy()).max() < 1e-4 * float(feature.abs().max()), engine
        expected = logits.softmax(dim=1).amax(dim=1).numpy()
        assert np.allclose(embedded.confidence, expected, atol=1e-3), engine


def test_folding_leaves_no_batch_normalisation_in_a_resnet() -> None:
    folded = folded_copy(network_of(backbone="resnet50"))
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in folded.modules())


def test_switches_change_the_fingerprint_but_the_paper_architecture_is_unchanged() -> None:
    assert Architecture(3).as_dict() == {
        "backbone": "inception_v3",
        "classes": 3,
        "feature_dim": 1024,
        "feature_relu": True,
        "pool_counts_padding": True,
    }
    strong = Architecture(3, **STRONG, cosine_scale=30.0)
    assert strong.as_dict() == {
        "backbone": "inception_v3",
        "classes": 3,
        "feature_dim": 1024,
        "feature_relu": False,
        "pool_counts_padding": True,
        "pooling": "gem",
        "last_stride": 1,
        "bnneck": True,
        "normalised": True,
        "classifier": "cosine",
        "cosine_scale": 30.0,
    }
    assert Architecture.from_dict(strong.as_dict()) == strong


def test_the_fingerprint_of_an_architecture_never_changes() -> None:
    """Runs and generations of older versions are found by these very values."""
    strong = Architecture(3, 16, pool_counts_padding=False, backbone="vgg16", **STRONG, cosine_scale=30.0)
    assert [
        fingerprint_of("0" * 64, architecture.as_dict(), (1, 2, 3), "1-x")
        for architecture in (Architecture(3), strong)
    ] == ["3e9a71e11a49de5c", "d1e47da521aa5078"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backbone", "resnet51"),
        ("backbone", "timm:"),
        ("pooling", "max"),
        ("last_stride", 3),
        ("bnneck", 1),
        ("classifier", "arc"),
        ("classes", 2.5),
        ("normalised", "yes"),
        ("layers", "no field"),
    ],
)
def test_an_impossible_architecture_is_refused(field: str, value: object) -> None:
    with pytest.raises(BadSetting, match=str(value)):
        Architecture.from_dict({"classes": 3, field: value})


def test_a_batch_of_one_image_passes_the_neck_in_training() -> None:
    network = Clvr(3, 8, bnneck=True, seed=1).train()
    feature, _ = network.head(torch.rand(1, 2048))
    assert torch.isfinite(feature).all()
    assert int(network.head.neck.num_batches_tracked) == 0
    network.head(torch.rand(2, 2048))
    assert int(network.head.neck.num_batches_tracked) == 1


def test_a_cosine_classifier_ignores_the_length_of_a_feature() -> None:
    head = Clvr(3, 8, classifier="cosine", feature_relu=False, cosine_scale=10.0, seed=1).head
    with torch.no_grad():
        head.dense.bias.zero_()
        pooled = torch.rand(2, 2048)
        assert torch.allclose(head(pooled)[1], head(5 * pooled)[1], atol=1e-4)
        assert float(head(pooled)[1].abs().max()) <= 10.0


def test_weights_of_a_timm_backbone_have_its_tag() -> None:
    assert imagenet_weights("timm:resnet18.a1_in1k") == "hf:timm/resnet18.a1_in1k"
    with pytest.raises(BadSetting, match="does not name its weights"):
        imagenet_weights("timm:resnet18")


def test_the_error_without_timm_names_the_missing_package() -> None:
    # In a process of its own, where the import is barred: on some machines timm is there.
    code = """
import sys
sys.modules["timm"] = None
from clvr_model.network import Clvr
from infra.errors import BadSetting
try:
    Clvr(2, backbone="timm:resnet18")
except BadSetting as error:
    print(error.message, error.remedy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "timm:resnet18 needs timm" in done.stdout
    assert "clvr-archive[timm]" in done.stdout


@pytest.mark.parametrize(
    ("backbone", "size", "refused"),
    [("resnet50", 256, False), ("resnet50", 250, True), ("efficientnet_lite0", 256, True)],
)
def test_networks_of_any_size_take_multiples_of_16(backbone: str, size: int, refused: bool) -> None:
    if not refused:
        assert Clvr(2, 8, backbone=backbone, input_size=size).architecture.image_size == size
        return
    with pytest.raises(BadSetting, match=f"image_size is {size}"):
        Clvr(2, 8, backbone=backbone, input_size=size)


@pytest.mark.parametrize("name", BACKBONES)
def test_each_parameter_belongs_to_one_layer_and_the_first_sees_the_image(name: str) -> None:
    backbone = Clvr(2, 8, backbone=name, pooling="gem" if BACKBONES[name].has_pool else "mean").backbone
    layers = backbone.layers()
    listed = [id(parameter) for layer in layers for parameter in layer]
    assert sorted(listed) == sorted(id(parameter) for parameter in backbone.parameters())
    assert layers[0][0].shape[1] == 3
    assert len(layers) > 5
    if BACKBONES[name].has_pool:
        assert layers[-1][-1] is backbone.pool.p


def test_half_of_the_channels_of_an_ibn_layer_ignore_light_and_contrast() -> None:
    layer = InstanceBatchNorm(8).eval()
    x = torch.rand(2, 8, 6, 6, generator=torch.Generator().manual_seed(1))
    plain, brighter = layer(x), layer(3 * x + 0.5)
    torch.testing.assert_close(plain[:, :4], brighter[:, :4], atol=1e-3, rtol=1e-3)
    assert not torch.allclose(plain[:, 4:], brighter[:, 4:], atol=0.1)
