"""`clvr embed`: an archive into a run of shards, on Ray Data.

One *part* (a fixed slice of the manifest) is the unit of work. An actor fetches, decodes, embeds and writes a
whole part by itself, under a name that depends only on the part's number: nothing but part numbers and
counters passes through Ray, and a part that is done twice overwrites itself with the same rows.
"""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from clvr_model.checkpoint import load_checkpoint
from clvr_model.embedder import PrecisionCheck, reduced_fingerprint
from index.documents import utc_now
from index.runs.accounting import count_causes
from index.runs.records import RunSummary
from index.runs.run import Run, find_unfinished
from index.runs.timings import Timings, write_timings
from infra.errors import BucketMissing, ObjectMissing
from infra.logging import bind_context, logger
from infra.settings import Settings
from infra.store import Store, open_store
from jobs.embed.actor import OpenEmbedder, PartActor, outcome_of
from jobs.embed.discovery import Discovery, Source, discover
from jobs.embed.monitor import EmbedBoard, Totals
from jobs.embed.precision import (
    PrecisionDecision,
    PrecisionOption,
    choose_precision,
    compile_model,
    open_model,
)
from jobs.runtime.metrics import show_phases
from jobs.runtime.progress import ProgressState, progress
from jobs.runtime.progress_actor import actor_on_driver_node, read_progress
from jobs.runtime.ray_cluster import connect, cores, cpus_for_each_gpu, gpus, root_cause, run_as_ray_task

ROW_BYTES = 4400  # 1024 float32 and the scalar columns, before compression
PARTS_PER_ACTOR = 16
PART_ROWS = (64, 4096)
SHARD_ROWS = 122_880


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest(Source):
    """What `clvr embed` was asked for: which crops (see Source), by which model, and how."""

    model: str
    """URI of the checkpoint."""
    run_id: str | None = None
    actors: int | None = None
    rows_per_part: int | None = None
    rows_per_shard: int = SHARD_ROWS
    precision: PrecisionOption = "fp32"
    max_quarantine_rate: float = 0.01


@dataclass(slots=True)
class _PhaseTimer:
    """Wall seconds of the job so far, and of its phases."""

    begun: float
    startup: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)

    def timed(self, phase: str, work: Callable[[], Any]) -> Any:
        """Do some work and note how long it took."""
        begun = time.monotonic()
        try:
            return work()
        finally:
            self.phases[phase] = time.monotonic() - begun


def embed(
    request: EmbedRequest,
    settings: Settings,
    *,
    open_embedder: OpenEmbedder | None = None,
    archive: Store | None = None,
) -> RunSummary:
    """Embed an archive into `settings.runs`, or continue the unfinished run of the same archive and model.

    open_embedder, archive: what stands for the checkpoint's model and for the store at `request.archive`; for
    benchmarks and tests.
    Returns the summary of the finished run. Raises EmptyArchive, StoreError, BadCheckpoint, BudgetExceeded,
    CountMismatch; after any of them the run is unfinished, invisible to `load`, and the same call continues.
    """
    clock, started = _PhaseTimer(time.monotonic()), utc_now()
    runs, archive = open_store(settings.runs), archive or open_store(request.archive)
    archive.ensure()
    fingerprint = open_embedder().fingerprint if open_embedder else load_checkpoint(request.model).fingerprint
    connect(settings)
    actors = request.actors or gpus() or cores()
    run = _unfinished(request, runs, archive, fingerprint)
    if run is None:
        if not (open_embedder or gpus()):
            _precompile_model(request.model)
        run = clock.timed(
            "planning", lambda: _resume_or_create_run(request, runs, archive, fingerprint, actors)
        )
    if run.finished:
        logger.info(f"run {run.run_id} is finished already")
        return run.summary
    bind_context(run=run.run_id)
    open_embedder = open_embedder or partial(open_model, request.model, precision_of(run))
    board = _start_monitor(run, request)
    try:
        clock.timed("embedding", lambda: _embed_parts(run, archive, open_embedder, board, actors, clock))
        clock.timed("compacting", lambda: _compact(run))
        summary: RunSummary = clock.timed("finishing", lambda: run_as_ray_task(_finish, run))
    finally:
        totals: Totals = ray.get(board.sum.remote())
        timings = _timings(started, actors, clock, totals)
        write_timings(run.folder, timings)
        show_phases(run.run_id, timings)
    logger.info(
        f"run {run.run_id}: {summary.embedded:,} embedded, {summary.quarantined:,} quarantined; "
        f"most of the time went into {timings.bottleneck()}"
    )
    return summary


