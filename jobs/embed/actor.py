"""The Ray actor that embeds parts: the model is loaded once, then each call does one part."""

import pickle
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import ray

from clvr_model.memory import malloc_trim, set_mmap_threshold
from index.runs.run import Run
from infra.errors import ClvrError, FingerprintMismatch
from infra.store import Store
from jobs.embed.part import EmbedsPictures, PartReport, embed_part
from jobs.runtime import metrics
from jobs.runtime.ray_cluster import root_cause

OpenEmbedder = Callable[[], EmbedsPictures]
# Ray's head remembers every call for a while: many reports a second would be its memory.
REPORT_SECONDS = 0.25
_STAGES = ("waiting", "model", "writing", "fetch", "decode")


class PartActor:
    """A Ray Data actor over batches of one part number.

    Answers FingerprintMismatch if the model here is not the one that the run was started with.
    """

    def __init__(self, run: Run, archive: Store, open_embedder: OpenEmbedder, board: Any) -> None:
        self.run = run
        self.archive = archive
        self.board = board
        self.open_embedder = open_embedder
        self.embedder: EmbedsPictures | None = None
        # The cores that Ray's books give this actor: one, or a GPU's share of its node.
        self.cores = max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
        set_mmap_threshold()

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Take rows of part numbers, give rows of outcomes; see `outcome_of`."""
        return {"outcome": [self._outcome(int(part)) for part in batch["part"]]}

    def _outcome(self, part: int) -> bytes:
        # Ray Data wraps what a task raises until our own error is only text in it: ours travel as values.
        try:
            return pickle.dumps(self._embed(part))
        except ClvrError as error:
            return pickle.dumps(error)

    def _model(self) -> EmbedsPictures:
        if self.embedder is None:
            self.embedder = self.open_embedder()
        if self.embedder.fingerprint != self.run.fingerprint:
            raise FingerprintMismatch(
                f"the model on this node gives {self.embedder.fingerprint}, "
                f"run {self.run.run_id} was started with {self.run.fingerprint}",
                remedy="install the same release on every node",
            )
        return self.embedder

    def _embed(self, part: int) -> PartReport:
        try:
            ray.get(self.board.begin.remote(part))
            teller = _ProgressReporter(self.board, self.run.run_id, part)
            report = embed_part(
                self.run,
                part,
                self._model(),
                self.archive,
                decoders=self.cores,
                on_progress=teller.tell,
            )
            teller.tell(report, wait=True)
            return report
        except ray.exceptions.RayTaskError as error:
            cause = root_cause(error)
            raise (cause if isinstance(cause, ClvrError) else error) from None
        finally:
            # Each part has threads of its own, and malloc keeps what they freed.
            pa.default_memory_pool().release_unused()
            malloc_trim()


class _ProgressReporter:
    """Tells the board how far a part is, one report on its way at a time: the model never waits for it."""

    def __init__(self, board: Any, run_id: str, part: int) -> None:
        self.board = board
        self.run_id = run_id
        self.counted = PartReport(part)
        self.underway: Any = None
        self.next = 0.0

    def tell(self, report: PartReport, *, wait: bool = False) -> None:
        """Send a report unless the one before is unanswered. An answer may be an order to stop: it raises."""
        if not wait and time.monotonic() < self.next:
            return
        if self.underway is not None:
            if not wait and not ray.wait([self.underway], timeout=0)[0]:
                return
            ray.get(self.underway)
        self.next = time.monotonic() + REPORT_SECONDS
        self.underway = self.board.report.remote(report)
        count_part(self.run_id, self.counted, report)
        self.counted = report
        if wait:
            ray.get(self.underway)


def outcome_of(row: bytes) -> PartReport:
    """Read what an actor of this job said of a part: its report. An error that it met is raised here."""
    outcome: PartReport | ClvrError = pickle.loads(row)  # noqa: S301  # from our own actors, not from storage
    if isinstance(outcome, ClvrError):
        raise outcome
    return outcome


def count_part(run: str, before: PartReport, now: PartReport) -> None:
    """Count what came between two reports of one part."""
    metrics.count(metrics.CROPS_EMBEDDED, now.embedded - before.embedded, run=run)
    metrics.count(metrics.BYTES_FETCHED, now.bytes - before.bytes, run=run)
    for cause, crops in now.causes.items():
        metrics.count(metrics.CROPS_QUARANTINED, crops - before.causes.get(cause, 0), run=run, cause=cause)
    for stage in _STAGES:
        name = f"{stage}_seconds"
        metrics.count(metrics.STAGE_SECONDS, getattr(now, name) - getattr(before, name), run=run, stage=stage)
    spent = now.waiting_seconds + now.model_seconds + now.writing_seconds
    metrics.set_gauge(metrics.MODEL_BUSY, now.model_seconds / spent if spent else 0.0, run=run)
