"""What each Ray Train worker does: the plain loops of `clvr_model.training` over its share of every batch."""

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
from clvr_model.validation import Predictions, predict, score
from clvr_model.weights import load_backbone
from infra.errors import ClvrError
from infra.store import open_store
from jobs.runtime.ray_cluster import nodes
from jobs.train.checkpoints import report_state, reported_state, save_best
from jobs.train.distributed import DistributedContext
from jobs.train.feature_cache import FeatureFile
from jobs.train.input import Batches, Rows, TimedIterator
from jobs.train.job import Pictures, Place, TrainJob, Work
from jobs.train.log import TrainLog, TrainMetrics
from jobs.train.progress import StepCallback, Stopped, StopRequested


def train_worker(config: dict[str, Any]) -> None:
    """Run all stages of a job from where the last saved state stands; report a state after each epoch.

    An error that would come again at every attempt is left at the board, where the driver finds it.
    """
    board = config["board"]
    if ray.get(board.failed.remote()):
        return  # Ray Train has started the workers once more, after that error
    worker = _Worker(config["job"], board)
    try:
        worker.run()
    except ClvrError as error:
        ray.get(board.fail.remote(error))
        worker.write("error", message=error.message)
        raise


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A stage, ready to run: the module that is stepped, and the batches of an epoch from a row on."""

    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    average: ExponentialMovingAverage | None
    batches: Callable[[int, Rows], Iterator[Batch]]
    held: Batch | None  # pooled, where the stage has kept them


class _Worker:
    def __init__(self, job: TrainJob, board: Any) -> None:
        self.job = job
        self.board = board
        self.recipe = recipe_of(job.recipe)
        context = train.get_context()
        self.device = get_device()
        self.peers = DistributedContext(context.get_world_rank(), context.get_world_size(), self.device)
        self.batches = Batches(job, self.recipe, self.peers)
        self.work = Work(self.recipe, len(job.training), len(job.held))
        self.folder = open_store(job.folder)
        self.log = TrainLog(self.folder) if self.peers.first else None
        self.metrics = TrainMetrics(self.peers.rank)
        self.stop = StopRequested(board) if self.peers.first else None

    def run(self) -> None:
        network = Clvr.of(self.recipe.architecture(len(self.job.classes)), seed=self.recipe.seed)
        state = reported_state()
        if state is None:
            load_backbone(network, self.recipe.pretrained)
            place = Place()
        else:
            state.restore(network)
            place = Place(state.stage, state.epoch, state.totals, list(state.history))
        network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.write(
            "start", stage=place.stage, epoch=place.epoch, pictures=place.totals.pictures,
            workers=self.peers.world, nodes=nodes(),
            device=str(self.device), input=self.job.input,
        )  # fmt: skip
        if state is None and self.recipe.reestimate_statistics:
            self.say(0, "estimating batch statistics")
            reestimate_batch_statistics(network, self.batches.of(self.job.training, self.batches.sample()))
        for number in range(place.stage, len(self.recipe.stages)):
            resumed = state if state and number == state.stage else None
            if self.recipe.stages[number].epochs and not self._stage(network, number, place, resumed):
                return
            place.stage, place.epoch = number + 1, 0
        if not place.history or "micro" not in place.history[-1]:
            self._finish(network, place, self._predictions(network, None))

    def _stage(self, network: Clvr, number: int, place: Place, resumed: TrainingState | None) -> bool:
        """Run the rest of a stage; False if it was left because somebody asked for it."""
        stage = self.recipe.stages[number]
        place.stage = number
        ready = self._prepare(network, number, place, resumed)
        for epoch in range(place.epoch, stage.epochs):
            place.epoch = epoch
            try:
                entry = self._epoch(ready, number, place)
            except Stopped as stopped:
                place.totals = stopped.totals
                self.write("stop", stage=number, epoch=epoch, pictures=place.totals.pictures)
                report_state(self.peers, network, ready.optimizer, ready.average, self.recipe.seed, place)
                return False
            last = epoch + 1 == stage.epochs
            if last and ready.average:
                ready.average.install()  # what the stage leaves, for the next one and for the checkpoint
            predictions = self._predictions(network, ready.held, None if last else ready.average)
            scores = score(predictions, self.job.held.classes, len(self.job.classes))
            entry |= {"held_loss": scores.loss, "held_accuracy": scores.micro, "held_macro": scores.macro}
            best = scores.micro > max((each["held_accuracy"] for each in place.history), default=-1.0)
            place.history.append(entry)
            place.totals = Totals()
            self.write("epoch", pictures_seen=place.seen, **entry)
            if best and self.peers.first and len(self.job.held):
                save_best(
                    self.folder, network, ready.average, self._final(place, predictions), self.recipe.seed
                )
            if last and number + 1 == len(self.recipe.stages):
                self._finish(network, place, predictions)
            else:
                place.stage, place.epoch = (number + 1, 0) if last else (number, epoch + 1)
                optimizer, average = (None, None) if last else (ready.optimizer, ready.average)
                report_state(self.peers, network, optimizer, average, self.recipe.seed, place)
                if self.peers.agreed(bool(self.stop)):
                    self.write("stop", stage=place.stage, epoch=place.epoch, pictures=0)
                    return False
        return True

    def _epoch(self, ready: _Prepared, number: int, place: Place) -> dict[str, Any]:
        """One epoch from where it stands; what it gave over all workers, for the history."""
        stage, epoch, before = self.recipe.stages[number], place.epoch, place.totals
        rows = self.batches.rows(number, epoch)
        first = before.pictures // self.peers.world // self.batches.share
        waiting = TimedIterator(ready.batches(epoch, rows[first * self.batches.share :]))
        mine = before if self.peers.first else Totals()  # a sum over workers shall count them once
        begun = time.monotonic()
        steps = -(-len(rows) // self.batches.share)
        told = StepCallback(self, stage, number, place, waiting, ready.optimizer, mine, steps)
        result = train_epoch(
            ready.module,
            ready.optimizer,
            waiting,
            stage,
            epoch=epoch,
            precision=self.recipe.precision,
            start_step=first,
            totals=mine,
            on_step=told,
            average=ready.average,
            steps=steps,
        )
        seconds = time.monotonic() - begun
        loss, correct, pictures, waited = self.peers.summed(
            result.loss * result.pictures, result.accuracy * result.pictures, result.pictures, waiting.seconds
        )
        waited /= self.peers.world
        return {
            **asdict(
                replace(result, loss=loss / pictures, accuracy=correct / pictures, pictures=int(pictures))
            ),
            "seconds": seconds,
            "images_per_second": (pictures - before.pictures) / max(seconds, 1e-9),
            "wait_seconds": waited,
            "wait_share": waited / max(seconds, 1e-9),
            "lr": float(ready.optimizer.param_groups[0]["lr"]),
        }

    def _prepare(self, network: Clvr, number: int, place: Place, resumed: TrainingState | None) -> _Prepared:
        stage = self.recipe.stages[number]
        optimizer = make_optimizer(network, stage)
        average = ExponentialMovingAverage.of(network, stage)
        if resumed:
            resumed.restore(network, optimizer)
            if average and resumed.average:
                average.load_state_dict(resumed.average)
        if not stage.cacheable:
            return _Prepared(
                prepare_model(network), optimizer, average, partial(self.batches.learned, stage, number), None
            )
        cache, held = self._features(network, self.work.before(number) - round(self.work.start(stage)))
        return _Prepared(
            prepare_model(network.head),
            optimizer,
            average,
            lambda _, rows: (
                (pooled.to(self.device), classes.to(self.device))
                for pooled, classes in cached_batches(cache, rows, self.batches.share)
            ),
            held,
        )

    def _features(self, network: Clvr, begin: int) -> tuple[Batch, Batch]:
        """Pooled features of the training and of the held-out pictures: kept ones, or computed and kept."""
        self.say(begin, "running the frozen backbone once")
        file = FeatureFile(self.folder, network.backbone)
        # One worker looks for all: a file that comes into being meanwhile must not part them.
        there = self.folder.head(file.name) is not None
        kept = file.read(len(self.job.training), len(self.job.held)) if self.peers.agreed(there) else None
        if kept:
            return kept
        cache = self._kept_features(network, self.job.training, begin)
        held = self._kept_features(network, self.job.held, begin + len(self.job.training))
        if self.peers.first:
            file.write(cache, held)
        return cache, held

    def _kept_features(self, network: Clvr, pictures: Pictures, before: int) -> Batch:
        """Each worker runs the frozen backbone over its share; all of them get all the features."""
        mine = np.arange(self.peers.rank, len(pictures), self.peers.world)
        if not len(mine):
            features, classes = (
                torch.empty((0, network.backbone.pooled_dim)),
                torch.empty(0, dtype=torch.int64),
            )
        else:
            batches = self._counted(self.batches.of(pictures, mine), before)
            features, classes = pooled_features(network, batches, precision=self.recipe.precision)
        return self.peers.gathered(features, len(pictures)), self.peers.gathered(classes, len(pictures))

    def _predictions(
        self, network: Clvr, held: Batch | None, average: ExponentialMovingAverage | None = None
    ) -> Predictions:
        """What the network says of each held-out picture, everywhere; `held` are their pooled features."""
        if average:
            with average.installed():
                return self._predictions(network, held)
        if held is not None:
            rows = np.arange(len(self.job.held))
            batches = (
                (pooled.to(self.device), classes.to(self.device))
                for pooled, classes in cached_batches(held, rows, max(self.batches.share, 256))
            )
            return predict(network.head, batches, precision=self.recipe.precision)
        mine = np.arange(self.peers.rank, len(self.job.held), self.peers.world)
        found = predict(network, self.batches.of(self.job.held, mine), precision=self.recipe.precision)
        whole = (
            self.peers.gathered(torch.from_numpy(part), len(self.job.held)).numpy()
            for part in (found.classes, found.confidence, found.losses)
        )
        return Predictions(*whole)

    def _final(self, place: Place, predictions: Predictions) -> list[dict[str, Any]]:
        """The history with a last entry that says all of the held-out pictures."""
        scores = score(predictions, self.job.held.classes, len(self.job.classes))
        labels = map(str, self.job.classes)
        return [
            *place.history,
            {
                "micro": scores.micro,
                "macro": scores.macro,
                "per_class": dict(zip(labels, scores.per_class, strict=True)),
                "predicted": [self.job.classes[number] for number in predictions.classes.tolist()],
                "confidence": [round(value, 4) for value in predictions.confidence.tolist()],
            },
        ]

    def _finish(self, network: Clvr, place: Place, predictions: Predictions) -> None:
        place.history = self._final(place, predictions)
        place.stage, place.epoch = len(self.recipe.stages), 0
        final = place.history[-1]
        self.write("final", held_accuracy=final["micro"], held_macro=final["macro"])
        report_state(self.peers, network, None, None, self.recipe.seed, place)

    def _counted(self, batches: Iterator[Batch], before: int) -> Iterator[Batch]:
        done = 0
        for batch in batches:
            yield batch
            done += len(batch[1]) * self.peers.world
            self.say(before + done, "running the frozen backbone once")

    def say(self, done: int, note: str) -> None:
        """Tell the board how far the work is, in passes; only the first worker does."""
        if self.peers.first:
            self.board.say.remote(done, note)

    def write(self, event: str, **values: Any) -> None:
        """Log a line; only the first worker does."""
        if self.log:
            self.log.write(event, **values)
