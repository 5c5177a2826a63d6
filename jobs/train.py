"""`clvr train`: the recipe on Ray Train, one job over all its stages, a state saved after every epoch."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from clvr_model.checkpoint import CARD_FILE, Card, load_checkpoint, save_checkpoint
from clvr_model.datasets.labelled import Labelled, split_per_class
from clvr_model.network import Clvr
from clvr_model.recipe import Recipe, load_recipe
from clvr_model.training_state import TrainingState
from infra.errors import BudgetExceeded, ObjectExists
from infra.settings import Settings
from infra.store import open_store
from jobs.board import new_board, standing_of
from jobs.cluster import connect, root_cause
from jobs.labelled_data import data_digest, read_labelled
from jobs.pictures import Failure, common_store, stream_pictures
from jobs.progress import console, progress
from jobs.train_worker import TrainJob, train_worker

WORKER_LOSSES = 3  # how often a lost worker is replaced before the job gives up


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What `clvr train` was asked for."""

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


def train_checkpoint(request: TrainRequest, settings: Settings) -> Trained:
    """Fit the classifier, or continue the fit of the same data and recipe, and write the checkpoint.

    Raises BadSetting, BadLabels, BudgetExceeded, TrainingDiverged, ObjectExists if `to` holds a checkpoint
    of something else, StoreError.
    """
    changes = (*request.overrides, *([f"backbone={request.weights}"] if request.weights else []))
    recipe = load_recipe(request.recipe, changes)
    labelled = read_labelled(request.data, root=request.root, split=request.split)
    identity = hashlib.sha256(
        json.dumps([recipe.as_dict(), data_digest(labelled)], sort_keys=True).encode()
    ).hexdigest()
    destination = open_store(request.to)
    if destination.local:
        destination.create_bucket()  # a folder comes into being with its first file, a bucket must be there
    if destination.head(CARD_FILE) is not None:
        return _already_there(request.to, identity)

    connect(settings)
    usable, unreadable = _without_unreadable(labelled, request.max_bad_fraction)
    training, held = split_per_class(usable, recipe.train_share, recipe.seed)
    classes = tuple(labelled.classes)
    console.print(
        f"{len(training):,} pictures of {len(classes)} vehicle models to train on, {len(held):,} held out"
    )
    job = TrainJob(
        recipe=recipe.as_dict(),
        classes=classes,
        training=(training.uris, _class_numbers(training, classes)),
        held=(held.uris, _class_numbers(held, classes)),
        gpu=request.gpu,
    )
    state = _fit(job, recipe, request, identity[:12])
    final = state.history[-1]
    share = float(
        np.bincount(_class_numbers(held, classes), minlength=len(classes)).max() / max(len(held), 1)
    )
    network = Clvr.of(recipe.architecture(len(classes)))
    state.restore(network)
    trained = {
        "accuracy": final["micro"],
        "macro_accuracy": final["macro"],
        "classes": len(classes),
        "pictures": len(training),
        "held_out": len(held),
        "largest_class_share": share,
        "unreadable": len(unreadable),
    }
    card = Card(
        label_ids=classes,
        label_names=labelled.model_names,
        recipe=recipe.as_dict(),
        metrics={**trained, "per_class": final["per_class"], "history": state.history[:-1], "job": identity},
        backbone={"source": recipe.backbone},
        unstated=recipe.unstated(),
        data_digest=data_digest(labelled),
    )
    saved = save_checkpoint(destination, network, card)
    return Trained(uri=request.to, fingerprint=saved.fingerprint, **trained)


def _already_there(to: str, identity: str) -> Trained:
    checkpoint = load_checkpoint(to)
    metrics = checkpoint.card.metrics
    if metrics.get("job") != identity:
        raise ObjectExists(
            f"{to} holds a checkpoint of other data or another recipe", remedy="give --to another folder"
        )
    console.print(f"{to} is trained already")
    names = (field for field in Trained.__dataclass_fields__ if field not in ("uri", "fingerprint"))
    return Trained(uri=to, fingerprint=checkpoint.fingerprint, **{name: metrics[name] for name in names})


def _without_unreadable(labelled: Labelled, max_fraction: float) -> tuple[Labelled, dict[str, Failure]]:
    """Decode every picture once: one that fails in the middle of an epoch would stop every worker."""
    store, keys = common_store(labelled.uris)
    bad: dict[int, Failure] = {}
    for row, picture in stream_pictures(store, keys):
        if isinstance(picture, Failure):
            bad[row] = picture
    for row, failure in list(bad.items())[:10]:
        console.print(f"left out: {labelled.uris[row]}: {failure.cause}: {failure.detail}")
    if len(bad) > max_fraction * len(labelled):
        raise BudgetExceeded(
            f"{len(bad):,} of {len(labelled):,} pictures cannot be used, more than the {max_fraction:.2%} "
            "that --max-bad-fraction allows",
            remedy="repair the pictures, or allow more",
        )
    good = np.array([row for row in range(len(labelled)) if row not in bad], np.int64)
    return labelled.take(good), {labelled.uris[row]: failure for row, failure in bad.items()}


def _class_numbers(labelled: Labelled, classes: tuple[int, ...]) -> NDArray[np.int64]:
    return np.searchsorted(np.asarray(classes), labelled.model_ids).astype(np.int64)


def _fit(job: TrainJob, recipe: Recipe, request: TrainRequest, name: str) -> TrainingState:
    files, path = open_store(request.to).arrow()
    epochs = sum(stage.epochs for stage in recipe.stages)
    board = new_board(epochs * len(job.training[0]))
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": asdict(job), "board": board},
        scaling_config=ScalingConfig(num_workers=request.workers, use_gpu=request.gpu),
        run_config=RunConfig(
            name=name,
            storage_path=f"{path}/training",
            storage_filesystem=files,
            failure_config=FailureConfig(max_failures=WORKER_LOSSES),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        with progress("train", "pictures", lambda: standing_of(board)):
            result = trainer.fit()
    except Exception as error:
        raise root_cause(error) from error
    assert isinstance(result.checkpoint, Checkpoint)  # noqa: S101 - the worker reports one after each epoch
    with TemporaryDirectory() as folder:
        result.checkpoint.to_directory(folder)
        return TrainingState.load(Path(folder))
