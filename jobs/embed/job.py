"""`clvr embed`: embed an archive into a run of shards, on Ray Data.

The unit of work is a *part*, a fixed slice of the manifest. An actor fetches, decodes, embeds and writes a
whole part, and then its mark, whose name depends only on the part's number. Only part numbers and counters
pass through Ray, and of a part that is embedded twice the last mark counts.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from clvr_model.embedder import PrecisionCheck, PrecisionOption, fingerprints_of
from index.catalogue.catalogue import open_catalogue
from index.documents import utc_now
from index.runs.records import RunSummary
from index.runs.run import Run, find_unfinished
from index.runs.timings import Timings, write_timings
from infra.errors import BucketMissing, ClvrError, ObjectMissing
from infra.logging import bind_context, logger
from infra.settings import Settings
from infra.store import Store, open_store
from infra.tracing import carrier, span
from jobs.embed.actor import OpenEmbedder, PartActor, outcome_of
from jobs.embed.discovery import CropSelection, Discovery, discover, with_run_ids
from jobs.embed.listing import PlanningTasks
from jobs.embed.monitor import EmbedMonitor, Totals
from jobs.embed.precision import (
    PrecisionDecision,
    choose_precision,
    compile_model,
    default_precision,
    load_for_runs,
    open_model,
)
from jobs.embed.sizes import ROW_BYTES, SHARD_ROWS, blocks_of, rows_per_part
from jobs.runtime.metrics import show_phases
from jobs.runtime.progress import ProgressState, progress
from jobs.runtime.progress_actor import actor_on_driver_node, read_progress
from jobs.runtime.ray_cluster import (
    connect,
    cpus_per_gpu,
    map_in_ray_tasks,
    num_cpus,
    num_gpus,
    root_cause,
    run_as_ray_task,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest(CropSelection):
    """The request of `clvr embed`: a selection of crops, a model, and how to embed."""

    model: str
    """URI of the checkpoint."""
    run_id: str | None = None
    actors: int | None = None
    rows_per_part: int | None = None
    rows_per_shard: int = SHARD_ROWS
    precision: PrecisionOption | None = None
    """None for `default_precision`."""
    max_quarantine_rate: float = 0.01


@dataclass(slots=True)
class _PhaseTimer:
    """Wall seconds of a job's phases, and until its first embedded rows."""

    started: float
    startup: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)

    def time(self, phase: str, work: Callable[[], Any]) -> Any:
        """Do the work of a phase and record its duration."""
        started = time.monotonic()
        try:
            with span(phase):
                return work()
        finally:
            self.phases[phase] = time.monotonic() - started


def embed(
    request: EmbedRequest,
    settings: Settings,
    *,
    open_embedder: OpenEmbedder | None = None,
    archive: Store | None = None,
) -> RunSummary:
    """Embed an archive into `settings.runs`, or continue the unfinished run of the same archive and model.

    open_embedder, archive: replace the checkpoint's model and the store at `request.archive`, for benchmarks
    and tests.
    Returns the summary of the finished run. Raises EmptyArchive, StoreError, BadCheckpoint, BudgetExceeded,
    CountMismatch; the run then is unfinished and invisible to `load`, and the same call continues it.
    """
    timer, started = _PhaseTimer(time.monotonic()), utc_now()
    request = with_run_ids(request, settings)
    runs, archive = open_store(settings.runs), archive or open_store(request.archive)
    archive.ensure()
    fingerprint = open_embedder().fingerprint if open_embedder else load_for_runs(request.model).fingerprint
    connect(settings)
    request = replace(request, precision=request.precision or default_precision())
    actors = request.actors or num_gpus() or num_cpus()
    run = _find_resumable_run(request, runs, archive, fingerprint)
    if run is None:
        if not (open_embedder or num_gpus()):
            _precompile_model(request.model)
        run = timer.time("planning", lambda: _new_run(request, runs, archive, fingerprint, actors))
    if run.finished:
        logger.info(f"run {run.run_id} is finished already")
        return run.summary
    bind_context(run=run.run_id)
    open_embedder = open_embedder or partial(open_model, request.model, precision_of(run))
    monitor = _start_monitor(run, request.max_quarantine_rate)
    try:
        timer.time("embedding", lambda: _embed_parts(run, archive, open_embedder, monitor, actors, timer))
        timer.time("compacting", lambda: _compact(run))
        summary: RunSummary = timer.time("finishing", lambda: _finish(run))
    finally:
        totals: Totals = ray.get(monitor.sum.remote())
        timings = _timings(started, actors, timer, totals)
        write_timings(run.folder, timings)
        show_phases(run.run_id, timings)
    logger.info(
        f"run {run.run_id}: {summary.embedded:,} embedded, {summary.quarantined:,} quarantined; "
        f"most of the time went into {timings.bottleneck()}"
    )
    return summary


