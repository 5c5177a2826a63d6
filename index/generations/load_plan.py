"""What a generation will be filled with: which shards, and which of their rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.runs.run import Run, vanished_ids
from index.runs.shards import ShardInfo, check_shard, read_shards, require_unique, vectors_of
from infra.errors import BadInput, DuplicateCropId, FingerprintMismatch
from infra.store import Store

Ids = NDArray[np.int64]
NO_IDS: Ids = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """One shard and the crop_ids, int64 (m,), of its rows that do not go into the generation."""

    store: Store
    run_id: str
    info: ShardInfo
    excluded_ids: Ids = field(repr=False, compare=False)

    @property
    def rows(self) -> int:
        """Rows that go into the generation."""
        return self.info.rows - int(self.excluded_ids.size)

    def batches(self, batch_rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows that go into the generation, at most `batch_rows` at a time."""
        for batch in read_shards(self.store, [self.info.key], columns=columns, batch_rows=batch_rows):
            if self.excluded_ids.size:
                batch = batch.filter(
                    pa.array(~np.isin(batch.column("crop_id").to_numpy(), self.excluded_ids))
                )
            if batch.num_rows:
                yield batch


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """The shards of some runs of one model; each crop_id comes once.

    `superseded`, `vanished` and `erased` count the rows that are left out because a later run has the crop
    again, lists it as vanished, or because it was erased; a row counts once, for the last of these.
    """

    fingerprint: str
    run_ids: tuple[str, ...]
    shards: tuple[PlannedShard, ...]
    superseded: int = 0
    vanished: int = 0
    erased: int = 0

    @property
    def rows(self) -> int:
        """Rows that count(*) of the generation must give."""
        return sum(shard.rows for shard in self.shards)

    def batches(self, batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield all rows, at most `batch_rows` at a time, in one fixed order."""
        for shard in self.shards:
            yield from shard.batches(batch_rows)

    def blocks(self, batch_rows: int = 8192) -> Iterator[tuple[Ids, NDArray[np.float32]]]:
        """Yield (crop_ids (n,), vectors (n, 1024)) of all rows, in one fixed order."""
        for shard in self.shards:
            for batch in shard.batches(batch_rows, ["crop_id", "embedding"]):
                yield batch.column("crop_id").to_numpy(), vectors_of(batch)

    def crop_ids(self) -> Ids:
        """Return the crop_ids (rows,) of all rows, ascending."""
        found = [
            batch.column("crop_id") for shard in self.shards for batch in shard.batches(65_536, ["crop_id"])
        ]
        return np.sort(np.concatenate([NO_IDS, *(column.to_numpy() for column in found)]))


def plan_load(
    runs: Sequence[Run], *, latest_wins: bool = False, verify: bool = True, erased: Ids = NO_IDS
) -> LoadPlan:
    """Plan a generation of finished runs of one model, given oldest first.

    `erased`: crop_ids that must not come back, see tombstones. Crops that a later run lists as vanished are
    left out as well. `verify` reads every shard whole and holds it to done.json and to the contract, because
    Milvus imports NaN, nulls, flipped bytes and duplicate keys without a word; else only crop_ids are read.
    Raises BadInput for no runs or runs that bring and remove nothing, CountMismatch for a run that is not
    finished, FingerprintMismatch, CorruptShard, and DuplicateCropId if two runs hold the same crop, unless
    `latest_wins`.
    """
    if not runs:
        raise BadInput("no runs to load", remedy="Embed the archive first: `clvr embed`.")
    fingerprint = runs[0].fingerprint
    for run in runs:
        if run.fingerprint != fingerprint:
            raise FingerprintMismatch(
                f"run {runs[0].run_id} is of model {fingerprint}, run {run.run_id} of {run.fingerprint}",
                remedy="Load the runs of one model only; embed the others again with it.",
            )
    planned: list[PlannedShard] = []
    newer, gone = NO_IDS, NO_IDS
    counts = np.zeros(3, np.int64)
    for run in reversed(runs):
        shards = [(facts, _ids(run, facts, verify=verify)) for facts in run.shards()]
        own = np.concatenate([NO_IDS, *(ids for _, ids in shards)])
        require_unique(own, f"run {run.run_id}")
        again = np.intersect1d(own, newer)
        if again.size and not latest_wins:
            raise DuplicateCropId(
                f"{again.size:,} crops of run {run.run_id} are in a later run too, such as {again[0]}",
                remedy="Load one of the runs, or let the later run win (--latest-wins).",
            )
        out = np.union1d(np.union1d(newer, gone), erased)
        planned[:0] = [
            PlannedShard(run.store, run.run_id, facts, np.intersect1d(ids, out)) for facts, ids in shards
        ]
        by_erasure, by_vanishing = np.isin(own, erased), np.isin(own, gone)
        counts += (
            int((np.isin(own, newer) & ~by_vanishing & ~by_erasure).sum()),
            int((by_vanishing & ~by_erasure).sum()),
            int(by_erasure.sum()),
        )
        newer = np.union1d(newer, own)
        # A crop that vanished and came back is in the later run, and stays.
        gone = np.union1d(gone, vanished_ids(run))
    if not newer.size and not gone.size:
        raise BadInput(f"the runs {', '.join(run.run_id for run in runs)} hold no embedded crop")
    return LoadPlan(
        fingerprint, tuple(run.run_id for run in runs), tuple(planned), *(int(count) for count in counts)
    )


def _ids(run: Run, facts: ShardInfo, *, verify: bool) -> Ids:
    ids = None
    if verify:
        ids = check_shard(run.store, facts.key, fingerprint=run.fingerprint, expected=facts).crop_ids
    if ids is None:
        batches = read_shards(run.store, [facts.key], columns=["crop_id"], fingerprint=run.fingerprint)
        ids = np.concatenate([NO_IDS, *(batch.column("crop_id").to_numpy() for batch in batches)])
    return ids
