"""One altered bit in any stored object: whoever uses the object names it, or answers as before."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index.archive.manifest import crop_id_of
from index.filters import Filters
from index.generations import records
from index.generations.load_plan import plan_load
from index.generations.receipt import Receipt, read_receipt
from index.generations.records import GenerationRecord
from index.lock import LockRecord, acquire
from index.runs import tombstones
from index.runs.accounting import QuarantinedCrop, quarantine_table
from index.runs.run import Run, vanished_ids
from index.runs.shards import shard_table
from index.schema import MANIFEST_SCHEMA
from index.search.calibration import Calibration, calibration_of, store_calibration
from index.search.scan_source import ScanSource
from infra.store import Store

CROPS, ROWS_PER_PART = 12, 6
Check = Callable[..., None]


@pytest.fixture
def unfinished(store: Store) -> Run:
    """A run of two parts that are written, with two quarantined crops and two vanished ones."""
    uris = [f"s3://archive/{number:03d}.jpg" for number in range(CROPS)]
    columns = {
        "crop_id": [crop_id_of(uri) for uri in uris],
        "uri": uris,
        "etag": ["e"] * CROPS,
        "size": [1] * CROPS,
        "last_modified": [5] * CROPS,
        "camera_id": [f"cam-{number % 2}" for number in range(CROPS)],
        "captured_at": list(range(CROPS)),
        "track_id": [""] * CROPS,
        "vehicle_id": [None] * CROPS,
        "model_id": [None] * CROPS,
    }
    run = Run.create(
        store,
        "r",
        manifest=pa.table(columns, schema=MANIFEST_SCHEMA),
        archive="s3://archive",
        fingerprint="f00d",
        model="s3://models/1",
        settings={},
        rows_per_part=ROWS_PER_PART,
        rows_per_shard=CROPS,
        vanished=pa.array(["s3://archive/gone.jpg", "s3://archive/lost.jpg"]),
    )
    for part in run.pending_parts():
        crops = run.part_manifest(part)
        good, bad = crops.slice(1), crops.slice(0, 1).select(["crop_id", "uri"]).to_pylist()
        ones = np.ones(good.num_rows)
        vectors = np.random.default_rng(part).normal(size=(good.num_rows, 1024)).astype(np.float32)
        run.write_part(
            part,
            shard_table(good, vectors, ones.astype(np.int32), ones.astype(np.float32)),
            quarantine_table(QuarantinedCrop(**row, stage="decode", cause="truncated") for row in bad),
        )
    return run


@pytest.fixture
def finished(unfinished: Run) -> Run:
    unfinished.finish()
    return Run.open(unfinished.store, "r")


@pytest.mark.parametrize("kind", ["shard", "quarantine", "mark"])
def test_of_a_part_as_it_is_compacted(unfinished: Run, assert_flips_are_noticed: Check, kind: str) -> None:
    folder, store = unfinished.folder, unfinished.store
    mark = folder.part_mark(1)
    keys = {"shard": mark.shard.key, "quarantine": mark.quarantine.key, "mark": folder.part_mark_key(1)}

    def compacted() -> list[bytes]:
        store.delete(folder.shard_mark_key(0))
        unfinished.compact(0)
        return [store.get(key) for key in (folder.shard_key(0), folder.quarantine_key(0))]

    assert_flips_are_noticed(store, keys[kind], compacted)


def test_of_the_manifest_as_actors_read_it(unfinished: Run, assert_flips_are_noticed: Check) -> None:
    key = unfinished.folder.manifest_key(0)
    assert_flips_are_noticed(
        unfinished.store, key, lambda: [unfinished.part_manifest(part) for part in range(2)], tries=150
    )


def test_of_the_documents_and_tables_of_a_run(finished: Run, assert_flips_are_noticed: Check) -> None:
    store, folder = finished.store, finished.folder

    def state() -> list[Any]:
        run = Run.open(store, "r")
        return [run.info, run.summary, run.quarantine(), vanished_ids(run).tolist()]

    for key in (
        folder.key("run.json"),
        folder.key("done.json"),
        folder.quarantine_key(0),
        finished.vanished()[0].key,
    ):
        assert_flips_are_noticed(store, key, state)


def test_of_a_shard_as_it_is_loaded(finished: Run, assert_flips_are_noticed: Check) -> None:
    def loaded() -> list[pa.RecordBatch]:
        return list(plan_load([finished]).batches(100))

    assert_flips_are_noticed(finished.store, finished.folder.shard_key(0), loaded)


@pytest.mark.parametrize("filters", [Filters(), Filters(cameras=("cam-1",), captured_from=3)])
def test_of_a_shard_as_it_is_searched(
    finished: Run, assert_flips_are_noticed: Check, filters: Filters
) -> None:
    probes = np.random.default_rng(9).normal(size=(3, 1024)).astype(np.float32)

    def answers() -> list[Any]:
        return ScanSource([finished]).nearest(probes, 5, filters)

    assert_flips_are_noticed(finished.store, finished.folder.shard_key(0), answers)


def test_of_tombstones(store: Store, assert_flips_are_noticed: Check, hide: Callable[..., str]) -> None:
    erasure_id = hide(store, range(50), [bytes([number] * 16) for number in range(50)])

    def erased() -> list[bool]:
        return tombstones.read_tombstones(store).is_erased(np.arange(100)).tolist()

    for name, tries in ((f"{erasure_id}/hashes.parquet", 150), ("key.json", 60)):
        assert_flips_are_noticed(store, f"erasures/{name}", erased, tries=tries)


def test_of_a_generation_record(store: Store, assert_flips_are_noticed: Check) -> None:
    records.create(
        store,
        GenerationRecord(
            name="g", alias="clvr", fingerprint="f", run_ids=("r",), rows=7, target="grpc_v1",
            state="ready", updated="t", gate={"recall_at_10": 0.99},
        ),
    )  # fmt: skip
    assert_flips_are_noticed(store, "generations/g.json", lambda: records.read(store, "g"))


def test_of_a_receipt(store: Store, assert_flips_are_noticed: Check) -> None:
    receipt = Receipt(
        erasure_id="e1", state="done", wanted={"vehicles": [4]}, reason="t", by="me", begun="t", crops=3,
        unknown_time=0, runs={"r": 3}, generations=(),
    )  # fmt: skip
    store.put("erasures/e1/receipt.json", receipt.to_json())
    assert_flips_are_noticed(store, "erasures/e1/receipt.json", lambda: read_receipt(store, "e1"))


def test_of_a_lock(store: Store, assert_flips_are_noticed: Check) -> None:
    with acquire(store, "rows", "a load", seconds=600):
        time.sleep(0.01)
    assert_flips_are_noticed(store, "locks/rows.json", lambda: LockRecord.read(store, "locks/rows.json"))


def test_of_a_calibration(store: Store, assert_flips_are_noticed: Check) -> None:
    calibration = Calibration(
        fingerprint="f00d", run_id="r", false_alarm_rate=0.01, threshold=11.5, detection_rate=0.9, probes=100,
        vehicles=20, gallery=100, pairs=1000, brier=0.1, brier_base=0.2, same_camera=False,
        distances=(1.0, 2.5, 3.25), likelihoods=(0.9, 0.5, 0.1), created="2026-11-22T00:00:00.000+00:00",
    )  # fmt: skip
    key = store_calibration(store, calibration)
    assert_flips_are_noticed(store, key, lambda: calibration_of(store, "f00d"))
