"""Golden probes: archived crops whose matches are known, asked before a generation may go live."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.archive.manifest import crop_id_of
from index.documents import utc_now
from index.generations import records
from index.generations.load_plan import LoadPlan, plan_load
from index.milvus import collection
from index.milvus.client import Milvus
from index.milvus.collection import Generation, ensure_loaded
from index.milvus.search import search_generation
from index.runs.run import Run
from index.runs.tombstones import erased_ids
from infra.errors import BadInput, BadLabels
from infra.store import Store

MAX_RECALL_DROP = 0.01
"""How much of its CMC a generation may lose against the live one: one probe in a hundred."""

_GOLDEN_K = 50
_FETCHED = 500  # vectors a call: 2 MB

GoldenProbes = dict[int, int]
"""crop_id -> vehicle_id."""


@dataclass(frozen=True, slots=True)
class GoldenResult:
    """The share of `probes` that have a crop of their own vehicle at rank 1, up to 10 and up to 50.

    A probe counts if the generation holds it and another golden crop of its vehicle; it never finds itself.
    """

    probes: int
    rank_1: float
    rank_10: float
    rank_50: float


def golden_probes(labels: pa.Table) -> GoldenProbes:
    """Read golden probes from a table with the columns `uri` and `vehicle_id`. Raises BadLabels."""
    missing = {"uri", "vehicle_id"} - set(labels.schema.names)
    if missing:
        raise BadLabels(f"the golden probes lack the columns {', '.join(sorted(missing))}")
    pairs = zip(labels["uri"].to_pylist(), labels["vehicle_id"].to_pylist(), strict=True)
    found = {
        crop_id_of(uri): int(vehicle) for uri, vehicle in pairs if uri is not None and vehicle is not None
    }
    if not any(count > 1 for count in Counter(found.values()).values()):
        raise BadLabels("no two golden probes are of one vehicle, so none has a known match")
    return found


def measure(milvus: Milvus, generation: Generation, golden: GoldenProbes) -> GoldenResult:
    """Search a generation for each golden probe by the embedding that it holds itself: any model will do."""
    ensure_loaded(milvus, generation)
    held = {
        crop_id: vector
        for ids, vectors in _vectors(milvus, generation, golden)
        for crop_id, vector in zip(ids, vectors, strict=True)
    }
    sizes = Counter(golden[crop_id] for crop_id in held)
    probes = [crop_id for crop_id in sorted(held) if sizes[golden[crop_id]] > 1]
    if not probes:
        return GoldenResult(0, 0.0, 0.0, 0.0)
    ranks = []
    answers = search_generation(milvus, generation, np.stack([held[one] for one in probes]), _GOLDEN_K + 1)
    for probe, hits in zip(probes, (hits for batch in answers for hits in batch), strict=True):
        others = [hit.crop_id for hit in hits if hit.crop_id != probe][:_GOLDEN_K]
        places = [rank for rank, one in enumerate(others, 1) if golden.get(one) == golden[probe]]
        ranks.append(places[0] if places else _GOLDEN_K + 1)
    found = np.asarray(ranks)
    shares = [float((found <= rank).mean()) for rank in (1, 10, 50)]
    return GoldenResult(len(probes), *shares)


def regressions(found: GoldenResult, live: GoldenResult) -> Iterator[str]:
    """Say what was lost against the live generation."""
    if live.probes and not found.probes:
        yield f"none of the {live.probes:,} golden probes of the live generation is in it"
        return
    for name in ("rank_1", "rank_10", "rank_50"):
        now, before = getattr(found, name), getattr(live, name)
        if now < before - MAX_RECALL_DROP:
            yield f"golden probes: {name.replace('_', '-')} is {now:.3f}, on the live generation {before:.3f}"


def _vectors(
    milvus: Milvus, generation: Generation, golden: GoldenProbes
) -> Iterator[tuple[list[int], list[NDArray[np.float32]]]]:
    wanted = sorted(golden)
    for first in range(0, len(wanted), _FETCHED):
        listed = ", ".join(map(str, wanted[first : first + _FETCHED]))
        rows = milvus.call(
            "query",
            generation.name,
            filter=f"crop_id in [{listed}]",
            output_fields=["crop_id", "embedding"],
            consistency_level="Strong",
            timeout=60,
        )
        yield [row["crop_id"] for row in rows], [np.asarray(row["embedding"], np.float32) for row in rows]


MIN_RECALL = 0.98
_K = 10
_TIMED_PROBES = 50
_TIMED_TOP = 20


@dataclass(frozen=True, slots=True)
class GateReport:
    """Every number that the gate looked at. `recall_at_k` is the mean share of the exact k nearest that the
    index found; latencies are of single probes, top 20, in ms; `golden` and `live_golden` are the CMC of
    probes with known matches, here and on the live generation; `failures` is empty if the gate is passed."""

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

    @property
    def passed(self) -> bool:
        """Whether the generation may be promoted."""
        return not self.failures


def check_gate(
    milvus: Milvus,
    store: Store,
    generation: Generation,
    runs: Sequence[Run],
    *,
    new_model: bool = False,
    probes: int = 1000,
    recall_bar: float = MIN_RECALL,
    seed: int = 0,
    golden: GoldenProbes | None = None,
) -> GateReport:
    """Measure a generation against the shards it was built of, and store the report in its ledger entry.

    Counts must reconcile, its model must be the live one's unless `new_model`, and recall@10 of the index
    against exact search must reach the bar on up to `probes` sampled crops; golden probes must be found as
    well as on the live generation. A failed gate is a report with failures, not an error.
    Raises BadInput if `runs` are not those of the generation, or were not loaded.
    """
    entry = records.read(store, generation.name)
    if entry is None or entry.state != "ready":
        raise BadInput(
            f"{generation.name} is {entry.state if entry else 'not in the ledger'}, not ready",
            remedy="Load it to the end: `clvr load`.",
        )
    if tuple(run.run_id for run in runs) != entry.run_ids:
        raise BadInput(
            f"{generation.name} was built of other runs: {', '.join(entry.run_ids)}",
            remedy="Give the gate the same runs in the same order.",
        )
    plan = plan_load(runs, latest_wins=True, verify=False, erased=erased_ids(store))
    collection.ensure_loaded(milvus, generation)
    ids, vectors = _sample(plan, probes, seed)
    recall_at_1, recall_at_10 = _recall(milvus, generation, plan, vectors)
    p50, p95 = _latency_ms(milvus, generation, vectors[:_TIMED_PROBES])
    current = collection.live_generation(milvus, generation.alias)
    report = GateReport(
        generation=generation.name,
        alias=generation.alias,
        fingerprint=generation.fingerprint,
        live=current.name if current else None,
        live_fingerprint=current.fingerprint if current else None,
        new_model=new_model,
        rows_expected=plan.rows,
        rows_indexed=collection.row_count(milvus, generation),
        probes=len(ids),
        recall_at_1=recall_at_1,
        recall_at_10=recall_at_10,
        recall_bar=recall_bar,
        latency_p50_ms=p50,
        latency_p95_ms=p95,
        checked=utc_now(),
        failures=(),
        golden=measure(milvus, generation, golden) if golden else None,
        live_golden=measure(milvus, current, golden) if golden and current else None,
    )
    report = replace(report, failures=tuple(_failures(report)))
    records.update(store, generation.name, gate=asdict(report))
    return report


def _failures(report: GateReport) -> list[str]:
    found = []
    if report.rows_indexed != report.rows_expected:
        found.append(f"{report.rows_indexed:,} rows are indexed, the shards hold {report.rows_expected:,}")
    if report.live_fingerprint not in (None, report.fingerprint) and not report.new_model:
        found.append(
            f"its model {report.fingerprint} is not the live one, {report.live_fingerprint} (--new-model)"
        )
    if report.recall_at_10 < report.recall_bar:
        found.append(f"recall@10 is {report.recall_at_10:.4f}, the bar is {report.recall_bar}")
    if report.golden and report.live_golden:
        found.extend(regressions(report.golden, report.live_golden))
    return found


def _sample(plan: LoadPlan, probes: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Draw rows evenly from all shards: crop_ids (q,) and vectors (q, 1024), in one pass, without a copy."""
    chosen = np.sort(
        np.random.default_rng(seed).choice(plan.rows, size=min(probes, plan.rows), replace=False)
    )
    ids, vectors, start = [], [], 0
    for block_ids, block in plan.blocks():
        first, last = np.searchsorted(chosen, (start, start + len(block_ids)))
        here = chosen[first:last] - start
        ids.append(block_ids[here])
        vectors.append(block[here])
        start += len(block_ids)
    return np.concatenate(ids), np.concatenate(vectors)


