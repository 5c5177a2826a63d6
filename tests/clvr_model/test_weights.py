"""Backbone weights load whole and unchanged, or not at all."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clvr_model import weights as module
from clvr_model.backbones.inception import InceptionV3
from clvr_model.network import Clvr
from clvr_model.weights import load_backbone
from infra.errors import BadCheckpoint, BadInput, StoreUnreachable
from infra.servers import SeaweedFs
from infra.store import open_store


@pytest.fixture
def published() -> dict[str, Tensor]:
    """As torchvision and timm publish it: with a 1000-way head and an auxiliary classifier."""
    tensors = InceptionV3(seed=9).state_dict()
    tensors["fc.weight"] = torch.zeros(1000, 8)
    tensors["AuxLogits.fc.bias"] = torch.zeros(1000)
    return tensors


@pytest.fixture
def backbone() -> InceptionV3:
    return InceptionV3(seed=0)


def _equal(network: InceptionV3, tensors: dict[str, Tensor]) -> bool:
    state = network.state_dict()
    return all(torch.equal(value, tensors[name]) for name, value in state.items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_published_files_load_unchanged(
    published: dict[str, Tensor], backbone: InceptionV3, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"inception{suffix}"
    save_file(published, path) if suffix == ".safetensors" else torch.save(published, path)
    source = load_backbone(backbone, str(path))
    assert _equal(backbone, published)
    assert {"fc.weight", "AuxLogits.fc.bias"} <= set(source.ignored)
    assert len(source.sha256) == 64


@pytest.mark.parametrize(
    "wrap",
    [
        lambda table: {"state_dict": table, "epoch": 3},
        lambda table: {"model": table, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
        lambda table: {"model": {"state_dict": table}},
        lambda table: {f"module.{name}": value for name, value in table.items()},
        lambda table: {"state_dict": {f"module._orig_mod.{name}": value for name, value in table.items()}},
        lambda table: {"state_dict": {f"model.{name}": value for name, value in table.items()}},
    ],
    ids=["state_dict", "model", "twice", "module.", "module._orig_mod.", "model."],
)
def test_wrapped_tables_and_prefixed_names_load_as_plain_ones(
    published: dict[str, Tensor],
    backbone: InceptionV3,
    tmp_path: Path,
    wrap: Callable[[dict[str, Tensor]], dict[str, object]],
) -> None:
    torch.save(wrap(published), tmp_path / "wrapped.pth")
    load_backbone(backbone, str(tmp_path / "wrapped.pth"))
    assert _equal(backbone, published)


def test_a_prefix_of_some_names_only_is_not_dropped(
    published: dict[str, Tensor], backbone: InceptionV3, tmp_path: Path
) -> None:
    name = next(iter(published))
    mixed = {f"module.{key}" if key != name else key: value for key, value in published.items()}
    torch.save(mixed, tmp_path / "mixed.pth")
    with pytest.raises(BadCheckpoint, match="parameters"):
        load_backbone(backbone, str(tmp_path / "mixed.pth"))


@pytest.mark.parametrize(
    "content", [{}, [], {"state_dict": {}}, {"epoch": 3}, {"state_dict": {"a": 1}}, {1: 2}], ids=str
)
def test_files_without_a_table_of_tensors_are_refused(
    backbone: InceptionV3, tmp_path: Path, content: object
) -> None:
    torch.save(content, tmp_path / "no.pth")
    with pytest.raises(BadCheckpoint, match="not a dictionary of tensors"):
        load_backbone(backbone, str(tmp_path / "no.pth"))


def test_weights_may_be_in_the_home_folder(
    published: dict[str, Tensor], backbone: InceptionV3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file(published, tmp_path / "w.safetensors")
    load_backbone(backbone, "~/w.safetensors")
    assert _equal(backbone, published)


def test_weights_may_be_in_a_bucket(
    published: dict[str, Tensor],
    backbone: InceptionV3,
    tmp_path: Path,
    seaweedfs: SeaweedFs,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in seaweedfs.settings.environment().items():
        monkeypatch.setenv(name, value)
    torch.save({"state_dict": published}, tmp_path / "w.pth")
    open_store(bucket).put("w.pth", tmp_path / "w.pth")
    assert load_backbone(backbone, f"{bucket}/w.pth").source == f"{bucket}/w.pth"
    assert _equal(backbone, published)
    with pytest.raises(BadInput, match="no backbone weights at s3://"):
        load_backbone(backbone, f"{bucket}/absent.pth")


def test_half_precision_files_become_float32_and_counters_may_be_missing(
    published: dict[str, Tensor], tmp_path: Path
) -> None:
    halves = {
        name: value.half() for name, value in published.items() if not name.endswith("num_batches_tracked")
    }
    save_file(halves, tmp_path / "half.safetensors")
    network = Clvr(2, 8)
    load_backbone(network, str(tmp_path / "half.safetensors"))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    name = "Mixed_5b.branch1x1.conv.weight"
    assert torch.equal(network.backbone.state_dict()[name], halves[name].float())


def test_the_word_random_keeps_the_seeded_weights(backbone: InceptionV3) -> None:
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert load_backbone(backbone, "random").sha256 == ""
    assert _equal(backbone, before)


@pytest.mark.parametrize("source", ["", "Random", "/no/such/file.pth", "imagenet"])
def test_an_unknown_source_of_weights_is_refused(backbone: InceptionV3, source: str) -> None:
    with pytest.raises(BadInput, match="no backbone weights"):
        load_backbone(backbone, source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("Mixed_7a.branch3x3_1.bn.bias"), "lacks 1 parameters"),
        (lambda t: t.update({"layer4.weight": torch.zeros(1)}), "unknown 1 parameters, first layer4"),
        (lambda t: t.update({"Conv2d_1a_3x3.bn.bias": torch.zeros(33)}), r"shape \(33,\), expected \(32,\)"),
        (lambda t: t["Conv2d_1a_3x3.bn.bias"].fill_(float("nan")), "not finite"),
    ],
)
def test_weights_that_do_not_match_are_refused_and_change_nothing(
    published: dict[str, Tensor], backbone: InceptionV3, tmp_path: Path, change: object, message: str
) -> None:
    change(published)  # type: ignore[operator]
    save_file(published, tmp_path / "other.safetensors")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(BadCheckpoint, match=message):
        load_backbone(backbone, str(tmp_path / "other.safetensors"))
    assert _equal(backbone, before)


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth"])
def test_damaged_files_are_refused(backbone: InceptionV3, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00" * 100)
    with pytest.raises(BadCheckpoint):
        load_backbone(backbone, str(tmp_path / name))


def test_a_pickle_that_runs_code_is_not_opened(backbone: InceptionV3, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(BadCheckpoint):
        load_backbone(backbone, str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def test_the_error_without_the_hub_recommends_a_local_file(
    backbone: InceptionV3, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The hub's own client, offline by its own switch: no request, no retries.
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StoreUnreachable, match="nobody/nothing") as caught:
        load_backbone(backbone, "hf:nobody/nothing@v1")
    assert "local file" in caught.value.remedy


def test_a_hub_file_is_loaded_like_a_local_one(
    published: dict[str, Tensor], backbone: InceptionV3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(published, tmp_path / module.HUB_FILE)
    asked: list[tuple[str, str, str | None]] = []

    def fetch(repository: str, name: str, revision: str | None) -> str:
        asked.append((repository, name, revision))
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    load_backbone(backbone, "hf:timm/inception_v3.tv_in1k@main")
    assert _equal(backbone, published)
    assert asked == [("timm/inception_v3.tv_in1k", "model.safetensors", "main")]
