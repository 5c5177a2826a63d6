"""Exact search by a scan of shards, without an index; ranges of columns rule out row groups.

Memory does not depend on the size of the archive. Runs cut a manifest into shards in the order of its URIs,
which often begin with the date, and shards are sorted by camera and time, so a filter by camera or time skips
most row groups.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.archive.reassigned import ReassignedIds, read_reassigned
from index.exact import NO_ID
from index.filters import Filters
from index.generations.load_plan import LoadPlan, PlannedShard, plan_load
from index.generations.units import TrackOfCrop
from index.milvus.index_types import MAX_TOP
from index.milvus.search import Hit
from index.parquet import ParquetReader, Ranges
from index.runs.run import Run
from index.runs.tombstones import ErasedCrops, TombstoneWatch
from index.schema import scalar_names
from index.search.probe import Sighting
from index.transforms.transform import FeatureTransform, vectors_by
from infra.errors import ObjectMissing

_BATCH_ROWS = 8192

Item = TypeVar("Item")


@dataclass(slots=True)
class ScanStats:
    """How much of the shards a scan read: all row groups and skipped ones, all rows and compared ones."""

    groups: int = 0
    groups_skipped: int = 0
    rows: int = 0
    rows_compared: int = 0


class ScanSource:
    """Finished runs of one model as a `CropSource`.

    Crops that a later run has again or lists as vanished are left out, and erased ones, also if they are
    erased later. device: where distances are computed. transform: of the vectors, as a generation has it.
    Raises what `plan_load` raises.
    """

    def __init__(
        self, runs: Sequence[Run], *, device: str = "cpu", transform: FeatureTransform | None = None
    ) -> None:
        self.transform = transform
        self.tombstones = TombstoneWatch([run.store for run in runs])
        self._runs = runs
        self._erased, self._plan = self._planned()
        self.fingerprint = self._plan.fingerprint
        self.name = "exact:" + "+".join(self._plan.run_ids)
        self.device = device
        self.stats = ScanStats()

    def nearest(self, features: NDArray[np.float32], top: int, filters: Filters) -> list[list[Hit]]:
        """Return the exact nearest crops, by L2, of each row of features (q, d), nearest first."""
        return self._beside_a_purge(lambda: self._nearest(features, top, filters))

    def _nearest(self, features: NDArray[np.float32], top: int, filters: Filters) -> list[list[Hit]]:
        from index.exact.knn import nearest  # which takes seconds to import, and only a scan needs it

        # The first pass reads the vectors, the second one only the other columns of the nearest crops.
        self.stats = ScanStats()
        filters.require_columns(self._columns, self.name)
        with prefetch(self._blocks(filters)) as blocks:
            ids, distances = nearest(features, blocks, top, device=self.device)
        fields = self._fields(np.unique(ids[ids != NO_ID]), filters)
        return [
            [
                Hit(rank=rank, distance=float(distance), **fields[int(crop_id)])
                for rank, (crop_id, distance) in enumerate(zip(row_ids, row_distances, strict=True), start=1)
                if crop_id != NO_ID
            ]
            for row_ids, row_distances in zip(ids, distances, strict=True)
        ]

    @property
    def shards(self) -> tuple[PlannedShard, ...]:
        """The shards, and their rows that are left out."""
        if self.tombstones.current() is not self._erased:
            self._plan_again()
        return self._plan.shards

    def tracks(self, crop_ids: Sequence[int]) -> dict[int, TrackOfCrop]:
        """Return nothing: a scan compares crops, also where a generation of tracks is live."""
        return {}

    def reassigned(self) -> ReassignedIds:
        """Return the crops that have another crop_id than the hash of their URI."""
        return read_reassigned(*self.tombstones.stores)

    def erased_ids(self, crop_ids: Sequence[int], *, now: bool = False) -> set[int]:
        """Return those of the crop_ids that were erased; `now`: also within the last half second."""
        return self.tombstones.current(now=now).erased_ids(crop_ids)

    def vectors(self, crop_ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """Return the vectors (d,) of those crops that are in the shards."""
        return self._beside_a_purge(
            lambda: {
                int(crop_id): vector.copy()
                for rows in self._rows(np.asarray(crop_ids, np.int64), self._vector_columns)
                for crop_id, vector in zip(
                    rows.column("crop_id").to_pylist(), vectors_by(self.transform, rows), strict=True
                )
            }
        )

    def sightings(self, crop_ids: Sequence[int]) -> dict[int, Sighting]:
        """Return the sightings of those crops that are in the shards."""
        columns = ["crop_id", "camera_id", "track_id", "captured_at"]
        return self._beside_a_purge(
            lambda: {
                row["crop_id"]: Sighting(
                    row["camera_id"], row["track_id"], row["captured_at"], row["crop_id"]
                )
                for rows in self._rows(np.asarray(crop_ids, np.int64), columns)
                for row in rows.to_pylist()
            }
        )

    def track_crops(self, camera_id: str, track_id: str) -> list[int]:
        """Return the crop_ids of a camera's track, up to MAX_TOP, in no particular order."""
        return self._beside_a_purge(lambda: self._track_crops(camera_id, track_id))[:MAX_TOP]

    def _track_crops(self, camera_id: str, track_id: str) -> list[int]:
        filters = Filters(cameras=(camera_id,), tracks=((camera_id, track_id),))
        found: list[int] = []
        for shard, file, group in self._groups(filters):
            rows = file.read_row_group(group, self._filter_columns)
            mask = _filter_rows(rows, filters, shard.excluded_ids)
            found += rows["crop_id"].to_numpy()[mask].tolist()
        return found

    def crops(self, crop_ids: Sequence[int]) -> dict[int, Hit]:
        """Return the fields of those crops that are in the shards, as hits at rank and distance 0."""
        fields = self._beside_a_purge(lambda: self._fields(np.asarray(crop_ids, np.int64), None))
        return {crop_id: Hit(rank=0, distance=0.0, **row) for crop_id, row in fields.items()}

    def _beside_a_purge(self, read: Callable[[], Item]) -> Item:
        """Read, and again if that failed because a purge wrote a run again meanwhile."""
        while True:
            before = [run.info for run in self._runs]
            try:
                return read()
            except ObjectMissing:
                self._plan_again()
                if [run.info for run in self._runs] == before:
                    raise

    def _plan_again(self) -> None:
        self._runs = [Run.open(run.store, run.run_id) for run in self._runs]
        self._erased, self._plan = self._planned()

    def _planned(self) -> tuple[ErasedCrops, LoadPlan]:
        # The tombstones first: an erasure in between only makes the plan newer.
        erased = self.tombstones.current()
        plan = plan_load(self._runs, latest_wins=True, verify=False, transform=self.transform)
        return erased, plan

    @property
    def _columns(self) -> tuple[str, ...]:
        return scalar_names(self._plan.schema_version)

    @property
    def _filter_columns(self) -> list[str]:
        # No filter reads the URI, which is the widest column.
        return [name for name in self._columns if name != "uri"]

    @property
    def _vector_columns(self) -> list[str]:
        return ["crop_id", "embedding", *(self.transform.columns if self.transform else ())]

    def _blocks(self, filters: Filters) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        for shard, file, group in self._groups(filters):
            num_rows = file.rows_of(group)
            mask = np.ones(num_rows, bool)
            if filters != Filters() or len(shard.excluded_ids):
                columns = file.read_row_group(group, self._filter_columns)
                mask = _filter_rows(columns, filters, shard.excluded_ids)
            if not mask.any():
                continue
            start = 0
            for batch in file.batches(_BATCH_ROWS, self._vector_columns, group=group):
                batch_mask = mask[start : start + batch.num_rows]
                start += batch.num_rows
                if not batch_mask.all():
                    batch = batch.filter(pa.array(batch_mask))
                self.stats.rows_compared += batch.num_rows
                if batch.num_rows:
                    yield batch.column("crop_id").to_numpy(), vectors_by(self.transform, batch)
            assert start == num_rows  # noqa: S101 (the mask relies on this contract of pyarrow)

    def _groups(self, filters: Filters) -> Iterator[tuple[PlannedShard, ParquetReader, int]]:
        """Yield the row groups that may have rows which pass the filters."""
        for shard in self.shards:
            with shard.open() as file:
                for group in range(file.num_row_groups):
                    self.stats.groups += 1
                    self.stats.rows += file.rows_of(group)
                    if _ranges_match(file.ranges(group), filters):
                        yield shard, file, group
                    else:
                        self.stats.groups_skipped += 1

    def _fields(self, crop_ids: NDArray[np.int64], filters: Filters | None) -> dict[int, dict[str, Any]]:
        return {
            row["crop_id"]: row
            for rows in self._rows(crop_ids, list(self._columns), filters)
            for row in rows.to_pylist()
        }

    def _rows(
        self, crop_ids: NDArray[np.int64], columns: list[str], filters: Filters | None = None
    ) -> Iterator[pa.Table]:
        """Yield columns of the rows with these crop_ids; `filters` only rule out row groups."""
        if not len(crop_ids):
            return
        for shard in self.shards:
            with shard.open() as file:
                for group in range(file.num_row_groups):
                    if filters and not _ranges_match(file.ranges(group), filters):
                        continue
                    ids = file.read_row_group(group, ["crop_id"])["crop_id"].to_numpy()
                    positions = np.flatnonzero(np.isin(ids, crop_ids) & ~np.isin(ids, shard.excluded_ids))
                    if len(positions):
                        yield file.read_row_group(group, columns).take(pa.array(positions))


