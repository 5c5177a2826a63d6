"""A checkpoint -> the fastest callable that this device has, and the rule by which it may be less exact.

Precision and fingerprint, the rule: 'fp32' is the reference and bears the checkpoint's fingerprint. 'bf16'
bears it too if a guard (below) has shown that its features may stand beside fp32 ones; without that proof its
fingerprint is another, so that nothing can mix the two. Engines and batch sizes are not in the fingerprint:
they agree to about 1e-5, far below what the guard allows.
"""

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from clvr_model.checkpoint import FINGERPRINT_LENGTH, Checkpoint, load_checkpoint
from clvr_model.engines import Engine, OpenVinoEngine, Precision, TorchEngine, has_bf16, openvino
from clvr_model.preprocessing import IMAGE_SIZE
from infra.errors import BadInput, BadSetting

GUARD_COSINE = 0.999
GUARD_AGREEMENT = 0.98
GUARD_PICTURES = 64

CPU_BATCH = 8
CUDA_BATCH = 256

_PRECISIONS: tuple[Precision, Precision] = ("fp32", "bf16")


@dataclass(frozen=True, slots=True)
class Embedded:
    """One row a picture: features (n, feature_dim), predicted original label (n,) and its softmax (n,)."""

    features: NDArray[np.float32]
    model_id: NDArray[np.int32]
    confidence: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class GuardReport:
    """bf16 against fp32 on sample pictures.

    cosine_min: the worst cosine between a picture's two features. neighbour_agreement: share of pictures
    whose nearest other picture (L2 among fp32 features) stays the same if their own feature is bf16.
    """

    cosine_min: float
    neighbour_agreement: float
    pictures: int

    @property
    def passed(self) -> bool:
        """Whether all three bars are met: GUARD_COSINE, GUARD_AGREEMENT, GUARD_PICTURES."""
        return (
            self.cosine_min >= GUARD_COSINE
            and self.neighbour_agreement >= GUARD_AGREEMENT
            and self.pictures >= GUARD_PICTURES
        )

    @classmethod
    def of_card(cls, guard: Mapping[str, Any] | None) -> "GuardReport | None":
        """The report that a model card carries, if it does (a dict made by `dataclasses.asdict`)."""
        return cls(**guard) if guard else None


