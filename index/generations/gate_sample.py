"""A sample for the gate: some partitions of a generation, compared with the shards as a whole each.

A partition is a day, or some cameras of a day, or a camera: what a filter of Milvus names, and what the
ranges in the footers of shards find without reading the rest. It is drawn by one of its rows, so every crop
has the same chance. The crop_ids that the index has of it must be those of the shards. Probes of all
partitions then search everything: whatever lies in the sample and is nearer than the last hit must be a hit.
A row of the probe's own partition counts once, one of another partition for all the rows that it stands for.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.exact import NO_ID
from index.filters import Filters
from index.generations.recall import missed, sampled_recall, share_found
from index.milvus import collection
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.milvus.search import Hit, search_generation
from index.parquet import ParquetReader, Ranges
from index.runs.run import Run, vanished_ids
from index.runs.shards import ShardInfo, open_shard, shard_ids
from index.runs.tombstones import ErasedCrops, read_tombstones
from index.schema import UNKNOWN_TIME
from index.transforms.transform import FeatureTransform, vectors_by
from infra.store import ScratchFolder

Ids = NDArray[np.int64]
MIN_PARTITIONS = 8
"""Partitions from which a sample says something of the others."""
MAX_INTERVAL = 0.03
"""Widest interval of recall@10 from which a generation can be judged."""

_PARTITIONS_IN_BUDGET = 16
_DRAWS = 400
_DAY_MS = 86_400_000
_DEPTH = 10
_PROBES_A_ROW = 50
"""Probes for each row of all that a row of the sample stands for: as many as narrow the interval to 0.01."""
_MAX_PROBES = 20
"""How many times the least number of probes a sample of a huge generation has."""
_FILTERED_PROBES = 40


@dataclass(frozen=True, slots=True)
class GateBudget:
    """What a gate may cost: rows of shards that it reads, and seconds to read them and to search.

    A generation of no more rows is compared as a whole. The exact scan of what was read comes on top.
    """

    rows: int = 500_000
    seconds: float = 600.0


DEFAULT_BUDGET = GateBudget()


@dataclass(frozen=True, slots=True)
class GateSample:
    """What a sampled gate compared.

    `rows`: of the partitions; `rows_read`: of the row groups that hold them. `missing` and `foreign`:
    crop_ids that only the shards or only the index has. `missed_near` and `missed_far`: rows of the probes'
    own and of other partitions that the searches should have found. The filtered recall is that of searches
    with the filter of a partition: it decides nothing, because an index of lists leaves out most of them.
    `stopped`: why no more was compared.
    """

    partitions: int
    rows: int
    rows_read: int
    seconds: float
    budget_rows: int
    budget_seconds: float
    missing: int
    foreign: int
    missed_near: int
    missed_far: int
    filtered_recall_at_10: float
    stopped: str = ""


@dataclass(frozen=True, slots=True)
class MeasuredRecall:
    """Recall against exact search, bounds of recall@10, and the vectors (q, d) of the probes.

    `sample` is None where everything was compared.
    """

    at_1: float
    at_10: float
    low: float
    high: float
    vectors: NDArray[np.float32]
    sample: GateSample | None = None


@dataclass(frozen=True, slots=True)
class _Group:
    """A row group of a shard; `run` is the place of its run, oldest first."""

    run: int
    shard: ShardInfo
    number: int
    rows: int
    ranges: Ranges

    def may_have(self, filters: Filters) -> bool:
        low, high = self.ranges.get("camera_id", (None, None))
        if filters.cameras and low is not None and not any(low <= one <= high for one in filters.cameras):
            return False
        low, high = self.ranges.get("captured_at", (None, None))
        if filters.captured_from is None or filters.captured_to is None or low is None:
            return True
        return bool(low < filters.captured_to and high >= filters.captured_from)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows that the shards have of a partition, by ascending crop_id; `runs` (n,) are their runs' places."""

    ids: Ids
    runs: NDArray[np.int64]
    vectors: NDArray[np.float32]

    def only(self, mask: NDArray[np.bool_]) -> "_Rows":
        return _Rows(self.ids[mask], self.runs[mask], self.vectors[mask])


@dataclass(frozen=True, slots=True)
class _Partition:
    """The rows that both have of a partition: crop_ids (n,), and the local file of their vectors (n, d)."""

    filters: Filters
    ids: Ids
    file: Path

    def vectors(self) -> NDArray[np.float32]:
        found: NDArray[np.float32] = np.load(self.file, mmap_mode="r")
        return found


