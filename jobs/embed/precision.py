"""The precision of a run: decided once, on a sample of the archive, and recorded in the run."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from clvr_model.checkpoint import Checkpoint, load_checkpoint
from clvr_model.embedder import (
    MIN_IMAGES,
    Embedder,
    PrecisionCheck,
    PrecisionOption,
    check_precision,
    reduced_fingerprint,
)
from clvr_model.engines import Precision, default_cache, reduced_precisions
from clvr_model.preprocessing import IMAGE_SIZE
from index.archive.reader import ArchiveReader
from index.archive.spool import TableFile
from index.schema import EMBEDDING_DIM
from infra.errors import BadCheckpoint
from infra.store import Store
from jobs.runtime.image_stream import ImageFailure, stream_images
from jobs.runtime.ray_cluster import num_gpus

# More than the guard needs, because some may be unreadable.
SAMPLE_IMAGES = MIN_IMAGES + 16


@dataclass(frozen=True, slots=True)
class PrecisionDecision:
    """The precision of a run, the reason, and the fingerprint of its embeddings."""

    precision: Precision
    fingerprint: str
    reason: str
    guard: PrecisionCheck | None = None

    def as_settings(self) -> dict[str, Any]:
        """Return the decision as run.json keeps it."""
        return {
            "precision": self.precision,
            "precision_reason": self.reason,
            "guard": asdict(self.guard) if self.guard else None,
        }


def default_precision() -> PrecisionOption:
    """Return the precision of runs that name none: a GPU is several times faster at a reduced one."""
    return "auto" if num_gpus() else "fp32"


def open_model(model: str, decision: PrecisionDecision) -> Embedder:
    """Load the model of a run on the device that Ray assigned to this actor, at the run's precision."""
    device = _device()
    return Embedder(
        model,
        device=device,
        precision=decision.precision,
        guard=decision.guard,
        cache=default_cache(),
        compiled=device == "cuda",
    )


def compile_model(model: str) -> None:
    """Compile a checkpoint for this node's CPU at full precision, and leave it in the cache."""
    Embedder(model, device="cpu", cache=default_cache())


def choose_precision(
    option: PrecisionOption,
    model: str,
    fingerprint: str,
    crops: TableFile,
    archive: Store,
    resources: dict[str, float],
) -> PrecisionDecision:
    """Choose the precision of a run; unless the option is fp32, a guard compares both on the cluster.

    fingerprint: that of the checkpoint. resources: those of a model actor. 'auto' is the fastest precision
    that passes, and fp32 if none does. A precision that the device lacks raises BadSetting.
    """
    if option == "fp32":
        return PrecisionDecision("fp32", fingerprint, "asked for")
    guard: PrecisionCheck | None = ray.get(
        ray.remote(**resources, max_calls=1)(guard_on_sample).remote(
            model, crops.spread(SAMPLE_IMAGES).select(["uri", "etag"]), archive, option
        )
    )
    if guard is not None and guard.passed:
        return PrecisionDecision(guard.precision, fingerprint, "the guard passed on this archive", guard)
    if option != "auto":
        return PrecisionDecision(
            option, reduced_fingerprint(fingerprint, option), "asked for, not guarded", guard
        )
    reason = "no faster one in hardware" if guard is None else "the guard failed on this archive"
    return PrecisionDecision("fp32", fingerprint, reason, guard)


def load_for_runs(model: str) -> Checkpoint:
    """Load a checkpoint to embed with. Raises BadCheckpoint if its features have another length than rows."""
    checkpoint = load_checkpoint(model)
    length = checkpoint.network.architecture.feature_dim
    if length != EMBEDDING_DIM:
        raise BadCheckpoint(
            f"the features of {model} have {length:,} numbers, the rows of a run {EMBEDDING_DIM:,}",
            remedy=f"Train it with feature_dim={EMBEDDING_DIM}; shorter vectors: `clvr fit-transform`.",
        )
    return checkpoint


def guard_on_sample(
    model: str, crops: pa.Table, archive: Store, option: PrecisionOption
) -> PrecisionCheck | None:
    """Compare a reduced precision with fp32 on crops spread over the manifest.

    crops: columns uri and etag. option: the precision, or 'auto' for those of the device, the fastest first,
    until one passes; None if it has none. Raises BadSetting for a precision that the device lacks.
    """
    device = _device()
    candidates = reduced_precisions(device) if option == "auto" else (option,)
    if not candidates:
        return None
    checkpoint = load_checkpoint(model)
    sample = sample_images(crops, archive, SAMPLE_IMAGES, checkpoint.network.architecture.image_size)
    for precision in candidates:
        if len(sample) < 2:
            return PrecisionCheck(0.0, 0.0, len(sample), precision)
        check = check_precision(checkpoint, sample, precision=precision, device=device, cache=default_cache())
        if check.passed:
            break
    return check


def _device() -> str:
    """Return the device that Ray assigned to this process."""
    return "cuda" if ray.get_gpu_ids() else "cpu"


def sample_images(
    crops: pa.Table, archive: Store, count: int, size: int = IMAGE_SIZE
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 (n, size, size, 3) of up to `count` crops spread evenly, without those that cannot be read."""
    rows = np.unique(np.linspace(0, crops.num_rows - 1, min(count, crops.num_rows)).astype(np.int64))
    uris = crops["uri"].take(pa.array(rows)).to_pylist()
    loaded = sorted(stream_images(ArchiveReader(archive), uris, size=size), key=lambda pair: pair[0])
    images = [image for _, image in loaded if not isinstance(image, ImageFailure)]
    return np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)