@contextmanager
def prefetch(items: Iterator[Item]) -> Iterator[Iterator[Item]]:
    """Produce the next item in a thread while the current one is used, so reading overlaps with computing.

    At most one item waits, so up to three exist at a time. An error of `items` is raised where its item would
    be taken.
    """
    queue: SimpleQueue[tuple[Item | None, BaseException | None]] = SimpleQueue()
    free_slots = Semaphore(0)
    stopped = False

    def read() -> None:
        try:
            for item in items:
                queue.put((item, None))
                free_slots.acquire()
                if stopped:
                    return
            queue.put((None, None))
        except BaseException as error:
            queue.put((None, error))

    def take() -> Iterator[Item]:
        while True:
            item, error = queue.get()
            free_slots.release()
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    reader = Thread(target=read, name="prefetch", daemon=True)
    reader.start()
    try:
        yield take()
    finally:
        stopped = True
        free_slots.release()
        reader.join()


def _ranges_match(ranges: Ranges, filters: Filters) -> bool:
    """Return False if no row of a row group can pass the filters."""
    checks: dict[str, Callable[[Any, Any], bool]] = {
        "camera_id": lambda low, high: (
            (not filters.cameras or any(low <= name <= high for name in filters.cameras))
            and not (low == high and low and low in filters.not_cameras)
        ),
        "captured_at": lambda low, high: (
            (filters.captured_from is None or high >= filters.captured_from)
            and (filters.captured_to is None or low < filters.captured_to)
            and not (high < 0 and (filters.captured_from, filters.captured_to) != (None, None))
        ),
        "model_id": lambda low, high: (
            not filters.model_ids or any(low <= number <= high for number in filters.model_ids)
        ),
        "crop_id": lambda low, high: (
            not filters.crop_ids or any(low <= number <= high for number in filters.crop_ids)
        ),
    }
    return all(check(*ranges[name]) for name, check in checks.items() if name in ranges)


