"""`clvr status`: the accounting of a run, proven from what lies in the object store."""

from dataclasses import dataclass

from index.runs.accounting import count_causes
from index.runs.run import Run
from index.runs.shards import check_shard
from index.runs.timings import Timings, read_timings, sum_timings
from infra.settings import Settings
from jobs.runtime.resolve import find_run


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Where a run stands; every count of a finished run was read back from its shards."""

    run_id: str
    finished: bool
    archive: str
    fingerprint: str
    listed: int
    embedded: int
    quarantined: int
    duplicates: int
    pending: int
    """Crops of parts that are not written yet: 0 of a finished run."""
    parts_pending: int
    shards: int
    causes: dict[str, int]
    precision: str
    seconds: dict[str, float]
    """Where the time went, over all attempts that ended by themselves; empty without any."""
    bottleneck: str

    def __str__(self) -> str:
        """Several lines for a person."""
        state = "finished" if self.finished else f"unfinished, {self.parts_pending:,} parts pending"
        causes = ", ".join(f"{cause} {count:,}" for cause, count in sorted(self.causes.items()))
        lines = [
            f"run {self.run_id}: {state}",
            f"  archive      {self.archive}",
            f"  fingerprint  {self.fingerprint} ({self.precision})",
            f"  listed {self.listed:,} = embedded {self.embedded:,} + quarantined {self.quarantined:,} "
            f"+ duplicates {self.duplicates:,}" + ("" if self.finished else f" + pending {self.pending:,}"),
        ]
        if causes:
            lines.append(f"  quarantine   {causes}")
        if self.seconds:
            split = ", ".join(f"{stage} {seconds:,.1f} s" for stage, seconds in self.seconds.items())
            lines += [f"  time         {split}", f"  bottleneck   {self.bottleneck}"]
        return "\n".join(lines)


def run_status(run_id: str, settings: Settings) -> RunStatus:
    """Read a run back: every shard of a finished one is checked whole.

    Raises CorruptShard for a shard that is not what the run wrote.
    """
    run = find_run(run_id, settings, finished=False)
    quarantine = run.quarantine()
    pending = run.pending_rows()
    done = run.info.rows - pending - quarantine.num_rows
    times = sum_timings(read_timings(run.folder))
    return RunStatus(
        run_id=run.run_id,
        finished=run.finished,
        archive=run.info.archive,
        fingerprint=run.fingerprint,
        listed=run.info.listed,
        embedded=_checked_rows(run) if run.finished else done,
        quarantined=quarantine.num_rows,
        duplicates=run.info.duplicates,
        pending=pending,
        parts_pending=len(run.pending_parts()),
        shards=run.info.shards,
        causes=dict(count_causes(quarantine)),
        precision=run.info.settings.get("precision", "fp32"),
        seconds=_seconds(times) if times else {},
        bottleneck=times.bottleneck() if times else "",
    )


def _seconds(times: Timings) -> dict[str, float]:
    """Wall seconds of the job's phases, then seconds of all actors together."""
    return {
        "plan": times.planning_seconds,
        "to first row": times.startup_seconds,
        "embed": times.embedding_seconds,
        "compact": times.compacting_seconds,
        "finish": times.finishing_seconds,
        "actors in model": times.model_seconds,
        "actors waiting for pictures": times.waiting_seconds,
        "actors writing": times.writing_seconds,
        "threads fetching": times.fetch_seconds,
        "threads decoding": times.decode_seconds,
    }


def _checked_rows(run: Run) -> int:
    return sum(
        check_shard(run.store, facts.key, fingerprint=run.fingerprint, expected=facts).rows
        for facts in run.shards()
    )
