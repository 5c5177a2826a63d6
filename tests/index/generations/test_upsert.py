"""Small increments go into the live generation, may be repeated, and never replace newer rows."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index.generations import records
from index.generations.erasure import forget
from index.generations.gate import check_gate
from index.generations.load import LoadOptions, load_runs
from index.generations.load_plan import plan_load
from index.generations.promotion import promote
from index.generations.reconcile import reconcile
from index.generations.selection import EraseSelection
from index.generations.upsert import Increment, load_into_live
from index.lock import ROWS, acquire, alias_lock
from index.milvus import collection
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.runs.run import Run
from index.schema import MANIFEST_SCHEMA
from infra.errors import BadInput, FingerprintMismatch, IndexUnreachable, Locked
from infra.store import Store


def live_with(milvus: Milvus, store: Store, runs: list[Run]) -> Generation:
    generation = load_runs(milvus, store, runs, alias="clvr")
    promote(milvus, store, generation.name, force="test")
    return generation


def increment(milvus: Milvus, store: Store, runs: list[Run], **options) -> Increment:
    return load_into_live(
        milvus,
        store,
        runs,
        lambda run_ids: [Run.open(store, run_id) for run_id in run_ids],
        alias="clvr",
        options=LoadOptions(),
        **options,
    )


def vectors(milvus: Milvus, name: str) -> dict[int, np.ndarray]:
    rows = milvus.call("query", name, filter="crop_id >= 0", output_fields=["embedding"], limit=10_000)
    return {row["crop_id"]: np.asarray(row["embedding"], np.float32) for row in rows}


def lists_vanished(run: Run, uris: list[str]) -> None:
    run.info = replace(run.info, vanished=(run.folder.write_vanished(pa.array(uris, pa.string())),))
    run.store.put(run.folder.key("run.json"), run.info.to_json())


def test_an_increment_adds_new_rows_and_replaces_changed_ones(milvus: Milvus, store: Store, make_run) -> None:
    live = live_with(milvus, store, [make_run("night1", 100)])
    night2 = make_run("night2", 15, first=95, seed=9)
    done = increment(milvus, store, [night2])
    assert (done.generation, done.upserted, done.removed) == (live, 15, 0)
    assert (done.rows_before, done.rows_after, done.promote_next) == (100, 110, False)
    stored = vectors(milvus, live.name)
    for ids, block in plan_load([night2]).blocks():
        for crop_id, vector in zip(ids.tolist(), block, strict=True):
            assert np.array_equal(stored[crop_id], vector)
    record = records.read(store, live.name)
    assert record is not None
    assert (record.rows, record.run_ids, record.pending) == (110, ("night1", "night2"), ())
    assert record.changes[-1]["kind"] == "increment"


def test_a_repeated_increment_changes_nothing(milvus: Milvus, store: Store, make_run) -> None:
    live = live_with(milvus, store, [make_run("night1", 100)])
    night2 = make_run("night2", 15, first=95)
    increment(milvus, store, [night2])
    again = increment(milvus, store, [night2])
    assert (again.generation, again.rows_before, again.rows_after) == (live, 110, 110)
    assert not reconcile(milvus, store, live, plan_runs(store, live)).differences


def plan_runs(store: Store, generation: Generation) -> list[Run]:
    record = records.read(store, generation.name)
    assert record is not None
    return [Run.open(store, run_id) for run_id in record.run_ids]


def test_an_older_run_that_is_repeated_does_not_overwrite_a_newer_one(
    milvus: Milvus, store: Store, make_run
) -> None:
    live = live_with(milvus, store, [make_run("night1", 100)])
    night2 = make_run("night2", 10, first=90, seed=1)
    night3 = make_run("night3", 5, first=95, seed=2)
    increment(milvus, store, [night2])
    increment(milvus, store, [night3])
    before = vectors(milvus, live.name)
    increment(milvus, store, [night2])
    after = vectors(milvus, live.name)
    assert all(np.array_equal(before[crop_id], after[crop_id]) for crop_id in before)


def test_vanished_crops_are_removed_from_the_live_generation_and_every_rebuild(
    milvus: Milvus, store: Store, make_run
) -> None:
    live = live_with(milvus, store, [make_run("night1", 100)])
    night2 = make_run("night2", 10, first=100)
    lists_vanished(
        night2, [f"s3://archive/cam-{n % 5}/{n:06d}.jpg" for n in (3, 4, 5)] + ["s3://archive/never"]
    )
    done = increment(milvus, store, [night2])
    assert (done.removed, done.rows_after) == (3, 107)
    runs = plan_runs(store, live)
    result = reconcile(milvus, store, live, runs)
    assert (result.vanished, result.expected, result.differences) == (3, 107, ())
    rebuilt = load_runs(milvus, store, runs, alias="clvr")
    assert collection.row_count(milvus, rebuilt) == 107


def test_a_run_of_vanished_crops_only_is_an_increment(milvus: Milvus, store: Store, make_run) -> None:
    night1 = make_run("night1", 100)
    live = live_with(milvus, store, [night1])
    night2 = Run.create(
        store,
        "night2",
        manifest=MANIFEST_SCHEMA.empty_table(),
        archive=night1.info.archive,
        fingerprint=night1.fingerprint,
        model=night1.info.model,
        settings={"since_run": "night1"},
        vanished=pa.array(["s3://archive/cam-3/000003.jpg"]),
    )
    night2.finish()
    done = increment(milvus, store, [night2])
    assert (done.upserted, done.removed, done.rows_after) == (0, 1, 99)
    assert not reconcile(milvus, store, live, plan_runs(store, live)).differences
    with pytest.raises(BadInput, match="no row to index"):
        load_runs(milvus, store, [night2], alias="other")


def test_a_crop_that_vanished_and_returned_stays(milvus: Milvus, store: Store, make_run) -> None:
    live_with(milvus, store, [make_run("night1", 50)])
    night2 = make_run("night2", 5, first=50)
    lists_vanished(night2, ["s3://archive/cam-3/000003.jpg"])
    increment(milvus, store, [night2])
    done = increment(milvus, store, [make_run("night3", 1, first=3)])
    assert done.rows_after == 55


def test_a_large_increment_builds_a_new_generation_of_all_runs_and_leaves_the_live_one(
    milvus: Milvus, store: Store, make_run
) -> None:
    live = live_with(milvus, store, [make_run("night1", 100)])
    done = increment(milvus, store, [make_run("night2", 60, first=90)])
    assert done.promote_next
    assert done.generation.run_ids == ("night1", "night2")
    assert collection.row_count(milvus, done.generation) == 150
    assert collection.live_generation(milvus, "clvr") == live
    assert collection.row_count(milvus, live) == 100


def test_an_interrupted_increment_is_pending_until_it_is_repeated(
    milvus: Milvus, store: Store, make_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = live_with(milvus, store, [make_run("night1", 100)])
    night2 = make_run("night2", 10, first=100)
    call = Milvus.call

    def lost(self: Milvus, method: str, *args: object, **named: object) -> object:
        if method == "flush":
            raise IndexUnreachable("gone")
        return call(self, method, *args, **named)

    with monkeypatch.context() as cut:
        cut.setattr(Milvus, "call", lost)
        with pytest.raises(IndexUnreachable):
            increment(milvus, store, [night2])
    result = reconcile(milvus, store, live, plan_runs(store, live))
    assert "repeat `clvr load night2 --into-live`" in result.differences[0]
    assert result.foreign_count == 10
    increment(milvus, store, [night2])
    assert not reconcile(milvus, store, live, plan_runs(store, live)).differences


def require_equal_to_shards(milvus: Milvus, store: Store, live: Generation) -> None:
    """The generation and its record are what all shards of its runs say, read at once."""
    runs = plan_runs(store, live)
    plan, record = plan_load(runs, latest_wins=True), records.read(store, live.name)
    assert record is not None
    assert (record.rows, record.run_ids) == (plan.rows, plan.run_ids)
    assert (record.pending, record.pending_rows) == ((), None)
    stored, expected = vectors(milvus, live.name), {}
    for ids, block in plan.blocks():
        expected |= dict(zip(ids.tolist(), block, strict=True))
    assert stored.keys() == expected.keys()
    assert all(np.array_equal(stored[crop_id], vector) for crop_id, vector in expected.items())


def test_an_increment_reads_no_shard_of_the_runs_before(milvus: Milvus, store: Store, make_run) -> None:
    night1, night2 = make_run("night1", 100), make_run("night2", 10, first=95, seed=1)
    live = live_with(milvus, store, [night1])
    increment(milvus, store, [night2])
    kept = {key: store.get(key) for run in (night1, night2) for key in run.shard_keys()}
    store.delete(*kept)
    night3 = make_run("night3", 10, first=100, seed=2)
    lists_vanished(night3, [f"s3://archive/cam-{n % 5}/{n:06d}.jpg" for n in (3, 104, 999)])
    done = increment(milvus, store, [night3])
    # Crop 104 is in the run itself: it vanished, and came back before the listing ended.
    assert (done.upserted, done.removed, done.rows_before, done.rows_after) == (10, 1, 105, 109)
    for key, data in kept.items():
        store.put(key, data)
    require_equal_to_shards(milvus, store, live)
    increment(milvus, store, [night2])
    require_equal_to_shards(milvus, store, live)


def test_lost_rows_are_counted_again_by_the_shards(milvus: Milvus, store: Store, make_run) -> None:
    night1, night2 = make_run("night1", 100), make_run("night2", 10, first=95, seed=1)
    live = live_with(milvus, store, [night1])
    collection.delete(milvus, live.name, night2.manifest()["crop_id"].to_numpy())
    done = increment(milvus, store, [night2])
    assert (done.rows_before, done.rows_after) == (95, 105)
    require_equal_to_shards(milvus, store, live)


class Cut(BaseException):
    """The process ends here."""


def cut_off(work: Callable[[], Any], number: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Do something until its n-th write to the index or to the record; return whether it was cut off."""
    left = number

    def around(original: Callable[..., Any], counts: Callable[[str], bool]) -> Callable[..., Any]:
        def write(target: Any, name: str, *args: Any, **options: Any) -> Any:
            nonlocal left
            left -= counts(name)
            if left == 0 and counts(name):
                raise Cut
            return original(target, name, *args, **options)

        return write

    with monkeypatch.context() as patched:
        is_change = {"upsert", "delete", "flush"}.__contains__
        patched.setattr(Milvus, "call", around(Milvus.call, is_change))
        patched.setattr(Store, "replace", around(Store.replace, lambda key: key.startswith("generations/")))
        patched.setattr(collection, "INSERT_ROWS", 4)
        try:
            work()
        except Cut:
            return True
    return False


