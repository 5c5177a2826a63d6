"""The gate: measure a generation against its shards and the live one before it may be promoted.

A small generation is compared as a whole, a larger one by a sample: see `index.generations.gate_sample`.
Golden probes are archived crops whose matches are known.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.archive.reassigned import ReassignedIds
from index.documents import utc_now
from index.generations import records
from index.generations.gate_sample import (
    DEFAULT_BUDGET,
    MAX_INTERVAL,
    MIN_PARTITIONS,
    GateBudget,
    GateSample,
    MeasuredRecall,
    measure_sample,
)
from index.generations.load_plan import LoadPlan
from index.generations.recall import share_found, wilson_interval
from index.generations.units import members_of, plan_generation
from index.milvus import collection
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.milvus.search import search_generation
from index.runs.run import Run
from index.transforms.stored import read_transform
from infra.errors import BadInput, BadLabels
from infra.store import Store

MIN_RECALL = 0.98
"""Lowest recall@10 of the index against exact search."""

MAX_RECALL_DROP = 0.01
"""How much of its CMC a generation may lose against the live one: one probe in a hundred."""

_RECALL_K = 10
_GOLDEN_K = 50
_TIMED_PROBES = 50
_TIMED_TOP = 20

Ids = NDArray[np.int64]
GoldenProbes = dict[int, int]
"""crop_id -> vehicle_id."""

OverShards = Callable[[Callable[[LoadPlan, int], Any], LoadPlan], list[Any]]
"""Calls a function with parts of a plan, consecutive shards each, and the number of the first row of each;
returns the results in order. The function may be pickled."""


def at_once(function: Callable[[LoadPlan, int], Any], plan: LoadPlan) -> list[Any]:
    """Call a function with the whole plan, see OverShards."""
    return [function(plan, 0)]


@dataclass(frozen=True, slots=True)
class GoldenResult:
    """The share of `probes` whose own vehicle is at rank 1, within rank 10 and within rank 50.

    Only probes that are in the generation count, and only with another golden crop of the same vehicle there.
    A probe never matches itself.
    """

    probes: int
    rank_1: float
    rank_10: float
    rank_50: float


@dataclass(frozen=True, slots=True)
class GateReport:
    """All results of the gate; it is passed if `failures` is empty.

    `recall_at_k` is the mean share of the exact k nearest that the index finds, over `probes`. Low and high
    bound recall@10 with 95 % confidence, by Wilson's interval over the probes: a wide one, because the shares
    of probes vary less than hits and misses; None in a report of an older release. Latencies are of single
    probes, top 20, in ms. `golden` and `live_golden` are the results of the golden probes on this generation
    and on the live one. `sample`: of a generation that was not compared as a whole; its recall is then an
    estimate, and `rows_expected` is the number of its record.
    """

    generation: str
    alias: str
    fingerprint: str
    live: str | None
    live_fingerprint: str | None
    new_model: bool
    rows_expected: int
    rows_indexed: int
    probes: int
    recall_at_1: float
    recall_at_10: float
    recall_bar: float
    latency_p50_ms: float
    latency_p95_ms: float
    checked: str
    failures: tuple[str, ...]
    golden: GoldenResult | None = None
    live_golden: GoldenResult | None = None
    recall_at_10_low: float | None = None
    recall_at_10_high: float | None = None
    sample: GateSample | None = None

    @property
    def passed(self) -> bool:
        """Whether the generation may be promoted."""
        return not self.failures


def golden_probes(labels: pa.Table, reassigned: ReassignedIds | None = None) -> GoldenProbes:
    """Read golden probes from a table with the columns `uri` and `vehicle_id`. Raises BadLabels.

    reassigned: the list of the folder of runs.
    """
    missing = {"uri", "vehicle_id"} - set(labels.schema.names)
    if missing:
        raise BadLabels(f"the golden probes lack the columns {', '.join(sorted(missing))}")
    known = labels.select(["uri", "vehicle_id"]).drop_null()
    crop_ids = (reassigned or ReassignedIds()).ids_of(known["uri"].to_pylist()).tolist()
    probes = dict(zip(crop_ids, map(int, known["vehicle_id"].to_pylist()), strict=True))
    if not any(count > 1 for count in Counter(probes.values()).values()):
        raise BadLabels("no two golden probes are of one vehicle, so none has a known match")
    return probes


def check_gate(
    milvus: Milvus,
    store: Store,
    generation: Generation,
    runs: Sequence[Run],
    *,
    new_model: bool = False,
    probes: int = 1000,
    min_recall: float = MIN_RECALL,
    seed: int = 0,
    golden: GoldenProbes | None = None,
    budget: GateBudget | None = DEFAULT_BUDGET,
    over_shards: OverShards = at_once,
) -> GateReport:
    """Measure a generation against the shards of its runs, and store the report in its record.

    The counts must match, the model must be that of the live generation unless `new_model`, recall@10 of the
    index against exact search must reach `min_recall` on up to `probes` sampled crops, and golden probes must
    do as well as on the live generation. A failed gate is a report with failures, not an error.
    budget: a generation of more rows is compared by a sample, which must suffice to judge it; None: compare
    all of it, which reads all shards twice. over_shards: how shards are read to compare all of it.
    Raises BadInput if the generation is not ready, or if `runs` are not its runs.
    """
    record = records.read(store, generation.name)
    if record is None or record.state != "ready":
        raise BadInput(
            f"{generation.name} is {record.state if record else 'without a record'}, not ready",
            remedy="Finish its load: `clvr load`.",
        )
    if tuple(run.run_id for run in runs) != record.run_ids:
        raise BadInput(
            f"{generation.name} was built of other runs: {', '.join(record.run_ids)}",
            remedy="Give the gate the same runs in the same order.",
        )
    transform = read_transform(store, generation.fingerprint, generation.transform)
    collection.ensure_loaded(milvus, generation)
    # The rows of tracks are in no order of partitions, and there are fewer: they are compared as a whole.
    if budget is not None and record.rows > budget.rows and record.unit == "crop":
        rows_expected = record.rows
        recall = measure_sample(
            milvus,
            generation,
            runs,
            transform,
            rows=record.rows,
            probes=probes,
            budget=budget,
            seed=seed,
        )
    else:
        plan = plan_generation(store, record, runs, transform)
        rows_expected = plan.rows
        drawn = _sample(plan, probes, seed, over_shards)
        recall = _measure_all(milvus, generation, plan, drawn, over_shards)
    p50, p95 = _latency_ms(milvus, generation, recall.vectors[:_TIMED_PROBES])
    current = collection.live_generation(milvus, generation.alias)
    report = GateReport(
        generation=generation.name,
        alias=generation.alias,
        fingerprint=generation.fingerprint,
        live=current.name if current else None,
        live_fingerprint=current.fingerprint if current else None,
        new_model=new_model,
        rows_expected=rows_expected,
        rows_indexed=collection.row_count(milvus, generation),
        probes=len(recall.vectors),
        recall_at_1=recall.at_1,
        recall_at_10=recall.at_10,
        recall_bar=min_recall,
        latency_p50_ms=p50,
        latency_p95_ms=p95,
        checked=utc_now(),
        failures=(),
        golden=measure_golden(milvus, generation, by_row(store, generation, golden)) if golden else None,
        live_golden=measure_golden(milvus, current, by_row(store, current, golden))
        if golden and current
        else None,
        recall_at_10_low=recall.low,
        recall_at_10_high=recall.high,
        sample=recall.sample,
    )
    report = replace(report, failures=tuple(_failures(report)))
    records.update(store, generation.name, gate=asdict(report))
    return report


def measure_golden(milvus: Milvus, generation: Generation, golden: GoldenProbes) -> GoldenResult:
    """Search a generation for its golden probes by the embeddings that it stores, whatever its model."""
    collection.ensure_loaded(milvus, generation)
    rows = collection.fetch_rows(
        milvus, generation.name, sorted(golden), ["crop_id", "embedding"], consistency_level="Strong"
    )
    vectors = {int(row["crop_id"]): np.asarray(row["embedding"], np.float32) for row in rows}
    vehicle_sizes = Counter(golden[crop_id] for crop_id in vectors)
    probes = [crop_id for crop_id in sorted(vectors) if vehicle_sizes[golden[crop_id]] > 1]
    if not probes:
        return GoldenResult(0, 0.0, 0.0, 0.0)
    features = np.stack([vectors[crop_id] for crop_id in probes])
    batches = search_generation(milvus, generation, features, _GOLDEN_K + 1)
    ranks = []
    for probe, hits in zip(probes, (hits for batch in batches for hits in batch), strict=True):
        matches = [hit.crop_id for hit in hits if hit.crop_id != probe][:_GOLDEN_K]
        positive_ranks = [
            rank for rank, crop_id in enumerate(matches, 1) if golden.get(crop_id) == golden[probe]
        ]
        ranks.append(positive_ranks[0] if positive_ranks else _GOLDEN_K + 1)
    first_ranks = np.asarray(ranks)
    shares = [float((first_ranks <= rank).mean()) for rank in (1, 10, 50)]
    return GoldenResult(len(probes), *shares)


def by_row(store: Store, generation: Generation, golden: GoldenProbes) -> GoldenProbes:
    """Return the golden probes by the rows that they are on: in a generation of tracks, by their tracks."""
    members = members_of(store, generation.name)
    if members is None:
        return golden
    rows = members.of(list(golden))
    return {track.row_id: golden[crop_id] for crop_id, track in rows.items()}


def regressions(result: GoldenResult, live: GoldenResult) -> Iterator[str]:
    """Describe each loss of more than MAX_RECALL_DROP against the live generation."""
    if live.probes and not result.probes:
        yield f"none of the {live.probes:,} golden probes of the live generation is in it"
        return
    for name in ("rank_1", "rank_10", "rank_50"):
        share, live_share = getattr(result, name), getattr(live, name)
        if share < live_share - MAX_RECALL_DROP:
            rank = name.replace("_", "-")
            yield f"golden probes: {rank} is {share:.3f}, on the live generation {live_share:.3f}"


def _failures(report: GateReport) -> list[str]:
    failures = []
    if report.rows_indexed != report.rows_expected:
        failures.append(f"{report.rows_indexed:,} rows are indexed, the shards hold {report.rows_expected:,}")
    if report.live_fingerprint not in (None, report.fingerprint) and not report.new_model:
        failures.append(
            f"its model {report.fingerprint} is not the live one, {report.live_fingerprint} (--new-model)"
        )
    if report.recall_at_10 < report.recall_bar and report.probes:
        failures.append(f"recall@10 is {report.recall_at_10:.4f}, less than {report.recall_bar}")
    failures.extend(_failures_of_sample(report))
    live_probes = report.live_golden.probes if report.live_golden else 0
    if report.golden and not report.golden.probes and not live_probes:
        failures.append("no golden probe is in it together with another one of its vehicle: check the list")
    if report.golden and report.live_golden:
        failures.extend(regressions(report.golden, report.live_golden))
    return failures


def _failures_of_sample(report: GateReport) -> Iterator[str]:
    sample = report.sample
    if sample is None:
        return
    for count, problem in (
        (sample.missing, "of the shards are not in the index"),
        (sample.foreign, "of the index are not in the shards, or were erased"),
    ):
        if count:
            yield f"{count:,} rows {problem}, in {sample.partitions:,} sampled partitions"
    low, high = report.recall_at_10_low or 0.0, report.recall_at_10_high or 1.0
    if sample.partitions < MIN_PARTITIONS or high - low > MAX_INTERVAL:
        why = f": {sample.stopped}" if sample.stopped else ""
        yield (
            f"too little was compared to judge it: {report.probes:,} probes in {sample.partitions:,} "
            f"partitions, recall@10 in [{low:.4f}, {high:.4f}]{why} (CLVR_GATE_ROWS, CLVR_GATE_SECONDS, or "
            "--full-gate)"
        )


def _sample(plan: LoadPlan, probes: int, seed: int, over_shards: OverShards) -> NDArray[np.float32]:
    """Draw vectors (q, d) uniformly from all shards, in one pass over them."""
    chosen = np.sort(
        np.random.default_rng(seed).choice(plan.rows, size=min(probes, plan.rows), replace=False)
    )
    return np.concatenate(over_shards(partial(_vectors_at, chosen=chosen), plan))


def _vectors_at(plan: LoadPlan, start: int, *, chosen: Ids) -> NDArray[np.float32]:
    """Return the vectors of those rows (q, ascending) that a plan has, whose first row is number `start`."""
    vectors = [np.empty((0, plan.dimension), np.float32)]
    for crop_ids, block in plan.blocks():
        first, last = np.searchsorted(chosen, (start, start + len(crop_ids)))
        vectors.append(block[chosen[first:last] - start])
        start += len(crop_ids)
    return np.concatenate(vectors)


def _nearest_of(
    plan: LoadPlan, start: int, *, vectors: NDArray[np.float32], depth: int
) -> tuple[Ids, NDArray[np.float32]]:
    from index.exact.knn import nearest

    return nearest(vectors, plan.blocks(), depth)


def _measure_all(
    milvus: Milvus,
    generation: Generation,
    plan: LoadPlan,
    vectors: NDArray[np.float32],
    over_shards: OverShards,
) -> MeasuredRecall:
    """Compare the index with exact search in all rows."""
    depth = min(_RECALL_K, plan.rows)
    found = over_shards(partial(_nearest_of, vectors=vectors, depth=depth), plan)
    all_ids = np.concatenate([ids for ids, _ in found], axis=1)
    distances = np.concatenate([distances for _, distances in found], axis=1)
    order = np.lexsort((all_ids, distances))[:, :depth]
    exact_ids = np.take_along_axis(all_ids, order, axis=1)
    exact_distances = np.take_along_axis(distances, order, axis=1)
    norms = np.linalg.norm(vectors, axis=1).tolist()
    results = [hits for batch in search_generation(milvus, generation, vectors, depth) for hits in batch]
    of_probes = list(zip(exact_ids, exact_distances, results, norms, strict=True))
    at_1, at_10 = (
        float(np.mean([share_found(ids, far, hits, k, norm) for ids, far, hits, norm in of_probes]))
        for k in (1, depth)
    )
    return MeasuredRecall(at_1, at_10, *wilson_interval(at_10, len(vectors)), vectors)


def _latency_ms(milvus: Milvus, generation: Generation, vectors: NDArray[np.float32]) -> tuple[float, float]:
    """Return p50 and p95 of searches with a single probe; 0 without one."""
    elapsed = [] if len(vectors) else [0.0]
    for probe in vectors:
        started = time.perf_counter()
        list(search_generation(milvus, generation, probe[None], _TIMED_TOP))
        elapsed.append(1000 * (time.perf_counter() - started))
    p50, p95 = np.percentile(elapsed, (50, 95))
    return float(p50), float(p95)