def actor_resources() -> dict[str, float]:
    """Return the Ray resources of one model actor: a GPU and its share of CPUs, or one CPU."""
    if not num_gpus():
        return {"num_cpus": 1}
    return {"num_gpus": 1, "num_cpus": max(1, cpus_per_gpu() - 1)}


def _precompile_model(model: str) -> None:
    """Fill the cache of compiled models while crops are listed and actors start, without waiting."""
    ray.remote(num_cpus=0, max_calls=1, max_retries=0)(compile_model).remote(model)


def _find_resumable_run(request: EmbedRequest, runs: Store, archive: Store, fingerprint: str) -> Run | None:
    origin = request.origin() | {"precision_asked": request.precision}
    fingerprints = fingerprints_of(fingerprint)
    if request.run_id is not None:
        # A finished run is found by its id too: a repeated request has no work left.
        with suppress(ObjectMissing, BucketMissing):
            run = Run.open(runs, request.run_id)
            recorded = {name: run.info.settings.get(name) for name in origin}
            if run.info.archive == archive.uri and run.fingerprint in fingerprints and recorded == origin:
                if not run.finished:
                    logger.info(f"continuing run {run.run_id}")
                return run
        return None
    for candidate in fingerprints:
        unfinished = find_unfinished(runs, archive=archive.uri, fingerprint=candidate, origin=origin)
        if unfinished is not None:
            logger.info(f"continuing run {unfinished.run_id}")
            return unfinished
    return None


def _new_run(request: EmbedRequest, runs: Store, archive: Store, fingerprint: str, actors: int) -> Run:
    run, notes = run_as_ray_task(
        _discover_and_create, request, runs, archive, fingerprint, actors, actor_resources()
    )
    for note in notes:
        logger.info(note)
    created: Run = run
    return created


def _discover_and_create(
    request: EmbedRequest,
    runs: Store,
    archive: Store,
    fingerprint: str,
    actors: int,
    resources: dict[str, float],
) -> tuple[Run, list[str]]:
    with PlanningTasks(map_in_ray_tasks) as tasks:
        discovery = discover(request, archive, runs, tasks=tasks)
        return create_run(discovery, request, runs, archive, fingerprint, actors, resources)


def create_run(
    discovery: Discovery,
    request: EmbedRequest,
    runs: Store,
    archive: Store,
    fingerprint: str,
    actors: int,
    resources: dict[str, float],
    decision: PrecisionDecision | None = None,
) -> tuple[Run, list[str]]:
    """Create a run of the discovered crops, and return it with notes for the user.

    fingerprint: that of the checkpoint. resources: those of a model actor. decision: the precision, where the
    run continues another one and must be comparable with it.
    """
    rows, precision = discovery.crops.num_rows, request.precision or "fp32"
    runs.require_space(2 * ROW_BYTES * rows)
    decision = decision or choose_precision(
        precision, request.model, fingerprint, discovery.crops, archive, resources
    )
    notes = list(discovery.notes)
    if precision != "fp32":
        notes.append(f"precision {decision.precision}: {decision.reason}")
    changes = discovery.changes
    run = Run.create(
        runs,
        request.run_id or time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()),
        manifest=discovery.crops,
        archive=archive.uri,
        fingerprint=decision.fingerprint,
        model=request.model,
        settings=request.origin()
        | decision.as_settings()
        | {"precision_asked": precision, "key_pattern": request.key_pattern}
        | ({"changes": changes.counts()} if changes else {}),
        rows_per_part=request.rows_per_part or rows_per_part(rows, actors),
        rows_per_shard=request.rows_per_shard,
        vanished=changes.vanished if changes else (),
    )
    return run, notes