def _recall(
    milvus: Milvus, generation: Generation, plan: LoadPlan, vectors: NDArray[np.float32]
) -> tuple[float, float]:
    from index.exact.knn import nearest

    depth = min(_K, plan.rows)
    exact_ids, exact = nearest(vectors, plan.blocks(), depth)
    norms = np.linalg.norm(vectors, axis=1)
    found: list[list[tuple[int, float]]] = [
        [(hit.crop_id, hit.distance) for hit in hits]
        for batch in search_generation(milvus, generation, vectors, depth)
        for hits in batch
    ]

    def share(probe: int, k: int) -> float:
        wanted, last = set(exact_ids[probe, :k].tolist()), float(exact[probe, k - 1])
        # Crops at the same distance are equally right; in float32 that is equal to a part of the norm.
        slack = 1e-5 * (float(norms[probe]) ** 2 + last**2)
        right = sum(
            crop_id in wanted or math.isclose(distance**2, last**2, rel_tol=0, abs_tol=slack)
            for crop_id, distance in found[probe][:k]
        )
        return right / k

    probes = range(len(vectors))
    at_1 = float(np.mean([share(probe, 1) for probe in probes]))
    return at_1, float(np.mean([share(probe, depth) for probe in probes]))


def _latency_ms(milvus: Milvus, generation: Generation, vectors: NDArray[np.float32]) -> tuple[float, float]:
    taken = []
    for probe in vectors:
        start = time.perf_counter()
        list(search_generation(milvus, generation, probe[None], _TIMED_TOP))
        taken.append(1000 * (time.perf_counter() - start))
    p50, p95 = np.percentile(taken, (50, 95))
    return float(p50), float(p95)
