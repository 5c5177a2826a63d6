"""`clvr status`: the counts of a run, checked against the objects in its folder."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from index.runs.accounting import count_causes
from index.runs.balance import RunBalance, check_run
from index.runs.run import Run
from index.runs.shards import check_bytes
from index.runs.timings import Timings, read_timings, sum_timings
from infra.settings import Settings
from jobs.runtime.resolve import find_run


@dataclass(frozen=True, slots=True)
class RunStatus:
    """The state of a run; the counts of a finished run were read back from its shards."""

    run_id: str
    finished: bool
    archive: str
    fingerprint: str
    listed: int
    embedded: int
    quarantined: int
    duplicates: int
    pending: int
    """Crops of parts that are not written yet: 0 in a finished run."""
    parts_pending: int
    shards: int
    causes: dict[str, int]
    precision: str
    seconds: dict[str, float]
    """Seconds by phase and stage, over all attempts that were not killed; empty without any."""
    bottleneck: str

    def to_text(self) -> str:
        """Return the status as several lines."""
        state = "finished" if self.finished else f"unfinished, {self.parts_pending:,} parts pending"
        causes = ", ".join(f"{cause} {count:,}" for cause, count in sorted(self.causes.items()))
        lines = [
            f"run {self.run_id}: {state}",
            f"  archive      {self.archive}",
            f"  fingerprint  {self.fingerprint} ({self.precision})",
            f"  {self._balance().to_text(f'run {self.run_id}')}",
        ]
        if causes:
            lines.append(f"  quarantine   {causes}")
        if self.seconds:
            split = ", ".join(f"{stage} {seconds:,.1f} s" for stage, seconds in self.seconds.items())
            lines += [f"  time         {split}", f"  bottleneck   {self.bottleneck}"]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the status as a JSON object."""
        return asdict(self)

    def _balance(self) -> RunBalance:
        pending = None if self.finished else self.pending
        return RunBalance(self.listed, self.embedded, self.quarantined, self.duplicates, pending)


def run_status(run_id: str, settings: Settings) -> RunStatus:
    """Read the state of a run; every shard of a finished run is read in full, and compared with its SHA-256.

    Raises CorruptObject for an object that differs from its record, and CountMismatch if the counts of its
    objects and documents disagree.
    """
    run = find_run(run_id, settings, finished=False)
    balance = check_run(run)
    if run.finished:
        _check_shards(run)
    timings = sum_timings(read_timings(run.folder))
    return RunStatus(
        run_id=run.run_id,
        finished=run.finished,
        archive=run.info.archive,
        fingerprint=run.fingerprint,
        listed=balance.listed,
        embedded=balance.embedded,
        quarantined=balance.quarantined,
        duplicates=balance.duplicates,
        pending=balance.pending or 0,
        parts_pending=len(run.pending_parts()),
        shards=run.info.shards,
        causes=dict(run.summary.causes if run.finished else count_causes(run.quarantine())),
        precision=run.info.settings.get("precision", "fp32"),
        seconds=_seconds(timings) if timings else {},
        bottleneck=timings.bottleneck() if timings else "",
    )


def _seconds(timings: Timings) -> dict[str, float]:
    """Wall seconds of the job's phases, then seconds of all actors together."""
    return {
        "plan": timings.planning_seconds,
        "to first row": timings.startup_seconds,
        "embed": timings.embedding_seconds,
        "compact": timings.compacting_seconds,
        "finish": timings.finishing_seconds,
        "actors in model": timings.model_seconds,
        "actors waiting for pictures": timings.waiting_seconds,
        "actors writing": timings.writing_seconds,
        "threads fetching": timings.fetch_seconds,
        "threads decoding": timings.decode_seconds,
    }


def _check_shards(run: Run) -> None:
    shards = run.shards()
    with ThreadPoolExecutor(max(1, min(len(shards), os.cpu_count() or 1))) as pool:
        for _ in pool.map(partial(check_bytes, run.store), shards):
            pass