def precision_of(run: Run) -> PrecisionDecision:
    """Return the precision that was decided for a run."""
    recorded = run.info.settings
    guard = recorded.get("guard")
    return PrecisionDecision(
        recorded.get("precision", "fp32"), run.fingerprint, "", PrecisionCheck(**guard) if guard else None
    )


def _start_monitor(run: Run, max_quarantine_rate: float) -> Any:
    embedded, causes = run.counted_parts()
    return actor_on_driver_node(EmbedMonitor).remote(
        run.info.rows, (embedded, dict(causes)), max_quarantine_rate
    )


def _embed_parts(
    run: Run, archive: Store, open_embedder: OpenEmbedder, monitor: Any, actors: int, timer: _PhaseTimer
) -> None:
    pending = run.pending_parts()
    if not pending:
        return
    blocks = blocks_of(pending, actors)
    outcomes = ray.data.from_items(
        [{"parts": parts} for parts in blocks], override_num_blocks=len(blocks)
    ).map_batches(
        PartActor,
        batch_size=None,
        compute=ActorPoolStrategy(size=min(actors, len(pending)), max_tasks_in_flight_per_actor=2),
        fn_constructor_kwargs={
            "run": run,
            "archive": archive,
            "open_embedder": open_embedder,
            "monitor": monitor,
            "trace": carrier(),
        },
        **actor_resources(),
    )
    done_before = read_progress(monitor).done

    def read() -> ProgressState:
        state = read_progress(monitor)
        if not timer.startup and state.done > done_before:
            timer.startup = time.monotonic() - timer.started
        return state

    try:
        with progress("embed", "crops", read):
            for batch in outcomes.iter_batches(batch_size=None, prefetch_batches=0):
                for row in batch["outcome"]:
                    outcome_of(row)
    except Exception as error:
        raise root_cause(error) from error


def _compact(run: Run) -> None:
    compact, at_once = ray.remote(_compact_shard), 2 * num_cpus()
    total, shards = run.info.shards, iter(range(run.info.shards))
    pending: list[Any] = []
    num_done = 0
    with progress("shards", "written", lambda: ProgressState(num_done, total)):
        while num_done < total:
            pending += [compact.remote(run, shard) for shard in islice(shards, at_once - len(pending))]
            done, pending = ray.wait(pending, timeout=1.0)
            try:
                ray.get(done)
            except Exception as error:
                raise root_cause(error) from error
            num_done += len(done)


def _compact_shard(run: Run, shard: int) -> None:
    run.compact(shard)


def _finish(run: Run) -> RunSummary:
    summary: RunSummary = run_as_ray_task(Run.finish, run)
    if problem := run_as_ray_task(_update_catalogue, run):
        logger.info(f"the catalogue was not updated: {problem}; the next incremental run does that")
    return summary


def _update_catalogue(run: Run) -> str:
    """Carry the catalogue on to a finished run; return why not: the run is finished all the same."""
    try:
        open_catalogue(run.store, run.run_id)
    except ClvrError as error:
        return error.message
    return ""


def _timings(started: str, actors: int, timer: _PhaseTimer, totals: Totals) -> Timings:
    phases = ("planning", "embedding", "compacting", "finishing")
    return Timings(
        started=started,
        actors=actors,
        rows=totals.embedded + totals.quarantined,
        bytes=totals.bytes,
        startup_seconds=timer.startup,
        **{f"{phase}_seconds": timer.phases.get(phase, 0.0) for phase in phases},
        **asdict(totals.seconds),
    )
