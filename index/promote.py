"""The gate that a generation must pass, the one move of the alias that makes it live, and the way back."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index import generation_ledger, generations
from index.generations import Generation
from index.golden import GoldenProbes, GoldenResult, measure, worse_than
from index.load_plan import LoadPlan, plan_load
from index.lock import alias_lock, held
from index.milvus import Milvus
from index.runs import Run
from index.search import search_generation
from index.tombstones import erased_ids
from infra.errors import BadInput, GateFailed, IndexRefused
from infra.store import Store

RECALL_BAR = 0.98
_TOP = 10
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
    recall_bar: float = RECALL_BAR,
    seed: int = 0,
    golden: GoldenProbes | None = None,
) -> GateReport:
    """Measure a generation against the shards it was built of, and store the report in its ledger entry.

    Counts must reconcile, its model must be the live one's unless `new_model`, and recall@10 of the index
    against exact search must reach the bar on up to `probes` sampled crops; golden probes must be found as
    well as on the live generation. A failed gate is a report with failures, not an error.
    Raises BadInput if `runs` are not those of the generation, or were not loaded.
    """
    entry = generation_ledger.read(store, generation.name)
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
    generations.ensure_loaded(milvus, generation)
    ids, vectors = _sample(plan, probes, seed)
    recall_at_1, recall_at_10 = _recall(milvus, generation, plan, vectors)
    p50, p95 = _latency_ms(milvus, generation, vectors[:_TIMED_PROBES])
    current = generations.live(milvus, generation.alias)
    report = GateReport(
        generation=generation.name,
        alias=generation.alias,
        fingerprint=generation.fingerprint,
        live=current.name if current else None,
        live_fingerprint=current.fingerprint if current else None,
        new_model=new_model,
        rows_expected=plan.rows,
        rows_indexed=generations.count(milvus, generation),
        probes=len(ids),
        recall_at_1=recall_at_1,
        recall_at_10=recall_at_10,
        recall_bar=recall_bar,
        latency_p50_ms=p50,
        latency_p95_ms=p95,
        checked=generation_ledger.stamp(),
        failures=(),
        golden=measure(milvus, generation, golden) if golden else None,
        live_golden=measure(milvus, current, golden) if golden and current else None,
    )
    report = replace(report, failures=tuple(_failures(report)))
    generation_ledger.update(store, generation.name, gate=asdict(report))
    return report


def promote(milvus: Milvus, store: Store, name: str, *, force: str = "") -> Generation:
    """Move the alias to a generation that passed its gate; searches see the old one or the new one whole.

    `force`, the reason in words, passes over a gate that failed or never was, and is recorded. Raises
    GateFailed, also if rows came or went unrecorded, or another model went live, since the gate; BadInput;
    Locked if the alias is moved by somebody else right now.
    """
    generation = generations.find(milvus, name)
    with held(store, alias_lock(generation.alias), f"a promotion of {name}") as lock:
        current = generations.live(milvus, generation.alias)
        if current is not None and current.name == name:
            return generation
        entry = generation_ledger.read(store, name)
        if entry is not None and entry.state == "loading":
            raise BadInput(
                f"{name} is being loaded, or its load was cut off", remedy="Wait for it, or load again."
            )
        generations.ensure_loaded(milvus, generation)
        if not force:
            _require_gate(milvus, store, generation, current)
        lock.require()
        _move(milvus, store, generation, current, kind="promote", force=force)
    return generation


def rollback(milvus: Milvus, store: Store, alias: str, *, force: str = "") -> Generation:
    """Move the alias back to the generation that was live before; a second rollback undoes the first.

    Raises BadInput if there is none; GateFailed, unless forced with a reason, if it does not hold the rows
    that the ledger says; Locked if the alias is moved by somebody else right now.
    """
    with held(store, alias_lock(alias), f"a rollback of {alias}") as lock:
        current = generations.live(milvus, alias)
        before = generations.previous(milvus, store, alias)
        if current is None or before is None:
            raise BadInput(
                f"alias {alias} has no previous generation to return to",
                remedy="`clvr generations` lists what there is; `clvr promote` makes one of them live.",
            )
        generations.ensure_loaded(milvus, before)
        changed = _unrecorded(milvus, before, generation_ledger.read(store, before.name))
        if changed and not force:
            raise GateFailed(
                f"{before.name} is not what it was: {changed}",
                remedy="Force with a reason, or load and promote a new one.",
            )
        lock.require()
        _move(milvus, store, before, current, kind="rollback", force=force)
    return before


def _move(
    milvus: Milvus, store: Store, to: Generation, current: Generation | None, *, kind: str, force: str
) -> None:
    entry = generation_ledger.read(store, to.name)
    move: dict[str, Any] = {
        "at": generation_ledger.stamp(),
        "kind": kind,
        "replaced": current.name if current else None,
        "force": force,
    }
    # Written before the move: if we are killed between the two, the way back is still known, and an entry
    # whose generation did not go live after all harms nobody.
    generation_ledger.update(
        store,
        to.name,
        replaced=move["replaced"],
        promotions=((*entry.promotions, move) if entry else (move,)),
    )
    try:
        milvus.call("alter_alias" if current else "create_alias", to.name, to.alias)
    except IndexRefused:
        if current is not None:
            raise
        # An alias whose collection was dropped by hand points nowhere, and yet it exists.
        milvus.call("alter_alias", to.name, to.alias)


def _require_gate(milvus: Milvus, store: Store, generation: Generation, current: Generation | None) -> None:
    entry = generation_ledger.read(store, generation.name)
    gate = entry.gate if entry else None
    if gate is None:
        raise GateFailed(
            f"{generation.name} has not been through the gate", remedy="Check it, or force with a reason."
        )
    failures = list(gate["failures"])
    if changed := _unrecorded(milvus, generation, entry):
        failures.append(changed)
    if current and not gate["new_model"] and current.fingerprint != generation.fingerprint:
        failures.append(f"{current.name} of model {current.fingerprint} went live since the gate")
    if failures:
        raise GateFailed(
            f"{generation.name} did not pass: {'; '.join(failures)}",
            remedy="Repair and load again, or force with a reason, which is recorded.",
        )


def _unrecorded(milvus: Milvus, generation: Generation, entry: generation_ledger.Entry | None) -> str:
    """Say what came or went without a word in the ledger, '' if nothing did."""
    rows = generations.count(milvus, generation)
    if entry is None or rows == entry.rows:
        return ""
    return f"count(*) is {rows:,} now, by the ledger it is {entry.rows:,}"


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
        found.extend(worse_than(report.golden, report.live_golden))
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
    from index.exact import nearest  # it brings torch, which takes seconds that no other verb needs

    depth = min(_TOP, plan.rows)
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