def _precompile_model(model: str) -> None:
    """Fill the cache of compiled models while crops are listed and actors start; nobody waits for it."""
    ray.remote(num_cpus=0, max_calls=1, max_retries=0)(compile_model).remote(model)


def actor_resources() -> dict[str, float]:
    """What one model actor asks of Ray: a GPU where the cluster has any, and its share of that node."""
    if not gpus():
        return {"num_cpus": 1}
    return {"num_gpus": 1, "num_cpus": max(1, cpus_for_each_gpu() - 1)}


def _unfinished(request: EmbedRequest, runs: Store, archive: Store, fingerprint: str) -> Run | None:
    asked = request.origin() | {"precision_asked": request.precision}
    candidates = (fingerprint, reduced_fingerprint(fingerprint, "bf16"))
    if request.run_id is not None:
        # By its name a finished run is found as well: asked for again, it has nothing left to do.
        with suppress(ObjectMissing, BucketMissing):
            run = Run.open(runs, request.run_id)
            known = {name: run.info.settings.get(name) for name in asked}
            if run.info.archive == archive.uri and run.fingerprint in candidates and known == asked:
                if not run.finished:
                    logger.info(f"continuing run {run.run_id}")
                return run
        return None
    for candidate in candidates:
        found = find_unfinished(runs, archive=archive.uri, fingerprint=candidate, origin=asked)
        if found is not None:
            logger.info(f"continuing run {found.run_id}")
            return found
    return None


def _resume_or_create_run(
    request: EmbedRequest, runs: Store, archive: Store, fingerprint: str, actors: int
) -> Run:
    run, notes = run_as_ray_task(_create_run, request, runs, archive, fingerprint, actors, actor_resources())
    for note in notes:
        logger.info(note)
    created: Run = run
    return created


def _create_run(
    request: EmbedRequest,
    runs: Store,
    archive: Store,
    fingerprint: str,
    actors: int,
    resources: dict[str, float],
) -> tuple[Run, list[str]]:
    return create_run(
        discover(request, archive, runs), request, runs, archive, fingerprint, actors, resources
    )


def create_run(
    found: Discovery,
    request: EmbedRequest,
    runs: Store,
    archive: Store,
    fingerprint: str,
    actors: int,
    resources: dict[str, float],
    decision: PrecisionDecision | None = None,
) -> tuple[Run, list[str]]:
    """Start a run of the crops that were found; returns it with what is to be said of how.

    fingerprint: the checkpoint's. resources: what a model actor asks of Ray. decision: on the precision,
    where the run continues another one and must be comparable with it.
    """
    rows = found.manifest.num_rows
    runs.require_space(2 * ROW_BYTES * rows)
    decision = decision or choose_precision(
        request.precision, request.model, fingerprint, found.manifest, archive, resources
    )
    notes = list(found.notes)
    if request.precision != "fp32":
        notes.append(f"precision {decision.precision}: {decision.reason}")
    run = Run.create(
        runs,
        request.run_id or time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()),
        manifest=found.manifest,
        archive=archive.uri,
        fingerprint=decision.fingerprint,
        model=request.model,
        settings=request.origin()
        | decision.as_settings()
        | {"precision_asked": request.precision, "key_pattern": request.key_pattern}
        | ({"changes": found.changes.counts()} if found.changes else {}),
        rows_per_part=request.rows_per_part or rows_per_part(rows, actors),
        rows_per_shard=request.rows_per_shard,
        vanished=found.changes.vanished if found.changes else (),
    )
    return run, notes


