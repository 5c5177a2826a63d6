"""What follows each training step: progress, log and metrics, and the question whether to stop here."""

import time
from typing import Any, Protocol

import torch

from clvr_model.recipe import Stage
from clvr_model.training import Batch, Totals
from jobs.training.board import StopAsked
from jobs.training.input import Waiting
from jobs.training.job import Place, TrainJob, Work
from jobs.training.log import TrainMetrics
from jobs.training.peers import Peers


class Stopped(Exception):
    """Left an epoch between two steps, because that was asked for; totals are those of all workers."""

    def __init__(self, totals: Totals) -> None:
        self.totals = totals


class Teller(Protocol):
    """The worker, as far as it is needed here."""

    job: TrainJob
    work: Work
    peers: Peers
    metrics: TrainMetrics
    stop: StopAsked | None

    def say(self, done: int, note: str) -> None:
        """Tell the board."""

    def write(self, event: str, **values: Any) -> None:
        """Write to the log."""


class StepTold:
    """Called by `train_epoch` after each step."""

    def __init__(
        self,
        worker: "Teller",
        stage: Stage,
        number: int,
        place: Place,
        waiting: Waiting[Batch],
        optimizer: torch.optim.Optimizer,
        mine: Totals,
        steps: int,
    ) -> None:
        self.worker, self.stage, self.number, self.place = worker, stage, number, place
        self.waiting, self.optimizer, self.mine = waiting, optimizer, mine
        self.steps = steps
        self.seen = place.seen - place.totals.pictures
        self.begun = time.monotonic()
        self.last = (mine.pictures, 0.0)

    def __call__(self, step: int, totals: Totals) -> None:
        """Tell of a step, from 0, and of the epoch's totals so far. Raises Stopped."""
        worker, peers = self.worker, self.worker.peers
        learned = (totals.pictures - self.mine.pictures) * peers.world
        pictures = self.place.totals.pictures + learned
        elapsed = max(time.monotonic() - self.begun, 1e-9)
        loss, accuracy = totals.loss / totals.pictures, totals.correct / totals.pictures
        rate, wait_share = learned / elapsed, self.waiting.seconds / elapsed
        worker.metrics.step(
            self.stage.name,
            pictures=totals.pictures - self.last[0],
            waited=self.waiting.seconds - self.last[1],
            rate=rate / peers.world,
            loss=loss,
        )
        self.last = (totals.pictures, self.waiting.seconds)
        worker.say(
            worker.work.before(self.number, self.place.epoch, pictures),
            f"{self.stage.name} {self.place.epoch + 1}/{self.stage.epochs}, loss {loss:.3f}, "
            f"accuracy {accuracy:.1%}, {rate:,.1f} images/s, waited {wait_share:.1%}",
        )
        if (step + 1) % worker.job.log_every == 0:
            worker.write(
                "step", stage=self.stage.name, epoch=self.place.epoch, step=step + 1,
                pictures_seen=self.seen + pictures, loss=loss, accuracy=accuracy,
                lr=float(self.optimizer.param_groups[0]["lr"]), images_per_second=rate, wait_share=wait_share,
            )  # fmt: skip
        # After an epoch's last step its end is so near that it is better saved whole.
        if step + 1 < self.steps and peers.agreed(bool(worker.stop)):
            sums = peers.summed(totals.loss, totals.correct, totals.pictures)
            raise Stopped(Totals(sums[0], int(sums[1]), int(sums[2])))
