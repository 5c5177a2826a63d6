"""The gate of a large generation: a sample of days and cameras, within a budget, judges it or refuses."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index.generations import records
from index.generations.gate import GateReport, check_gate
from index.generations.gate_sample import GateBudget
from index.generations.load import LoadOptions, load_runs
from index.generations.promotion import promote
from index.generations.recall import missed, poisson_interval, sampled_recall, share_found
from index.milvus import collection
from index.milvus.client import Milvus
from index.milvus.search import Hit
from index.runs.run import Run
from index.runs.tombstones import ErasedCrops
from infra.errors import GateFailed
from infra.store import Store

DAY, A_DAY = 86_400_000, 40
BUDGET = GateBudget(rows=800)  # a partition of at most 50 rows
CROPS = 1_200


def uri_of(number: int) -> str:
    return f"s3://archive/dt={number // A_DAY:05d}/cam-{number % 2}/{number:06d}.jpg"


@pytest.fixture
def make_days(store: Store, make_finished_run: Callable[..., Run]) -> Callable[..., Run]:
    """Make a run of crops by number: 40 a day, of two cameras, in row groups of 20."""

    def make(run_id: str, numbers: Sequence[int], camera: str = "cam-", **options: Any) -> Run:
        return make_finished_run(
            store,
            run_id,
            numbers,
            rows_per_shard=20,
            uri=list(map(uri_of, numbers)),
            camera_id=[f"{camera}{number % 2}" for number in numbers],
            captured_at=[(number // A_DAY + 1) * DAY + number % A_DAY for number in numbers],
            **options,
        )

    return make


def loaded(milvus: Milvus, store: Store, runs: list[Run], index: str = "IVF_FLAT") -> Any:
    return load_runs(milvus, store, runs, alias="clvr", options=LoadOptions(index, latest_wins=True))


def gate(milvus: Milvus, store: Store, generation: Any, runs: list[Run], **options: Any) -> GateReport:
    return check_gate(milvus, store, generation, runs, **{"budget": BUDGET, "probes": 500} | options)


@pytest.mark.parametrize(("rows", "index"), [(800, "HNSW"), (480, "IVF_FLAT")])  # days; cameras on a day
def test_a_sample_judges_a_generation_of_many_nights(
    milvus: Milvus, store: Store, make_days, hide, look_alikes, rows: int, index: str
) -> None:
    """Crops that a later night has again, lists as vanished, gives another camera or that were erased."""
    first = make_days("n0", range(CROPS))
    second = make_days("n1", range(0, 600, 3), look=lambda numbers: look_alikes(numbers, 1))
    third = make_days("n2", range(7, CROPS, 200), camera="moved-")
    gone = pa.array(map(uri_of, range(1, CROPS, 6)))
    third.info = replace(third.info, vanished=(third.folder.write_vanished(gone),))
    store.put(third.folder.key("run.json"), third.info.to_json())
    hide(store, first.manifest()["crop_id"].to_pylist()[::50])
    runs = [first, second, third]
    generation = loaded(milvus, store, runs, index)
    report = gate(milvus, store, generation, runs, budget=GateBudget(rows))
    # The lists of so few rows lose neighbours in the other partitions, of which the sample has a few.
    assert report.passed == (index == "HNSW")
    sample = report.sample
    assert sample is not None
    assert sample.partitions >= 8 and sample.rows_read <= rows
    assert (sample.missing, sample.foreign) == (0, 0)
    assert 0.5 < sample.filtered_recall_at_10 <= 1.0
    assert report.rows_expected == report.rows_indexed == collection.row_count(milvus, generation)
    record = records.read(store, generation.name)
    assert record is not None and record.gate is not None
    assert record.gate["sample"]["budget_rows"] == rows
    whole = gate(milvus, store, generation, runs, budget=None)
    assert whole.sample is None and whole.rows_expected == report.rows_expected
    low, high = report.recall_at_10_low, report.recall_at_10_high
    assert low is not None and high is not None
    assert low <= (whole.recall_at_10_high or 0) and high >= (whole.recall_at_10_low or 1)
    assert whole.passed == report.passed
    assert report.recall_at_1 == whole.recall_at_1 == 1.0


def test_a_wrong_index_does_not_pass(milvus: Milvus, store: Store, make_days, hide) -> None:
    """Rows that were erased, rows that were exchanged, and vectors of other crops."""
    run = make_days("n0", range(CROPS))
    generation = loaded(milvus, store, [run])
    hide(store, run.manifest()["crop_id"].to_pylist()[::7])
    report = gate(milvus, store, generation, [run])
    assert any("or were erased" in failure for failure in report.failures)
    rows = milvus.call("query", generation.name, filter="crop_id >= 0", output_fields=["*"], limit=CROPS)
    collection.delete(milvus, generation.name, np.array([row["crop_id"] for row in rows[::10]]))
    others = [{**rows[1], "crop_id": number} for number in range(len(rows[::10]))]  # count(*) is as before
    milvus.call("insert", generation.name, others)
    milvus.call("flush", generation.name)
    report = gate(milvus, store, generation, [run])
    assert report.rows_indexed == report.rows_expected
    assert any("of the shards are not in the index" in failure for failure in report.failures)
    with pytest.raises(GateFailed, match="sampled partitions"):
        promote(milvus, store, generation.name)
    noise = np.random.default_rng(5).normal(size=(len(rows), 1024)).astype(np.float32)
    wrong = [{**row, "embedding": vector} for row, vector in zip(rows, noise, strict=True)]
    for first in range(0, len(rows), 600):
        milvus.call("upsert", generation.name, wrong[first : first + 600])
    milvus.call("flush", generation.name)
    report = gate(milvus, store, generation, [run])
    assert any(failure.startswith("recall@10 is") for failure in report.failures)
    assert report.sample is not None and report.sample.filtered_recall_at_10 < 0.9


def test_a_gate_that_could_not_compare_enough_refuses(
    milvus: Milvus, store: Store, make_days, make_run
) -> None:
    run = make_days("n0", range(CROPS))
    generation = loaded(milvus, store, [run])
    late = gate(milvus, store, generation, [run], budget=GateBudget(800, seconds=0.0))
    assert (late.probes, late.recall_at_10_low, late.recall_at_10_high) == (0, 0.0, 1.0)
    assert late.failures == (
        "too little was compared to judge it: 0 probes in 0 partitions, recall@10 in [0.0000, 1.0000]: "
        "half of 0 seconds were over (CLVR_GATE_ROWS, CLVR_GATE_SECONDS, or --full-gate)",
    )
    few = gate(milvus, store, generation, [run], probes=1)
    assert "judge it: 20 probes in 20 partitions" in few.failures[-1]
    with pytest.raises(GateFailed, match="too little"):
        promote(milvus, store, generation.name)
    one_day = make_run("r1", 300)  # one day, and crops of unknown time: nothing to draw from
    other = loaded(milvus, store, [one_day])
    report = gate(milvus, store, other, [one_day], budget=GateBudget(200))
    assert "no more days or cameras of at most 12 rows" in report.failures[-1]
    assert gate(milvus, store, other, [one_day], budget=None).passed


def test_erasures_are_read_once(milvus: Milvus, store: Store, make_days, monkeypatch) -> None:
    """The ids of later runs are read only if a row is missing in its partition."""
    runs = [make_days("n0", range(CROPS)), make_days("n1", range(CROPS, CROPS + 40))]
    generation = loaded(milvus, store, runs)
    monkeypatch.setattr("index.generations.gate_sample.shard_ids", lambda *args, **options: 1 / 0)
    asked: list[int] = []
    original = ErasedCrops.is_erased
    monkeypatch.setattr(
        ErasedCrops, "is_erased", lambda self, ids: asked.append(len(ids)) or original(self, ids)
    )
    assert gate(milvus, store, generation, runs).passed
    assert sum(asked) <= BUDGET.rows


def hit(crop_id: int, distance: float) -> Hit:
    return Hit(1, crop_id, distance, "", "", "", 0, 0, 0.0)


def test_only_rows_that_the_search_should_have_found_are_missed() -> None:
    ids, far = np.arange(5), np.array([0.0, 1.0, 2.0, 3.0, 9.0], np.float32)
    hits = [hit(0, 0.0), hit(77, 0.5), hit(2, 2.0), hit(78, 4.0)]
    assert missed(ids, far, hits, 4, 1.0) == [1, 3]  # 4 is farther than the last hit
    assert missed(ids, far, hits[:3], 4, 1.0) == [1, 3]  # too few hits
    assert missed(ids, far, [hit(99, 0.0)], 1, 1.0) == []  # as near
    assert share_found(ids, far, hits, 4, 1.0) == 0.5
    everything = [hit(number, float(far[number])) for number in range(4)]
    assert share_found(ids, far, [hit(99, 3.0), *everything[:3]], 4, 1.0) == 1.0


def test_a_sampled_recall_is_that_of_the_whole_and_its_interval_holds_it() -> None:
    """1,000 partitions; each probe misses 2 of 100 rows of which few are in the sample: 95 of 100 hold it."""
    rng = np.random.default_rng(1)
    truth, count, probes, weight = 0.98, 25, 40, 20.0
    found, held, widths = [], 0, []
    for seed in range(100):
        near = rng.binomial(3 * probes, 1 - truth, count)
        far = rng.binomial(7 * probes, (1 - truth) / weight, count)
        recall, low, high = sampled_recall(
            np.full(count, probes), near, far, far * weight, depth=10, weight=weight, seed=seed
        )
        found.append(recall)
        held += low <= truth <= high
        widths.append(high - low)
    assert np.mean(found) == pytest.approx(truth, abs=0.002)
    assert held >= 95
    assert np.mean(widths) < 0.03


def test_where_nothing_was_missed_the_interval_is_that_of_the_probes() -> None:
    nothing = np.zeros(25, np.int64)
    options = {"depth": 10, "seed": 0}
    recall, low, high = sampled_recall(
        np.full(25, 40), nothing, nothing, nothing * 1.0, weight=20.0, **options
    )
    assert (recall, high) == (1.0, 1.0)
    assert low == pytest.approx(1 - np.hypot(0.00383, 20 * 3.689 / 10_000), abs=1e-4)
    assert sampled_recall(nothing, nothing, nothing, nothing * 1.0, weight=1.0, **options) == (0.0, 0.0, 1.0)


def test_the_interval_of_rare_events_is_that_of_garwood() -> None:
    # Source: E. S. Pearson and H. O. Hartley, Biometrika Tables for Statisticians, 1954, Table 40.
    assert poisson_interval(0) == pytest.approx((0.0, 3.69), abs=0.005)
    assert poisson_interval(1) == pytest.approx((0.0253, 5.57), abs=0.005)
    assert poisson_interval(10) == pytest.approx((4.80, 18.39), abs=0.005)


def test_a_whole_comparison_is_the_same_in_parts(milvus: Milvus, store: Store, make_days) -> None:
    runs = [make_days("r0", range(200))]
    generation = loaded(milvus, store, runs)

    def in_parts(function: Callable[..., Any], plan: Any) -> list[Any]:
        shards = enumerate(plan.shards)
        return [function(replace(plan, shards=(shard,)), 20 * number) for number, shard in shards]

    whole = gate(milvus, store, generation, runs, budget=None)
    parts = gate(milvus, store, generation, runs, budget=None, over_shards=in_parts)
    names = ("rows_expected", "probes", "recall_at_1", "recall_at_10", "recall_at_10_low", "failures")
    assert [getattr(parts, name) for name in names] == [getattr(whole, name) for name in names]