def rows_per_part(rows: int, actors: int) -> int:
    """Choose parts so small that actors end together, and so large that their edges cost nothing."""
    low, high = PART_ROWS
    return min(max(math.ceil(rows / (actors * PARTS_PER_ACTOR)), low), high)


def precision_of(run: Run) -> PrecisionDecision:
    """Return what was decided on a run's precision."""
    known = run.info.settings
    guard = known.get("guard")
    return PrecisionDecision(
        known.get("precision", "fp32"), run.fingerprint, "", PrecisionCheck(**guard) if guard else None
    )


def _start_monitor(run: Run, request: EmbedRequest) -> Any:
    pending = run.pending_parts()
    causes = dict(count_causes(run.quarantine())) if len(pending) < run.info.parts else {}
    embedded = run.info.rows - run.pending_rows() - sum(causes.values())
    return actor_on_driver_node(EmbedBoard).remote(
        run.info.rows, (embedded, causes), request.max_quarantine_rate
    )


def _embed_parts(
    run: Run, archive: Store, open_embedder: OpenEmbedder, board: Any, actors: int, clock: _PhaseTimer
) -> None:
    pending = run.pending_parts()
    if not pending:
        return
    outcomes = ray.data.from_items(
        [{"part": part} for part in pending], override_num_blocks=len(pending)
    ).map_batches(
        PartActor,
        batch_size=1,
        compute=ActorPoolStrategy(size=min(actors, len(pending)), max_tasks_in_flight_per_actor=2),
        fn_constructor_kwargs={
            "run": run,
            "archive": archive,
            "open_embedder": open_embedder,
            "board": board,
        },
        **actor_resources(),
    )

    before = read_progress(board).done

    def standing() -> ProgressState:
        at = read_progress(board)
        if not clock.startup and at.done > before:
            clock.startup = time.monotonic() - clock.begun
        return at

    try:
        with progress("embed", "crops", standing):
            for batch in outcomes.iter_batches(batch_size=None, prefetch_batches=0):
                for row in batch["outcome"]:
                    outcome_of(row)
    except Exception as error:
        raise root_cause(error) from error


def _compact(run: Run) -> None:
    compact = ray.remote(_compact_shard)
    waiting = [compact.remote(run, shard) for shard in range(run.info.shards)]
    total = len(waiting)

    def standing() -> ProgressState:
        return ProgressState(total - len(waiting), total)

    with progress("shards", "written", standing):
        while waiting:
            done, waiting = ray.wait(waiting, timeout=1.0)
            try:
                ray.get(done)
            except Exception as error:
                raise root_cause(error) from error


def _compact_shard(run: Run, shard: int) -> None:
    run.compact(shard)


def _finish(run: Run) -> RunSummary:
    return run.finish()


def _timings(started: str, actors: int, clock: _PhaseTimer, totals: Totals) -> Timings:
    return Timings(
        started=started,
        actors=actors,
        rows=totals.embedded + totals.quarantined,
        bytes=totals.bytes,
        startup_seconds=clock.startup,
        waiting_seconds=totals.waiting_seconds,
        model_seconds=totals.model_seconds,
        writing_seconds=totals.writing_seconds,
        fetch_seconds=totals.fetch_seconds,
        decode_seconds=totals.decode_seconds,
        planning_seconds=clock.phases.get("planning", 0.0),
        embedding_seconds=clock.phases.get("embedding", 0.0),
        compacting_seconds=clock.phases.get("compacting", 0.0),
        finishing_seconds=clock.phases.get("finishing", 0.0),
    )
