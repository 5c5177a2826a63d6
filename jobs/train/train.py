"""`clvr train`: fit a recipe on Ray Train, in one job over all stages, with a state after each epoch."""

import hashlib
import json
import threading
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from clvr_model.attributes import learnable_values, value_numbers
from clvr_model.checkpoint import CARD_FILE, NO_LABELS, Card, load_checkpoint, read_card, save_checkpoint
from clvr_model.datasets.labelled import UNKNOWN_MODEL, LabeledImages, class_numbers
from clvr_model.network import Architecture, Clvr
from clvr_model.recipe import Recipe, load_recipe
from clvr_model.start import starting_from
from clvr_model.training_state import TrainingState
from clvr_model.unstated import competitor_choices
from index.archive.manifest import crop_id_of
from index.lock import acquire
from index.outputs import record_output
from index.runs.tombstones import read_tombstones
from index.search.travel_time import MAX_SPEED_KMH, CameraMap, read_cameras
from index.transforms.track_figures import TrackFigures, figures_of
from infra.errors import BadCheckpoint, BadSetting, ObjectExists
from infra.logging import logger
from infra.settings import Settings
from infra.store import Store, open_store
from jobs.runtime.progress import progress
from jobs.runtime.ray_cluster import connect, num_cpus, num_gpus, root_cause
from jobs.train.checkpoints import best_state, remove_folders, state_of
from jobs.train.dataset import (
    check_sets,
    data_digest,
    drop_erased_images,
    drop_unreadable_images,
    read_labelled,
    report_classes,
    split_for,
    without_held_out_models,
)
from jobs.train.feature_cache import remove_features
from jobs.train.input import choose_input_backend
from jobs.train.job import Images, TrainJob, Work
from jobs.train.log import cost_of, read_log
from jobs.train.progress import start_train_progress_actor, stopping_on_sigterm, wait_for_first_progress
from jobs.train.report import REPORT_FILE, ReportInputs, write_report
from jobs.train.run_tracks import MAX_CROPS, TrackEnds, journeys_of, merged, read_tracks, track_ends
from jobs.train.trackers import require_trackers
from jobs.train.worker import START_RANKS, train_worker

MAX_WORKER_FAILURES = 3  # lost workers that are replaced before the job fails
SIGTERM_EXIT_CODE = 143


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """The request of `clvr train`.

    output: URI of the checkpoint. select_epoch: `last` or `best`, whose weights become the checkpoint.
    data: labelled images; may be missing if there are `tracks`, ids of embedded runs. recipe: None for
    `default_recipe`. start: a checkpoint to start from. cameras: table of the cameras' positions.
    """

    data: str | None
    output: str
    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    weights: str | None = None
    workers: int = 1
    gpu: bool | None = None
    """None: if the cluster has a GPU for each worker."""
    root: str = ""
    split: str | None = None
    max_bad_fraction: float = 0.001
    input: str = "auto"
    keep: int = 2
    select_epoch: str = "last"
    log_every: int = 20
    price_per_node_hour: float | None = None
    hold_out: str = "images"  # or models, which then are no classes of the network
    tracks: tuple[str, ...] = ()
    start: str | None = None
    cameras: str | None = None
    max_speed: float = MAX_SPEED_KMH
    max_crops: int = MAX_CROPS
    trackers: tuple[str, ...] = ()

    @property
    def default_recipe(self) -> str:
        """The recipe of a request that names none."""
        if not self.tracks:
            return "paper"
        return "tracks" if self.data else "unlabelled"


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The finished checkpoint. Accuracies are shares of the `held_out` validation images.

    Without a classifier they are None. rank1: share of validation images whose nearest other image is of the
    same vehicle, for recipes that learn from vehicles. labels_used: model, vehicle, both or none. tracks: the
    values of TrackFigures, for tracks of runs. attributes: the `AttributeScores` of color and body type,
    where they are learned. The names of the fields are keys of the command's JSON and of the metrics in
    card.json.
    """

    uri: str
    fingerprint: str
    accuracy: float | None
    macro_accuracy: float | None
    classes: int
    pictures: int
    held_out: int
    largest_class_share: float
    unreadable: int
    node_hours: float = 0.0
    cost: float | None = None
    report: str = ""
    rank1: float | None = None
    labels_used: str = "model"
    tracks: Mapping[str, Any] | None = None
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_text(self) -> str:
        """Return the checkpoint and its accuracy as one line."""
        figures = [
            f"{name} {value:.1%}"
            for name, value in (
                ("accuracy", self.accuracy),
                ("rank-1", self.rank1),
                *((name.replace("_", " "), scores["accuracy"]) for name, scores in self.attributes.items()),
            )
            if value is not None
        ]
        if self.tracks:
            figures.append(TrackFigures(**self.tracks).to_text())
        return f"checkpoint {self.uri}: " + ", ".join([*figures, f"fingerprint {self.fingerprint}"])

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON object."""
        return asdict(self)