@pytest.mark.parametrize("meanwhile", ["nothing", "an erasure", "another night"])
def test_an_increment_may_end_at_every_write(
    milvus: Milvus, store: Store, make_run, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    """Every night replaces, adds and loses crops; it is cut off one write later than the night before."""
    live = live_with(milvus, store, [make_run("night0", 100)])
    for number in itertools.count(1):
        first = 100 + 10 * number
        night = make_run(f"night{number}", 10, first=first - 3, seed=number)
        lists_vanished(night, [f"s3://archive/cam-{n % 5}/{n:06d}.jpg" for n in (number, first - 4)])
        is_cut = cut_off(lambda: increment(milvus, store, [night]), number, monkeypatch)  # noqa: B023
        runs = [night]
        if meanwhile == "an erasure":
            ids = tuple(night.manifest()["crop_id"].to_pylist()[:4:3])
            forget(milvus, store, EraseSelection(crop_ids=ids), reason="test", dry_run=False)
        if meanwhile == "another night":
            runs.append(make_run(f"more{number}", 4, first=first + 5, seed=number))
        increment(milvus, store, runs)
        require_equal_to_shards(milvus, store, live)
        if not is_cut:
            break
    assert number > 6


def test_the_gate_counts_the_rows_of_an_increment(milvus: Milvus, store: Store, make_run) -> None:
    first = live_with(milvus, store, [make_run("night1", 100)])
    increment(milvus, store, [make_run("night2", 10, first=100)])
    report = check_gate(milvus, store, first, plan_runs(store, first))
    assert report.passed, report.failures
    assert report.rows_expected == 110


def test_an_increment_needs_a_live_generation(milvus: Milvus, store: Store, make_run) -> None:
    with pytest.raises(BadInput, match="points to no generation"):
        increment(milvus, store, [make_run("night1", 10)])


def test_another_model_is_refused(milvus: Milvus, store: Store, make_run) -> None:
    live_with(milvus, store, [make_run("night1", 50)])
    with pytest.raises(FingerprintMismatch, match="is of model"):
        increment(milvus, store, [make_run("other", 5, first=50, fingerprint="other" * 8)])


def test_a_promotion_or_a_load_meanwhile_is_refused(milvus: Milvus, store: Store, make_run) -> None:
    live_with(milvus, store, [make_run("night1", 50)])
    night2 = make_run("night2", 5, first=50)
    for name in (ROWS, alias_lock("clvr")):
        with acquire(store, name, "something else"), pytest.raises(Locked, match="something else"):
            increment(milvus, store, [night2])
    assert (
        collection.count_of(
            milvus, collection.live_generation(milvus, "clvr").name, night2.manifest()["crop_id"].to_numpy()
        )
        == 0
    )
