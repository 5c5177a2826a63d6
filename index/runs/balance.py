"""The balance of a run: its counts, from sources that do not depend on each other."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from index.runs.accounting import checked_sum, manifest_ids, verify_shards
from index.runs.folder import RunFolder
from index.runs.run import Run
from infra.errors import CountMismatch

_MAX_EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class RunBalance:
    """Counts of crops: listed = embedded + quarantined + duplicates, and + pending of an unfinished run."""

    listed: int
    embedded: int
    quarantined: int
    duplicates: int
    pending: int | None = None

    def to_text(self, where: str) -> str:
        """Return the sum as one line. Raises CountMismatch if it does not add up."""
        terms = [
            ("embedded", self.embedded),
            ("quarantined", self.quarantined),
            ("duplicates", self.duplicates),
        ]
        pending = [] if self.pending is None else [("pending", self.pending)]
        return checked_sum(where, ("listed", self.listed), *terms, *pending)

    def __add__(self, other: "RunBalance") -> "RunBalance":
        """Add the counts of two finished runs."""
        return RunBalance(
            self.listed + other.listed,
            self.embedded + other.embedded,
            self.quarantined + other.quarantined,
            self.duplicates + other.duplicates,
        )


def check_run(run: Run) -> RunBalance:
    """Count the crops of a run again, and compare all that the run states with what its folder holds.

    Compared are: run.json; the crop_ids of the manifest; of a finished run done.json, the crop_ids of the
    shards that lie in the folder, whether done.json names them or not, and those of the quarantine; of an
    unfinished run the marks of its parts.
    Raises CountMismatch that says what differs, DuplicateCropId, and CorruptObject for an altered object.
    """
    balance = _check_finished(run) if run.finished else _check_unfinished(run)
    balance.to_text(_name(run))
    return balance


def _check_finished(run: Run) -> RunBalance:
    summary, folder = run.summary, run.folder
    _require_files(run, "shards", (shard.key for shard in summary.shards))
    if summary.quarantine is not None:
        quarantine_keys = [file.key for file in summary.quarantine]
    else:
        by_shard = map(folder.quarantine_key, range(run.info.shards))
        quarantine_keys = [key.removeprefix(f"{folder.key()}/") for key in by_shard]
    _require_files(run, "quarantine", quarantine_keys)
    _require_listed(folder)
    shards = ((folder.absolute(shard), run.quarantine_of(at)) for at, shard in enumerate(summary.shards))
    counts = verify_shards(folder, shards)
    balance = RunBalance(
        listed=run.info.listed,
        embedded=counts.embedded,
        quarantined=counts.quarantined,
        duplicates=run.info.duplicates,
    )
    for name in ("embedded", "quarantined"):
        stated, counted = getattr(summary, name), getattr(balance, name)
        if stated != counted:
            raise _mismatch(run, f"done.json states {name} {stated:,}, but its files hold {counted:,}")
    if Counter(summary.causes) != counts.causes:
        raise _mismatch(run, "done.json states other causes than the quarantine")
    return balance


def _check_unfinished(run: Run) -> RunBalance:
    _require_listed(run.folder)
    embedded = quarantined = 0
    for mark in run.part_marks():
        rows, written = run.info.rows_of_part(mark.number), mark.shard.rows + mark.quarantine.rows
        if rows != written:
            raise _mismatch(run, f"part {mark.number} has {rows:,} crops, but {written:,} were written")
        embedded += mark.shard.rows
        quarantined += mark.quarantine.rows
    return RunBalance(
        listed=run.info.listed,
        embedded=embedded,
        quarantined=quarantined,
        duplicates=run.info.duplicates,
        pending=run.pending_rows(),
    )


def _require_listed(folder: RunFolder) -> None:
    rows = sum(map(len, manifest_ids(folder)))
    if rows != folder.info.rows:
        raise CountMismatch(
            f"run {folder.info.run_id}: the manifest has {rows:,} crops, but run.json states listed "
            f"{folder.info.listed:,} and duplicates {folder.info.duplicates:,}",
            remedy="Start a new run: `clvr embed`.",
        )


def _require_files(run: Run, folder: str, named: Iterable[str]) -> None:
    """Raise CountMismatch unless exactly the named objects are in a folder of the run."""
    prefix = f"{run.folder.key()}/"
    found = {info.key.removeprefix(prefix) for info in run.store.list(run.folder.key(folder))}
    expected = set(named)
    for names, problem in (
        (found - expected, "in the folder, but not in done.json"),
        (expected - found, "in done.json, but not in the folder"),
    ):
        if names:
            examples = ", ".join(sorted(names)[:_MAX_EXAMPLES])
            raise _mismatch(run, f"{len(names):,} objects are {problem}: {examples}")


def _name(run: Run) -> str:
    return f"run {run.run_id}"


def _mismatch(run: Run, problem: str) -> CountMismatch:
    return CountMismatch(
        f"{_name(run)}: {problem}", remedy="Restore the run from a copy, or embed the archive as a new run."
    )
