"""`clvr train`: the recipe on Ray Train, one job over all its stages, a state saved after every epoch."""

import hashlib
import json
import threading
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from clvr_model.checkpoint import CARD_FILE, Card, load_checkpoint, save_checkpoint
from clvr_model.datasets.labelled import class_numbers, split_per_class
from clvr_model.network import Clvr
from clvr_model.recipe import Recipe, load_recipe
from clvr_model.training_state import TrainingState
from infra.errors import BadCheckpoint, BadSetting, ObjectExists
from infra.logging import logger
from infra.settings import Settings
from infra.store import Store, open_store
from jobs.runtime.progress import progress
from jobs.runtime.ray_cluster import connect, cores, gpus, root_cause
from jobs.train.checkpoints import best_state, remove_folders, state_of
from jobs.train.dataset import data_digest, read_labelled, say_what_is_learned, usable_pictures
from jobs.train.feature_cache import remove_features
from jobs.train.input import choose_input_backend
from jobs.train.job import Pictures, TrainJob, Work
from jobs.train.log import cost_of, read_log
from jobs.train.progress import new_train_board, stopping_on_sigterm, wait_for_first_progress
from jobs.train.report import REPORT_FILE, ReportInputs, write_report
from jobs.train.worker import train_worker

WORKER_LOSSES = 3  # how often a lost worker is replaced before the job gives up
TERMINATED = 143  # exit code of a process that SIGTERM ended


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What `clvr train` was asked for. pick: `last` or `best`, whose weights become the checkpoint."""

    data: str
    to: str
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
    pick: str = "last"
    log_every: int = 20
    price_per_node_hour: float | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """The finished checkpoint; accuracies are shares of the held-out pictures."""

    uri: str
    fingerprint: str
    accuracy: float
    macro_accuracy: float
    classes: int
    pictures: int
    held_out: int
    largest_class_share: float
    unreadable: int
    node_hours: float = 0.0
    cost: float | None = None
    report: str = ""


def asked_recipe(request: TrainRequest) -> Recipe:
    """The recipe with all its changes. Raises BadSetting."""
    changes = (*request.overrides, *([f"pretrained={request.weights}"] if request.weights else []))
    return load_recipe(request.recipe, changes)


def train_checkpoint(request: TrainRequest, settings: Settings) -> Trained:
    """Fit the classifier, or continue the fit of the same data and recipe; write checkpoint and report.

    Raises BadSetting, BadLabels, BudgetExceeded, TrainingDiverged, ObjectExists if `to` holds a checkpoint
    of something else, StoreError; SystemExit after SIGTERM, with the state saved.
    """
    if request.pick not in ("last", "best"):
        raise BadSetting(f"--select-epoch is {request.pick!r}", remedy="choose one of best, last")
    recipe = asked_recipe(request)
    labelled = read_labelled(request.data, root=request.root, split=request.split)
    digest = data_digest(labelled)
    identity = hashlib.sha256(json.dumps([recipe.as_dict(), digest], sort_keys=True).encode()).hexdigest()
    destination = open_store(request.to)
    if destination.local:
        destination.create_bucket()  # a folder comes into being with its first file, a bucket must be there
    if destination.head(CARD_FILE) is not None:
        return _already_there(request, identity)

    connect(settings)
    way = _checked_workers(request)
    folder = open_store(destination.uri_of(f"training/{identity[:12]}"))
    if folder.local:
        folder.create_bucket()
    usable, unreadable = usable_pictures(labelled, request.max_bad_fraction, folder)
    training, held = split_per_class(usable, recipe.train_share, recipe.seed)
    unlearned = say_what_is_learned(labelled, training, held)
    classes = tuple(labelled.classes)
    job = TrainJob(
        recipe=recipe.as_dict(),
        classes=classes,
        training=Pictures(training.uris, class_numbers(training, classes)),
        held=Pictures(held.uris, class_numbers(held, classes)),
        folder=folder.uri,
        input=way,
        log_every=request.log_every,
    )
    state = _fit(job, recipe, request, folder)
    if request.pick == "best" and len(held):
        state = best_state(folder) or state
    cost = cost_of(read_log(folder), request.price_per_node_hour)
    network = Clvr.of(recipe.architecture(len(classes)))
    state.restore(network)
    final = state.history[-1]
    counts = np.bincount(job.held.classes, minlength=len(classes))
    trained: dict[str, Any] = {
        "accuracy": final["micro"],
        "macro_accuracy": final["macro"],
        "classes": len(classes),
        "pictures": len(training),
        "held_out": len(held),
        "largest_class_share": float(counts.max() / max(len(held), 1)),
        "unreadable": unreadable,
        "node_hours": cost.node_hours,
        "cost": cost.money,
        "report": destination.uri_of(REPORT_FILE),
    }
    card = Card(
        label_ids=classes,
        label_names=labelled.model_names,
        recipe=recipe.as_dict(),
        metrics={
            **trained,
            "per_class": final["per_class"],
            "history": state.history[:-1],
            "job": identity,
            "picked": request.pick,
            "unlearned": unlearned,
        },
        backbone={"source": recipe.pretrained},
        unstated=recipe.undocumented_choices(),
        data_digest=digest,
    )
    saved = save_checkpoint(destination, network, card)
    _report(destination, saved.card, ReportInputs(request.data, training, held, final, cost), folder)
    return Trained(uri=request.to, fingerprint=saved.fingerprint, **trained)


def _already_there(request: TrainRequest, identity: str) -> Trained:
    checkpoint = load_checkpoint(request.to)
    metrics = checkpoint.card.metrics
    if metrics.get("job") != identity:
        raise ObjectExists(
            f"{request.to} holds a checkpoint of other data or another recipe",
            remedy="give another --output",
        )
    if metrics.get("picked", "last") != request.pick:
        raise ObjectExists(
            f"{request.to} holds the {metrics.get('picked', 'last')} weights of this training, not the "
            f"{request.pick}",
            remedy="give another --output",
        )
    logger.info(f"{request.to} is trained already")
    known = {field.name: metrics[field.name] for field in fields(Trained) if field.name in metrics}
    return Trained(uri=request.to, fingerprint=checkpoint.fingerprint, **known)


def _checked_workers(request: TrainRequest) -> str:
    """How pictures reach the workers. Raises BadSetting for workers that Ray would wait for in vain."""
    if request.workers < 1:
        raise BadSetting(f"--workers is {request.workers}", remedy="give one or more")
    there, what = (gpus(), "GPU") if request.gpu else (cores(), "CPU")
    if there < request.workers:
        raise BadSetting(
            f"{request.workers} workers need one {what} each, and the cluster has {there}",
            remedy="give fewer --workers" + (", or --cpu" if request.gpu else ""),
        )
    return choose_input_backend(request.input, workers=request.workers, gpu=request.gpu, cpus=cores())


def _fit(job: TrainJob, recipe: Recipe, request: TrainRequest, folder: Store) -> TrainingState:
    files, path = folder.arrow()
    board = new_train_board(Work(recipe, len(job.training), len(job.held)).total)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job, "board": board},
        scaling_config=ScalingConfig(num_workers=request.workers, use_gpu=request.gpu),
        run_config=RunConfig(
            name=path.rpartition("/")[2],
            storage_path=path.rpartition("/")[0],
            storage_filesystem=files,
            failure_config=FailureConfig(max_failures=WORKER_LOSSES),
            checkpoint_config=CheckpointConfig(num_to_keep=max(1, request.keep)),
        ),
    )
    over = threading.Event()
    try:
        with (
            stopping_on_sigterm(board) as terminated,
            progress("train", "passes", lambda: wait_for_first_progress(board, over)),
        ):
            try:
                result = trainer.fit()
            finally:
                over.set()
    except Exception as error:
        raise (ray.get(board.failed.remote()) or root_cause(error)) from error
    fatal = ray.get(board.failed.remote())
    if fatal:
        raise fatal
    if result.checkpoint is None:
        raise BadCheckpoint(f"{folder.uri} holds no state after the training", remedy="run it again")
    state = state_of(result.checkpoint)
    if state.stage < len(recipe.stages) and terminated.is_set():
        stage = recipe.stages[state.stage]
        logger.info(
            f"stopped by SIGTERM in stage {stage.name}, epoch {state.epoch + 1} of {stage.epochs}, after "
            f"{state.totals.pictures:,} of its pictures; the same command continues there"
        )
        raise SystemExit(TERMINATED)
    remove_features(folder)
    # States that a killed driver had not registered yet: nothing else would ever remove them.
    known = {checkpoint.path.rpartition("/")[2] for checkpoint, _ in result.best_checkpoints or []}
    remove_folders(folder, "checkpoint_2", kept=known)
    return state


def _report(destination: Store, card: Card, told: ReportInputs, folder: Store) -> None:
    """Write the page; a training of hours is not lost for a page that fails."""
    try:
        write_report(destination, card, told, read_log(folder))
    except Exception as error:
        logger.info(f"no report: {type(error).__name__}: {error}")