@dataclass(slots=True)
class _Sample:
    """The partitions so far, and in what their crop_ids differ."""

    partitions: list[_Partition] = field(default_factory=list)
    missing: list[tuple[Ids, NDArray[np.int64]]] = field(default_factory=list)
    rows_read: int = 0
    foreign: int = 0
    stopped: str = ""

    def blocks(self) -> Iterator[tuple[Ids, NDArray[np.float32]]]:
        for one in self.partitions:
            yield one.ids, one.vectors()


@dataclass(slots=True)
class _Probes:
    """Probes in the order of their partitions: their places, vectors, and hits in everything."""

    partition: list[int] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)
    hits: list[list[Hit]] = field(default_factory=list)
    filtered: list[float] = field(default_factory=list)


def measure_sample(
    milvus: Milvus,
    generation: Generation,
    runs: Sequence[Run],
    transform: FeatureTransform | None,
    *,
    rows: int,
    probes: int,
    budget: GateBudget,
    seed: int,
) -> MeasuredRecall:
    """Compare partitions of a loaded generation of `rows` rows with the shards of its runs, oldest first.

    probes: at least so many, and more where a row of the sample stands for many. Read are the footers of all
    shards, and of the rest the row groups that may hold a drawn partition. Memory is that of a sixteenth of
    `budget.rows`; the vectors of all of them go to local disk. Raises CorruptObject, ObjectMissing,
    CountMismatch for an unfinished run.
    """
    started = time.monotonic()
    rng = np.random.default_rng(seed)
    with ScratchFolder() as scratch:
        shards = _Shards(runs, transform, read_tombstones(*(run.store for run in runs)))
        sample = _Sample()
        for filters, groups in _draw(shards, budget, rng, sample):
            # The second half of the time is for the searches.
            if time.monotonic() - started > budget.seconds / 2:
                sample.stopped = f"half of {budget.seconds:,.0f} seconds were over"
                break
            sample.rows_read += sum(group.rows for group in groups)
            _compare_rows(milvus, generation, filters, shards.read(groups, filters), scratch.path, sample)
        held = sum(len(one.ids) for one in sample.partitions)
        weight = max(1.0, rows / held) if held else 1.0
        wanted = min(_MAX_PROBES * probes, max(probes, math.ceil(_PROBES_A_ROW * weight)))
        searched = _Probes()
        for at in range(len(sample.partitions)):
            if time.monotonic() - started > budget.seconds:
                sample.stopped = f"{budget.seconds:,.0f} seconds were over"
                break
            count = math.ceil(wanted / len(sample.partitions))
            _search(milvus, generation, at, sample.partitions[at], count, rng, searched)
        judged = _judge(generation, shards, sample, searched, rows=rows, budget=budget, seed=seed)
        assert judged.sample is not None  # noqa: S101  made above
        seconds = round(time.monotonic() - started, 1)
        return replace(judged, sample=replace(judged.sample, seconds=seconds))


def _draw(
    shards: "_Shards", budget: GateBudget, rng: np.random.Generator, sample: _Sample
) -> Iterator[tuple[Filters, list[_Group]]]:
    """Draw partitions of at most a sixteenth of the budget, none twice, until the budget is used up."""
    weights = np.array([group.rows for group in shards.groups], np.float64)
    drawn: list[Filters] = []
    largest = budget.rows // _PARTITIONS_IN_BUDGET
    for at in rng.choice(len(weights), size=_DRAWS, p=weights / weights.sum()):
        for filters in shards.windows_of_a_row(shards.groups[at], rng):
            groups = [group for group in shards.groups if group.may_have(filters)]
            if (rows := sum(group.rows for group in groups)) <= largest:
                break
        else:
            continue
        if any(_overlap(filters, other) for other in drawn):
            continue
        if sample.rows_read + rows > budget.rows:
            sample.stopped = f"{budget.rows:,} rows may be read"
            return
        drawn.append(filters)
        yield filters, groups
    sample.stopped = f"no more days or cameras of at most {largest:,} rows"


def _overlap(one: Filters, other: Filters) -> bool:
    """Return whether a crop may be in two partitions."""
    have_times = one.captured_from is not None and other.captured_from is not None
    if have_times and one.captured_from != other.captured_from:
        return False
    return not one.cameras or not other.cameras or bool(set(one.cameras) & set(other.cameras))


def _compare_rows(
    milvus: Milvus, generation: Generation, filters: Filters, rows: _Rows, scratch: Path, sample: _Sample
) -> None:
    indexed = collection.fetch_ids(milvus, generation.name, filters.expression())
    sample.foreign += int(np.setdiff1d(indexed, rows.ids).size)
    is_indexed = np.isin(rows.ids, indexed)
    absent, present = rows.only(~is_indexed), rows.only(is_indexed)
    sample.missing.append((absent.ids, absent.runs))
    if len(present.ids):
        file = scratch / f"{len(sample.partitions)}.npy"
        np.save(file, present.vectors)
        sample.partitions.append(_Partition(filters, present.ids, file))


