"""The precision of a run: decided once, on a sample of the archive, and recorded in the run."""

from dataclasses import asdict, dataclass
from typing import Any

import ray

from clvr_model.precision import MIN_IMAGES, Precision, PrecisionCheck, PrecisionOption, reduced_fingerprint
from index.archive.spool import TableFile
from index.runs.run import Run
from infra.store import Store
from jobs.embed.model import guard_on_sample
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
    uris = crops.spread(SAMPLE_IMAGES)["uri"].to_pylist()
    guard: PrecisionCheck | None = ray.get(
        ray.remote(**resources, max_calls=1)(guard_on_sample).remote(model, uris, archive, option)
    )
    if guard is not None and guard.passed:
        return PrecisionDecision(guard.precision, fingerprint, "the guard passed on this archive", guard)
    if option != "auto":
        return PrecisionDecision(
            option, reduced_fingerprint(fingerprint, option), "asked for, not guarded", guard
        )
    reason = "no faster one in hardware" if guard is None else "the guard failed on this archive"
    return PrecisionDecision("fp32", fingerprint, reason, guard)


def precision_of(run: Run) -> PrecisionDecision:
    """Return the precision that was decided for a run."""
    recorded = run.info.settings
    guard = recorded.get("guard")
    return PrecisionDecision(
        recorded.get("precision", "fp32"), run.fingerprint, "", PrecisionCheck(**guard) if guard else None
    )
