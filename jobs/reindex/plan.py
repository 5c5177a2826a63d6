"""The plan of a reindex run: its crops, the run that they are compared with, and the expected duration."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from clvr_model.precision import PrecisionOption
from index.generations.promotion import KEEP
from index.runs.lineage import lineage
from index.runs.run import Run, list_runs
from index.runs.timings import Timings, read_timings, sum_timings
from infra.errors import BadSetting, BudgetExceeded, ObjectMissing
from infra.logging import logger
from infra.store import Store, open_store
from jobs.embed.discovery import Discovery, NoChanges, discover
from jobs.embed.listing import PlanningTasks
from jobs.embed.new_run import EmbedRequest, create_run
from jobs.embed.precision import PrecisionDecision, default_precision, precision_of
from jobs.embed.throughput import SAMPLE_CROPS, measure_throughput, open_exact_model
from jobs.runtime.ray_cluster import (
    actor_resources,
    map_in_ray_tasks,
    num_cpus,
    num_gpus,
    num_nodes,
    run_as_ray_task,
)

MIN_CROPS_TO_SAMPLE = 5000
"""Crops from which a measurement pays off, where no earlier run gives the speed."""

MAX_EARLIER_RUNS = 30
"""Earlier runs that are considered for the expected duration."""

MIN_VANISHED_ROWS = 1000
"""The rate of vanished crops is taken over at least so many: in a small archive a few files mean nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReindexRequest:
    """The request of `clvr reindex`: an embedding of the archive, and how its rows go live."""

    embed: EmbedRequest
    """Without `run_id`, `since_run` and `lookback_days`: the plan sets them. `precision` applies to a full
    embedding; an increment has the precision of the run that it continues."""
    reindex_id: str | None = None
    """Id of the reindex run; by default it follows from the date and the inputs."""
    full: bool = False
    """Embed the whole archive; the model may differ from that of the live generation."""
    rebuild: bool = False
    """Build a new generation of all runs even for a small increment."""
    lookback_days: int | None = None
    max_vanished_rate: float = 0.1
    index_type: str = "auto"
    golden: str | None = None
    full_gate: bool = False
    """Compare all rows at the gate, however many."""
    keep: int = KEEP
    retain_days: int | None = None
    """Erase crops that were captured longer ago than this many days."""
    purge: bool = False
    """Remove the bytes of all erased crops, whenever they were erased."""
    drift: bool = False
    """At the end, compare the last week of each camera with the weeks before."""
    price_per_node_hour: float | None = None

    def __post_init__(self) -> None:
        for flag, rate in (
            ("--max-quarantine-rate", self.embed.max_quarantine_rate),
            ("--max-vanished-rate", self.max_vanished_rate),
        ):
            if not 0 <= rate <= 1:
                raise BadSetting(f"{flag} is {rate}, not a share between 0 and 1")
        if self.keep < 1:
            raise BadSetting(f"--keep is {self.keep}", remedy="Keep at least one generation.")
        if self.retain_days is not None and self.retain_days < 1:
            raise BadSetting(
                f"--retain-days {self.retain_days} would erase everything", remedy="Keep at least one day."
            )
        if self.lookback_days is not None and (self.lookback_days < 0 or self.embed.manifest or self.full):
            raise BadSetting(
                f"--lookback-days {self.lookback_days} needs a listing of the new crops",
                remedy="Leave out --manifest and --full, and give a number of days from 0 on.",
            )


def embed_request(
    request: ReindexRequest, run_id: str, since_run: str | None, precision: PrecisionOption
) -> EmbedRequest:
    """Return the request of the embedding: its run has the id of the reindex run."""
    return replace(
        request.embed,
        model=open_store(request.embed.model).uri,
        since_run=since_run,
        lookback_days=request.lookback_days if since_run else None,
        run_id=run_id,
        precision=precision,
    )


def start_run(
    request: ReindexRequest,
    store: Store,
    archive: Store,
    run_id: str,
    fingerprints: tuple[str, ...],
    live_runs: Sequence[str],
) -> dict[str, Any]:
    """Create the run of an embedding, or open it if it exists, and return the plan.

    fingerprints: those that the run may have. live_runs: ids of the runs of the live generation.
    Raises BudgetExceeded if more crops vanished than allowed, EmptyArchive for an archive without crops.
    """
    base = None
    if not request.full:
        base = base_run(store, archive.uri, fingerprints, live_runs, exclude_run_id=run_id)
    precision: PrecisionOption = request.embed.precision or default_precision()
    if base:
        precision = base.info.settings.get("precision", "fp32")
    embedding = embed_request(request, run_id, base.run_id if base else None, precision)
    actors = request.embed.actors or num_gpus() or num_cpus()
    run = _open_run(store, run_id)
    if run is None:
        try:
            run, notes = run_as_ray_task(
                _discover_and_create,
                embedding,
                store,
                archive,
                fingerprints[0],
                actors,
                actor_resources(),
                request.max_vanished_rate,
                precision_of(base) if base else None,
            )
        except NoChanges as no_changes:
            assert base is not None  # noqa: S101  there is no change without a base run
            logger.info(no_changes.message)
            return {
                "said": "nothing new, nothing changed, nothing vanished",
                "kind": "nothing",
                "run_id": None,
                "base_run": base.run_id,
                "since_run": base.run_id,
                "precision": precision,
                "changes": {"new": 0, "changed": 0, "vanished": 0, "unchanged": no_changes.unchanged},
                "expected": None,
            }
        for note in notes:
            logger.info(note)
    # A run that a killed attempt created may have another base run than this attempt would choose.
    since = run.info.settings.get("since_run")
    changes = run.info.settings.get("changes") or {
        "new": run.info.rows,
        "changed": 0,
        "vanished": 0,
        "unchanged": 0,
    }
    kind = "incremental" if since else "full"
    return {
        "said": f"{kind}: " + ", ".join(f"{count:,} {name}" for name, count in changes.items()),
        "kind": kind,
        "run_id": run.run_id,
        "base_run": since,
        "since_run": since,
        "precision": run.info.settings.get("precision_asked", precision),
        "changes": changes,
        "expected": _expected_duration(request.embed.model, store, run, archive, actors),
    }