def requested_recipe(request: TrainRequest) -> Recipe:
    """Return the recipe with all overrides, for the network that it starts from.

    Raises BadSetting, also for data that the recipe does not learn from, and BadCheckpoint.
    """
    pretrained = [f"pretrained={request.weights}"] if request.weights else []
    recipe = load_recipe(request.recipe or request.default_recipe, (*request.overrides, *pretrained))
    if request.tracks and not recipe.uses_tracks:
        raise BadSetting(
            f"the recipe {recipe.name} learns from no tracks", remedy="give --recipe tracks, or unlabelled"
        )
    if request.tracks and request.hold_out != "images":
        raise BadSetting(
            f"--hold-out {request.hold_out} with --tracks: nobody knows the models of the tracks",
            remedy="leave out one of them",
        )
    if request.data is None and (not request.tracks or recipe.labels_used != NO_LABELS):
        raise BadSetting(
            f"the recipe {recipe.name} learns from labels, and no labelled images are given",
            remedy="name them, or give --recipe unlabelled with --tracks",
        )
    if request.start is None:
        if recipe.labels_used == NO_LABELS:
            raise BadSetting(
                f"the recipe {recipe.name} has no labels to learn from anew",
                remedy="give --from a checkpoint, such as one of clvr model import",
            )
        return recipe
    if request.weights:
        raise BadSetting("--from and --weights both name the first weights", remedy="give one of them")
    start = open_store(request.start)
    architecture = Architecture.from_dict(read_card(start).architecture)
    return starting_from(recipe, architecture, start.uri)


def training_images(request: TrainRequest, recipe: Recipe, settings: Settings) -> LabeledImages:
    """Read the labelled images, the crops of the tracks of the runs, or both.

    Raises BadLabels, EmptyArchive, StoreError, and what `read_tracks` raises.
    """
    labelled = None
    if request.data is not None:
        labelled = read_labelled(
            request.data,
            root=request.root,
            split=request.split,
            labels=recipe.labels_used,
            tracks=recipe.uses_tracks,
            needs_tracks=not request.tracks,
            attributes=recipe.attributes,
        )
    if not request.tracks:
        assert labelled is not None  # noqa: S101 (`requested_recipe` refuses a request without data)
        return labelled
    tracks = read_tracks(request.tracks, settings, max_crops=request.max_crops)
    return tracks if labelled is None else merged(labelled, tracks)