def _filter_rows(rows: pa.Table, filters: Filters, excluded_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return a mask (n,) of the rows that pass: the same as `Filters.expression`, for a table."""
    mask = np.ones(rows.num_rows, bool)

    def column(name: str) -> NDArray[Any]:
        return np.asarray(rows[name])

    def is_in(name: str, values: Sequence[Any], data_type: pa.DataType) -> NDArray[np.bool_]:
        result: NDArray[np.bool_] = pc.is_in(rows[name], value_set=pa.array(values, data_type)).to_numpy()
        return result

    if filters.cameras:
        mask &= is_in("camera_id", filters.cameras, pa.string())
    if names := [name for name in filters.not_cameras if name]:
        mask &= ~is_in("camera_id", names, pa.string())
    if (filters.captured_from, filters.captured_to) != (None, None):
        mask &= column("captured_at") >= (filters.captured_from or 0)
    if filters.captured_to is not None:
        mask &= column("captured_at") < filters.captured_to
    if filters.model_ids:
        mask &= np.isin(column("model_id"), filters.model_ids)
    if filters.not_model_ids:
        mask &= ~np.isin(column("model_id"), filters.not_model_ids)
    for attribute in filters.attributes:
        if attribute.values:
            mask &= is_in(attribute.name, attribute.values, pa.string())
        if attribute.excluded:
            mask &= ~is_in(attribute.name, attribute.excluded, pa.string())
    for name, confidence in filters.confidences:
        mask &= column(name) >= confidence
    if filters.crop_ids:
        mask &= np.isin(column("crop_id"), filters.crop_ids)
    if len(excluded := np.union1d(excluded_ids, np.asarray(filters.not_crop_ids, np.int64))):
        mask &= ~np.isin(column("crop_id"), excluded)
    if filters.tracks:
        mask &= np.logical_or.reduce([_is_on_track(rows, track) for track in filters.tracks])
    for track in filters.not_tracks:
        if track and track[-1]:
            mask &= ~_is_on_track(rows, track)
    return mask


def _is_on_track(rows: pa.Table, track: str | tuple[str, str]) -> NDArray[np.bool_]:
    camera, name = (None, track) if isinstance(track, str) else track
    mask: NDArray[np.bool_] = pc.equal(rows["track_id"], name).to_numpy()
    if camera is None:
        return mask
    return np.asarray(mask & pc.equal(rows["camera_id"], camera).to_numpy(), np.bool_)
