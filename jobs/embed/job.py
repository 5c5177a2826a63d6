"""`clvr embed`: embed an archive into a run of shards, on Ray Data.

The unit of work is a *part*, a fixed slice of the manifest. An actor fetches, decodes, embeds and writes a
whole part, and then its mark, whose name depends only on the part's number. Only part numbers and counters
pass through Ray, and of a part that is embedded twice the last mark counts.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from clvr_model.precision import fingerprints_of
from index.documents import utc_now
from index.runs.records import RunSummary
from index.runs.run import Run, find_unfinished
from index.runs.timings import Timings, write_timings
from infra.errors import BucketMissing, ObjectMissing
from infra.logging import bind_context, logger
from infra.settings import Settings
from infra.store import Store, open_store
from infra.tracing import carrier, span
from jobs.embed.actor import OpenEmbedder, PartActor, outcome_of
from jobs.embed.discovery import with_run_ids
from jobs.embed.finish import finish_run, write_shards
from jobs.embed.model import convert_model, fingerprint_for_runs, is_converted, open_model
from jobs.embed.monitor import EmbedMonitor, Totals
from jobs.embed.new_run import EmbedRequest, discover_and_create
from jobs.embed.precision import default_precision, precision_of
from jobs.embed.sizes import blocks_of
from jobs.runtime.metrics import show_phases
from jobs.runtime.progress import progress
from jobs.runtime.progress_actor import actor_on_driver_node, read_progress
from jobs.runtime.ray_cluster import (
    actor_resources,
    connect,
    num_cpus,
    num_gpus,
    root_cause,
    run_as_ray_task,
)


@dataclass(slots=True)
class _PhaseTimer:
    """Wall seconds of a job's phases."""

    started: float
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
    with ThreadPoolExecutor(1) as pool:  # Ray starts in processes of its own; meanwhile torch may load
        reading = pool.submit(_fingerprint, request.model, open_embedder)
        connect(settings)
        fingerprint = reading.result()
    model = open_store(request.model).uri  # a relative path means nothing in another folder
    request = replace(request, model=model, precision=request.precision or default_precision())
    actors = request.actors or num_gpus() or num_cpus()
    run = _find_resumable_run(request, runs, archive, fingerprint)
    if run is None:
        if not (open_embedder or num_gpus() or is_converted(request.model)):
            _convert_model(request.model)
        run = timer.time("planning", lambda: _new_run(request, runs, archive, fingerprint, actors))
    if run.finished:
        logger.info(f"run {run.run_id} is finished already")
        return run.summary
    bind_context(run=run.run_id)
    decision = precision_of(run)
    open_embedder = open_embedder or partial(open_model, request.model, decision.precision, decision.guard)
    monitor = _start_monitor(run, request.max_quarantine_rate)
    try:
        timer.time("embedding", lambda: _embed_parts(run, archive, open_embedder, monitor, actors))
        timer.time("compacting", lambda: write_shards(run))
        summary: RunSummary = timer.time("finishing", lambda: finish_run(run))
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


def _fingerprint(model: str, open_embedder: OpenEmbedder | None) -> str:
    return open_embedder().fingerprint if open_embedder else fingerprint_for_runs(model)


def _convert_model(model: str) -> None:
    """Convert the network while crops are listed and actors start, without waiting."""
    ray.remote(num_cpus=0, max_calls=1, max_retries=0)(convert_model).remote(model)


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
        discover_and_create, request, runs, archive, fingerprint, actors, actor_resources()
    )
    for note in notes:
        logger.info(note)
    created: Run = run
    return created


def _start_monitor(run: Run, max_quarantine_rate: float) -> Any:
    embedded, causes = run.counted_parts()
    return actor_on_driver_node(EmbedMonitor).remote(
        run.info.rows, (embedded, dict(causes)), max_quarantine_rate
    )


def _embed_parts(run: Run, archive: Store, open_embedder: OpenEmbedder, monitor: Any, actors: int) -> None:
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
    try:
        with progress("embed", "crops", partial(read_progress, monitor)):
            for batch in outcomes.iter_batches(batch_size=None, prefetch_batches=0):
                for row in batch["outcome"]:
                    outcome_of(row)
    except Exception as error:
        raise root_cause(error) from error


def _timings(started: str, actors: int, timer: _PhaseTimer, totals: Totals) -> Timings:
    phases = ("planning", "embedding", "compacting", "finishing")
    startup = totals.first_report - timer.started if totals.first_report else 0.0
    return Timings(
        started=started,
        actors=actors,
        rows=totals.embedded + totals.quarantined,
        bytes=totals.bytes,
        startup_seconds=startup,
        **{f"{phase}_seconds": timer.phases.get(phase, 0.0) for phase in phases},
        **asdict(totals.seconds),
    )
