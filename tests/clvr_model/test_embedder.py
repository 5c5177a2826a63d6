"""The embedder gives what the plain network gives, for any number of images, under a true fingerprint."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clvr_model import embedder as module
from clvr_model.checkpoint import CARD_FILE, Card, Checkpoint, save_checkpoint
from clvr_model.embedder import Embedder, check_precision
from clvr_model.embeddings import UNKNOWN_LABEL
from clvr_model.engines import has_bf16, openvino
from clvr_model.network import Clvr
from clvr_model.normalization import to_input
from clvr_model.precision import MIN_IMAGES, PrecisionCheck, fingerprints_of, reduced_fingerprint
from clvr_model.serving import folded_copy
from infra.errors import BadCheckpoint, BadInput, BadSetting

LABELS = (40, 7, 249)
GOOD = PrecisionCheck(cosine_min=0.9999, neighbour_agreement=0.99, pictures=MIN_IMAGES)
IMAGES = np.random.default_rng(5).integers(0, 256, (3, 224, 224, 3), np.uint8)
ENGINES = ["torch", "openvino"] if openvino() else ["torch"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoint")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    network = Clvr(3, feature_dim=16, backbone="efficientnet_lite0", seed=3)
    with torch.no_grad():  # statistics unlike the initial 0 and 1, so that folding them is a test
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.uniform_(-0.1, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.8, 1.2)
    return save_checkpoint(str(folder), network, Card(label_ids=LABELS))


@pytest.fixture(scope="module")
def expected(checkpoint: Checkpoint) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        feature, logits = checkpoint.network(to_input(torch.from_numpy(IMAGES)))
    return feature, logits


@pytest.fixture(scope="module", params=ENGINES)
def embedder(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Embedder:
    return Embedder(checkpoint, device="cpu", engine=request.param, batch_size=2)


def test_each_engine_agrees_with_the_plain_network(
    embedder: Embedder, expected: tuple[torch.Tensor, torch.Tensor]
) -> None:
    embedded = embedder(IMAGES)
    feature, logits = expected
    scale = float(feature.abs().max())
    assert np.abs(embedded.features - feature.numpy()).max() < 1e-4 * scale
    assert embedded.features.dtype == np.float32
    assert embedded.model_id.tolist() == [LABELS[best] for best in logits.argmax(dim=1)]
    assert embedded.model_id.dtype == np.int32
    assert np.allclose(embedded.confidence, logits.softmax(dim=1).amax(dim=1).numpy(), atol=1e-3)
    assert embedded.confidence.dtype == np.float32


def test_the_feature_of_an_image_does_not_depend_on_its_batch(embedder: Embedder) -> None:
    together = embedder(IMAGES).features
    alone = embedder(IMAGES[2:]).features
    assert np.allclose(alone[0], together[2], rtol=1e-4, atol=1e-5)
    assert np.allclose(embedder(IMAGES[1:]).features, together[1:], rtol=1e-4, atol=1e-5)


def test_an_empty_batch_gives_no_row(embedder: Embedder) -> None:
    embedded = embedder(IMAGES[:0])
    assert embedded.features.shape == (0, 16)
    assert embedded.model_id.shape == embedded.confidence.shape == (0,)


def test_threads_may_share_an_embedder(embedder: Embedder) -> None:
    alone = [embedder(IMAGES[row : row + 1]).features for row in range(2)]
    with ThreadPoolExecutor(2) as pool:
        shared = list(pool.map(lambda row: embedder(IMAGES[row : row + 1]).features, range(2)))
    assert all(np.array_equal(a, b) for a, b in zip(alone, shared, strict=True))


@pytest.mark.parametrize(
    "images",
    [
        IMAGES.astype(np.float32),
        IMAGES[:, :223],
        IMAGES.transpose(0, 3, 1, 2),
        IMAGES[0],
    ],
)
def test_other_shapes_and_types_are_refused(embedder: Embedder, images: np.ndarray) -> None:
    with pytest.raises(BadInput, match="expected uint8"):
        embedder(images)


def test_images_in_any_memory_order_are_accepted(embedder: Embedder) -> None:
    flipped = IMAGES[:1, :, ::-1]
    assert np.array_equal(embedder(flipped).features, embedder(flipped.copy()).features)


def test_features_are_the_same_to_the_last_bit_with_and_without_the_cache(
    checkpoint: Checkpoint, folder: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    embedders = [Embedder(checkpoint, device="cpu", cache=each) for each in (None, cache, cache)]
    expected = embedders[0](IMAGES)
    if openvino():
        # With the network in the cache, the card of the checkpoint is enough.
        (tmp_path / CARD_FILE).write_bytes((folder / CARD_FILE).read_bytes())
        embedders.append(Embedder(str(tmp_path), device="cpu", cache=cache))
        flipped = next(cache.rglob("*.bin"))
        data = bytearray(flipped.read_bytes())
        data[len(data) // 2] ^= 1
        flipped.write_bytes(data)
        with pytest.raises(BadCheckpoint, match="is missing"):
            Embedder(str(tmp_path), device="cpu", cache=cache)
        embedders.append(Embedder(checkpoint, device="cpu", cache=cache))
    for embedder in embedders[1:]:
        found = embedder(IMAGES)
        assert np.array_equal(found.features, expected.features)
        assert np.array_equal(found.confidence, expected.confidence)
        assert (embedder.image_size, embedder.feature_dim, embedder.fingerprint) == (
            224,
            16,
            checkpoint.fingerprint,
        )


def test_a_checkpoint_may_be_given_by_its_uri(checkpoint: Checkpoint, folder: Path, tmp_path: Path) -> None:
    assert Embedder(str(folder), device="cpu", engine="torch").fingerprint == checkpoint.fingerprint
    with pytest.raises(BadCheckpoint):
        Embedder(str(tmp_path))


def test_exact_features_have_the_fingerprint_of_the_checkpoint(
    checkpoint: Checkpoint, embedder: Embedder
) -> None:
    assert embedder.precision == "fp32"
    assert embedder.fingerprint == checkpoint.fingerprint


def test_bf16_without_a_passed_check_has_another_fingerprint(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "has_bf16", lambda device: True)
    bad = replace(GOOD, cosine_min=0.99)
    for guard in (None, bad):
        reduced = Embedder(checkpoint, device="cpu", engine="torch", precision="bf16", guard=guard)
        assert reduced.fingerprint == reduced_fingerprint(checkpoint.fingerprint, "bf16")
        assert reduced.fingerprint != checkpoint.fingerprint
    proven = Embedder(checkpoint, device="cpu", engine="torch", precision="bf16", guard=GOOD)
    assert proven.fingerprint == checkpoint.fingerprint


def test_auto_precision_is_the_fastest_of_the_device_that_a_passed_check_covers(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(subject: Checkpoint, guard: PrecisionCheck | None) -> str:
        return Embedder(subject, device="cpu", engine="torch", precision="auto", guard=guard).precision

    monkeypatch.setattr(module, "has_bf16", lambda device: True)
    monkeypatch.setattr(module, "reduced_precisions", lambda device: ("bf16", "tf32"))
    assert chosen(checkpoint, None) == "fp32"
    assert chosen(checkpoint, GOOD) == "bf16"
    with_card = replace(checkpoint, card=replace(checkpoint.card, guard=asdict(GOOD)))
    assert chosen(with_card, None) == "bf16"
    tf32 = replace(GOOD, precision="tf32")
    assert chosen(checkpoint, tf32) == "tf32", "a check of TF32 says nothing of bfloat16, which rounds more"
    monkeypatch.setattr(module, "reduced_precisions", lambda device: ("tf32",))
    assert chosen(checkpoint, GOOD) == "tf32", "bfloat16 rounds more"
    assert Embedder(checkpoint, precision="auto", guard=tf32).fingerprint == checkpoint.fingerprint
    unguarded = Embedder(checkpoint, device="cpu", engine="torch", precision="tf32")
    assert unguarded.fingerprint == reduced_fingerprint(checkpoint.fingerprint, "tf32")
    assert unguarded.fingerprint in fingerprints_of(checkpoint.fingerprint)
    monkeypatch.setattr(module, "has_bf16", lambda device: False)
    monkeypatch.setattr(module, "reduced_precisions", lambda device: ())
    assert chosen(checkpoint, GOOD) == "fp32"
    with pytest.raises(BadSetting, match="bfloat16"):
        Embedder(checkpoint, device="cpu", engine="torch", precision="bf16")


@pytest.mark.parametrize(
    "report",
    [
        replace(GOOD, cosine_min=0.998),
        replace(GOOD, neighbour_agreement=0.97),
        replace(GOOD, pictures=MIN_IMAGES - 1),
    ],
)
def test_each_threshold_of_the_precision_check_counts(report: PrecisionCheck) -> None:
    assert GOOD.passed
    assert not report.passed


def test_the_precision_check_compares_bf16_with_fp32(checkpoint: Checkpoint) -> None:
    if not has_bf16("cpu"):
        with pytest.raises(BadSetting, match="bfloat16"):
            check_precision(checkpoint, IMAGES, device="cpu")
        return
    report = check_precision(checkpoint, IMAGES, device="cpu", engine="torch", batch_size=3)
    assert 0.9 < report.cosine_min <= 1.0001
    assert 0 <= report.neighbour_agreement <= 1
    assert report.pictures == 3
    assert not report.passed  # three images prove nothing


def test_the_precision_check_refuses_images_without_neighbours(checkpoint: Checkpoint) -> None:
    with pytest.raises(BadInput, match="neighbours"):
        check_precision(checkpoint, IMAGES[:1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"device": "cpu", "engine": "onnx"}, "engine is 'onnx'"),
        ({"device": "cpu", "precision": "int8"}, "precision is 'int8'"),
        ({"device": "cpu", "batch_size": 0}, "batch_size is 0"),
        ({"device": "cpu", "threads": -1}, "threads is -1"),
    ],
)
def test_an_invalid_setting_is_refused_with_its_name(
    checkpoint: Checkpoint, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(BadSetting, match=message):
        Embedder(checkpoint, **settings)


def test_folding_does_not_change_the_original(checkpoint: Checkpoint) -> None:
    before = list(checkpoint.network.state_dict())
    folded = folded_copy(checkpoint.network)
    assert not any(".bn." in name for name in folded.state_dict())
    assert list(checkpoint.network.state_dict()) == before


def test_processes_that_share_an_empty_cache_all_start(
    checkpoint: Checkpoint, folder: Path, tmp_path: Path
) -> None:
    code = f"""
