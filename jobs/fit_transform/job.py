"""`clvr fit-transform`: one pass over the shards of runs, one Ray task a shard, and a stored transform."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, Literal

import ray
from typing_extensions import TypedDict

from index.generations.load_plan import PlannedShard, plan_load
from index.schema import EMBEDDING_DIM
from index.transforms.choice import Choice, candidates, choose
from index.transforms.fitting import KINDS, Kind, TransformSettings, fit
from index.transforms.statistics import COLUMNS, MAX_ROWS, Sampling, Statistics, collect
from index.transforms.stored import NONE, TransformDocument, store_default, store_transform
from infra.errors import BadInput, BadSetting
from infra.settings import Settings
from infra.store import open_store
from jobs.runtime.json_fields import FieldsOf
from jobs.runtime.progress import ProgressState, progress
from jobs.runtime.ray_cluster import connect, num_cpus, root_cause
from jobs.runtime.resolve import find_runs

AUTO = "auto"
_BATCH_ROWS = 4096

FitKind = Literal["whiten", "camera", "whiten-camera", "none", "auto"]


@dataclass(frozen=True, slots=True)
class FitRequest:
    """A request of `clvr fit-transform`. The settings are those of `TransformSettings`."""

    run_ids: tuple[str, ...]
    kind: FitKind = "auto"
    dimensions: int | None = None
    shrinkage: float = 0.3
    camera_prior: float = 20.0
    by_hour: bool = False
    max_rows: int = MAX_ROWS

    def __post_init__(self) -> None:
        if self.max_rows < 1:
            raise BadSetting(f"--max-rows is {self.max_rows}", remedy="give at least 1")
        _ = self.settings("whiten-camera" if self.kind in (AUTO, NONE) else self.kind)

    def settings(self, kind: str) -> TransformSettings:
        """Return the settings of one kind. Raises BadSetting."""
        chosen: Kind = next(known for known in KINDS if known == kind)
        return TransformSettings(
            kind=chosen,
            dimensions=self.dimensions,
            shrinkage=self.shrinkage,
            camera_prior=self.camera_prior,
            by_hour=self.by_hour,
        )


class FitFields(TypedDict):
    """A transform, or `none`, for the model of the runs. cameras: with a mean of their own.

    document: what is stored beside the arrays. default: a load without --transform uses it.
    """

    fingerprint: str
    runs: tuple[str, ...]
    transform: str
    document: dict[str, Any] | None
    cameras: int
    choice: Annotated[dict[str, Any], FieldsOf(Choice)] | None
    default: bool


@dataclass(frozen=True, slots=True)
class FitResult:
    """A stored transform, or none, and how it was chosen; `is_default`: a load without a flag uses it."""

    fingerprint: str
    run_ids: tuple[str, ...]
    transform: TransformDocument | None
    choice: Choice | None
    is_default: bool

    def to_json(self) -> FitFields:
        """Return the document, the figures and the reason."""
        document = self.transform.plain_values() if self.transform else {}
        return {
            "fingerprint": self.fingerprint,
            "runs": self.run_ids,
            "transform": self.transform.transform_id if self.transform else NONE,
            "document": {name: value for name, value in document.items() if name != "groups"} or None,
            "cameras": _count_cameras(self.transform),
            "choice": asdict(self.choice) if self.choice else None,
            "default": self.is_default,
        }

    def to_text(self) -> str:
        """Return the figures of the candidates, the choice with its reason, and the next command."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        if self.choice and self.choice.figures:
            yield f"{self.choice.tracks:,} tracks, held out from fitting: find the last crop by the first one"
            titles = f"{'rank-1':>8}{'MRR':>7}  {'MRR - none, 95 %':<18}"
            yield f"{'kind':14}{titles}{'all cameras: rank-1':>20}{'MRR':>7}"
            for row in self.choice.figures:
                interval = "" if row.kind == NONE else f"{row.low:+.3f} to {row.high:+.3f}"
                yield (
                    f"{row.kind:14}{row.rank_1:>8.1%}{row.mean_reciprocal_rank:>7.3f}  {interval:<18}"
                    f"{row.rank_1_all:>20.1%}{row.mean_reciprocal_rank_all:>7.3f}"
                )
        if self.choice:
            yield f"chosen: {self.choice.kind}, because {self.choice.reason}"
        document = self.transform
        if document:
            cameras = _count_cameras(document)
            yield (
                f"transform {document.transform_id} of model {document.fingerprint}: "
                f"{document.input_dimension:,} to {document.dimensions:,} dimensions, fitted to "
                f"{document.rows:,} of {document.sampled_of:,} crops"
                + (f", means of {cameras:,} cameras" if cameras else "")
            )
        runs = " ".join(self.run_ids)
        if self.is_default:
            yield f"`clvr load` uses {document.transform_id if document else 'no transform'} for this model"
            yield f"next: clvr load {runs}"
        elif document:
            yield f"next: clvr load {runs} --transform {document.transform_id}"


