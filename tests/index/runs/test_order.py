"""Rows of a shard lie by days, cameras and times, so that ranges of row groups rule most of them out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index.archive.manifest import crop_ids_of
from index.filters import Filters
from index.runs import order, shards
from index.runs.accounting import quarantine_table
from index.runs.balance import check_run
from index.runs.order import in_shard_order, shard_order
from index.runs.run import Run
from index.runs.shards import shard_table
from index.schema import MANIFEST_SCHEMA, UNKNOWN
from index.search.scan_source import ScanSource
from infra.errors import CorruptObject
from infra.store import Store, open_store

DAY = 86_400_000
START = 20_000 * DAY


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROW_GROUP_ROWS", 32)
    monkeypatch.setattr(order, "ROW_GROUP_ROWS", 32)
    monkeypatch.setattr(order, "SLICE_ROWS", 256)


@pytest.mark.usefixtures("small_groups")
def test_filters_by_camera_and_day_read_few_row_groups(
    store: Store, make_finished_run: Callable[..., Run]
) -> None:
    rng = np.random.default_rng(1)
    days, cameras = rng.integers(0, 4, 2000), rng.integers(0, 20, 2000)
    times = START + days * DAY + rng.integers(0, DAY, 2000)
    run = make_finished_run(
        store,
        "r1",
        range(2000),  # in the order of their URIs, which is neither that of cameras nor of times
        camera_id=[f"cam-{camera:02}" for camera in cameras],
        captured_at=times.tolist(),
        rows_per_shard=2000,
    )
    source, probe = ScanSource([run]), np.zeros((1, 1024), np.float32)
    of_day = Filters(captured_from=START + DAY, captured_to=START + 2 * DAY)
    of_camera = Filters(cameras=("cam-07",))
    of_both = Filters(of_camera.cameras, (), of_day.captured_from, of_day.captured_to)
    read = {}
    for name, filters in (("day", of_day), ("camera", of_camera), ("both", of_both)):
        hits = source.nearest(probe, 2000, filters)[0]
        expected = np.ones(2000, bool)
        expected &= (cameras == 7) | (name == "day")
        expected &= (days == 1) | (name == "camera")
        assert len(hits) == expected.sum()
        read[name] = source.stats.groups - source.stats.groups_skipped
    assert source.stats.groups == 63
    # A row group may lie in two slices: it has all cameras and two days.
    assert read["both"] <= 4 and read["camera"] <= 12 and read["day"] <= 17
    check_run(run)


@pytest.mark.usefixtures("small_groups")
def test_slices_are_whole_days_of_enough_rows(store: Store) -> None:
    rows_of_day = {-DAY: 10, START: 300, START + DAY: 20, START + 2 * DAY: 300, START + 9 * DAY: 5}
    times = np.repeat([*rows_of_day], [*rows_of_day.values()])
    cameras = pa.chunked_array([pa.array([f"{number % 3}" for number in range(len(times))])])
    positions = shard_order(cameras, times)
    assert sorted(positions.tolist()) == list(range(len(times)))
    days = times[positions] // DAY
    slices = [days[:310], days[310:]]  # the last days are too few for a slice of their own
    assert set(slices[0]) == {-1, 20_000} and set(slices[1]) == {20_001, 20_002, 20_009}
    for first, last in ((0, 310), (310, len(times))):
        keys = [(cameras[int(at)].as_py(), times[at], at) for at in positions[first:last]]
        assert keys == sorted(keys)


@pytest.mark.usefixtures("small_groups")
def test_rows_keep_their_vectors_and_equal_rows_give_equal_bytes(
    store: Store, make_finished_run: Callable[..., Run], tmp_path: Path
) -> None:
    cameras = [f"cam-{number * 7 % 11:02}" for number in range(300)]
    runs = [
        make_finished_run(other, "r1", range(300), camera_id=cameras)
        for other in (store, open_store(str(tmp_path / "other")))
    ]
    first, second = (run.store.get(run.shard_keys()[0]) for run in runs)
    assert first == second
    rows = next(iter(shards.read_shards(store, runs[0].shard_keys(), batch_rows=300)))
    manifest = {row["crop_id"]: row for row in runs[0].manifest().to_pylist()}
    assert all(manifest[row["crop_id"]]["camera_id"] == row["camera_id"] for row in rows.to_pylist())


def test_a_vector_of_another_length_is_refused() -> None:
    columns = {"camera_id": ["a"], "captured_at": [1], "embedding": [[1.0, 2.0]]}
    vectors = pa.list_(pa.float32())
    schema = pa.schema([("camera_id", pa.string()), ("captured_at", pa.int64()), ("embedding", vectors)])
    with pytest.raises(CorruptObject, match="1024 numbers"):
        list(in_shard_order([pa.RecordBatch.from_pydict(columns, schema=schema)]))
    assert list(in_shard_order([])) == []


class Counting:
    """Counts the requests of a store by method."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: dict[str, int] = {}
        for name in ("list", "level", "head", "fetch", "put"):
            monkeypatch.setattr(Store, name, self.counted(name, getattr(Store, name)))

    def counted(self, name: str, method: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            self.calls[name] = self.calls.get(name, 0) + 1
            return method(*arguments, **named)

        return call


def embedded(store: Store, run_id: str, crops: int) -> Run:
    """A run of parts of two crops that are embedded, and not compacted."""
    uris = [f"s3://archive/{number:03}.jpg" for number in range(crops)]
    columns = {"crop_id": crop_ids_of(uris), "uri": uris} | {
        name: [value] * crops for name, value in UNKNOWN.items()
    }
    run = Run.create(
        store,
        run_id,
        manifest=pa.table(columns).cast(MANIFEST_SCHEMA),
        archive="s3://archive",
        fingerprint="5eed" * 16,
        model="m",
        settings={},
        rows_per_part=2,
        rows_per_shard=4,
    )
    for part in run.pending_parts():
        zeros = np.zeros((2, 1024), np.float32)
        shard = shard_table(run.part_manifest(part), zeros, np.zeros(2, np.int32), np.zeros(2, np.float32))
        run.write_part(part, shard, quarantine_table())
    return run


def test_compaction_takes_requests_in_proportion_to_parts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    for name, crops in (("r20", 40), ("r40", 80)):
        run = embedded(store, name, crops)
        with monkeypatch.context() as patched:
            counting = Counting(patched)
            for shard in range(run.info.shards):
                run.compact(shard)
            counts.append(dict(counting.calls))
    small, large = counts
    assert "list" not in small and "level" not in small  # no shard looks at the parts of the others
    assert large == {name: 2 * number for name, number in small.items()}
