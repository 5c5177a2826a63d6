"""Verification, retirement and golden probes: named differences, safe drops, known matches."""

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from index.generations.gate import GoldenResult, check_gate, golden_probes, measure, regressions
from index.generations.load import load_runs
from index.generations.promotion import promote, retire
from index.generations.reconcile import reconcile
from index.milvus import collection
from index.milvus.client import Milvus
from infra.errors import BadLabels, BadSetting, GateFailed
from infra.store import Store


def test_a_whole_generation_has_no_differences(milvus: Milvus, store: Store, make_run) -> None:
    old, new = make_run("old", 50), make_run("new", 30, first=40)
    generation = load_runs(milvus, store, [old, new], alias="clvr", latest_wins=True)
    found = reconcile(milvus, store, generation, [old, new])
    assert found.differences == ()
    assert (found.listed, found.embedded, found.superseded, found.expected, found.indexed) == (
        80,
        80,
        10,
        70,
        70,
    )


def test_each_missing_and_each_foreign_row_is_named(milvus: Milvus, store: Store, make_run) -> None:
    run = make_run("r1", 50)
    generation = load_runs(milvus, store, [run], alias="clvr")
    lost = run.manifest()["crop_id"][7].as_py()
    (row,) = milvus.call("query", generation.name, filter=f"crop_id == {lost}", output_fields=["*"])
    milvus.call("delete", generation.name, filter=f"crop_id == {lost}")
    milvus.call("insert", generation.name, [{**row, "crop_id": 4711}])
    found = reconcile(milvus, store, generation, [run])
    assert (found.missing, found.foreign) == ((lost,), (4711,))
    assert any(str(lost) in difference for difference in found.differences)


def test_retirement_keeps_the_newest_the_live_and_the_previous(
    milvus: Milvus, store: Store, make_run
) -> None:
    run = make_run("r1", 20)
    made = [load_runs(milvus, store, [run], alias="clvr") for _ in range(5)]
    other = load_runs(milvus, store, [run], alias="other")
    for generation in (made[1], made[0]):
        promote(milvus, store, generation.name, force="test")
    done = retire(milvus, store, "clvr", keep=1)
    assert done.dropped == (made[2].name, made[3].name)
    assert done.kept == (made[0].name, made[1].name, made[4].name)
    assert collection.live_generation(milvus, "clvr") == made[0]
    assert collection.get_generation(milvus, other.name) == other
    with pytest.raises(BadSetting):
        retire(milvus, store, "clvr", keep=0)


def labels(vehicle_size: int, crops: int = 60) -> pa.Table:
    uris = [f"s3://archive/cam-{number % 5}/{number:06d}.jpg" for number in range(crops)]
    return pa.table({"uri": uris, "vehicle_id": [number // vehicle_size for number in range(crops)]})


def test_golden_probes_find_their_vehicle(milvus: Milvus, store: Store, make_run) -> None:
    generation = load_runs(milvus, store, [make_run("r1", 60)], alias="clvr")  # look-alikes by tens
    assert measure(milvus, generation, golden_probes(labels(10))) == GoldenResult(60, 1.0, 1.0, 1.0)


def noise(numbers: NDArray[np.int64], seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=(len(numbers), 1024)).astype(np.float32)


def test_golden_probes_hold_a_worse_generation_back(milvus: Milvus, store: Store, make_run) -> None:
    good = load_runs(milvus, store, [make_run("r1", 60)], alias="clvr")
    promote(milvus, store, good.name, force="test")
    run = make_run("r2", 60, look=noise)
    worse = load_runs(milvus, store, [run], alias="clvr")
    report = check_gate(milvus, store, worse, [run], golden=golden_probes(labels(10)))
    assert report.live_golden == GoldenResult(60, 1.0, 1.0, 1.0)
    assert "golden probes: rank-1 is 0." in report.failures[0]
    with pytest.raises(GateFailed, match="golden probes"):
        promote(milvus, store, worse.name)


def test_probes_that_a_generation_does_not_hold_do_not_count(milvus: Milvus, store: Store, make_run) -> None:
    generation = load_runs(milvus, store, [make_run("r1", 15)], alias="clvr")
    assert measure(milvus, generation, golden_probes(labels(10))).probes == 15
    assert measure(milvus, generation, golden_probes(labels(2))).probes == 14
    empty = measure(milvus, generation, {1: 1, 2: 1})
    assert empty.probes == 0
    assert list(regressions(empty, GoldenResult(5, 1.0, 1.0, 1.0))) != []


def test_golden_probes_without_a_match_are_refused() -> None:
    with pytest.raises(BadLabels, match="no two"):
        golden_probes(labels(1))
    with pytest.raises(BadLabels, match="vehicle_id"):
        golden_probes(pa.table({"uri": ["a"]}))