def fit_transform(request: FitRequest, settings: Settings) -> FitResult:
    """Fit a transform to the crops of finished runs of one model, without labels, and store it.

    `auto` decides on tracks whether one helps, and makes the result the default of the model's generations;
    `none` makes plain features the default. Erased, superseded and vanished crops take no part.
    Raises BadInput for runs without rows, FingerprintMismatch, CorruptObject, BadSetting.
    """
    store = open_store(settings.runs)
    runs = find_runs(request.run_ids, settings)
    run_ids, fingerprint = tuple(run.run_id for run in runs), runs[0].fingerprint
    if request.kind == NONE:
        store_default(store, fingerprint, NONE, "chosen by --kind none")
        return FitResult(fingerprint, run_ids, None, None, is_default=True)
    plan = plan_load(runs, latest_wins=True, verify=False)
    if not plan.rows:
        raise BadInput(f"the runs {', '.join(run_ids)} leave no crop", remedy="embed crops first: clvr embed")
    auto = request.kind == AUTO
    base = request.settings("whiten-camera" if auto else request.kind)
    sampling = Sampling.of(
        plan.rows, request.max_rows, groups=base.by_camera, by_hour=base.by_hour, hold_out=auto
    )
    found = _collect(plan.shards, sampling, settings)
    moments, choice, kind = found.fitted, None, request.kind
    if auto:
        tried = candidates(base, has_cameras=_has_cameras(found))
        choice = choose(found.fitted, found.tracks, tried)
        # The choice is made: what was held out helps to estimate.
        moments, kind = found.fitted.merge(found.held_out), choice.kind  # type: ignore[assignment]
    if kind == NONE:
        store_default(store, fingerprint, NONE, choice.reason if choice else "")
        return FitResult(fingerprint, run_ids, None, choice, is_default=True)
    chosen = request.settings(kind) if not choice else next(each for each in tried if each.kind == kind)
    document = store_transform(
        store,
        fit(moments, chosen),
        fingerprint=fingerprint,
        shrinkage=chosen.shrinkage,
        camera_prior=chosen.camera_prior,
        run_ids=run_ids,
        rows=moments.count,
        sampled_of=plan.rows,
    )
    if choice:
        store_default(store, fingerprint, document.transform_id, choice.reason)
    return FitResult(fingerprint, run_ids, document, choice, is_default=choice is not None)


def _collect(shards: Sequence[PlannedShard], sampling: Sampling, settings: Settings) -> Statistics:
    """Return the statistics of all shards, merged in their order, so that a repeat gives equal bytes."""
    total = Statistics.empty(EMBEDDING_DIM)
    rows = sum(shard.rows for shard in shards)
    done = 0
    with progress("fit-transform", "rows", lambda: ProgressState(done, rows)):
        for shard, part in zip(shards, _statistics_of(shards, sampling, settings), strict=True):
            total = total.merge(part)
            done += shard.rows
    return total


def _statistics_of(
    shards: Sequence[PlannedShard], sampling: Sampling, settings: Settings
) -> Iterator[Statistics]:
    """Yield the statistics of shards in order: in this process for one shard, as Ray tasks for several."""
    work = partial(shard_statistics, sampling=sampling)
    if len(shards) == 1:
        yield work(shards[0])
        return
    connect(settings)
    task = ray.remote(num_cpus=1)(work.func)
    # Results wait for those before them, each with 16 MB of moments and up to 25 MB of tracks.
    ahead = num_cpus() + 1
    running: list[Any] = []
    try:
        for shard in shards:
            if len(running) == ahead:
                yield ray.get(running.pop(0))
            running.append(task.remote(shard, sampling=sampling))
        while running:
            yield ray.get(running.pop(0))
    except Exception as error:
        raise root_cause(error) from error


def shard_statistics(shard: PlannedShard, sampling: Sampling) -> Statistics:
    """Return the statistics of the rows of one shard that a generation would have."""
    return collect(shard.batches(_BATCH_ROWS, COLUMNS), sampling, EMBEDDING_DIM)


def _has_cameras(found: Statistics) -> bool:
    return any(camera for camera, _ in found.fitted.groups)


def _count_cameras(document: TransformDocument | None) -> int:
    return len({camera for camera, _ in document.groups}) if document else 0
