"""The precision of a run: decided once, on a sample of the archive, and recorded in the run."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray

from clvr_model.checkpoint import load_checkpoint
from clvr_model.embedder import MIN_IMAGES, Embedder, PrecisionCheck, check_precision, reduced_fingerprint
from clvr_model.engines import default_cache, has_bf16
from clvr_model.preprocessing import IMAGE_SIZE
from index.archive.reader import ArchiveReader
from index.archive.spool import TableFile
from infra.store import Store
from jobs.runtime.image_stream import ImageFailure, stream_images

# More than the guard needs, because some may be unreadable.
SAMPLE_IMAGES = MIN_IMAGES + 16

PrecisionOption = Literal["fp32", "bf16", "auto"]


@dataclass(frozen=True, slots=True)
class PrecisionDecision:
    """The precision of a run, the reason, and the fingerprint of its embeddings."""

    precision: Literal["fp32", "bf16"]
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


def open_model(model: str, decision: PrecisionDecision) -> Embedder:
    """Load the model of a run on the device that Ray assigned to this actor, at the run's precision."""
    return Embedder(
        model,
        device="cuda" if ray.get_gpu_ids() else "cpu",
        precision=decision.precision,
        guard=decision.guard,
        cache=default_cache(),
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

    fingerprint: that of the checkpoint. resources: those of a model actor. Without bf16 in hardware, 'auto'
    means fp32, and 'bf16' raises BadSetting.
    """
    if option == "fp32":
        return PrecisionDecision("fp32", fingerprint, "asked for")
    guard: PrecisionCheck | None = ray.get(
        ray.remote(**resources, max_calls=1)(guard_on_sample).remote(
            model, crops.spread(SAMPLE_IMAGES).select(["uri", "etag"]), archive, required=option == "bf16"
        )
    )
    if guard is not None and guard.passed:
        return PrecisionDecision("bf16", fingerprint, "the guard passed on this archive", guard)
    if option == "bf16":
        return PrecisionDecision(
            "bf16", reduced_fingerprint(fingerprint, "bf16"), "asked for, not guarded", guard
        )
    reason = "no bf16 in hardware" if guard is None else "the guard failed on this archive"
    return PrecisionDecision("fp32", fingerprint, reason, guard)


def guard_on_sample(model: str, crops: pa.Table, archive: Store, *, required: bool) -> PrecisionCheck | None:
    """Compare bf16 with fp32 on crops spread over the manifest; None if the device has no bf16.

    crops: columns uri and etag. With `required`, a device without bf16 raises BadSetting.
    """
    device = "cuda" if ray.get_gpu_ids() else "cpu"
    if not has_bf16(device) and not required:
        return None
    checkpoint = load_checkpoint(model)
    sample = sample_images(crops, archive, SAMPLE_IMAGES, checkpoint.network.architecture.image_size)
    if len(sample) < 2:
        return PrecisionCheck(0.0, 0.0, len(sample))
    return check_precision(checkpoint, sample, device=device, cache=default_cache())


def sample_images(
    crops: pa.Table, archive: Store, count: int, size: int = IMAGE_SIZE
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 (n, size, size, 3) of up to `count` crops spread evenly, without those that cannot be read."""
    rows = np.unique(np.linspace(0, crops.num_rows - 1, min(count, crops.num_rows)).astype(np.int64))
    uris = crops["uri"].take(pa.array(rows)).to_pylist()
    loaded = sorted(stream_images(ArchiveReader(archive), uris, size=size), key=lambda pair: pair[0])
    images = [image for _, image in loaded if not isinstance(image, ImageFailure)]
    return np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)
