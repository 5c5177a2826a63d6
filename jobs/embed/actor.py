"""The Ray actor that embeds parts: it loads the model and starts its decoders once."""

import pickle
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import ray

from clvr_model.malloc import malloc_trim, set_mmap_threshold
from index.runs.run import Run
from infra import tracing
from infra.errors import ClvrError, FingerprintMismatch
from infra.store import Store
from infra.tracing import Carrier
from jobs.embed.part import ImageEmbedder, PartReport, embed_parts, open_decoders
from jobs.runtime import metrics
from jobs.runtime.decoders import Decoders
from jobs.runtime.ray_cluster import root_cause

OpenEmbedder = Callable[[], ImageEmbedder]
# Ray's head keeps a record of each call for a while: frequent reports would fill its memory.
REPORT_SECONDS = 0.25
SWITCH_SECONDS = 0.0005


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
        self.decoders: Decoders | None = None
        set_mmap_threshold()
        # The model's thread must not wait for another one that runs Python: the default is 5 ms.
        sys.setswitchinterval(SWITCH_SECONDS)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Embed parts and return a row of the outcome of each, see `outcome_of`; after an error no further.

        Of a batch that another actor began and did not end, finished parts are left out.
        """
        outcomes: list[bytes] = []
        parts = (int(part) for parts in batch["parts"] for part in parts)
        # Ray Data turns an exception of a task into text. A ClvrError therefore travels as a value.
        try:
            for report in self._embed(parts):
                outcomes.append(pickle.dumps(report))  # an error must not lose them
        except ClvrError as error:
            outcomes.append(pickle.dumps(error))
        return {"outcome": outcomes}

    def _embed(self, parts: Iterable[int]) -> Iterator[PartReport]:
        reporters: dict[int, _ProgressReporter] = {}
        started: dict[int, int] = {}

        def pending() -> Iterator[int]:
            for part in parts:
                if not self.run.folder.is_done(part):
                    ray.get(self.monitor.start_attempt.remote(part))
                    started[part] = time.time_ns()
                    reporters[part] = _ProgressReporter(self.monitor, self.run.run_id, part)
                    yield part

        try:
            embedder = self._loaded_embedder()
            self.decoders = self.decoders or open_decoders(self.archive, embedder, decoders_of_actor())
            for report in embed_parts(
                self.run,
                pending(),
                embedder,
                self.decoders,
                on_progress=lambda report: reporters[report.part].report(report),
            ):
                del reporters[report.part]
                # Parts overlap: one is read and another is written while the model runs.
                tracing.record_span(
                    "part", started.pop(report.part), self.trace, run=self.run.run_id, part=report.part
                )
                tracing.flush()  # Ray ends idle actors without a word
                # malloc and Arrow keep the memory of a part.
                pa.default_memory_pool().release_unused()
                malloc_trim()
                yield report
        except ray.exceptions.RayTaskError as error:
            cause = root_cause(error)
            raise (cause if isinstance(cause, ClvrError) else error) from None

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


def decoders_of_actor() -> int:
    """Return the decoder processes of this actor: the CPUs that Ray assigned to it."""
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))


class _ProgressReporter:
    """Sends the reports of a part to the monitor, one at a time, so that the model never waits for it."""

    def __init__(self, monitor: Any, run_id: str, part: int) -> None:
        self.monitor = monitor
        self.run_id = run_id
        self.counted = PartReport(part)
        self.pending: Any = None
        self.next_report = 0.0

    def report(self, report: PartReport) -> None:
        """Send a report unless the one before is unanswered; wait for the answer to that of a finished part.

        Raises the monitor's BudgetExceeded.
        """
        last = report.finished
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