def base_run(
    store: Store,
    archive: str,
    fingerprints: tuple[str, ...],
    live_runs: Sequence[str],
    *,
    exclude_run_id: str,
) -> Run | None:
    """Return the run that an increment continues: the newest finished run of an archive by a model.

    Runs that continue a live run take precedence over others, such as a trial on a part of the archive.
    """
    runs = list_runs(store)
    runs_by_id = {run.run_id: run for run in runs}
    candidates = [
        run
        for run in reversed(runs)
        if run.info.archive == archive
        and run.fingerprint in fingerprints
        and run.run_id != exclude_run_id
        and run.finished
    ]
    for run in candidates:
        ancestors = lineage(store, run.run_id, known=runs_by_id)
        if any(ancestor.run_id in live_runs for ancestor in ancestors):
            return run
    return candidates[0] if candidates else None


def _open_run(store: Store, run_id: str) -> Run | None:
    try:
        return Run.open(store, run_id)
    except ObjectMissing:
        return None


def _discover_and_create(
    request: EmbedRequest,
    store: Store,
    archive: Store,
    fingerprint: str,
    actors: int,
    resources: dict[str, float],
    max_vanished_rate: float,
    decision: PrecisionDecision | None,
) -> tuple[Run, list[str]]:
    with PlanningTasks(map_in_ray_tasks) as tasks:
        discovery = discover(request, archive, store, tasks=tasks)
        _check_vanished_rate(discovery, archive.uri, max_vanished_rate)
        return create_run(discovery, request, store, archive, fingerprint, actors, resources, decision)


def _check_vanished_rate(discovery: Discovery, archive: str, max_rate: float) -> None:
    changes = discovery.changes
    if changes is None:
        return
    vanished = len(changes.vanished)
    known = vanished + changes.unchanged + changes.changed
    if vanished > max_rate * max(known, MIN_VANISHED_ROWS):
        raise BudgetExceeded(
            f"{vanished:,} of {known:,} known crops are gone from {archive}, more than the {max_rate:.1%} "
            "that --max-vanished-rate allows; nothing was changed",
            remedy="Check whether a prefix of the bucket was lost; if not, raise the rate.",
        )


def _expected_duration(
    model: str, store: Store, run: Run, archive: Store, actors: int
) -> dict[str, Any] | None:
    """Return the expected seconds of embedding, from an earlier run of this archive or from a measurement."""
    crops = run.info.rows
    earlier = [
        other
        for other in list_runs(store)
        if other.info.archive == archive.uri and other.run_id != run.run_id
    ]
    # The largest run predicts best: a run of a few crops spends most of its time on its start.
    largest = sorted(earlier[-MAX_EARLIER_RUNS:], key=lambda other: other.info.rows, reverse=True)[:3]
    for other in largest:
        timings = sum_timings(read_timings(other.folder))
        seconds = expected_seconds(crops, timings, actors) if timings else None
        if seconds is not None:
            return _expectation(seconds, actors, f"run {other.run_id}")
    if crops < MIN_CROPS_TO_SAMPLE:
        return None
    crops_to_measure = run_as_ray_task(_sample_crops, run, SAMPLE_CROPS * actors)
    sample = measure_throughput(crops_to_measure, archive, partial(open_exact_model, model), actors)
    return _expectation(
        crops / sample.crops_per_second + sample.startup_seconds, actors, f"a probe of {sample.crops} crops"
    )


def expected_seconds(crops: int, timings: Timings, actors: int) -> float | None:
    """Predict the seconds to embed some crops from the timings of a run; None if it embedded nothing."""
    embedding = timings.embedding_seconds
    if not timings.rows or embedding <= 0:
        return None
    # The first rows of a run wait for its models; that time does not grow with the crops.
    startup = min(max(0.0, timings.startup_seconds - timings.planning_seconds), embedding)
    return startup + (embedding - startup) * crops / timings.rows * timings.actors / actors


def _expectation(seconds: float, actors: int, source: str) -> dict[str, Any]:
    return {"seconds": round(seconds, 3), "actors": actors, "nodes": num_nodes(), "by": source}


def _sample_crops(run: Run, count: int) -> pa.Table:
    stride = max(1, run.info.rows // count)
    crops = pa.concat_tables(
        run.folder.part_rows(part).slice((-part * run.info.rows_per_part) % stride)[::stride]
        for part in range(run.info.parts)
    )
    return crops.slice(0, count)
