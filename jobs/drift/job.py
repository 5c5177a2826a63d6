"""Profiles of runs by Ray tasks, one a shard, their comparison, and the ages of calibration and transform.

The features of a run are read once, because its profile is stored. Later calls read those of new runs, a
bounded sample for the distances, and the crop ids of all runs, as an increment does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import reduce
from typing import Any

import numpy as np
import ray

from index.drift.comparison import CameraDrift, DriftLimits, compare
from index.drift.nearest import MAX_GALLERY, MAX_PROBES, NearestChange, Sample, nearest_change
from index.drift.profile import COLUMNS, Profile, collect, monday_ms
from index.drift.stored import read_profile, write_profile
from index.generations.load_plan import PlannedShard, plan_load
from index.runs.run import Run
from index.runs.shards import vectors_of
from index.schema import EMBEDDING_DIM
from index.search.calibration import calibration_of
from index.transforms.statistics import is_sampled
from index.transforms.stored import read_document
from infra.errors import BadInput
from infra.settings import Settings
from infra.store import Store, open_store
from jobs.runtime.progress import ProgressState, progress
from jobs.runtime.ray_cluster import connect, num_cpus, root_cause
from jobs.runtime.resolve import available_runs_of, find_generation, find_runs, live_name, open_milvus

MAX_AGE_DAYS = 90
MAX_GROWTH = 2.0
_BATCH_ROWS = 4096
_SAMPLED_SHARDS = 8


@dataclass(frozen=True, slots=True)
class DriftRequest:
    """A request of `clvr drift`. run_ids: by default those of the live generation."""

    run_ids: tuple[str, ...] = ()
    limits: DriftLimits = field(default_factory=DriftLimits)
    max_age_days: int = MAX_AGE_DAYS


@dataclass(frozen=True, slots=True)
class DriftResult:
    """What changed. `alerts` are one line each, those of cameras with their name first."""

    fingerprint: str
    generation: str | None
    run_ids: tuple[str, ...]
    week: str  # the Monday of the last week, an ISO date; '' if no crop has a time
    weeks: int
    crops: int
    undated: int
    cameras: tuple[CameraDrift, ...]
    nearest: NearestChange | None
    alerts: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return all figures, of every camera."""
        return asdict(self)

    def to_text(self) -> str:
        """Return the alerts, and the counts that they come from."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        last = f"the {self.weeks} weeks to that of" if self.weeks > 1 else "the week of"
        since = f"{last} {self.week} against those before" if self.week else "no crop has a time"
        yield f"{self.crops:,} crops of {len(self.cameras):,} cameras, model {self.fingerprint}; {since}"
        if self.undated:
            yield f"  {self.undated:,} crops have no time and are not compared"
        compared = sum(camera.shift is not None for camera in self.cameras)
        yield f"  {compared:,} cameras have crops enough before and after to compare features"
        if self.nearest:
            near = self.nearest
            yield (
                f"  nearest crop by another camera: median {near.recent:.3g}, earlier {near.earlier:.3g} "
                f"({near.change:+.1%}, 95 % {near.low:+.1%} to {near.high:+.1%}; {near.recent_probes:,} and "
                f"{near.earlier_probes:,} probes against {near.gallery:,} crops)"
            )
        yield f"{len(self.alerts):,} alert{'' if len(self.alerts) == 1 else 's'}"
        yield from (f"  {alert}" for alert in self.alerts)


def measure_drift(request: DriftRequest, settings: Settings) -> DriftResult:
    """Compare the last weeks of an archive's crops with those before, without labels.

    Erased crops are left out. A stored profile keeps the sums that it had when it was made.
    Raises BadInput without a live generation or for runs without crops, FingerprintMismatch, CorruptObject.
    """
    store = open_store(settings.runs)
    generation, runs = _runs(request, settings)
    fingerprint = runs[0].fingerprint
    plan = plan_load(runs, latest_wins=True, verify=False)
    by_run = {run.run_id: [shard for shard in plan.shards if shard.run_id == run.run_id] for run in runs}
    profile = reduce(Profile.merge, _profiles(store, fingerprint, by_run, settings), Profile())
    if not profile.crops:
        raise BadInput(
            f"the runs {', '.join(run.run_id for run in runs)} have no crop", remedy="embed crops: clvr embed"
        )
    last = profile.last_week
    cameras = tuple(compare(profile, request.limits)) if last >= 0 else ()
    nearest = _nearest(plan.shards, last - request.limits.weeks + 1) if last >= 0 else None
    transform = ""
    if generation is not None:
        transform = find_generation(generation, open_milvus(settings), settings).transform
    alerts = [f"camera {each.camera_id}: {alert}" for each in cameras for alert in each.alerts]
    alerts += [nearest.alert] if nearest and nearest.alert else []
    alerts += _ages(store, fingerprint, transform, plan.rows, request.max_age_days)
    return DriftResult(
        fingerprint=fingerprint,
        generation=generation,
        run_ids=tuple(run.run_id for run in runs),
        week=datetime.fromtimestamp(monday_ms(last) / 1000, UTC).date().isoformat() if last >= 0 else "",
        weeks=request.limits.weeks,
        crops=plan.rows,
        undated=sum(count for (_, week), count in profile.crops.items() if week < 0),
        cameras=cameras,
        nearest=nearest,
        alerts=tuple(alerts),
    )


def _runs(request: DriftRequest, settings: Settings) -> tuple[str | None, list[Run]]:
    """Return the live generation, if no runs were named, and the runs, oldest first."""
    if request.run_ids:
        return None, find_runs(request.run_ids, settings)
    name = live_name(settings)
    if name is None:
        raise BadInput(
            f"alias {settings.alias} has no live generation",
            remedy="name runs: clvr drift RUN, or promote one",
        )
    return name, available_runs_of(find_generation(name, open_milvus(settings), settings), settings)


def _profiles(
    store: Store, fingerprint: str, by_run: dict[str, list[PlannedShard]], settings: Settings
) -> Iterator[Profile]:
    """Yield the profile of each run; those that are not stored are made and stored."""
    for run_id, shards in by_run.items():
        found = read_profile(store, fingerprint, run_id)
        if found is None:
            parts = _profiles_of(run_id, shards, settings)
            found = reduce(Profile.merge, parts, Profile()).without_small_weeks()
            write_profile(store, fingerprint, run_id, found)
        yield found


def _profiles_of(run_id: str, shards: Sequence[PlannedShard], settings: Settings) -> Iterator[Profile]:
    """Yield the profiles of shards in order: in this process for one shard, as Ray tasks for several."""
    rows, done = sum(shard.rows for shard in shards), 0
    with progress(f"profile of {run_id}", "rows", lambda: ProgressState(done, rows)):
        if len(shards) <= 1:
            yield from map(profile_shard, shards)
            return
        connect(settings)
        task = ray.remote(num_cpus=1)(profile_shard)
        running: list[Any] = []
        try:
            for shard in shards:
                if len(running) > num_cpus():
                    yield ray.get(running.pop(0))
                running.append(task.remote(shard))
                done += shard.rows
            while running:
                yield ray.get(running.pop(0))
        except Exception as error:
            raise root_cause(error) from error


def profile_shard(shard: PlannedShard) -> Profile:
    """Return the profile of the rows of one shard."""
    return collect(shard.batches(_BATCH_ROWS, COLUMNS), EMBEDDING_DIM)


def _nearest(shards: Sequence[PlannedShard], first_week: int) -> NearestChange | None:
    """Sample new and earlier crops from the first and the last shards, and compare their distances."""
    start = monday_ms(first_week)
    chosen = [*shards[:_SAMPLED_SHARDS], *shards[_SAMPLED_SHARDS:][-_SAMPLED_SHARDS:]]
    share = min(1.0, 4 * (MAX_GALLERY + 2 * MAX_PROBES) / max(1, sum(shard.rows for shard in chosen)))
    features, cameras, times, ids = [], [], [], []
    for shard in chosen:
        for batch in shard.batches(_BATCH_ROWS, ("crop_id", "camera_id", "captured_at", "embedding")):
            rows = np.flatnonzero(is_sampled(batch.column("crop_id").to_numpy(), share))
            if len(rows):
                part = batch.take(rows)
                features.append(vectors_of(part))
                cameras += part.column("camera_id").to_pylist()
                times.append(part.column("captured_at").to_numpy())
                ids.append(part.column("crop_id").to_numpy())
    if not features:
        return None
    # Crop ids are hashes, so their order is a random one that a repeat draws again.
    order = np.argsort(np.concatenate(ids), kind="stable")
    when, names = np.concatenate(times)[order], np.asarray(cameras, np.str_)[order]
    rows_of = np.concatenate(features)[order]
    is_known = names != ""
    recent = np.flatnonzero(is_known & (when >= start))[:MAX_PROBES]
    before = np.flatnonzero(is_known & (when >= 0) & (when < start))
    earlier, gallery = before[:MAX_PROBES], before[MAX_PROBES:][:MAX_GALLERY]
    if len(before) < 2 * MAX_PROBES:
        earlier, gallery = before[::4], np.delete(before, np.s_[::4])[:MAX_GALLERY]
    samples = [Sample(rows_of[rows], names[rows]) for rows in (recent, earlier, gallery)]
    return nearest_change(samples[0], samples[1], samples[2])


def _ages(store: Store, fingerprint: str, transform: str, rows: int, max_days: int) -> Iterator[str]:
    """Yield alerts of a calibration or a transform that is old, or made of a much smaller archive."""
    calibration = calibration_of(store, fingerprint, transform)
    if calibration is not None:
        days = _days_since(calibration.created)
        if days > max_days:
            yield f"the calibration is {days:,} days old: clvr calibrate"
        if rows > MAX_GROWTH * calibration.gallery:
            yield (
                f"the calibration is of {calibration.gallery:,} crops, and the archive has {rows:,}: "
                "impostors are nearer than it assumes"
            )
    if transform:
        document = read_document(store, fingerprint, transform)
        days = _days_since(document.created)
        if days > max_days:
            yield f"the transform {transform} is {days:,} days old: clvr fit-transform, then load"


def _days_since(created: str) -> int:
    return (datetime.now(UTC) - datetime.fromisoformat(created)).days
