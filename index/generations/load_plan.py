"""Plan a generation: which shards it takes, and which of their rows it leaves out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.generations.id_rows import IdRange, IdRows
from index.parquet import ParquetReader
from index.runs.balance import check_run
from index.runs.run import Run, vanished_ids
from index.runs.shards import ShardInfo, check_shard, open_shard, require_unique
from index.runs.tombstones import ErasedCrops, read_tombstones
from index.schema import EMBEDDING_DIM, shard_version
from index.transforms.transform import FeatureTransform, vectors_by
from infra.errors import BadInput, DuplicateCropId, FingerprintMismatch, SchemaMismatch
from infra.store import Store

Ids = NDArray[np.int64]
NO_IDS: Ids = np.empty(0, np.int64)
_VANISHED = -1  # stands for a shard: the crop vanished


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """One shard, and the crop_ids, int64 (m,), of its rows that are not loaded."""

    store: Store
    run_id: str
    info: ShardInfo
    excluded_ids: Ids = field(repr=False, compare=False)

    @property
    def rows(self) -> int:
        """Number of rows that are loaded."""
        return self.info.rows - int(self.excluded_ids.size)

    def batches(self, batch_rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows that are loaded, at most `batch_rows` at a time."""
        read = columns
        if columns is not None and self.excluded_ids.size and "crop_id" not in columns:
            read = ["crop_id", *columns]
        with self.open() as file:
            for batch in file.batches(batch_rows, read):
                if self.excluded_ids.size:
                    crop_ids = batch.column("crop_id").to_numpy()
                    batch = batch.filter(pa.array(~np.isin(crop_ids, self.excluded_ids)))
                    if read is not columns and columns is not None:
                        batch = batch.select(list(columns))
                if batch.num_rows:
                    yield batch

    @contextmanager
    def open(self) -> Iterator[ParquetReader]:
        """Open the file, all rows of it. Raises CorruptObject if it is not the one in done.json."""
        with open_shard(self.store, self.info, run_id=self.run_id) as file:
            yield file


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """The shards of some runs of one model, with each crop_id once.

    `superseded`, `vanished` and `erased` count the rows that are left out because a later run has the crop
    again, lists it as vanished, or because it was erased; a row counts once, for the last of these.
    transform: of the vectors that the plan yields; shards hold the network's features. schema_version: that
    of its shards, which follows from the model. units_id, crops: of a plan whose rows are tracks (see
    `index.generations.units`), the name of their folder and the number of crops on them; else "" and None.
    """

    fingerprint: str
    run_ids: tuple[str, ...]
    shards: tuple[PlannedShard, ...]
    superseded: int = 0
    vanished: int = 0
    erased: int = 0
    transform: FeatureTransform | None = None
    schema_version: int = 1
    units_id: str = ""
    crops: int | None = None

    @property
    def rows(self) -> int:
        """Number of rows of the generation, that is, its count(*)."""
        return sum(shard.rows for shard in self.shards)

    def batches(self, batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield all rows, at most `batch_rows` at a time, in a fixed order."""
        for shard in self.shards:
            yield from self.batches_of(shard, batch_rows)

    def batches_of(self, shard: PlannedShard, batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one of the shards, at most `batch_rows` at a time."""
        batches = shard.batches(batch_rows)
        yield from self.transform.on_batches(batches) if self.transform else batches

    @property
    def dimension(self) -> int:
        """The length of the vectors that the plan yields."""
        return self.transform.dimension if self.transform else EMBEDDING_DIM

    @property
    def transform_id(self) -> str:
        """The id of the transform, "" without one."""
        return self.transform.transform_id if self.transform else ""

    def blocks(self, batch_rows: int = 8192) -> Iterator[tuple[Ids, NDArray[np.float32]]]:
        """Yield (crop_ids (n,), vectors (n, dimension)) of all rows, in a fixed order."""
        columns = ["crop_id", "embedding", *(self.transform.columns if self.transform else ())]
        for shard in self.shards:
            for batch in shard.batches(batch_rows, columns):
                yield batch.column("crop_id").to_numpy(), vectors_by(self.transform, batch)

    def id_ranges(self) -> Iterator[IdRange]:
        """Yield the crop_ids of all rows, ascending, by ranges, of which one is in memory."""
        rows = IdRows()
        for shard in self.shards:
            for batch in shard.batches(65_536, ["crop_id"]):
                rows.add(batch.column("crop_id").to_numpy())
        yield from rows.ranges()

    def crop_ids(self) -> Ids:
        """Return the crop_ids (rows,) of all rows, ascending."""
        columns = [
            batch.column("crop_id") for shard in self.shards for batch in shard.batches(65_536, ["crop_id"])
        ]
        return np.sort(np.concatenate([NO_IDS, *(column.to_numpy() for column in columns)]))


def plan_load(
    runs: Sequence[Run],
    *,
    latest_wins: bool = False,
    verify: bool = True,
    transform: FeatureTransform | None = None,
) -> LoadPlan:
    """Plan a generation of finished runs of one model, given oldest first.

    Erased crops and those that a later run lists as vanished are left out. This is the one place that decides
    which rows of shards may be seen: loads, increments, the gate, reconciliation and exact search use it.
    verify: check the counts of every run, and read every shard whole and check it against done.json and the
    contract, because Milvus silently imports NaN, nulls, flipped bytes and duplicate keys; otherwise only the
    crop_ids are read, and each shard's run and number of rows are compared with done.json.
    transform: of the vectors, fitted on features of the same model.
    In memory are the crop_ids that are left out, and those of a part of the rows, see `id_rows`.
    Raises BadInput for no runs or runs without embedded and vanished crops, CountMismatch for an unfinished
    run, FingerprintMismatch, CorruptObject, SchemaMismatch for shards of two versions, and DuplicateCropId if
    two runs have the same crop, unless `latest_wins`.
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
    if transform is not None and transform.fingerprint != fingerprint:
        raise FingerprintMismatch(
            f"the transform {transform.transform_id} is of model {transform.fingerprint}, the runs are of "
            f"{fingerprint}",
            remedy="Fit one on a run of this model: `clvr fit-transform RUN`.",
        )
    if verify:
        for run in runs:
            check_run(run)
    tombstones = read_tombstones(*(run.store for run in runs))
    rows, shards = IdRows(), list[tuple[Run, ShardInfo]]()
    versions: dict[int, str] = {}
    for at, run in enumerate(runs):
        for info in run.shards():
            ids, version = _crop_ids(run, info, verify=verify)
            rows.add(ids, run=at, shard=len(shards))
            shards.append((run, info))
            if len(ids):
                versions[version] = run.run_id
        rows.add(vanished_ids(run), run=at, shard=_VANISHED)
    if not rows.count:
        raise BadInput(f"the runs {', '.join(run.run_id for run in runs)} hold no embedded crop")
    choice = _RowChoice([[] for _ in shards], [[] for _ in runs], [[] for _ in runs])
    for of_range in rows.ranges():
        choice.add(of_range, tombstones)
    for at, run in reversed(list(enumerate(runs))):
        require_unique(np.repeat(np.concatenate([NO_IDS, *choice.twice[at]]), 2), f"run {run.run_id}")
        repeated = np.concatenate([NO_IDS, *choice.repeated[at]])
        if repeated.size and not latest_wins:
            raise DuplicateCropId(
                f"{repeated.size:,} crops of run {run.run_id} are in a later run too, such as {repeated[0]}",
                remedy="Load one of the runs, or let the later run win (--latest-wins).",
            )
    if len(versions) > 1:
        described = " and ".join(f"version {number} in run {run}" for number, run in sorted(versions.items()))
        raise SchemaMismatch(
            f"shards of model {fingerprint} have different columns: {described}",
            remedy="Embed the archive again with this model, and load that run alone.",
        )
    return LoadPlan(
        fingerprint=fingerprint,
        run_ids=tuple(run.run_id for run in runs),
        shards=tuple(
            PlannedShard(run.store, run.run_id, info, np.concatenate([NO_IDS, *excluded]))
            for (run, info), excluded in zip(shards, choice.excluded, strict=True)
        ),
        superseded=choice.superseded,
        vanished=choice.vanished,
        erased=choice.erased,
        transform=transform,
        schema_version=next(iter(versions), 1),
    )


@dataclass(slots=True)
class _RowChoice:
    """Which rows of some runs are left out, and why; the lists are by shard or by run.

    twice: ids that a run has in two rows. repeated: ids that a later run has too.
    """

    excluded: list[list[Ids]]
    twice: list[list[Ids]]
    repeated: list[list[Ids]]
    superseded: int = 0
    vanished: int = 0
    erased: int = 0

    def add(self, rows: IdRange, tombstones: ErasedCrops) -> None:
        """Decide on the rows of a range, among which are the marks of vanished crops."""
        is_mark = rows.shards == _VANISHED
        mark_ids, mark_runs = rows.ids[is_mark], rows.runs[is_mark]
        ids, runs, shards = rows.ids[~is_mark], rows.runs[~is_mark], rows.shards[~is_mark]
        is_next = ids[1:] == ids[:-1]
        is_twice = is_next & (runs[1:] == runs[:-1])
        has_newer = np.zeros(len(ids), bool)
        has_newer[:-1] = is_next & ~is_twice
        # A crop that vanished and returned is in the run after that, so it stays.
        last = np.searchsorted(mark_ids, ids, side="right") - 1
        is_gone = last >= 0
        is_gone[is_gone] &= mark_ids[last[is_gone]] == ids[is_gone]
        is_gone[is_gone] &= mark_runs[last[is_gone]] > runs[is_gone]
        is_erased = tombstones.is_erased(ids)
        self.superseded += int((has_newer & ~is_gone & ~is_erased).sum())
        self.vanished += int((is_gone & ~is_erased).sum())
        self.erased += int(is_erased.sum())
        for into, numbers, mask in (
            (self.twice, runs[1:], is_twice),
            (self.repeated, runs, has_newer),
            (self.excluded, shards, has_newer | is_gone | is_erased),
        ):
            chosen, of_chosen = ids[len(ids) - len(mask) :][mask], numbers[mask]
            for number in np.unique(of_chosen).tolist():
                into[number].append(chosen[of_chosen == number])


def _crop_ids(run: Run, info: ShardInfo, *, verify: bool) -> tuple[Ids, int]:
    """Return the crop_ids (rows,) of a shard, and its version."""
    if verify:
        checked = check_shard(run.store, info.key, fingerprint=run.fingerprint, expected=info)
        return checked.crop_ids, checked.version
    with open_shard(run.store, info, fingerprint=run.fingerprint, run_id=run.run_id) as file:
        ids: Ids = file.read(["crop_id"])["crop_id"].to_numpy()
        return ids, shard_version(file.schema.names)
