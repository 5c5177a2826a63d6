"""Exact search straight over the shards: no index, whole row groups left out by what their statistics say.

Memory is that of a few batches, whatever the archive's size. Manifests are sorted by URI, and URIs begin with
date and camera, so a window of time or a few cameras leave most row groups unread.
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
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index.exact.knn import NO_ID, nearest
from index.filters import Filters
from index.generations.load_plan import PlannedShard, plan_load
from index.milvus.search import Hit
from index.parquet import open_parquet
from index.runs.run import Run
from index.runs.shards import vectors_of
from index.schema import SCALAR_NAMES
from index.search.probe import Sighting

# No filter looks at the URI, the widest of the columns.
_FILTERED = [name for name in SCALAR_NAMES if name != "uri"]
_BATCH = 8192

Item = TypeVar("Item")


@dataclass(slots=True)
class ScanStats:
    """How much of the shards was looked at: row groups in all and left unread, rows in all and compared."""

    groups: int = 0
    groups_skipped: int = 0
    rows: int = 0
    rows_compared: int = 0


class ScanSource:
    """Finished runs of one model as a source of answers; see `index.answers.Source`.

    Crops that were erased or that a later run has again are left out. device: where the product is computed.
    Raises what `plan_load` raises.
    """

    def __init__(self, runs: Sequence[Run], *, device: str = "cpu") -> None:
        plan = plan_load(runs, latest_wins=True, verify=False)
        self.shards = plan.shards
        self.fingerprint = plan.fingerprint
        self.name = "exact:" + "+".join(plan.run_ids)
        self.device = device
        self.stats = ScanStats()

    def nearest(self, features: NDArray[np.float32], top: int, filters: Filters) -> list[list[Hit]]:
        """Return the exact nearest crops of each row of features, by L2."""
        # One pass decides who is near, a second one, over the narrow columns only, says who they are.
        self.stats = ScanStats()
        with prefetch(self._blocks(filters)) as blocks:
            ids, distances = nearest(features, blocks, top, device=self.device)
        facts = self._facts(np.unique(ids[ids != NO_ID]), filters)
        return [
            [
                Hit(rank=rank, distance=float(distance), **facts[int(crop_id)])
                for rank, (crop_id, distance) in enumerate(zip(row, away, strict=True), start=1)
                if crop_id != NO_ID
            ]
            for row, away in zip(ids, distances, strict=True)
        ]

    def vectors(self, crop_ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """Return the features (1024,) of those of the crops that are in the shards."""
        return {
            int(crop_id): vector.copy()
            for batch in self._matching(np.asarray(crop_ids, np.int64), ["crop_id", "embedding"])
            for crop_id, vector in zip(batch.column("crop_id").to_pylist(), vectors_of(batch), strict=True)
        }

    def sightings(self, crop_ids: Sequence[int]) -> dict[int, Sighting]:
        """Return where and when those of the crops that are in the shards were seen."""
        columns = ["crop_id", "camera_id", "track_id", "captured_at"]
        return {
            row["crop_id"]: Sighting(row["camera_id"], row["track_id"], row["captured_at"], row["crop_id"])
            for batch in self._matching(np.asarray(crop_ids, np.int64), columns)
            for row in batch.to_pylist()
        }

    def crops(self, crop_ids: Sequence[int]) -> dict[int, Hit]:
        """Return what is known of those of the crops that are there, as hits at rank and distance 0."""
        facts = self._facts(np.asarray(crop_ids, np.int64), None)
        return {crop_id: Hit(rank=0, distance=0.0, **row) for crop_id, row in facts.items()}

    def _blocks(self, filters: Filters) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        for shard, file, group in self._groups(filters):
            rows = file.metadata.row_group(group).num_rows
            kept = np.ones(rows, bool)
            if filters != Filters() or len(shard.excluded_ids):
                kept = _filter_rows(
                    file.read_row_group(group, columns=_FILTERED), filters, shard.excluded_ids
                )
            if not kept.any():
                continue
            start = 0
            for batch in file.iter_batches(_BATCH, row_groups=[group], columns=["crop_id", "embedding"]):
                mask = kept[start : start + batch.num_rows]
                start += batch.num_rows
                if not mask.all():
                    batch = batch.filter(pa.array(mask))
                self.stats.rows_compared += batch.num_rows
                if batch.num_rows:
                    yield batch.column("crop_id").to_numpy(), vectors_of(batch)
            assert start == rows  # noqa: S101 (pyarrow's contract, on which the mask rests)

    def _groups(self, filters: Filters) -> Iterator[tuple[PlannedShard, pq.ParquetFile, int]]:
        for shard in self.shards:
            with open_parquet(shard.store, shard.info.key) as file:
                for group in range(file.metadata.num_row_groups):
                    ranges = _ranges(file.metadata.row_group(group))
                    self.stats.groups += 1
                    self.stats.rows += file.metadata.row_group(group).num_rows
                    if _statistics_match(ranges, filters):
                        yield shard, file, group
                    else:
                        self.stats.groups_skipped += 1

    def _facts(self, crop_ids: NDArray[np.int64], filters: Filters | None) -> dict[int, dict[str, Any]]:
        return {
            row["crop_id"]: row
            for batch in self._matching(crop_ids, list(SCALAR_NAMES), filters)
            for row in batch.to_pylist()
        }

    def _matching(
        self, crop_ids: NDArray[np.int64], columns: list[str], filters: Filters | None = None
    ) -> Iterator[pa.Table]:
        if not len(crop_ids):
            return
        for shard in self.shards:
            with open_parquet(shard.store, shard.info.key) as file:
                for group in range(file.metadata.num_row_groups):
                    if filters and not _statistics_match(_ranges(file.metadata.row_group(group)), filters):
                        continue
                    ids = file.read_row_group(group, columns=["crop_id"])["crop_id"].to_numpy()
                    rows = np.flatnonzero(np.isin(ids, crop_ids) & ~np.isin(ids, shard.excluded_ids))
                    if len(rows):
                        yield file.read_row_group(group, columns=columns).take(pa.array(rows))


@contextmanager
def prefetch(items: Iterator[Item]) -> Iterator[Iterator[Item]]:
    """Make the next item in a thread while this one is worked on: reading overlaps with comparing.

    One item waits at most, so memory is that of three. What `items` raises is raised where it is taken.
    """
    waiting: SimpleQueue[tuple[Item | None, BaseException | None]] = SimpleQueue()
    room = Semaphore(0)
    left = False

    def read() -> None:
        try:
            for item in items:
                waiting.put((item, None))
                room.acquire()
                if left:
                    return
            waiting.put((None, None))
        except BaseException as error:
            waiting.put((None, error))

    def taken() -> Iterator[Item]:
        while True:
            item, error = waiting.get()
            room.release()
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    reader = Thread(target=read, name="read ahead", daemon=True)
    reader.start()
    try:
        yield taken()
    finally:
        left = True
        room.release()
        reader.join()


def _ranges(group: Any) -> dict[str, tuple[Any, Any]]:
    """Least and greatest value of each column of a row group that has statistics."""
    columns = (group.column(number) for number in range(group.num_columns))
    return {
        column.path_in_schema: (column.statistics.min, column.statistics.max)
        for column in columns
        if column.statistics is not None and column.statistics.has_min_max
    }


def _statistics_match(ranges: dict[str, tuple[Any, Any]], filters: Filters) -> bool:
    """Whether any row of a row group can pass; True where nothing rules it out."""
    everywhere: dict[str, Callable[[Any, Any], bool]] = {
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
    return all(check(*ranges[name]) for name, check in everywhere.items() if name in ranges)


def _filter_rows(rows: pa.Table, filters: Filters, left_out: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows pass, bool (n,): what `Filters.expression` says, for a table."""
    kept = np.ones(rows.num_rows, bool)

    def column(name: str) -> NDArray[Any]:
        return np.asarray(rows[name])

    def among(name: str, values: Sequence[Any], kind: pa.DataType) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = pc.is_in(rows[name], value_set=pa.array(values, kind)).to_numpy()
        return found

    if filters.cameras:
        kept &= among("camera_id", filters.cameras, pa.string())
    if names := [name for name in filters.not_cameras if name]:
        kept &= ~among("camera_id", names, pa.string())
    if (filters.captured_from, filters.captured_to) != (None, None):
        kept &= column("captured_at") >= (filters.captured_from or 0)
    if filters.captured_to is not None:
        kept &= column("captured_at") < filters.captured_to
    if filters.model_ids:
        kept &= np.isin(column("model_id"), filters.model_ids)
    if filters.not_model_ids:
        kept &= ~np.isin(column("model_id"), filters.not_model_ids)
    if filters.min_model_confidence is not None:
        kept &= column("model_confidence") >= filters.min_model_confidence
    if filters.crop_ids:
        kept &= np.isin(column("crop_id"), filters.crop_ids)
    if len(drop := np.union1d(left_out, np.asarray(filters.not_crop_ids, np.int64))):
        kept &= ~np.isin(column("crop_id"), drop)
    if filters.tracks:
        kept &= np.logical_or.reduce([_on_track(rows, track) for track in filters.tracks])
    for track in filters.not_tracks:
        if track and track[-1]:
            kept &= ~_on_track(rows, track)
    return kept


def _on_track(rows: pa.Table, track: str | tuple[str, str]) -> NDArray[np.bool_]:
    camera, name = (None, track) if isinstance(track, str) else track
    found: NDArray[np.bool_] = pc.equal(rows["track_id"], name).to_numpy()
    if camera is None:
        return found
    return np.asarray(found & pc.equal(rows["camera_id"], camera).to_numpy(), np.bool_)