def train_checkpoint(request: TrainRequest, settings: Settings) -> TrainResult:
    """Fit the classifier, or continue the fit of the same data and recipe; write checkpoint and report.

    Raises BadSetting, BadLabels, BudgetExceeded, TrainingDiverged, ObjectExists if `output` contains another
    checkpoint, Locked if another process trains it now, StoreError; SystemExit after SIGTERM, with the state
    saved.
    """
    if request.select_epoch not in ("last", "best"):
        raise BadSetting(f"--select-epoch is {request.select_epoch!r}", remedy="choose one of best, last")
    require_trackers(request.trackers)
    recipe = requested_recipe(request)
    erased = read_tombstones(open_store(settings.runs))
    cameras = read_cameras(request.cameras, max_speed_kmh=request.max_speed) if request.cameras else None
    everything = training_images(request, recipe, settings)
    everything, held_out_models = without_held_out_models(everything, request.hold_out, recipe)
    labelled = drop_erased_images(everything, erased)
    identity = _identity(recipe, labelled, cameras)
    destination = open_store(request.output)
    if destination.local:
        destination.create_bucket()  # creates the local folder; a real bucket must exist
    if destination.head(CARD_FILE) is not None:
        # A model that was trained before an erasure stays the model of this command.
        # So does one of a release that learned no attributes, unless they are asked for.
        older = everything.with_attributes(())
        known = (everything, older) if recipe.attributes == "auto" else (everything,)
        identities = {identity, *(_identity(recipe, each, cameras) for each in known)}
        return _existing_result(request, identities | {_tracks_identity(recipe, request)})

    connect(settings)
    backend = _check_workers(request)
    folder = open_store(destination.uri_of(f"training/{identity[:12]}"))
    if folder.local:
        folder.create_bucket()
    runs = open_store(settings.runs)
    if runs.local:
        runs.create_bucket()  # a training may be the first command, and a purge has to find it
    record_output(runs, "training", destination.uri, map(crop_id_of, labelled.uris))
    usable, num_unreadable = drop_unreadable_images(labelled, request.max_bad_fraction, folder, erased)
    training, held_out = split_for(recipe, usable)
    validation, ends = _measured(recipe, request, held_out)
    untrained_classes = report_classes(recipe, labelled, training, validation)
    check_sets(recipe, training, request.workers)
    classes = tuple(labelled.classes) if recipe.has_classifier else ()
    known_models = classes or (tuple(labelled.classes) if recipe.labels_used == "both" else ())
    attributes = learnable_values(labelled)
    job = TrainJob(
        recipe=recipe.as_dict(),
        classes=classes,
        training=replace(
            _images(training, known_models, attributes),
            journeys=journeys_of(training, cameras) if recipe.uses_journeys else None,
        ),
        # Rank-1 over tracks would count almost equal images of one pass.
        validation=_images(
            replace(validation, vehicle_ids=None) if recipe.uses_tracks else validation, classes, attributes
        ),
        folder=folder.uri,
        input=backend,
        log_every=request.log_every,
        ends=Images(ends.uris, np.full(2 * len(ends), -1, np.int64)) if ends else None,
        end_cameras=ends.cameras if ends else None,
        attributes=attributes,
        trackers=request.trackers,
        checkpoint=destination.uri,
    )
    with acquire(folder, "training", f"the training of {destination.uri}"):
        state = _fit(job, recipe, request, folder)
    if request.select_epoch == "best" and len(validation):
        state = best_state(folder) or state
    cost = cost_of(read_log(folder), request.price_per_node_hour)
    network = Clvr.of(recipe.architecture(len(classes), attributes))
    state.restore(network)
    final = state.history[-1]
    history = [{**entry} for entry in state.history[:-1]]
    start_ranks = history[0].pop(START_RANKS, ()) if history else ()
    track_figures = figures_of(start_ranks, final.get("track_ranks", ())) if start_ranks else None
    class_counts = np.bincount(job.validation.classes[job.validation.classes >= 0], minlength=1)
    metrics: dict[str, Any] = {
        "accuracy": final["micro"],
        "macro_accuracy": final["macro"],
        "classes": len(classes),
        "pictures": len(training),
        "held_out": len(validation),
        "largest_class_share": float(class_counts.max() / max(len(validation), 1)),
        "unreadable": num_unreadable,
        "node_hours": cost.node_hours,
        "cost": cost.money,
        "report": destination.uri_of(REPORT_FILE),
        "rank1": final.get("rank1"),
        "labels_used": recipe.labels_used,
        "tracks": asdict(track_figures) if track_figures else None,
        **({"attributes": final.get("attributes", {})} if attributes else {}),
    }
    card = Card(
        label_ids=classes,
        label_names=labelled.model_names if classes else {},
        recipe=recipe.as_dict(),
        metrics={
            **metrics,
            "per_class": final["per_class"],
            "history": history,
            "job": identity,
            "tracks_job": _tracks_identity(recipe, request),
            "picked": request.select_epoch,
            "unlearned": untrained_classes,
            "held_out_models": held_out_models,
        },
        backbone={"source": recipe.pretrained},
        unstated={**recipe.undocumented_choices(), **competitor_choices(recipe)},
        data_digest=data_digest(labelled),
        labels_used=recipe.labels_used,
    )
    saved = save_checkpoint(destination, network, card)
    source = ", ".join(filter(None, [request.data, *(f"tracks of {run}" for run in request.tracks)]))
    inputs = ReportInputs(source, training, validation, final, cost, track_figures)
    try:
        write_report(destination, saved.card, inputs, read_log(folder))
    except Exception as error:  # a page that fails does not fail a training of hours
        logger.info(f"no report: {type(error).__name__}: {error}")
    return TrainResult(uri=request.output, fingerprint=saved.fingerprint, **metrics)


def _measured(
    recipe: Recipe, request: TrainRequest, held_out: LabeledImages
) -> tuple[LabeledImages, TrackEnds | None]:
    """Divide what was held out into labelled images, for the accuracy, and ends of tracks of runs."""
    if not request.tracks:
        return held_out, None
    is_labelled = held_out.model_ids != UNKNOWN_MODEL
    labelled = held_out.take(np.flatnonzero(is_labelled & recipe.has_classifier))
    ends = track_ends(held_out)
    logger.info(f"{len(ends):,} held-out tracks measure the training: the first crop finds the last one")
    return labelled, ends if len(ends) else None


def _images(labelled: LabeledImages, classes: tuple[int, ...], attributes: Mapping[str, list[str]]) -> Images:
    """Return the images as workers take them; the class numbers of unknown models are -1."""
    numbers = np.full(len(labelled), -1, np.int64)
    if classes:
        known = np.flatnonzero(labelled.model_ids != UNKNOWN_MODEL)
        numbers[known] = class_numbers(labelled.take(known), classes)
    values = value_numbers(labelled, attributes) if attributes else None
    return Images(labelled.uris, numbers, labelled.vehicle_ids, labelled.boxes, attributes=values)


