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
from clvr_model.checkpoint import CARD_FILE, Card, load_checkpoint, save_checkpoint
from clvr_model.datasets.labelled import LabeledImages, class_numbers
from clvr_model.network import Clvr
from clvr_model.recipe import Recipe, load_recipe
from clvr_model.training_state import TrainingState
from clvr_model.unstated import competitor_choices
from index.archive.manifest import crop_id_of
from index.outputs import record_output
from index.runs.tombstones import read_tombstones
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
from jobs.train.worker import train_worker

MAX_WORKER_FAILURES = 3  # lost workers that are replaced before the job fails
SIGTERM_EXIT_CODE = 143


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """The request of `clvr train`.

    output: URI of the checkpoint. select_epoch: `last` or `best`, whose weights become the checkpoint.
    """

    data: str
    output: str
    recipe: str = "paper"
    overrides: tuple[str, ...] = ()
    weights: str | None = None
    workers: int = 1
    gpu: bool = False
    root: str = ""
    split: str | None = None
    max_bad_fraction: float = 0.001
    input: str = "auto"
    keep: int = 2
    select_epoch: str = "last"
    log_every: int = 20
    price_per_node_hour: float | None = None
    hold_out: str = "images"  # or models, which then are no classes of the network


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The finished checkpoint. Accuracies are shares of the `held_out` validation images.

    Without a classifier they are None. rank1: share of validation images whose nearest other image is of the
    same vehicle, for recipes that learn from vehicles. labels_used: model, vehicle or both. attributes: the
    `AttributeScores` of color and body type, where they are learned. The names of the fields are keys of the
    command's JSON and of the metrics in card.json.
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
        return ", ".join(
            [f"checkpoint {self.uri}: {figures[0]}", *figures[1:], f"fingerprint {self.fingerprint}"]
        )

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON object."""
        return asdict(self)


def requested_recipe(request: TrainRequest) -> Recipe:
    """Return the recipe with all overrides. Raises BadSetting."""
    pretrained = [f"pretrained={request.weights}"] if request.weights else []
    return load_recipe(request.recipe, (*request.overrides, *pretrained))


def train_checkpoint(request: TrainRequest, settings: Settings) -> TrainResult:
    """Fit the classifier, or continue the fit of the same data and recipe; write checkpoint and report.

    Raises BadSetting, BadLabels, BudgetExceeded, TrainingDiverged, ObjectExists if `output` contains another
    checkpoint, StoreError; SystemExit after SIGTERM, with the state saved.
    """
    if request.select_epoch not in ("last", "best"):
        raise BadSetting(f"--select-epoch is {request.select_epoch!r}", remedy="choose one of best, last")
    recipe = requested_recipe(request)
    erased = read_tombstones(open_store(settings.runs))
    everything = read_labelled(
        request.data,
        root=request.root,
        split=request.split,
        labels=recipe.labels_used,
        tracks=recipe.uses_tracks,
        attributes=recipe.attributes,
    )
    everything, held_out_models = without_held_out_models(everything, request.hold_out, recipe)
    labelled = drop_erased_images(everything, erased)
    identity = _identity(recipe, labelled)
    destination = open_store(request.output)
    if destination.local:
        destination.create_bucket()  # creates the local folder; a real bucket must exist
    if destination.head(CARD_FILE) is not None:
        # A model that was trained before an erasure stays the model of this command.
        # So does one of a release that learned no attributes, unless they are asked for.
        older = everything.with_attributes(())
        known = (everything, older) if recipe.attributes == "auto" else (everything,)
        return _existing_result(request, {identity, *(_identity(recipe, each) for each in known)})

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
    training, validation = split_for(recipe, usable)
    untrained_classes = report_classes(recipe, labelled, training, validation)
    check_sets(recipe, training, request.workers)
    classes = tuple(labelled.classes) if recipe.has_classifier else ()
    known_models = classes or (tuple(labelled.classes) if recipe.labels_used == "both" else ())
    attributes = learnable_values(labelled)
    job = TrainJob(
        recipe=recipe.as_dict(),
        classes=classes,
        training=_images(training, known_models, attributes),
        # Rank-1 over tracks would count almost equal images of one pass.
        validation=_images(
            replace(validation, vehicle_ids=None) if recipe.uses_tracks else validation, classes, attributes
        ),
        folder=folder.uri,
        input=backend,
        log_every=request.log_every,
        attributes=attributes,
    )
    state = _fit(job, recipe, request, folder)
    if request.select_epoch == "best" and len(validation):
        state = best_state(folder) or state
    cost = cost_of(read_log(folder), request.price_per_node_hour)
    network = Clvr.of(recipe.architecture(len(classes), attributes))
    state.restore(network)
    final = state.history[-1]
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
        **({"attributes": final.get("attributes", {})} if attributes else {}),
    }
    card = Card(
        label_ids=classes,
        label_names=labelled.model_names if classes else {},
        recipe=recipe.as_dict(),
        metrics={
            **metrics,
            "per_class": final["per_class"],
            "history": state.history[:-1],
            "job": identity,
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
    inputs = ReportInputs(request.data, training, validation, final, cost)
    try:
        write_report(destination, saved.card, inputs, read_log(folder))
    except Exception as error:  # a page that fails does not fail a training of hours
        logger.info(f"no report: {type(error).__name__}: {error}")
    return TrainResult(uri=request.output, fingerprint=saved.fingerprint, **metrics)


def _images(labelled: LabeledImages, classes: tuple[int, ...], attributes: Mapping[str, list[str]]) -> Images:
    """Return the images as workers take them; without classes, all class numbers are -1."""
    numbers = class_numbers(labelled, classes) if classes else np.full(len(labelled), -1, np.int64)
    values = value_numbers(labelled, attributes) if attributes else None
    return Images(labelled.uris, numbers, labelled.vehicle_ids, labelled.boxes, values)


def _identity(recipe: Recipe, labelled: LabeledImages) -> str:
    """Return the SHA-256 of a recipe and its data: equal ones continue one training."""
    document = [recipe.as_dict(), data_digest(labelled)]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _existing_result(request: TrainRequest, identities: Collection[str]) -> TrainResult:
    checkpoint = load_checkpoint(request.output)
    metrics = checkpoint.card.metrics
    if metrics.get("job") not in identities:
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


def _check_workers(request: TrainRequest) -> str:
    """Return the input backend. Raises BadSetting for workers that the cluster has no resources for."""
    if request.workers < 1:
        raise BadSetting(f"--workers is {request.workers}", remedy="give one or more")
    available, resource = (num_gpus(), "GPU") if request.gpu else (num_cpus(), "CPU")
    if available < request.workers:
        raise BadSetting(
            f"{request.workers} workers need one {resource} each, and the cluster has {available}",
            remedy="give fewer --workers" + (", or --cpu" if request.gpu else ""),
        )
    return choose_input_backend(request.input, workers=request.workers, gpu=request.gpu, cpus=num_cpus())


def _fit(job: TrainJob, recipe: Recipe, request: TrainRequest, folder: Store) -> TrainingState:
    filesystem, path = folder.arrow()
    progress_actor = start_train_progress_actor(Work(recipe, len(job.training), len(job.validation)).total)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job, "progress_actor": progress_actor},
        scaling_config=ScalingConfig(num_workers=request.workers, use_gpu=request.gpu),
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
