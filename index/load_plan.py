"""What a generation will be filled with: which shards, and which of their rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.runs import Run
from index.shard_checks import require_unique
from index.shards import ShardFacts, check_shard, read_shards, vectors_of
from infra.errors import BadInput, DuplicateCropId, FingerprintMismatch
from infra.store import Store

_NONE = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """One shard and the crop_ids, int64 (m,), that a later run has newer rows for."""

    store: Store
    run_id: str
    facts: ShardFacts
    superseded: NDArray[np.int64] = field(repr=False, compare=False)

    @property
    def rows(self) -> int:
        """Rows that go into the generation."""
        return self.facts.rows - int(self.superseded.size)

    def batches(self, batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows that go into the generation, at most `batch_rows` at a time."""
        for batch in read_shards(self.store, [self.facts.key], batch_rows=batch_rows):
            if self.superseded.size:
                batch = batch.filter(pa.array(~np.isin(batch.column("crop_id").to_numpy(), self.superseded)))
            if batch.num_rows:
                yield batch


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """The shards of some runs of one model; each crop_id comes once."""

    fingerprint: str
    run_ids: tuple[str, ...]
    shards: tuple[PlannedShard, ...]

    @property
    def rows(self) -> int:
        """Rows that count(*) of the generation must give."""
        return sum(shard.rows for shard in self.shards)

    def blocks(self, batch_rows: int = 8192) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield (crop_ids (n,), vectors (n, 1024)) of all rows, in one fixed order."""
        for shard in self.shards:
            for batch in shard.batches(batch_rows):
                yield batch.column("crop_id").to_numpy(), vectors_of(batch)


def plan_load(runs: Sequence[Run], *, latest_wins: bool = False, verify: bool = True) -> LoadPlan:
    """Plan a generation of finished runs of one model, given oldest first.

    `verify` reads every shard whole and holds it to done.json and to the contract: Milvus imports NaN,
    nulls, flipped bytes and duplicate keys without a word. Without it only the crop_ids are read.
    Raises BadInput for no runs or no rows, CountMismatch for a run that is not finished, FingerprintMismatch,
    CorruptShard, and DuplicateCropId if two runs hold the same crop, unless `latest_wins`.
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
    newer = _NONE
    for run in reversed(runs):
        shards = [_shard(run, facts, newer, verify=verify) for facts in run.shards()]
        ids = np.concatenate([_NONE, *(ids for _, ids in shards)])
        require_unique(ids, f"run {run.run_id}")
        again = sum(shard.superseded.size for shard, _ in shards)
        if again and not latest_wins:
            example = next(shard.superseded[0] for shard, _ in shards if shard.superseded.size)
            raise DuplicateCropId(
                f"{again:,} crops of run {run.run_id} are in a later run too, such as {example}",
                remedy="Load one of the runs, or let the later run win (--latest-wins).",
            )
        planned[:0] = [shard for shard, _ in shards]
        newer = np.union1d(newer, ids)
    if not newer.size:
        raise BadInput(f"the runs {', '.join(run.run_id for run in runs)} hold no embedded crop")
    return LoadPlan(fingerprint, tuple(run.run_id for run in runs), tuple(planned))


def _shard(
    run: Run, facts: ShardFacts, newer: NDArray[np.int64], *, verify: bool
) -> tuple[PlannedShard, NDArray[np.int64]]:
    ids = None
    if verify:
        ids = check_shard(run.store, facts.key, fingerprint=run.fingerprint, expected=facts).crop_ids
    if ids is None:
        batches = read_shards(run.store, [facts.key], columns=["crop_id"], fingerprint=run.fingerprint)
        ids = np.concatenate([_NONE, *(batch.column("crop_id").to_numpy() for batch in batches)])
    return PlannedShard(run.store, run.run_id, facts, np.intersect1d(ids, newer)), ids
