"""A Ray Train worker: the loops of `clvr_model.training` over its share of every batch."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ray
import torch
from ray import train
from ray.train.torch import get_device, prepare_model

from clvr_model.ema import ExponentialMovingAverage
from clvr_model.network import Clvr
from clvr_model.recipe import recipe_of
from clvr_model.start import load_start
from clvr_model.training import (
    Batch,
    Totals,
    cached_batches,
    make_optimizer,
    pooled_features,
    reestimate_batch_statistics,
    train_epoch,
)
from clvr_model.training_state import TrainingState
from clvr_model.validation import Predictions, predict, score, score_attributes, vehicle_rank1
from index.transforms.track_figures import camera_ranks
from infra.errors import ClvrError
from infra.store import open_store
from jobs.runtime.ray_cluster import num_nodes
from jobs.train.checkpoints import report_state, reported_state, save_best
from jobs.train.distributed import DistributedContext
from jobs.train.feature_cache import FeatureFile
from jobs.train.input import Batches, Rows, TimedIterator
from jobs.train.job import Images, Position, TrainJob, Work
from jobs.train.log import TrainLog, TrainMetrics
from jobs.train.progress import EpochStopped, StepCallback, StopRequest
from jobs.train.trackers import Trackers

MIN_CACHED_EVAL_BATCH = 256
START_RANKS = "start_track_ranks"
"""Key, in the first entry of the history, of the ranks of held-out tracks before the training."""


def train_worker(config: dict[str, Any]) -> None:
    """Run all stages of a job from the last saved state; report a state after each epoch.

    An error that would end every attempt is passed to the driver through the progress actor.
    """
    progress_actor = config["progress_actor"]
    if ray.get(progress_actor.fatal_error.remote()):
        return  # Ray Train restarted the workers after that error
    worker = _Worker(config["job"], progress_actor)
    try:
        worker.run()
    except ClvrError as error:
        ray.get(progress_actor.set_fatal_error.remote(error))
        worker.log_event("error", message=error.message)
        raise


@dataclass(frozen=True, slots=True)
class _StageContext:
    """A stage, ready to run: the module to train, and the batches of an epoch for given rows."""

    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    average: ExponentialMovingAverage | None
    train_batches: Callable[[int, Rows], Iterator[Batch]]
    validation_features: Batch | None  # pooled, if the stage caches features


class _Worker:
    def __init__(self, job: TrainJob, progress_actor: Any) -> None:
        self.job = job
        self.progress_actor = progress_actor
        self.recipe = recipe_of(job.recipe)
        context = train.get_context()
        self.device = get_device()
        self.distributed = DistributedContext(context.get_world_rank(), context.get_world_size(), self.device)
        self.batches = Batches(job, self.recipe, self.distributed)
        self.work = Work(self.recipe, len(job.training), len(job.validation))
        self.folder = open_store(job.folder)
        self.log = TrainLog(self.folder, Trackers(job)) if self.distributed.is_rank_zero else None
        self.metrics = TrainMetrics(self.distributed.rank)
        self.stop_request = StopRequest(progress_actor) if self.distributed.is_rank_zero else None
        self.start_ranks: list[int] | None = None

    def run(self) -> None:
        architecture = self.recipe.architecture(len(self.job.classes), self.job.attributes)
        network = Clvr.of(architecture, seed=self.recipe.seed)
        state = reported_state()
        if state is None:
            load_start(network, self.recipe.pretrained)
            position = Position()
        else:
            state.restore(network)
            position = Position(state.stage, state.epoch, state.totals, list(state.history))
        network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.log_event(
            "start",
            stage=position.stage,
            epoch=position.epoch,
            pictures=position.totals.pictures,
            workers=self.distributed.world_size,
            nodes=num_nodes(),
            device=str(self.device),
            input=self.job.input,
        )
        if state is None and self.recipe.reestimate_statistics:
            self.report_progress(0, "estimating batch statistics")
            sample = self.batches.eval_batches(self.job.training, self.batches.sample_rows())
            reestimate_batch_statistics(network, sample)
        if self.job.ends is not None and not position.history:
            self.start_ranks = self._start_ranks(network, is_start=state is None)
        for number in range(position.stage, len(self.recipe.stages)):
            resumed = state if state and number == state.stage else None
            if self.recipe.stages[number].epochs and not self._run_stage(network, number, position, resumed):
                return
            position.stage, position.epoch = number + 1, 0
        if not position.history or "micro" not in position.history[-1]:
            self._finish(network, position, self._predict(network, None), self._track_ranks(network))

    def _run_stage(
        self, network: Clvr, number: int, position: Position, resumed: TrainingState | None
    ) -> bool:
        """Run the remaining epochs of a stage; return False if a stop was requested."""
        stage = self.recipe.stages[number]
        position.stage = number
        context = self._prepare_stage(network, number, resumed)
        for epoch in range(position.epoch, stage.epochs):
            position.epoch = epoch
            try:
                entry = self._run_epoch(context, number, position)
            except EpochStopped as stopped:
                position.totals = stopped.totals
                self.log_event("stop", stage=number, epoch=epoch, pictures=position.totals.pictures)
                self._report_state(network, position, context)
                return False
            is_last = epoch + 1 == stage.epochs
            if is_last and context.average:
                context.average.install()  # the next stage and the checkpoint start from the average
            average = None if is_last else context.average
            predictions = self._predict(network, context.validation_features, average)
            ranks = self._track_ranks(network, average) if stage.uses_clusters else None
            is_best = self._add_epoch(entry, predictions, ranks, position)
            is_best &= self.recipe.head == "single" or number + 1 == len(self.recipe.stages)
            if is_best and self.distributed.is_rank_zero:
                history = self._final_history(position, predictions, ranks)
                save_best(self.folder, network, context.average, history, self.recipe.seed)
            if is_last and number + 1 == len(self.recipe.stages):
                self._finish(network, position, predictions, ranks)
                continue
            position.stage, position.epoch = (number + 1, 0) if is_last else (number, epoch + 1)
            self._report_state(network, position, None if is_last else context)
            if self.distributed.broadcast_flag(bool(self.stop_request)):
                self.log_event("stop", stage=position.stage, epoch=position.epoch, pictures=0)
                return False
        return True

    def _prepare_stage(self, network: Clvr, number: int, resumed: TrainingState | None) -> _StageContext:
        stage = self.recipe.stages[number]
        optimizer = make_optimizer(network, stage)
        average = ExponentialMovingAverage.of(network, stage)
        if resumed:
            resumed.restore(network, optimizer)
            if average and resumed.average:
                average.load_state_dict(resumed.average)
        if not stage.cacheable:
            train_batches = partial(self.batches.train_batches, stage, number)
            return _StageContext(prepare_model(network), optimizer, average, train_batches, None)
        passes_before = self.work.passes_before(number) - round(self.work.cache_passes(stage))
        training, validation = self._features(network, passes_before)
        return _StageContext(
            prepare_model(network.head),
            optimizer,
            average,
            lambda _, rows: self._to_device(cached_batches(training, rows, self.batches.share)),
            validation,
        )

    def _run_epoch(self, context: _StageContext, number: int, position: Position) -> dict[str, Any]:
        """Run an epoch from its first pending batch; return its entry of the history, over all workers."""
        stage, epoch, before = self.recipe.stages[number], position.epoch, position.totals
        rows = self.batches.epoch_rows(number, epoch)
        start_step = before.pictures // self.distributed.world_size // self.batches.share
        batches = TimedIterator(context.train_batches(epoch, rows[start_step * self.batches.share :]))
        # Only rank 0 starts from the earlier totals, so that the sum over workers counts them once.
        initial_totals = before if self.distributed.is_rank_zero else Totals()
        started = time.monotonic()
        steps = -(-len(rows) // self.batches.share)
        result = train_epoch(
            context.module,
            context.optimizer,
            batches,
            stage,
            epoch=epoch,
            precision=self.recipe.precision,
            start_step=start_step,
            totals=initial_totals,
            on_step=StepCallback(
                self, stage, number, position, batches, context.optimizer, initial_totals, steps
            ),
            average=context.average,
            steps=steps,
            journeys=self.job.training.journeys,
            seed=(self.recipe.seed, number, self.distributed.rank),
        )
        seconds = time.monotonic() - started
        loss, correct, images, wait_seconds = self.distributed.all_reduce_sum(
            result.loss * result.pictures, result.accuracy * result.pictures, result.pictures, batches.seconds
        )
        wait_seconds /= self.distributed.world_size
        return {
            **asdict(replace(result, loss=loss / images, accuracy=correct / images, pictures=int(images))),
            "seconds": seconds,
            "images_per_second": (images - before.pictures) / max(seconds, 1e-9),
            "wait_seconds": wait_seconds,
            "wait_share": wait_seconds / max(seconds, 1e-9),
            "lr": float(context.optimizer.param_groups[0]["lr"]),
        }

    def _add_epoch(
        self, entry: dict[str, Any], predictions: Predictions, ranks: list[int] | None, position: Position
    ) -> bool:
        """Add a validated epoch to the history and to the log; return whether it is the best so far.

        A mixed head's stages compare different vectors, so that only epochs of one stage are compared. ranks:
        of the held-out tracks. Without anything to validate on, no epoch is the best.
        """
        if self.job.classes:
            scores = score(predictions, self.job.validation.classes, len(self.job.classes))
            entry |= {"held_loss": scores.loss, "held_accuracy": scores.micro, "held_macro": scores.macro}
        rank1 = self._rank1(predictions)
        if rank1 is not None:
            entry["held_rank1"] = rank1
        if ranks:
            entry["held_track_rank1"] = float(np.mean(np.array(ranks) == 1))
        for name, scored in self._attribute_scores(predictions).items():
            if scored["accuracy"] is not None:
                entry[f"held_{name}"] = scored["accuracy"]
        known = [key for key in ("held_rank1", "held_accuracy", "held_track_rank1") if key in entry]
        comparable = [
            earlier[known[0]]
            for earlier in position.history
            if known and (self.recipe.head == "single" or earlier["stage"] == entry["stage"])
        ]
        is_first = not position.history and self.start_ranks is not None
        position.history.append({**entry, START_RANKS: self.start_ranks} if is_first else entry)
        position.totals = Totals()
        self.log_event("epoch", pictures_seen=position.images_seen, **entry)
        is_validated = bool(len(self.job.validation) or ranks)
        return is_validated and bool(known) and bool(entry[known[0]] > max(comparable, default=-1.0))

    def _rank1(self, predictions: Predictions) -> float | None:
        """Return the validation vehicles' rank-1, None for recipes without vehicles."""
        vehicles = self.job.validation.vehicles
        if vehicles is None:
            return None
        return 0.0 if predictions.features is None else vehicle_rank1(predictions.features, vehicles)

    def _track_ranks(
        self, network: Clvr, average: ExponentialMovingAverage | None = None
    ) -> list[int] | None:
        """Return the ranks of the held-out tracks, see `camera_ranks`; None without any."""
        if self.job.ends is None or self.job.end_cameras is None:
            return None
        features = self._predict(network, None, average, images=self.job.ends).features
        return [] if features is None else camera_ranks(features, self.job.end_cameras)

    def _start_ranks(self, network: Clvr, *, is_start: bool) -> list[int] | None:
        """Return the ranks of the held-out tracks before the training.

        is_start: whether the network is still the first one. An epoch that was stopped has changed it.
        """
        if not is_start:
            network = Clvr.of(network.architecture, seed=self.recipe.seed)
            load_start(network, self.recipe.pretrained)
            network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self._track_ranks(network)

    def _attribute_scores(self, predictions: Predictions) -> dict[str, dict[str, Any]]:
        """Return how the validation images' attributes compare with the labels, by name."""
        expected = self.job.validation.attributes
        if expected is None:
            return {}
        scores = score_attributes(predictions.attributes, expected, list(self.job.attributes))
        return {name: asdict(scored) for name, scored in scores.items()}

    def _features(self, network: Clvr, passes_before: int) -> tuple[Batch, Batch]:
        """Return pooled features of the training and validation images, from the cache or computed."""
        self.report_progress(passes_before, "running the frozen backbone once")
        file = FeatureFile(self.folder, network.backbone)
        # Rank 0 decides for all workers: the file may be written while they look for it.
        exists = self.distributed.broadcast_flag(self.folder.head(file.name) is not None)
        cached = file.read(len(self.job.training), len(self.job.validation)) if exists else None
        if cached:
            return cached
        training = self._compute_features(network, self.job.training, passes_before)
        validation = self._compute_features(
            network, self.job.validation, passes_before + len(self.job.training)
        )
        if self.distributed.is_rank_zero:
            file.write(training, validation)
        return training, validation

    def _compute_features(self, network: Clvr, images: Images, passes_before: int) -> Batch:
        """Run the frozen backbone over this worker's share; return the features of all workers."""
        rows = np.arange(self.distributed.rank, len(images), self.distributed.world_size)
        if len(rows):
            batches = self._with_progress(self.batches.eval_batches(images, rows), passes_before)
            features, targets = pooled_features(network, batches, precision=self.recipe.precision)
        else:
            features = torch.empty((0, network.backbone.pooled_dim))
            targets = torch.from_numpy(images.targets(rows))
        return (
            self.distributed.all_gather_rows(features, len(images)),
            self.distributed.all_gather_rows(targets, len(images)),
        )

    def _with_progress(self, batches: Iterator[Batch], passes_before: int) -> Iterator[Batch]:
        done = 0
        for batch in batches:
            yield batch
            done += len(batch[1]) * self.distributed.world_size
            self.report_progress(passes_before + done, "running the frozen backbone once")

    def _predict(
        self,
        network: Clvr,
        validation_features: Batch | None,
        average: ExponentialMovingAverage | None = None,
        images: Images | None = None,
    ) -> Predictions:
        """Predict all validation images, on all workers, from their pooled features if there are any.

        images: others than the validation images, whose features are kept.
        """
        if average:
            with average.installed():
                return self._predict(network, validation_features, images=images)
        keep_features = images is not None or self.job.validation.vehicles is not None
        images = self.job.validation if images is None else images
        count, precision = len(images), self.recipe.precision
        if validation_features is not None:
            size = max(self.batches.share, MIN_CACHED_EVAL_BATCH)
            batches = self._to_device(cached_batches(validation_features, np.arange(count), size))
            return predict(network.head, batches, precision=precision, keep_features=keep_features)
        rows = np.arange(self.distributed.rank, count, self.distributed.world_size)
        local = predict(
            network,
            self.batches.eval_batches(images, rows),
            precision=precision,
            keep_features=keep_features,
        )
        columns = [local.classes, local.confidence, local.losses]
        if keep_features:
            none = np.zeros((0, network.head.output_dim), np.float32)
            columns.append(none if local.features is None else local.features)
        if self.job.attributes:
            nothing = np.zeros((0, len(self.job.attributes)), np.int64)
            columns.append(nothing if local.attributes is None else local.attributes)
        gathered = [
            self.distributed.all_gather_rows(torch.from_numpy(column), count).numpy() for column in columns
        ]
        attributes = gathered.pop() if self.job.attributes else None
        classes, confidence, losses, *features = gathered
        return Predictions(classes, confidence, losses, features[0] if keep_features else None, attributes)

    def _to_device(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for pooled, targets in batches:
            yield pooled.to(self.device), targets.to(self.device)

    def _final_history(
        self, position: Position, predictions: Predictions, ranks: list[int] | None
    ) -> list[dict[str, Any]]:
        """Return the history with a last entry of scores and predictions of the validation images.

        Without a classifier, the scores of vehicle models are None and the predictions are empty. ranks: of
        the held-out tracks.
        """
        rank1 = self._rank1(predictions)
        tracks = {} if ranks is None else {"track_ranks": ranks}
        attributes = self._attribute_scores(predictions)
        named = {"attributes": attributes} if attributes else {}
        if not self.job.classes:
            unknown: dict[str, Any] = {
                "micro": None,
                "macro": None,
                "per_class": {},
                "predicted": [],
                "confidence": [],
            }
            return [*position.history, {**unknown, **tracks, "rank1": rank1, **named}]
        scores = score(predictions, self.job.validation.classes, len(self.job.classes))
        labels = map(str, self.job.classes)
        return [
            *position.history,
            {
                "micro": scores.micro,
                "macro": scores.macro,
                "per_class": dict(zip(labels, scores.per_class, strict=True)),
                "predicted": [self.job.classes[number] for number in predictions.classes.tolist()],
                "confidence": [round(value, 4) for value in predictions.confidence.tolist()],
                **tracks,
                **({} if rank1 is None else {"rank1": rank1}),
                **named,
            },
        ]

    def _finish(
        self, network: Clvr, position: Position, predictions: Predictions, ranks: list[int] | None
    ) -> None:
        position.history = self._final_history(position, predictions, ranks)
        position.stage, position.epoch = len(self.recipe.stages), 0
        final = position.history[-1]
        scores = {
            "held_accuracy": final["micro"],
            "held_macro": final["macro"],
            "held_rank1": final.get("rank1"),
            **{f"held_{name}": scored["accuracy"] for name, scored in final.get("attributes", {}).items()},
        }
        self.log_event("final", **{name: value for name, value in scores.items() if value is not None})
        self._report_state(network, position, None)

    def _report_state(self, network: Clvr, position: Position, context: _StageContext | None) -> None:
        """Report a state to Ray Train; within a stage, with its optimizer and its average."""
        optimizer, average = (context.optimizer, context.average) if context else (None, None)
        report_state(self.distributed, network, optimizer, average, self.recipe.seed, position)

    def report_progress(self, done: int, note: str) -> None:
        """Update the progress display, in passes; only rank 0 does."""
        if self.distributed.is_rank_zero:
            self.progress_actor.update.remote(done, note)

    def log_event(self, event: str, **values: Any) -> None:
        """Write a line of the log; only rank 0 does."""
        if self.log:
            self.log.write(event, **values)