def _search(
    milvus: Milvus,
    generation: Generation,
    at: int,
    partition: _Partition,
    count: int,
    rng: np.random.Generator,
    searched: _Probes,
) -> None:
    """Search for some crops of a partition in everything, and for a few of them in the partition."""
    from index.exact.knn import nearest  # which takes seconds to import, and only a gate needs it

    ids, vectors = partition.ids, partition.vectors()
    probes = vectors[np.sort(rng.choice(len(ids), min(count, len(ids)), replace=False))]
    for batch in search_generation(milvus, generation, probes, _DEPTH):
        searched.hits.extend(batch)
    searched.partition.extend([at] * len(probes))
    searched.vectors.append(probes)
    few, depth = probes[:_FILTERED_PROBES], min(_DEPTH, len(ids))
    near, far = nearest(few, [(ids, vectors)], depth)
    batches = search_generation(milvus, generation, few, depth, partition.filters)
    hits = [hits for batch in batches for hits in batch]
    norms = np.linalg.norm(few, axis=1).tolist()
    for ids, distances, found, norm in zip(near, far, hits, norms, strict=True):
        searched.filtered.append(share_found(ids, distances, found, depth, norm))


def _judge(
    generation: Generation,
    shards: "_Shards",
    sample: _Sample,
    searched: _Probes,
    *,
    rows: int,
    budget: GateBudget,
    seed: int,
) -> MeasuredRecall:
    """Scan the sample for the nearest rows of all probes, and estimate recall of what was missed in it."""
    from index.exact.knn import nearest

    sizes = np.array([len(one.ids) for one in sample.partitions], np.float64)
    count = len(sizes)
    all_ids = np.concatenate([np.empty(0, np.int64), *(one.ids for one in sample.partitions)])
    order = np.argsort(all_ids)
    places = np.repeat(np.arange(count), sizes.astype(np.int64))[order]
    all_ids = all_ids[order]
    vectors = np.concatenate([np.empty((0, generation.dimension), np.float32), *searched.vectors])
    ids, distances = nearest(vectors, sample.blocks(), _DEPTH) if len(vectors) else _NOTHING
    probes, near, far = (np.zeros(count, np.int64) for _ in range(3))
    weighted = np.zeros(count)
    missed_first = 0
    for probe, (at, hits) in enumerate(zip(searched.partition, searched.hits, strict=True)):
        norm = float(np.linalg.norm(vectors[probe]))
        missed_first += len(missed(ids[probe], distances[probe], hits, 1, norm))
        probes[at] += 1
        for row in missed(ids[probe], distances[probe], hits, _DEPTH, norm):
            place = places[np.searchsorted(all_ids, row)]
            near[at] += place == at
            far[at] += place != at
            if place != at:
                # A partition is drawn in proportion to its rows.
                weighted[at] += max(1.0, (rows - sizes[at]) / ((count - 1) * sizes[place]))
    recall, low, high = sampled_recall(
        probes,
        near,
        far,
        weighted,
        depth=min(_DEPTH, rows),
        weight=max(1.0, rows / max(1.0, sizes.sum())),
        seed=seed,
    )
    return MeasuredRecall(
        at_1=1 - missed_first / len(vectors) if len(vectors) else 0.0,
        at_10=recall,
        low=low,
        high=high,
        vectors=vectors,
        sample=GateSample(
            partitions=count,
            rows=len(all_ids),
            rows_read=sample.rows_read,
            seconds=0.0,
            budget_rows=budget.rows,
            budget_seconds=budget.seconds,
            missing=shards.count_missing(sample.missing),
            foreign=sample.foreign,
            missed_near=int(near.sum()),
            missed_far=int(far.sum()),
            filtered_recall_at_10=float(np.mean(searched.filtered)) if searched.filtered else 0.0,
            stopped=sample.stopped,
        ),
    )


_NOTHING = np.full((0, _DEPTH), NO_ID), np.zeros((0, _DEPTH), np.float32)


