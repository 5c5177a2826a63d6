"""The steps of a night. Each may be repeated: it first looks for what it did before it was cut off."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from index.generations import records
from index.generations.promotion import promote
from index.milvus.client import Milvus
from index.milvus.collection import Generation, list_generations
from index.milvus.collection import live_generation as live_generation
from index.runs.lineage import lineage
from index.runs.records import RunSummary
from index.runs.run import Run, vanished_uris
from index.runs.timings import read_timings, total_of
from infra.errors import BadInput, FingerprintMismatch, GateFailed
from infra.settings import Settings
from infra.store import Store
from jobs.embed.actor import OpenEmbedder
from jobs.embed.job import embed
from jobs.generations import load as verbs
from jobs.reindex.plan import NightRequest, embed_request, models_of, start_run
from jobs.reindex.state import ReindexRun
from jobs.runtime.resolve import open_milvus


@dataclass(frozen=True, slots=True)
class ReindexContext:
    """A night and what it works with."""

    request: NightRequest
    settings: Settings
    store: Store
    """Where runs, generations' ledger and nights are kept."""
    archive: Store
    night: ReindexRun
    open_embedder: OpenEmbedder | None = None

    def outcome(self, step: Any) -> dict[str, Any]:
        """What a step that is done came to."""
        done = self.night.step(step)
        assert done is not None  # noqa: S101  steps go in order
        return done.outcome


def plan_step(at: ReindexContext) -> dict[str, Any]:
    """Find what is new, changed and vanished, and fix it as tonight's run.

    Raises FingerprintMismatch, BudgetExceeded if too much vanished, what `discover` raises.
    """
    milvus = open_milvus(at.settings)
    live, rows = _live(at, milvus)
    models = models_of(at.night.inputs.fingerprint)
    if live is not None and live.fingerprint not in models and not at.request.full:
        raise FingerprintMismatch(
            f"{live.name} is live and of model {live.fingerprint}; {at.request.model} is {models[0]}",
            remedy="Give the live generation's model, or --full to embed the whole archive by the new one.",
        )
    entry = records.read(at.store, live.name) if live else None
    planned = start_run(
        at.request, at.store, at.archive, at.night.night_id, models, entry.run_ids if entry else ()
    )
    return planned | {"live": live.name if live else None, "live_rows": rows}


def embed_step(at: ReindexContext) -> dict[str, Any]:
    """Embed tonight's run, or what is left of it."""
    plan = at.outcome("plan")
    if plan["run_id"] is None:
        return {"said": "nothing to embed", "embedded": 0, "listed": 0, "quarantined": 0, "duplicates": 0}
    run = Run.open(at.store, plan["run_id"])
    summary = run.summary if run.finished else _embed(at, plan)
    timings = total_of(read_timings(run.folder))
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


def load_step(at: ReindexContext) -> dict[str, Any]:
    """Bring everything that the live generation lacks into it, or build a new one of all runs beside it."""
    plan = at.outcome("plan")
    wanted = lineage(at.store, plan["run_id"] or plan["base_run"])
    milvus = open_milvus(at.settings)
    live, _ = _live(at, milvus)
    entry = records.read(at.store, live.name) if live else None
    held = entry.run_ids if entry else ()
    # A run that was lost from the bucket cannot be loaded again: the rest is built anew, with its crops.
    known = [Run.open(at.store, one) for one in held if at.store.head(f"runs/{one}/run.json") is not None]
    missing = [run for run in wanted if run.run_id not in held]
    foreign = [run for run in known if run.info.archive != at.archive.uri]
    in_place = (
        live is not None
        and len(known) == len(held) > 0
        and live.fingerprint == wanted[-1].fingerprint
        and not at.request.full
        and not at.request.beside
    )
    united = [run for run in known if run in foreign or in_place]
    united = _by_time([*united, *(run for run in wanted if run.run_id not in {one.run_id for one in united})])
    built = _built_in_this_run(at, milvus, united)
    if built is not None:
        return _generation(built, at, "was built before this attempt")
    brings = any(run.summary.embedded or vanished_uris(run).num_rows for run in missing)
    if in_place and live is not None and not brings:
        return {"said": f"{live.name} holds everything", "kind": "nothing", "generation": live.name}
    if in_place:
        done = verbs.load_increment(_load_request(at, missing), at.settings)
        if done.promote_next:
            return _generation(done.generation, at, "of all runs, the increment being large")
        return {
            "said": verbs.increment_text(done),
            "kind": "increment",
            "generation": done.generation.name,
            "upserted": done.upserted,
            "removed": done.removed,
            "rows_before": done.rows_before,
            "rows": done.rows_after,
        }
    _require_one_model(united, live)
    return _generation(
        verbs.load(_load_request(at, united), at.settings).generation, at, "beside the live one"
    )


