"""The precision of a run: decided once, on a sample of the archive itself, and written into the run."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray

from clvr_model.checkpoint import load_checkpoint
from clvr_model.embedder import MIN_IMAGES, Embedder, PrecisionCheck, check_precision, reduced_fingerprint
from clvr_model.engines import default_cache, has_bf16
from index.archive.reader import ArchiveReader
from infra.store import Store
from jobs.runtime.image_stream import ImageFailure, stream_images

# A few more than the guard needs, because some may be unreadable.
SAMPLE_PICTURES = MIN_IMAGES + 16

PrecisionOption = Literal["fp32", "bf16", "auto"]


@dataclass(frozen=True, slots=True)
class PrecisionDecision:
    """What precision a run has, why, and the fingerprint that its embeddings bear."""

    precision: Literal["fp32", "bf16"]
    fingerprint: str
    reason: str
    guard: PrecisionCheck | None = None

    def as_settings(self) -> dict[str, Any]:
        """The decision as it stands in run.json."""
        return {
            "precision": self.precision,
            "precision_reason": self.reason,
            "guard": asdict(self.guard) if self.guard else None,
        }


def open_model(model: str, decision: PrecisionDecision) -> Embedder:
    """Load the model of a run on the device that Ray gave this actor, at the run's precision."""
    return Embedder(
        model,
        device="cuda" if ray.get_gpu_ids() else "cpu",
        precision=decision.precision,
        guard=decision.guard,
        cache=default_cache(),
    )


def compile_model(model: str) -> None:
    """Leave a checkpoint compiled for this node's CPU in the cache, at the exact precision."""
    Embedder(model, device="cpu", cache=default_cache())


def choose_precision(
    asked: PrecisionOption,
    model: str,
    fingerprint: str,
    manifest: pa.Table,
    archive: Store,
    resources: dict[str, float],
) -> PrecisionDecision:
    """Decide, where bf16 is asked for or possible, by a guard on a device of the cluster.

    fingerprint: the checkpoint's. resources: what a model actor asks of Ray. Without bf16 in hardware 'auto'
    means fp32, and 'bf16' raises BadSetting.
    """
    if asked == "fp32":
        return PrecisionDecision("fp32", fingerprint, "asked for")
    guard: PrecisionCheck | None = ray.get(
        ray.remote(**resources, max_calls=1)(guard_on_sample).remote(
            model, manifest.select(["uri", "etag"]), archive, needed=asked == "bf16"
        )
    )
    if guard is not None and guard.passed:
        return PrecisionDecision("bf16", fingerprint, "the guard passed on this archive", guard)
    if asked == "bf16":
        return PrecisionDecision(
            "bf16", reduced_fingerprint(fingerprint, "bf16"), "asked for, not guarded", guard
        )
    why = "no bf16 in hardware" if guard is None else "the guard failed on this archive"
    return PrecisionDecision("fp32", fingerprint, why, guard)


def guard_on_sample(model: str, crops: pa.Table, archive: Store, *, needed: bool) -> PrecisionCheck | None:
    """Compare bf16 with fp32 on crops spread over the manifest; None where the device has no bf16.

    crops: columns uri and etag. With `needed`, a device without bf16 raises BadSetting.
    """
    device = "cuda" if ray.get_gpu_ids() else "cpu"
    if not has_bf16(device) and not needed:
        return None
    sample = sample_pictures(crops, archive, SAMPLE_PICTURES)
    if len(sample) < 2:
        return PrecisionCheck(0.0, 0.0, len(sample))
    return check_precision(load_checkpoint(model), sample, device=device, cache=default_cache())


def sample_pictures(crops: pa.Table, archive: Store, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 (n, 299, 299, 3) of up to `count` crops spread evenly; those that cannot be read are left out."""
    rows = np.unique(np.linspace(0, crops.num_rows - 1, min(count, crops.num_rows)).astype(np.int64))
    uris = crops["uri"].take(pa.array(rows)).to_pylist()
    found = sorted(stream_images(ArchiveReader(archive), uris), key=lambda pair: pair[0])
    pictures = [picture for _, picture in found if not isinstance(picture, ImageFailure)]
    return np.stack(pictures) if pictures else np.zeros((0, 299, 299, 3), np.uint8)