from pathlib import Path
from clvr_model.embedder import Embedder
Embedder({str(folder)!r}, batch_size=1, cache=Path({str(tmp_path / "cache")!r}))
"""
    started = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


def test_a_network_that_does_not_compile_runs_as_it_is(
    checkpoint: Checkpoint,
    expected: tuple[torch.Tensor, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(images: torch.Tensor) -> None:
        raise RuntimeError("no C compiler\nmore")

    monkeypatch.setattr(torch, "compile", lambda *arguments, **options: refuse)
    embedder = Embedder(checkpoint, device="cpu", engine="torch", batch_size=2, compiled=True)
    scale = float(expected[0].abs().max())
    assert np.abs(embedder(IMAGES).features - expected[0].numpy()).max() < 1e-4 * scale
    assert [record.message for record in caplog.records] == [
        "torch.compile failed, the network runs uncompiled: no C compiler"
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_gives_the_same_features_for_every_batch_size(checkpoint: Checkpoint, compiled: bool) -> None:
    exact = Embedder(checkpoint, device="cpu", engine="torch")(IMAGES)
    for batch_size in (2, 300):
        embedder = Embedder(checkpoint, device="cuda", batch_size=batch_size, compiled=compiled)
        many = np.concatenate([IMAGES] * (400 // len(IMAGES)))
        for _ in range(2):  # what is left in a room must not reach the next call
            embedded = embedder(many)
            for start in range(0, len(many), len(IMAGES)):
                near = embedded.features[start : start + len(IMAGES)]
                assert np.allclose(near, exact.features, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_without_a_classifier_the_model_is_unknown(engine: str, tmp_path: Path) -> None:
    network = Clvr(0, 16, backbone="efficientnet_lite0", seed=3).eval()
    checkpoint = save_checkpoint(str(tmp_path), network, Card(label_ids=(), labels_used="vehicle"))
    embedded = Embedder(checkpoint, device="cpu", engine=engine, batch_size=2)(IMAGES)
    assert set(embedded.model_id.tolist()) == {UNKNOWN_LABEL}
    assert set(embedded.confidence.tolist()) == {0.0}
    with torch.inference_mode():
        expected, _ = network(to_input(torch.from_numpy(IMAGES)))
    assert np.abs(embedded.features - expected.numpy()).max() < 1e-4 * float(expected.abs().max())
