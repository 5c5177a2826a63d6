"""The gate: row counts, recall, model and golden probes decide, and every number is recorded."""

from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from index.generations import records
from index.generations.gate import (
    GateReport,
    GoldenResult,
    check_gate,
    golden_probes,
    measure_golden,
    regressions,
)
from index.generations.load import LoadOptions, load_runs
from index.generations.promotion import promote
from index.generations.recall import wilson_interval
from index.milvus import collection
from index.milvus.client import Milvus
from infra.errors import BadInput, BadLabels, GateFailed
from infra.store import Store


def gated(milvus: Milvus, store: Store, runs, **options):
    generation = load_runs(milvus, store, runs, alias="clvr", options=LoadOptions(latest_wins=True))
    return generation, check_gate(milvus, store, generation, runs, **options)


def test_a_good_generation_passes_with_all_its_numbers_on_record(
    milvus: Milvus, store: Store, make_run
) -> None:
    generation, report = gated(milvus, store, [make_run("r1", 400, rows_per_shard=150)], probes=100)
    assert report.passed
    assert (report.rows_expected, report.rows_indexed, report.probes) == (400, 400, 100)
    assert report.recall_at_1 == 1.0
    assert report.recall_at_10 >= 0.98
    assert report.recall_at_10_low is not None and report.recall_at_10_high is not None
    assert 0.96 < report.recall_at_10_low < report.recall_at_10 <= report.recall_at_10_high <= 1.0
    assert 0 < report.latency_p50_ms <= report.latency_p95_ms
    record = records.read(store, generation.name)
    assert record is not None
    assert record.gate is not None
    assert GateReport(**{**record.gate, "failures": tuple(record.gate["failures"])}) == report


def test_the_interval_of_a_share_is_that_of_wilson() -> None:
    # Source: R. G. Newcombe, Two-sided confidence intervals for the single proportion, 1998, Table I.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(1.0, 1000)[0] == pytest.approx(0.9962, abs=1e-4)
    assert wilson_interval(0.0, 0) == (0.0, 1.0)


def test_a_generation_with_fewer_than_ten_rows_can_pass(milvus: Milvus, store: Store, make_run) -> None:
    _, report = gated(milvus, store, [make_run("r1", 4)])
    assert report.passed
    assert report.probes == 4


def test_recall_treats_crops_at_the_same_distance_as_equal(milvus: Milvus, store: Store, make_run) -> None:
    # 60 crops of two images: which ten of thirty twins come first is arbitrary.
    two = np.random.default_rng(0).normal(size=(2, 1024)).astype(np.float32)
    _, report = gated(milvus, store, [make_run("r1", 60, look=lambda numbers, seed: two[numbers % 2])])
    assert report.recall_at_10 == report.recall_at_1 == 1.0


def test_lost_rows_fail_the_gate_with_both_numbers(milvus: Milvus, store: Store, make_run) -> None:
    run = make_run("r1", 50)
    generation = load_runs(milvus, store, [run], alias="clvr")
    milvus.call("delete", generation.name, filter="captured_at == -1")
    report = check_gate(milvus, store, generation, [run])
    assert "45 rows are indexed, the shards hold 50" in report.failures[0]
    with pytest.raises(GateFailed, match="45 rows are indexed"):
        promote(milvus, store, generation.name)


def test_an_index_of_other_vectors_fails_by_its_recall(milvus: Milvus, store: Store, make_run) -> None:
    run = make_run("r1", 100)
    generation = load_runs(milvus, store, [run], alias="clvr")
    rows = milvus.call("query", generation.name, filter="crop_id >= 0", output_fields=["*"], limit=1000)
    noise = np.random.default_rng(5).normal(size=(len(rows), 1024)).astype(np.float32)
    milvus.call(
        "upsert",
        generation.name,
        [{**row, "embedding": vector} for row, vector in zip(rows, noise, strict=True)],
    )
    milvus.call("flush", generation.name)
    report = check_gate(milvus, store, generation, [run])
    assert report.recall_at_10 < 0.5
    assert any("recall@10" in failure for failure in report.failures)