class _Shards:
    """The row groups of all shards of some runs, oldest first, and which of their rows count."""

    def __init__(self, runs: Sequence[Run], transform: FeatureTransform | None, erased: ErasedCrops) -> None:
        self.runs = runs
        self.transform = transform
        self.erased = erased
        self.groups = [group for at, run in enumerate(runs) for group in _groups(at, run)]
        gone = [(vanished_ids(run), at) for at, run in enumerate(runs)]
        ids = np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in gone)])
        at = np.concatenate([np.empty(0, np.int64), *(np.full(len(ids), at) for ids, at in gone)])
        order = np.lexsort((at, ids))
        self._gone, self._gone_at = ids[order], at[order]

    def windows_of_a_row(self, group: _Group, rng: np.random.Generator) -> Iterator[Filters]:
        """Yield filters that a random row of a row group passes, the wider ones first."""
        with self._open(group) as file:
            rows = file.read_row_group(group.number, ["camera_id", "captured_at"])
        row = int(rng.integers(rows.num_rows))
        camera, at = rows["camera_id"][row].as_py(), rows["captured_at"][row].as_py()
        if at == UNKNOWN_TIME:
            yield Filters(cameras=(camera,))
            return
        day = Filters(captured_from=at - at % _DAY_MS, captured_to=at - at % _DAY_MS + _DAY_MS)
        yield day
        together = pc.unique(rows.filter(_matches(rows, day))["camera_id"]).to_pylist()
        for cameras in (tuple(sorted(together)), (camera,)):
            yield Filters(cameras=cameras, captured_from=day.captured_from, captured_to=day.captured_to)

    def read(self, groups: Sequence[_Group], filters: Filters) -> _Rows:
        """Read the rows of a partition that count: of a crop the latest, unless it vanished or was erased."""
        columns = ["crop_id", "camera_id", "captured_at", "embedding"]
        ids, runs, vectors = [np.empty(0, np.int64)], [np.empty(0, np.int64)], []
        for group in groups:
            with self._open(group) as file:
                rows = file.read_row_group(group.number, columns)
            rows = rows.filter(_matches(rows, filters))
            if rows.num_rows:
                ids.append(np.asarray(rows["crop_id"]))
                runs.append(np.full(rows.num_rows, group.run))
                vectors.append(vectors_by(self.transform, rows))
        all_ids, all_runs = np.concatenate(ids), np.concatenate(runs)
        order = np.lexsort((all_runs, all_ids))
        is_latest = np.append(all_ids[order][1:] != all_ids[order][:-1], True)[: len(order)]
        kept = order[is_latest]
        all_vectors = np.concatenate(vectors) if vectors else np.empty((0, 0), np.float32)
        found = _Rows(all_ids[kept], all_runs[kept], all_vectors[kept])
        return found.only(~self.erased.is_erased(found.ids) & ~self._vanished(found))

    def count_missing(self, missing: Sequence[tuple[Ids, NDArray[np.int64]]]) -> int:
        """Count the rows that the index lacks, without those that a later run has by another camera or day.

        Reads the crop_ids of the later runs, if there is any such row.
        """
        ids = np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in missing)])
        runs = np.concatenate([np.empty(0, np.int64), *(runs for _, runs in missing)])
        for at in range(int(runs.min()) + 1 if len(runs) else len(self.runs), len(self.runs)):
            run = self.runs[at]
            for info in run.shards():
                there = shard_ids(run.store, info, fingerprint=run.fingerprint, run_id=run.run_id)
                is_later = (runs < at) & np.isin(ids, there)
                ids, runs = ids[~is_later], runs[~is_later]
        return len(ids)

    def _vanished(self, rows: _Rows) -> NDArray[np.bool_]:
        if not len(self._gone):
            return np.zeros(len(rows.ids), bool)
        last = np.searchsorted(self._gone, rows.ids, side="right") - 1
        is_listed = (last >= 0) & (self._gone[last] == rows.ids)
        return np.asarray(is_listed & (self._gone_at[last] > rows.runs), bool)

    def _open(self, group: _Group) -> AbstractContextManager[ParquetReader]:
        run = self.runs[group.run]
        return open_shard(run.store, group.shard, fingerprint=run.fingerprint, run_id=run.run_id)


def _groups(at: int, run: Run) -> Iterator[_Group]:
    for info in run.shards():
        with open_shard(run.store, info, fingerprint=run.fingerprint, run_id=run.run_id) as file:
            for number in range(file.num_row_groups):
                yield _Group(at, info, number, file.rows_of(number), file.ranges(number))


def _matches(rows: pa.Table, filters: Filters) -> pa.ChunkedArray:
    mask = pc.is_valid(rows["captured_at"])
    if filters.cameras:
        mask = pc.and_(mask, pc.is_in(rows["camera_id"], value_set=pa.array(filters.cameras, pa.string())))
    if filters.captured_from is not None and filters.captured_to is not None:
        times = rows["captured_at"]
        mask = pc.and_(mask, pc.greater_equal(times, filters.captured_from))
        mask = pc.and_(mask, pc.less(times, filters.captured_to))
    return mask
