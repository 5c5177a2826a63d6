"""`clvr status`: the accounting of a run, proven from what lies in the object store."""

from dataclasses import dataclass

from index.quarantine import count_causes
from index.runs import Run
from index.shards import check_shard
from infra.settings import Settings
from jobs.which import find_run


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
    parts_pending: int
    shards: int
    causes: dict[str, int]

    def __str__(self) -> str:
        """Several lines for a person."""
        state = "finished" if self.finished else f"unfinished, {self.parts_pending:,} parts pending"
        causes = ", ".join(f"{cause} {count:,}" for cause, count in sorted(self.causes.items()))
        lines = [
            f"run {self.run_id}: {state}",
            f"  archive      {self.archive}",
            f"  fingerprint  {self.fingerprint}",
            f"  listed {self.listed:,} = embedded {self.embedded:,} + quarantined {self.quarantined:,} "
            f"+ duplicates {self.duplicates:,}" + ("" if self.finished else " + pending"),
        ]
        return "\n".join([*lines, f"  quarantine   {causes}"] if causes else lines)


def run_status(run_id: str, settings: Settings) -> RunStatus:
    """Read a run back: every shard of a finished one is checked whole.

    Raises CorruptShard for a shard that is not what the run wrote.
    """
    run = find_run(run_id, settings, finished=False)
    quarantine = run.quarantine()
    return RunStatus(
        run_id=run.run_id,
        finished=run.finished,
        archive=run.info.archive,
        fingerprint=run.fingerprint,
        listed=run.info.listed,
        embedded=_checked_rows(run) if run.finished else 0,
        quarantined=quarantine.num_rows,
        duplicates=run.info.duplicates,
        parts_pending=len(run.pending_parts()),
        shards=run.info.shards,
        causes=dict(count_causes(quarantine)),
    )


def _checked_rows(run: Run) -> int:
    return sum(
        check_shard(run.store, facts.key, fingerprint=run.fingerprint, expected=facts).rows
        for facts in run.shards()
    )