class Embedder:
    """uint8 pictures -> features and predicted models, for any number of pictures. Safe to share by threads.

    checkpoint: a Checkpoint or the URI of one. device: 'auto', 'cpu', 'cuda' or 'cuda:N'. engine: 'auto',
    'openvino' (CPU only) or 'torch'. precision: 'fp32'; 'bf16'; 'auto' takes bf16 where the device has it in
    hardware and the guard has passed. guard: a report made on pictures of this archive; without it the
    card's counts. threads: CPU threads a call, 0 for all. cache: folder for compiled models, None for none
    (`engines.default_cache()` is the usual place). compiled: torch.compile, which pays in long runs on GPUs.
    Raises BadSetting for what this machine cannot do, BadCheckpoint as `load_checkpoint` does.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | str,
        *,
        device: str = "auto",
        engine: Literal["auto", "openvino", "torch"] = "auto",
        precision: Literal["fp32", "bf16", "auto"] = "fp32",
        batch_size: int | None = None,
        threads: int = 1,
        guard: GuardReport | None = None,
        cache: Path | None = None,
        compiled: bool = False,
    ) -> None:
        if isinstance(checkpoint, str):
            checkpoint = load_checkpoint(checkpoint)
        self.device = _device(device)
        self.engine = _engine(engine, self.device)
        guard = guard or GuardReport.of_card(checkpoint.card.guard)
        self.guarded = guard is not None and guard.passed
        self.precision = _precision(precision, self.device, guarded=self.guarded)
        default = CPU_BATCH if self.device == "cpu" else CUDA_BATCH
        self.batch_size = default if batch_size is None else batch_size
        if self.batch_size < 1 or threads < 0:
            raise BadSetting(
                f"batch_size is {self.batch_size} and threads is {threads}; they start at 1 and at 0"
            )
        self.feature_dim = checkpoint.network.architecture.feature_dim
        self.fingerprint = (
            checkpoint.fingerprint
            if self.precision == "fp32" or self.guarded
            else reduced_fingerprint(checkpoint.fingerprint, self.precision)
        )
        self._label_ids = np.asarray(checkpoint.label_ids, dtype=np.int32)
        self._lock = threading.Lock()
        self._run: Engine
        if self.engine == "openvino":
            self._run = OpenVinoEngine(
                checkpoint.network,
                key=checkpoint.card.weights_sha256[:32] + checkpoint.fingerprint,
                batch_size=self.batch_size,
                precision=self.precision,
                threads=threads,
                cache=cache,
            )
        else:
            self._run = TorchEngine(
                checkpoint.network,
                device=self.device,
                precision=self.precision,
                threads=threads,
                compiled=compiled,
            )

    def __call__(self, pictures: NDArray[np.uint8]) -> Embedded:
        """uint8 (n, 299, 299, 3) RGB, as `preprocessing.decode` gives it, n may be 0.

        Raises BadInput for another shape or type.
        """
        if pictures.dtype != np.uint8 or pictures.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
            expected = f"expected uint8 (n, {IMAGE_SIZE}, {IMAGE_SIZE}, 3)"
            raise BadInput(f"pictures are {pictures.dtype} {pictures.shape}, {expected}")
        count = len(pictures)
        features = np.empty((count, self.feature_dim), np.float32)
        logits = np.empty((count, len(self._label_ids)), np.float32)
        for start in range(0, count, self.batch_size):
            chunk = np.ascontiguousarray(pictures[start : start + self.batch_size])
            stop = start + len(chunk)
            if len(chunk) < self.batch_size:  # engines know one shape only
                missing = self.batch_size - len(chunk)
                chunk = np.concatenate([chunk, np.zeros((missing, *chunk.shape[1:]), np.uint8)])
            with self._lock:
                feature, logit = self._run(chunk)
                features[start:stop], logits[start:stop] = feature[: stop - start], logit[: stop - start]
        return Embedded(features, *self._predicted(logits))

    def _predicted(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        best = logits.argmax(axis=1)
        # The softmax of the largest logit, written so that nothing overflows.
        confidence = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
        return self._label_ids[best], confidence.astype(np.float32)


def precision_guard(
    checkpoint: Checkpoint | str,
    sample: NDArray[np.uint8],
    *,
    device: str = "auto",
    engine: Literal["auto", "openvino", "torch"] = "auto",
    batch_size: int | None = None,
    threads: int = 1,
    cache: Path | None = None,
) -> GuardReport:
    """Embed the sample, uint8 (n, 299, 299, 3), in fp32 and in bf16, and compare. Settings as for Embedder.

    Use a trained network and at least GUARD_PICTURES pictures of the archive: features of random weights
    hardly differ between pictures, and their neighbours say nothing. Raises BadInput for fewer than two
    pictures, BadSetting where the device has no bf16.
    """
    if len(sample) < 2:
        raise BadInput(f"{len(sample)} sample pictures cannot show neighbours; give {GUARD_PICTURES} or more")
    if isinstance(checkpoint, str):
        checkpoint = load_checkpoint(checkpoint)
    if not has_bf16(_device(device)):
        raise BadSetting(f"{_device(device)} has no bfloat16 in hardware", remedy="embed with fp32")

    def features(precision: Precision) -> torch.Tensor:
        embedder = Embedder(
            checkpoint,
            device=device,
            engine=engine,
            precision=precision,
            batch_size=batch_size,
            threads=threads,
            cache=cache,
        )
        return torch.from_numpy(embedder(sample).features)

    exact, reduced = features("fp32"), features("bf16")
    cosine = torch.nn.functional.cosine_similarity(exact, reduced)
    nearest = [
        torch.cdist(queries, exact, compute_mode="donot_use_mm_for_euclid_dist")
        .fill_diagonal_(torch.inf)
        .argmin(dim=1)
        for queries in (exact, reduced)
    ]
    return GuardReport(float(cosine.min()), float((nearest[0] == nearest[1]).float().mean()), len(sample))


def reduced_fingerprint(fingerprint: str, precision: Precision) -> str:
    """The fingerprint of features that were made at a reduced precision and not guarded."""
    return hashlib.sha256(f"{fingerprint}:{precision}".encode()).hexdigest()[:FINGERPRINT_LENGTH]


def _device(asked: str) -> str:
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = asked.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise BadSetting(f"device is {asked!r}", remedy="choose auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise BadSetting(f"device is {asked!r}, this machine has {torch.cuda.device_count()} CUDA devices")
    return "cpu" if kind == "cpu" else asked


def _engine(asked: str, device: str) -> Literal["openvino", "torch"]:
    if asked not in ("auto", "openvino", "torch"):
        raise BadSetting(f"engine is {asked!r}", remedy="choose auto, openvino or torch")
    usable = device == "cpu" and openvino() is not None
    if asked == "openvino" and not usable:
        raise BadSetting(
            f"engine 'openvino' is not to be had on {device} here", remedy="choose auto or torch"
        )
    return "openvino" if usable and asked != "torch" else "torch"


def _precision(asked: str, device: str, *, guarded: bool) -> Precision:
    if asked not in (*_PRECISIONS, "auto"):
        raise BadSetting(f"precision is {asked!r}", remedy="choose fp32, bf16 or auto")
    if asked == "bf16" and not has_bf16(device):
        raise BadSetting(f"{device} has no bfloat16 in hardware", remedy="choose fp32 or auto")
    if asked == "bf16" or (asked == "auto" and guarded and has_bf16(device)):
        return "bf16"
    return "fp32"
