"""The Ray actor that embeds parts: it loads the model once and embeds one part per call."""

import pickle
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import ray

from clvr_model.memory import malloc_trim, set_mmap_threshold
from index.runs.run import Run
from infra import tracing
from infra.errors import ClvrError, FingerprintMismatch
from infra.store import Store
from infra.tracing import Carrier, span
from jobs.embed.part import ImageEmbedder, PartReport, embed_part
from jobs.runtime import metrics
from jobs.runtime.ray_cluster import root_cause

OpenEmbedder = Callable[[], ImageEmbedder]
# Ray's head keeps a record of each call for a while: frequent reports would fill its memory.
REPORT_SECONDS = 0.25


class PartActor:
    """A Ray Data actor over batches of rows that have the numbers of some parts.

    An outcome is FingerprintMismatch if the model of this node is not the one that the run was started with.
    """

    def __init__(
        self, run: Run, archive: Store, open_embedder: OpenEmbedder, monitor: Any, trace: Carrier
    ) -> None:
        self.run = run
        self.trace = trace
        self.archive = archive
        self.monitor = monitor
        self.open_embedder = open_embedder
        self.embedder: ImageEmbedder | None = None
        # The CPUs that Ray assigned to this actor: one, or the share of a GPU in the CPUs of its node.
        self.num_cpus = max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
        set_mmap_threshold()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Embed parts and return a row of the outcome of each, see `outcome_of`; after an error no further.

        Of a batch that another actor began and did not end, finished parts are left out.
        """
        outcomes: list[bytes] = []
        for part in (int(part) for parts in batch["parts"] for part in parts):
            # Ray Data turns an exception of a task into text. A ClvrError therefore travels as a value.
            try:
                if not self.run.folder.is_done(part):
                    with span("part", parent=self.trace, run=self.run.run_id, part=part):
                        outcomes.append(pickle.dumps(self._embed(part)))
                    tracing.flush()  # Ray ends idle actors without a word
            except ClvrError as error:
                outcomes.append(pickle.dumps(error))
                break
        return {"outcome": outcomes}

    def _embed(self, part: int) -> PartReport:
        try:
            ray.get(self.monitor.start_attempt.remote(part))
            reporter = _ProgressReporter(self.monitor, self.run.run_id, part)
            report = embed_part(
                self.run,
                part,
                self._loaded_embedder(),
                self.archive,
                decoders=self.num_cpus,
                on_progress=reporter.report,
            )
            reporter.report(report, last=True)
            return report
        except ray.exceptions.RayTaskError as error:
            cause = root_cause(error)
            raise (cause if isinstance(cause, ClvrError) else error) from None
        finally:
            # Each part starts its own threads, and malloc keeps the memory that they freed.
            pa.default_memory_pool().release_unused()
            malloc_trim()

    def _loaded_embedder(self) -> ImageEmbedder:
        if self.embedder is None:
            self.embedder = self.open_embedder()
        if self.embedder.fingerprint != self.run.fingerprint:
            raise FingerprintMismatch(
                f"the model on this node gives {self.embedder.fingerprint}, "
                f"run {self.run.run_id} was started with {self.run.fingerprint}",
                remedy="install the same release on every node",
            )
        return self.embedder


class _ProgressReporter:
    """Sends the reports of a part to the monitor, one at a time, so that the model never waits for it."""

    def __init__(self, monitor: Any, run_id: str, part: int) -> None:
        self.monitor = monitor
        self.run_id = run_id
        self.counted = PartReport(part)
        self.pending: Any = None
        self.next_report = 0.0

    def report(self, report: PartReport, *, last: bool = False) -> None:
        """Send a report unless the one before is unanswered; wait for the answer to that of a finished part.

        Raises the monitor's BudgetExceeded.
        """
        if not last and time.monotonic() < self.next_report:
            return
        if self.pending is not None:
            if not last and not ray.wait([self.pending], timeout=0)[0]:
                return
            ray.get(self.pending)
        self.next_report = time.monotonic() + REPORT_SECONDS
        self.pending = self.monitor.report.remote(report, last=last)
        count_part(self.run_id, self.counted, report)
        self.counted = report
        if last:
            ray.get(self.pending)


def outcome_of(row: bytes) -> PartReport:
    """Return the report of a part from a row of a PartActor. Raises the ClvrError that the actor met."""
    outcome: PartReport | ClvrError = pickle.loads(row)  # noqa: S301  # from our own actors, not from storage
    if isinstance(outcome, ClvrError):
        raise outcome
    return outcome


def count_part(run: str, before: PartReport, report: PartReport) -> None:
    """Export the difference between two reports of one part."""
    metrics.count(metrics.CROPS_EMBEDDED, report.embedded - before.embedded, run=run)
    metrics.count(metrics.BYTES_FETCHED, report.bytes - before.bytes, run=run)
    for cause, crops in report.causes.items():
        metrics.count(metrics.CROPS_QUARANTINED, crops - before.causes.get(cause, 0), run=run, cause=cause)
    for name, seconds in asdict(report.seconds - before.seconds).items():
        metrics.count(metrics.STAGE_SECONDS, seconds, run=run, stage=name.removesuffix("_seconds"))
    metrics.set_gauge(metrics.MODEL_BUSY, report.seconds.model_busy_share, run=run)
