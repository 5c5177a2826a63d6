"""What follows each training step: progress, log and metrics, and the question whether to stop here."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol

import ray
import torch

from clvr_model.recipe import Stage
from clvr_model.training import Batch, Totals
from infra.errors import ClvrError
from jobs.runtime.progress import ProgressState
from jobs.runtime.progress_actor import ProgressActor, actor_on_driver_node, read_progress
from jobs.train.distributed import DistributedContext
from jobs.train.input import TimedIterator
from jobs.train.job import Place, TrainJob, Work
from jobs.train.log import TrainMetrics


class TrainBoard(ProgressActor):
    """A board that also carries a wish to stop from the driver to the workers, and an error back."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self.stopping = False
        self.error: ClvrError | None = None

    def stop(self) -> None:
        """Ask the workers to save where they are and to end."""
        self.stopping = True

    def wanted_to_stop(self) -> bool:
        """Whether the workers were asked to."""
        return self.stopping

    def fail(self, error: ClvrError) -> None:
        """Keep what ended a worker and would end it again: Ray Train takes any error for a lost worker."""
        self.error = self.error or error

    def failed(self) -> ClvrError | None:
        """What ended a worker for good."""
        return self.error


class StopRequested:
    """Asks the board between two steps whether to stop, without waiting for the answer."""

    def __init__(self, board: Any) -> None:
        self.board = board
        self.pending = board.wanted_to_stop.remote()

    def __bool__(self) -> bool:
        if not ray.wait([self.pending], timeout=0)[0]:
            return False
        asked: bool = ray.get(self.pending)
        self.pending = self.board.wanted_to_stop.remote()
        return asked


def new_train_board(total: int) -> Any:
    """Start the board beside the driver, where the loss of a node does not take it."""
    return actor_on_driver_node(TrainBoard).remote(total)


def wait_for_first_progress(board: Any, stop: threading.Event) -> ProgressState:
    """Answer for a progress display, once the workers said a word: rates shall not count their start."""
    while not (now := read_progress(board)).note and not stop.wait(0.5):
        pass
    return now


@contextlib.contextmanager
def stopping_on_sigterm(board: Any) -> Iterator[threading.Event]:
    """Pass SIGTERM, which comes before a machine is taken away, on to the workers; tell whether it came."""
    came, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.is_set():
            if came.wait(0.2):
                board.stop.remote()
                return

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    watcher = threading.Thread(target=watch, name="sigterm", daemon=True)
    watcher.start()
    try:
        yield came
    finally:
        over.set()
        signal.signal(signal.SIGTERM, before)


class Stopped(Exception):
    """Left an epoch between two steps, because that was asked for; totals are those of all workers."""

    def __init__(self, totals: Totals) -> None:
        self.totals = totals


class ProgressReporter(Protocol):
    """The worker, as far as it is needed here."""

    job: TrainJob
    work: Work
    peers: DistributedContext
    metrics: TrainMetrics
    stop: StopRequested | None

    def say(self, done: int, note: str) -> None:
        """Tell the board."""

    def write(self, event: str, **values: Any) -> None:
        """Write to the log."""


class StepCallback:
    """Called by `train_epoch` after each step."""

    def __init__(
        self,
        worker: "ProgressReporter",
        stage: Stage,
        number: int,
        place: Place,
        waiting: TimedIterator[Batch],
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
