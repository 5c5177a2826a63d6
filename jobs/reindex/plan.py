"""The plan of a night: which crops, since which run, and how long embedding them should take."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from clvr_model.embedder import reduced_fingerprint
from index.generations.promotion import KEEP
from index.runs.lineage import lineage
from index.runs.run import Run, list_runs
from index.runs.timings import Timings, read_timings, total_of
from infra.errors import BadSetting, BudgetExceeded, ObjectMissing
from infra.logging import logger
from infra.store import Store
from jobs.embed.discovery import Discovery, NoChanges, discover
from jobs.embed.job import SHARD_ROWS, EmbedRequest, actor_resources, create_run, precision_of
from jobs.embed.plan import SAMPLE_CROPS, exact_model, measure_throughput
from jobs.embed.precision import PrecisionDecision, PrecisionOption
from jobs.runtime.ray_cluster import cores, gpus, nodes, run_as_ray_task


@dataclass(frozen=True, slots=True, kw_only=True)
class NightRequest:
    """Which archive, by which model, and within which bounds; the settings say where to."""

    archive: str
    model: str
    """URI of the checkpoint."""
    night: str | None = None
    """Name of the night; without one it follows from the date and from what is asked."""
    full: bool = False
    """Embed the whole archive, and let the model be another one than the live generation's."""
    beside: bool = False
    """Build a new generation of all runs even for a small increment."""
    key_pattern: str | None = None
    manifest: str | None = None
    labels: str | None = None
    lookback_days: int | None = None
    precision: PrecisionOption = "fp32"
    """Of a full night; an increment takes that of the run it continues."""
    actors: int | None = None
    rows_per_shard: int = SHARD_ROWS
    max_quarantine_rate: float = 0.01
    max_vanished_rate: float = 0.1
    index_type: str = "auto"
    golden: str | None = None
    keep: int = KEEP
    price_per_node_hour: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_quarantine_rate", "max_vanished_rate"):
            rate = getattr(self, name)
            if not 0 <= rate <= 1:
                raise BadSetting(f"--{name.replace('_', '-')} is {rate}, not a share between 0 and 1")
        if self.keep < 1:
            raise BadSetting(f"--keep is {self.keep}", remedy="Keep at least one generation.")
        if self.lookback_days is not None and (self.lookback_days < 0 or self.manifest or self.full):
            raise BadSetting(
                f"--lookback-days {self.lookback_days} needs a listing of what is new",
                remedy="Leave out --manifest and --full, and give a number of days from 0 on.",
            )


MIN_CROPS_TO_SAMPLE = 5000
"""Crops from which on a measurement is worth its half minute, where no earlier run tells the speed."""

RECENT = 30
"""Runs that an expectation looks back to."""

VANISHED_ROWS = 1000
"""The rate of vanished crops is taken of at least so many: in a small archive a few files are no alarm."""


def models_of(fingerprint: str) -> tuple[str, str]:
    """The fingerprints that embeddings by a checkpoint may have: at full precision, and reduced."""
    return fingerprint, reduced_fingerprint(fingerprint, "bf16")


def embed_request(
    request: NightRequest, night_id: str, since_run: str | None, precision: PrecisionOption
) -> EmbedRequest:
    """What is asked of `embed`: the night's run bears the night's name."""
    return EmbedRequest(
        request.archive,
        key_pattern=request.key_pattern,
        manifest=request.manifest,
        labels=request.labels,
        since_run=since_run,
        lookback_days=request.lookback_days if since_run else None,
        model=request.model,
        run_id=night_id,
        actors=request.actors,
        rows_per_shard=request.rows_per_shard,
        precision=precision,
        max_quarantine_rate=request.max_quarantine_rate,
    )


def start_run(
    request: NightRequest,
    store: Store,
    archive: Store,
    night_id: str,
    models: tuple[str, str],
    live_runs: Sequence[str],
) -> dict[str, Any]:
    """Start the night's run, or find it started, and return what the plan is.

    models: fingerprints that the run may have. live_runs: ids of the runs that the live generation holds.
    Raises BudgetExceeded if more vanished than is allowed, EmptyArchive for an archive without crops.
    """
    base = None if request.full else base_run(store, archive.uri, models, live_runs, but=night_id)
    precision: PrecisionOption = base.info.settings.get("precision", "fp32") if base else request.precision
    asked = embed_request(request, night_id, base.run_id if base else None, precision)
    actors = request.actors or gpus() or cores()
    run = _open(store, night_id)
    if run is None:
        try:
            run, notes = run_as_ray_task(
                _begin,
                asked,
                store,
                archive,
                models[0],
                actors,
                actor_resources(),
                request.max_vanished_rate,
                precision_of(base) if base else None,
            )
        except NoChanges as nothing:
            assert base is not None  # noqa: S101  it was compared with something
            logger.info(nothing.message)
            return {
                "said": "nothing new, nothing changed, nothing vanished",
                "kind": "nothing",
                "run_id": None,
                "base_run": base.run_id,
                "since_run": base.run_id,
                "precision": precision,
                "changes": {"new": 0, "changed": 0, "vanished": 0, "unchanged": nothing.unchanged},
                "expected": None,
            }
        for note in notes:
            logger.info(note)
    # An attempt that was killed right here may have begun it since another run than would be taken now.
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
        "expected": _expected(request, store, run, archive, actors),
    }


