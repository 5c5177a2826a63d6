"""The steps of a reindex run. Each is repeatable: it first looks for the work of an interrupted attempt."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from clvr_model.precision import fingerprints_of
from index.generations import records
from index.generations.merge import MergePolicy, merge_runs
from index.generations.promotion import promote
from index.generations.receipt import Receipt
from index.milvus.client import Milvus
from index.milvus.collection import Generation, list_generations, live_generation
from index.runs.lineage import lineage
from index.runs.records import RunSummary
from index.runs.run import Run, vanished_uris
from index.runs.timings import read_timings, sum_timings
from index.transforms.stored import NONE
from infra.errors import BadInput, ClvrError, FingerprintMismatch, GateFailed
from infra.settings import Settings
from infra.store import Store
from jobs.drift.job import DriftRequest, measure_drift
from jobs.embed.actor import OpenEmbedder
from jobs.embed.job import embed
from jobs.generations import load as loading
from jobs.generations.erase import ForgetRequest, forget_crops, retain_days
from jobs.reindex.plan import ReindexRequest, embed_request, start_run
from jobs.reindex.state import ReindexRun, StepName
from jobs.runtime.resolve import live_name, open_milvus

Outcome = dict[str, Any]

ERASE_WAIT_SECONDS = 3600.0
"""How long the last step waits for another operation that changes rows."""


@dataclass(frozen=True, slots=True)
class ReindexContext:
    """A reindex run and everything that its steps use."""

    request: ReindexRequest
    settings: Settings
    store: Store
    """The store of embedding runs, generation records and reindex runs."""
    archive: Store
    reindex_run: ReindexRun
    open_embedder: OpenEmbedder | None = None

    def outcome(self, step: StepName) -> Outcome:
        """Return the outcome of an earlier step."""
        finished = self.reindex_run.step(step)
        assert finished is not None  # noqa: S101  the steps run in order
        return finished.outcome


def plan_step(context: ReindexContext) -> Outcome:
    """Find new, changed and vanished crops, and create the embedding run of them.

    Raises FingerprintMismatch for another model than the live one, BudgetExceeded if too many crops vanished,
    and the errors of `discover`.
    """
    live, rows = _live(context, open_milvus(context.settings))
    fingerprints = fingerprints_of(context.reindex_run.inputs.fingerprint)
    if live is not None and live.fingerprint not in fingerprints and not context.request.full:
        model = context.request.embed.model
        raise FingerprintMismatch(
            f"{live.name} is live and of model {live.fingerprint}; {model} is {fingerprints[0]}",
            remedy="Give the live generation's model, or --full to embed the whole archive by the new one.",
        )
    plan = start_run(
        context.request,
        context.store,
        context.archive,
        context.reindex_run.reindex_id,
        fingerprints,
        _run_ids_of(live, context.store),
    )
    return plan | {"live": live.name if live else None, "live_rows": rows}


def embed_step(context: ReindexContext) -> Outcome:
    """Embed the pending parts of the planned run."""
    plan = context.outcome("plan")
    if plan["run_id"] is None:
        return {"said": "nothing to embed", "embedded": 0, "listed": 0, "quarantined": 0, "duplicates": 0}
    run = Run.open(context.store, plan["run_id"])
    summary = run.summary if run.finished else _embed(context, plan)
    timings = sum_timings(read_timings(run.folder))
    return {
        "said": f"{summary.embedded:,} embedded, {summary.quarantined:,} quarantined, "
        f"{summary.duplicates:,} duplicates",
        "listed": summary.listed,
        "embedded": summary.embedded,
        "quarantined": summary.quarantined,
        "duplicates": summary.duplicates,
        "causes": dict(summary.causes),
        "timings": asdict(timings) if timings else None,
        "bottleneck": timings.bottleneck() if timings else "",
    }


def _embed(context: ReindexContext, plan: Outcome) -> RunSummary:
    request = embed_request(context.request, plan["run_id"], plan["since_run"], plan["precision"])
    return embed(request, context.settings, open_embedder=context.open_embedder)


def load_step(context: ReindexContext) -> Outcome:
    """Upsert the new runs into the live generation, or build a new generation of all runs beside it.

    A new crop changes the row of its track, so tracks are always built anew; the unit is that of the live
    generation.
    """
    plan = context.outcome("plan")
    store, request = context.store, context.request
    new_runs = lineage(store, plan["run_id"] or plan["base_run"])
    milvus = open_milvus(context.settings)
    live, _ = _live(context, milvus)
    live_run_ids = _run_ids_of(live, store)
    # A run that was lost from the bucket cannot be loaded again: a new generation then replaces the live one.
    live_runs = [
        Run.open(store, run_id)
        for run_id in live_run_ids
        if store.head(f"runs/{run_id}/run.json") is not None
    ]
    missing = [run for run in new_runs if run.run_id not in live_run_ids]
    continues = (
        live is not None
        and len(live_runs) == len(live_run_ids) > 0
        and live.fingerprint == new_runs[-1].fingerprint
        and not request.full
        and not request.rebuild
    )
    unit = _unit_of(live, store)
    kept = [run for run in live_runs if continues or run.info.archive != context.archive.uri]
    kept_ids = {run.run_id for run in kept}
    all_runs = sorted(
        [*kept, *(run for run in new_runs if run.run_id not in kept_ids)], key=lambda run: run.info.created
    )
    built = _built_in_this_run(context, milvus, all_runs)
    if built is not None:
        return _generation_outcome(built, store, "was built before this attempt")
    if continues and live is not None:
        is_changed = any(run.summary.embedded or vanished_uris(run).num_rows for run in missing)
        # Crops of tracks that lost their row with an erased crop come back with a new generation only.
        if not is_changed and not _has_withdrawn(live, store):
            return {"said": f"{live.name} holds everything", "kind": "nothing", "generation": live.name}
    if continues and unit == "crop":
        increment = loading.load_increment(_load_request(request, missing), context.settings)
        if increment.promote_next:
            return _generation_outcome(increment.generation, store, "of all runs, the increment being large")
        return {
            "said": loading.IncrementResult(increment).to_text(),
            "kind": "increment",
            "generation": increment.generation.name,
            "upserted": increment.upserted,
            "removed": increment.removed,
            "rows_before": increment.rows_before,
            "rows": increment.rows_after,
        }
    _require_one_model(all_runs, live)
    # Of the same model: a generation that replaces the live one answers as it does.
    is_same = live is not None and live.fingerprint == all_runs[-1].fingerprint
    transform = (live.transform or NONE) if live is not None and is_same else None
    loaded = loading.load(_load_request(request, all_runs, transform, unit), context.settings)
    return _generation_outcome(loaded.generation, store, "beside the live one")


def _built_in_this_run(context: ReindexContext, milvus: Milvus, runs: Sequence[Run]) -> Generation | None:
    """Return the generation of exactly these runs that an earlier attempt at this reindex run built."""
    run_ids = tuple(run.run_id for run in runs)
    for generation in reversed(list_generations(milvus, context.settings.alias)):
        record = records.read(context.store, generation.name)
        is_ready = record is not None and record.state == "ready" and record.run_ids == run_ids
        # Timestamps of generations are cut off at the second.
        if is_ready and generation.created[:19] >= context.reindex_run.created[:19]:
            return generation
    return None


def _generation_outcome(generation: Generation, store: Store, how: str) -> Outcome:
    record = records.read(store, generation.name)
    assert record is not None  # noqa: S101  its load wrote it
    return {
        "said": f"{generation.name}: {record.rows:,} rows, {how}",
        "kind": "generation",
        "generation": generation.name,
        "rows": record.rows,
        "target": record.target,
        "index": generation.index.type,
    }


def _load_request(
    request: ReindexRequest,
    runs: Sequence[Run],
    transform: str | None = None,
    unit: records.Unit = "crop",
) -> loading.LoadRequest:
    run_ids = tuple(run.run_id for run in runs)
    return loading.LoadRequest(run_ids, request.index_type, latest_wins=True, transform=transform, unit=unit)


def _require_one_model(runs: Sequence[Run], live: Generation | None) -> None:
    if len({run.fingerprint for run in runs}) > 1:
        archives = sorted({run.info.archive for run in runs})
        raise BadInput(
            f"{live.name if live else 'the live generation'} holds runs of {len(archives)} archives "
            f"({', '.join(archives)}), and they are of different models",
            remedy="Embed each of them by the new model, then load and promote their runs together.",
        )


def gate_step(context: ReindexContext) -> Outcome:
    """Measure the generation that contains the new rows. Raises GateFailed with every failure."""
    load = context.outcome("load")
    if load["kind"] == "nothing":
        return {"said": "nothing was loaded, so nothing is measured", "report": None}
    request = context.request
    live = live_name(context.settings)
    report = loading.gate_generation(
        load["generation"],
        context.settings,
        new_model=request.full,
        golden=request.golden,
        full=request.full_gate,
    )
    if not report.passed:
        remedy = (
            "The increment is already in the live generation: build a new one (--rebuild), or roll back."
            if load["kind"] == "increment"
            else "The alias did not move. The same command measures again; --night NAME builds anew."
        )
        raise GateFailed(f"{report.generation} did not pass: {'; '.join(report.failures)}", remedy=remedy)
    return {
        "said": f"passed: {report.rows_indexed:,} rows, recall@10 {report.recall_at_10:.4f} "
        f"({report.probes:,} probes)",
        "report": asdict(report),
        "live": live,
    }


def promote_step(context: ReindexContext) -> Outcome:
    """Point the alias to the new generation, unless the rows went into the live one.

    Raises Locked if the alias moved since the gate: whoever moved it, by a rollback for instance, decides.
    """
    load = context.outcome("load")
    if load["kind"] != "generation":
        return {"said": f"{load['generation']} stays live", "moved": False, "live": load["generation"]}
    milvus = open_milvus(context.settings)
    before, _ = _live(context, milvus)
    # A purge may have replaced either by a copy.
    name, live = records.current_name(context.store, load["generation"]), context.outcome("gate").get("live")
    live = records.current_name(context.store, live) if live else None
    promote(milvus, context.store, name, replacing=live)
    return {
        "said": f"{name} is live",
        "moved": True,
        "live": name,
        "replaced": before.name if before and before.name != name else None,
    }


def retention_step(context: ReindexContext) -> Outcome:
    """Drop old generations, never the live or the previous one; erase and purge old crops, if requested.

    Small runs are merged as the settings say, after the erasures.
    """
    retirement = loading.retire_generations(context.settings, keep=context.request.keep)
    receipts = _erase_old(context)
    merged = _merge_small(context)
    live, rows = _live(context, open_milvus(context.settings))
    said = [f"{len(retirement.dropped)} generations dropped, {len(retirement.kept)} kept"]
    said += [f"erasure {receipt.erasure_id}: {receipt.crops:,} crops" for receipt in receipts]
    said += [merged["error"]] if merged["error"] else []
    said += [f"{len(one['sources'])} small runs merged into {one['run_id']}" for one in merged["runs"]]
    drift = _drift(context) if context.request.drift and live else None
    if drift:
        said.append(drift.get("error") or f"{len(drift['alerts'])} alerts of drift")
    watch = _watch(context, live)
    if watch:
        said.append(watch.get("error") or f"{watch['new']:,} new crops of watched vehicles")
    return {
        "drift": drift,
        "watch": watch,
        "said": "; ".join(said),
        "erasures": [receipt.erasure_id for receipt in receipts],
        "erased": sum(receipt.crops for receipt in receipts),
        "merged": merged,
        "dropped": list(retirement.dropped),
        "kept": list(retirement.kept),
        "live": live.name if live else None,
        "live_rows": rows,
    }


def _merge_small(context: ReindexContext) -> Outcome:
    """Merge small runs; a run that went live has not failed if that fails, and the next one tries again."""
    plan, settings = context.outcome("plan"), context.settings
    policy = MergePolicy(settings.merge_runs, settings.merge_rows)
    try:
        done = merge_runs(context.store, plan["run_id"] or plan["base_run"], policy, wait=ERASE_WAIT_SECONDS)
    except ClvrError as error:
        return {"error": f"small runs were not merged: {error.message}", "runs": []}
    return {"error": "", "runs": [asdict(one) for one in done]}


def _drift(context: ReindexContext) -> Outcome:
    """Return the alerts of `clvr drift`, or why there are none: a run that went live has not failed."""
    try:
        found = measure_drift(DriftRequest(), context.settings)
    except ClvrError as error:
        return {"error": f"drift was not measured: {error.message}", "alerts": []}
    return {"week": found.week, "cameras": len(found.cameras), "alerts": list(found.alerts)}


def _watch(context: ReindexContext, live: Generation | None) -> Outcome | None:
    """Search the new crops for the watched vehicles; a run that went live has not failed if that fails."""
    run_id = context.outcome("plan")["run_id"]
    if live is None or run_id is None or not context.outcome("embed")["embedded"]:
        return None
    if not context.settings.has_cases():
        return None
    from jobs.cases.watch import search_watched

    try:
        return search_watched(context.settings, context.store, live, run_id)
    except ClvrError as error:
        return {"error": f"watched vehicles were not searched: {error.message}", "new": 0, "cases": []}


def _erase_old(context: ReindexContext) -> list[Receipt]:
    """Erase crops by age and purge what was erased, as far as the request says; return what was done."""
    request, settings = context.request, context.settings
    receipts = []
    if request.retain_days is not None:
        receipts.append(
            retain_days(request.retain_days, (), settings, dry_run=False, wait=ERASE_WAIT_SECONDS)
        )
    if request.purge:
        receipts.append(
            forget_crops(
                ForgetRequest(
                    reason=f"reindex run {context.reindex_run.reindex_id}",
                    dry_run=False,
                    purge=True,
                    wait=ERASE_WAIT_SECONDS,
                ),
                settings,
            )
        )
    return [receipt for receipt in receipts if receipt.erasure_id]


def _live(context: ReindexContext, milvus: Milvus) -> tuple[Generation | None, int]:
    """Return the live generation, and the rows that its record states."""
    live = live_generation(milvus, context.settings.alias)
    record = records.read(context.store, live.name) if live else None
    return live, record.rows if record else 0


def _unit_of(generation: Generation | None, store: Store) -> records.Unit:
    record = records.read(store, generation.name) if generation else None
    return record.unit if record else "crop"


def _has_withdrawn(generation: Generation, store: Store) -> bool:
    record = records.read(store, generation.name)
    return record is not None and any(change.get("withdrawn") for change in record.changes)


def _run_ids_of(generation: Generation | None, store: Store) -> tuple[str, ...]:
    record = records.read(store, generation.name) if generation else None
    return record.run_ids if record else ()