def gate_step(at: ReindexContext) -> dict[str, Any]:
    """Measure what tonight's rows are in. Raises GateFailed, with every failure."""
    load = at.outcome("load")
    if load["kind"] == "nothing":
        return {"said": "nothing was loaded, so nothing is measured", "report": None}
    report = verbs.gate_generation(
        load["generation"], at.settings, new_model=at.request.full, golden=at.request.golden
    )
    if not report.passed:
        place = (
            "It is live, and tonight's increment is in it: build a new one (--rebuild), or roll back."
            if load["kind"] == "increment"
            else "The alias did not move. The same command measures again; --night NAME builds anew."
        )
        raise GateFailed(f"{report.generation} did not pass: {'; '.join(report.failures)}", remedy=place)
    return {
        "said": f"passed: {report.rows_indexed:,} rows, recall@10 {report.recall_at_10:.4f}",
        "report": asdict(report),
    }


def promote_step(at: ReindexContext) -> dict[str, Any]:
    """Point the alias to the generation that passed, unless the rows went into the live one."""
    load = at.outcome("load")
    if load["kind"] != "generation":
        return {"said": f"{load['generation']} stays live", "moved": False, "live": load["generation"]}
    milvus = open_milvus(at.settings)
    before, _ = _live(at, milvus)
    promote(milvus, at.store, load["generation"])
    return {
        "said": f"{load['generation']} is live",
        "moved": True,
        "live": load["generation"],
        "replaced": before.name if before and before.name != load["generation"] else None,
    }


def retention_step(at: ReindexContext) -> dict[str, Any]:
    """Drop old generations, never the live or the previous one."""
    done = verbs.retire_generations(at.settings, keep=at.request.keep)
    milvus = open_milvus(at.settings)
    live, rows = _live(at, milvus)
    return {
        "said": f"{len(done.dropped)} generations dropped, {len(done.kept)} kept",
        "dropped": list(done.dropped),
        "kept": list(done.kept),
        "live": live.name if live else None,
        "live_rows": rows,
    }


def _live(at: ReindexContext, milvus: Milvus) -> tuple[Generation | None, int]:
    """Return the live generation, and the rows that the ledger says it has."""
    live = live_generation(milvus, at.settings.alias)
    entry = records.read(at.store, live.name) if live else None
    return live, entry.rows if entry else 0


def _built_in_this_run(at: ReindexContext, milvus: Milvus, runs: Sequence[Run]) -> Generation | None:
    """Return the generation of just these runs that an attempt at this night built to its end."""
    wanted = tuple(run.run_id for run in runs)
    for one in reversed(list_generations(milvus, at.settings.alias)):
        entry = records.read(at.store, one.name)
        ready = entry is not None and entry.state == "ready" and entry.run_ids == wanted
        # Stamps of generations are cut off at the second.
        if ready and one.created[:19] >= at.night.created[:19]:
            return one
    return None


def _generation(generation: Generation, at: ReindexContext, how: str) -> dict[str, Any]:
    entry = records.read(at.store, generation.name)
    assert entry is not None  # noqa: S101  its load wrote it
    return {
        "said": f"{generation.name}: {entry.rows:,} rows, {how}",
        "kind": "generation",
        "generation": generation.name,
        "rows": entry.rows,
        "target": entry.target,
        "index": generation.index.type,
    }


def _require_one_model(runs: Sequence[Run], live: Generation | None) -> None:
    prints = {run.fingerprint for run in runs}
    if len(prints) > 1:
        archives = sorted({run.info.archive for run in runs})
        raise BadInput(
            f"{live.name if live else 'the live generation'} holds runs of {len(archives)} archives "
            f"({', '.join(archives)}), and they are of different models",
            remedy="Embed each of them by the new model, then load and promote their runs together.",
        )


def _load_request(at: ReindexContext, runs: Sequence[Run]) -> verbs.LoadRequest:
    return verbs.LoadRequest(tuple(run.run_id for run in runs), at.request.index_type, latest_wins=True)


def _by_time(runs: Sequence[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: run.info.created)


def _embed(at: ReindexContext, plan: dict[str, Any]) -> RunSummary:
    asked = embed_request(at.request, plan["run_id"], plan["since_run"], plan["precision"])
    return embed(asked, at.settings, open_embedder=at.open_embedder)