def base_run(
    store: Store, archive: str, models: tuple[str, str], live_runs: Sequence[str], *, but: str
) -> Run | None:
    """Return the run that an increment continues: the newest finished one of an archive by a model.

    One that continues what is live goes before others, such as somebody's trial on a part of the archive.
    """
    runs = list_runs(store)
    known = {run.run_id: run for run in runs}
    found = [
        run
        for run in reversed(runs)
        if run.info.archive == archive and run.fingerprint in models and run.run_id != but and run.finished
    ]
    for run in found:
        if any(one.run_id in live_runs for one in lineage(store, run.run_id, known=known)):
            return run
    return found[0] if found else None


def expected_seconds(crops: int, past: Timings, actors: int) -> float | None:
    """How long some crops should take, by how long others took; None if that tells nothing."""
    work = past.embedding_seconds
    if not past.rows or work <= 0:
        return None
    # The first rows of a run wait for its models; that part does not grow with the crops.
    start = min(max(0.0, past.startup_seconds - past.planning_seconds), work)
    return start + (work - start) * crops / past.rows * past.actors / actors


def _begin(
    asked: EmbedRequest,
    store: Store,
    archive: Store,
    fingerprint: str,
    actors: int,
    resources: dict[str, float],
    max_vanished_rate: float,
    decision: PrecisionDecision | None,
) -> tuple[Run, list[str]]:
    found = discover(asked, archive, store)
    _check_vanished_rate(found, archive.uri, max_vanished_rate)
    return create_run(found, asked, store, archive, fingerprint, actors, resources, decision)


def _check_vanished_rate(found: Discovery, archive: str, rate: float) -> None:
    if found.changes is None:
        return
    gone, kept = len(found.changes.vanished), found.changes.unchanged + found.changes.changed
    if gone > rate * max(gone + kept, VANISHED_ROWS):
        raise BudgetExceeded(
            f"{gone:,} of {gone + kept:,} known crops are gone from {archive}, more than the {rate:.1%} "
            "that --max-vanished-rate allows; nothing was changed",
            remedy="Look whether a prefix of the bucket was lost; if it is right, raise the bound.",
        )


def _open(store: Store, run_id: str) -> Run | None:
    try:
        return Run.open(store, run_id)
    except ObjectMissing:
        return None


def _expected(
    request: NightRequest, store: Store, run: Run, archive: Store, actors: int
) -> dict[str, Any] | None:
    """How long embedding should take, by the last run on this archive, or by a measurement."""
    crops = run.info.rows
    past = [one for one in list_runs(store) if one.info.archive == archive.uri and one.run_id != run.run_id]
    # The largest of them tells most: of a few crops nearly all time goes into the start.
    for one in sorted(past[-RECENT:], key=lambda one: one.info.rows, reverse=True)[:3]:
        timings = total_of(read_timings(one.folder))
        seconds = expected_seconds(crops, timings, actors) if timings else None
        if seconds is not None:
            return _expectation(seconds, actors, f"run {one.run_id}")
    if crops < MIN_CROPS_TO_SAMPLE:
        return None
    sample = run_as_ray_task(_sample, run, SAMPLE_CROPS * actors)
    probe = measure_throughput(sample, archive, partial(exact_model, request.model), actors)
    return _expectation(
        crops / probe.crops_per_second + probe.startup_seconds, actors, f"a probe of {probe.crops} crops"
    )


def _expectation(seconds: float, actors: int, by: str) -> dict[str, Any]:
    return {"seconds": round(seconds, 3), "actors": actors, "nodes": nodes(), "by": by}


def _sample(run: Run, count: int) -> pa.Table:
    crops = run.manifest()
    return crops.take(list(range(0, crops.num_rows, max(1, crops.num_rows // count)))[:count])