def _identity(recipe: Recipe, labelled: LabeledImages, cameras: CameraMap | None) -> str:
    """Return the SHA-256 of a recipe and its data: equal ones continue one training."""
    document: list[Any] = [recipe.as_dict(), data_digest(labelled)]
    if cameras:
        document.append([sorted(cameras.positions.items()), cameras.max_speed_kmh])
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _tracks_identity(recipe: Recipe, request: TrainRequest) -> str | None:
    """Return the SHA-256 of a recipe and the names of its data, None without runs.

    A model that was trained on a run before an erasure stays the model of its command: the run is without
    the erased crops then, and gives other data.
    """
    if not request.tracks:
        return None
    names = [request.data, request.root, request.split, sorted(request.tracks), request.max_crops]
    document = [recipe.as_dict(), names, request.cameras, request.max_speed]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _existing_result(request: TrainRequest, identities: Collection[str | None]) -> TrainResult:
    checkpoint = load_checkpoint(request.output)
    metrics = checkpoint.card.metrics
    if not {metrics.get("job"), metrics.get("tracks_job")} & ({*identities} - {None}):
        raise ObjectExists(
            f"{request.output} holds a checkpoint of other data or another recipe",
            remedy="give another --output",
        )
    if metrics.get("picked", "last") != request.select_epoch:
        raise ObjectExists(
            f"{request.output} holds the {metrics.get('picked', 'last')} weights of this training, not the "
            f"{request.select_epoch}",
            remedy="give another --output",
        )
    logger.info(f"{request.output} is already trained")
    recorded = {field.name: metrics[field.name] for field in fields(TrainResult) if field.name in metrics}
    return TrainResult(uri=request.output, fingerprint=checkpoint.fingerprint, **recorded)


def _uses_gpus(request: TrainRequest) -> bool:
    """Whether each worker of a request gets a GPU."""
    return num_gpus() >= request.workers if request.gpu is None else request.gpu


def _check_workers(request: TrainRequest) -> str:
    """Return the input backend. Raises BadSetting for workers that the cluster has no resources for."""
    if request.workers < 1:
        raise BadSetting(f"--workers is {request.workers}", remedy="give one or more")
    gpu = _uses_gpus(request)
    available, resource = (num_gpus(), "GPU") if gpu else (num_cpus(), "CPU")
    if available < request.workers:
        raise BadSetting(
            f"{request.workers} workers need one {resource} each, and the cluster has {available}",
            remedy="give fewer --workers" + (", or --cpu" if gpu else ""),
        )
    return choose_input_backend(request.input, workers=request.workers, gpu=gpu, cpus=num_cpus())


def _fit(job: TrainJob, recipe: Recipe, request: TrainRequest, folder: Store) -> TrainingState:
    filesystem, path = folder.arrow()
    progress_actor = start_train_progress_actor(Work(recipe, len(job.training), len(job.validation)).total)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job, "progress_actor": progress_actor},
        scaling_config=ScalingConfig(num_workers=request.workers, use_gpu=_uses_gpus(request)),
        run_config=RunConfig(
            name=path.rpartition("/")[2],
            storage_path=path.rpartition("/")[0],
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=MAX_WORKER_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=max(1, request.keep)),
        ),
    )
    ended = threading.Event()
    try:
        with (
            stopping_on_sigterm(progress_actor) as sigterm,
            progress("train", "passes", lambda: wait_for_first_progress(progress_actor, ended)),
        ):
            try:
                result = trainer.fit()
            finally:
                ended.set()
    except Exception as error:
        raise (ray.get(progress_actor.fatal_error.remote()) or root_cause(error)) from error
    fatal_error = ray.get(progress_actor.fatal_error.remote())
    if fatal_error:
        raise fatal_error
    if result.checkpoint is None:
        raise BadCheckpoint(f"{folder.uri} holds no state after the training", remedy="run it again")
    state = state_of(result.checkpoint)
    if state.stage < len(recipe.stages) and sigterm.is_set():
        stage = recipe.stages[state.stage]
        logger.info(
            f"stopped by SIGTERM in stage {stage.name}, epoch {state.epoch + 1} of {stage.epochs}, after "
            f"{state.totals.pictures:,} of its images; the same command continues from there"
        )
        raise SystemExit(SIGTERM_EXIT_CODE)
    remove_features(folder)
    # A killed driver may leave states that it had not registered yet; nothing else deletes them.
    registered = {checkpoint.path.rpartition("/")[2] for checkpoint, _ in result.best_checkpoints or []}
    remove_folders(folder, "checkpoint_2", kept=registered)
    return state