def test_another_model_fails_the_gate_unless_requested(milvus: Milvus, store: Store, make_run) -> None:
    first, _ = gated(milvus, store, [make_run("old", 30, fingerprint="old" * 8)])
    promote(milvus, store, first.name)
    runs = [make_run("new", 30, fingerprint="new" * 8)]
    second, report = gated(milvus, store, runs)
    assert "its model" in report.failures[0]
    assert report.live_fingerprint == "old" * 8
    with pytest.raises(GateFailed, match="--new-model"):
        promote(milvus, store, second.name)
    assert check_gate(milvus, store, second, runs, new_model=True).passed
    promote(milvus, store, second.name)
    assert collection.live_generation(milvus, "clvr") == second


def test_the_gate_needs_the_runs_of_the_generation(milvus: Milvus, store: Store, make_run) -> None:
    generation = load_runs(milvus, store, [make_run("r1", 20)], alias="clvr")
    with pytest.raises(BadInput, match="built of other runs: r1"):
        check_gate(milvus, store, generation, [make_run("r2", 20)])


def test_a_lower_minimum_recall_is_recorded(milvus: Milvus, store: Store, make_run) -> None:
    _, report = gated(milvus, store, [make_run("r1", 30)], min_recall=0.5)
    assert asdict(report)["recall_bar"] == 0.5


def labels(vehicle_size: int, crops: int = 60) -> pa.Table:
    uris = [f"s3://archive/cam-{number % 5}/{number:06d}.jpg" for number in range(crops)]
    return pa.table({"uri": uris, "vehicle_id": [number // vehicle_size for number in range(crops)]})


def test_golden_probes_find_their_vehicle(milvus: Milvus, store: Store, make_run) -> None:
    generation = load_runs(milvus, store, [make_run("r1", 60)], alias="clvr")  # look-alikes by tens
    assert measure_golden(milvus, generation, golden_probes(labels(10))) == GoldenResult(60, 1.0, 1.0, 1.0)


def noise(numbers: NDArray[np.int64], seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=(len(numbers), 1024)).astype(np.float32)


def test_golden_probes_fail_the_gate_of_a_worse_generation(milvus: Milvus, store: Store, make_run) -> None:
    good = load_runs(milvus, store, [make_run("r1", 60)], alias="clvr")
    promote(milvus, store, good.name, force="test")
    run = make_run("r2", 60, look=noise)
    worse = load_runs(milvus, store, [run], alias="clvr")
    report = check_gate(milvus, store, worse, [run], golden=golden_probes(labels(10)))
    assert report.live_golden == GoldenResult(60, 1.0, 1.0, 1.0)
    assert "golden probes: rank-1 is 0." in report.failures[0]
    with pytest.raises(GateFailed, match="golden probes"):
        promote(milvus, store, worse.name)


def test_golden_probes_that_are_not_in_the_generation_do_not_count(
    milvus: Milvus, store: Store, make_run
) -> None:
    generation = load_runs(milvus, store, [make_run("r1", 15)], alias="clvr")
    assert measure_golden(milvus, generation, golden_probes(labels(10))).probes == 15
    assert measure_golden(milvus, generation, golden_probes(labels(2))).probes == 14
    empty = measure_golden(milvus, generation, {1: 1, 2: 1})
    assert empty.probes == 0
    assert list(regressions(empty, GoldenResult(5, 1.0, 1.0, 1.0))) != []


def test_golden_probes_that_fit_nothing_fail_the_gate(milvus: Milvus, store: Store, make_run) -> None:
    _, report = gated(milvus, store, [make_run("r1", 30)], golden={1: 1, 2: 1})
    assert report.failures == (
        "no golden probe is in it together with another one of its vehicle: check the list",
    )


def test_golden_probes_without_a_match_are_refused() -> None:
    with pytest.raises(BadLabels, match="no two"):
        golden_probes(labels(1))
    with pytest.raises(BadLabels, match="vehicle_id"):
        golden_probes(pa.table({"uri": ["a"]}))
