"""Progress of a training, and requests to stop it: between the driver, the workers and each step."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol

import ray
import torch

from clvr_model.recipe import Stage
from clvr_model.training import Batch, DeviceTotals, Totals
from infra.errors import ClvrError
from jobs.runtime.progress import ProgressState
from jobs.runtime.progress_actor import ProgressActor, actor_on_driver_node, read_progress
from jobs.train.distributed import DistributedContext
from jobs.train.input import TimedIterator
from jobs.train.job import Position, TrainJob, Work
from jobs.train.log import TrainMetrics

SECONDS_BETWEEN_REPORTS = 0.5  # of progress: reading the loss waits for a GPU
GPU_STEPS_BETWEEN_POLLS = 16  # of a stop request, which all workers have to agree on


class TrainProgressActor(ProgressActor):
    """A progress actor that also passes a stop request to the workers, and a fatal error to the driver."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self.stop_requested = False
        self.error: ClvrError | None = None

    def request_stop(self) -> None:
        """Ask the workers to save their state and to stop."""
        self.stop_requested = True

    def is_stop_requested(self) -> bool:
        """Whether the workers were asked to stop."""
        return self.stop_requested

    def set_fatal_error(self, error: ClvrError) -> None:
        """Keep an error that would end every attempt: Ray Train would restart the workers after it."""
        self.error = self.error or error

    def fatal_error(self) -> ClvrError | None:
        """Return the error that ended a worker for good, None without one."""
        return self.error


def start_train_progress_actor(total: int) -> Any:
    """Start the progress actor of a training."""
    return actor_on_driver_node(TrainProgressActor).remote(total)


def wait_for_first_progress(actor: Any, stop: threading.Event) -> ProgressState:
    """Read the progress after the first report, so that rates do not include the start of the workers."""
    while not (state := read_progress(actor)).note and not stop.wait(0.5):
        pass
    return state


@contextlib.contextmanager
def stopping_on_sigterm(actor: Any) -> Iterator[threading.Event]:
    """Pass SIGTERM, which announces the loss of a machine, to the workers; yield whether it was received."""
    received, ended = threading.Event(), threading.Event()

    def watch() -> None:
        while not ended.is_set():
            if received.wait(0.2):
                actor.request_stop.remote()
                return

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous_handler = signal.signal(signal.SIGTERM, lambda *_: received.set())
    watcher = threading.Thread(target=watch, name="sigterm", daemon=True)
    watcher.start()
    try:
        yield received
    finally:
        ended.set()
        signal.signal(signal.SIGTERM, previous_handler)


class StopRequest:
    """Whether the driver asked the workers to stop, polled between steps without waiting."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.pending = actor.is_stop_requested.remote()

    def __bool__(self) -> bool:
        if not ray.wait([self.pending], timeout=0)[0]:
            return False
        requested: bool = ray.get(self.pending)
        self.pending = self.actor.is_stop_requested.remote()
        return requested


class EpochStopped(Exception):
    """An epoch ended between two steps by request; totals are those of all workers."""

    def __init__(self, totals: Totals) -> None:
        self.totals = totals


class ProgressReporter(Protocol):
    """The interface of the worker that `StepCallback` uses."""

    job: TrainJob
    work: Work
    distributed: DistributedContext
    metrics: TrainMetrics
    stop_request: StopRequest | None

    def report_progress(self, done: int, note: str) -> None:
        """Update the progress display."""

    def log_event(self, event: str, **values: Any) -> None:
        """Write a line of the log."""


class StepCallback:
    """Reports the steps of `train_epoch`: progress, log and metrics; raises EpochStopped on request."""

    def __init__(
        self,
        worker: ProgressReporter,
        stage: Stage,
        stage_number: int,
        position: Position,
        batches: TimedIterator[Batch],
        optimizer: torch.optim.Optimizer,
        initial_totals: Totals,
        steps: int,
    ) -> None:
        self.worker, self.stage, self.stage_number, self.position = worker, stage, stage_number, position
        self.batches, self.optimizer, self.initial_totals = batches, optimizer, initial_totals
        self.steps = steps
        self.seen_before_epoch = position.images_seen - position.totals.pictures
        self.started, self.reported = time.monotonic(), -math.inf
        self.last_images, self.last_wait_seconds = initial_totals.pictures, 0.0

    def __call__(self, step: int, totals: DeviceTotals) -> None:
        """Report a step, counted from 0, and the totals of the epoch so far. Raises EpochStopped.

        Only some steps are reported, because each report waits for the device.
        """
        distributed, is_last = self.worker.distributed, step + 1 == self.steps
        is_logged = (step + 1) % self.worker.job.log_every == 0
        if is_logged or is_last or time.monotonic() - self.reported >= SECONDS_BETWEEN_REPORTS:
            self._report(step, totals.read(), is_logged=is_logged)
            self.reported = time.monotonic()
        polls = 1 if distributed.device.type == "cpu" else GPU_STEPS_BETWEEN_POLLS
        # After the last step, the epoch is saved whole instead.
        if is_last or (step + 1) % polls:
            return
        if distributed.broadcast_flag(bool(self.worker.stop_request)):
            known = totals.read()
            sums = distributed.all_reduce_sum(known.loss, known.correct, known.pictures)
            raise EpochStopped(Totals(sums[0], int(sums[1]), int(sums[2])))

    def _report(self, step: int, totals: Totals, *, is_logged: bool) -> None:
        worker, position = self.worker, self.position
        world_size = worker.distributed.world_size
        new_images = (totals.pictures - self.initial_totals.pictures) * world_size
        epoch_images = position.totals.pictures + new_images
        elapsed = max(time.monotonic() - self.started, 1e-9)
        loss, accuracy = totals.loss / totals.pictures, totals.correct / totals.pictures
        rate, wait_share = new_images / elapsed, self.batches.seconds / elapsed
        worker.metrics.step(
            self.stage.name,
            images=totals.pictures - self.last_images,
            wait_seconds=self.batches.seconds - self.last_wait_seconds,
            rate=rate / world_size,
            loss=loss,
        )
        self.last_images, self.last_wait_seconds = totals.pictures, self.batches.seconds
        worker.report_progress(
            worker.work.passes_before(self.stage_number, position.epoch, epoch_images),
            f"{self.stage.name} {position.epoch + 1}/{self.stage.epochs}, loss {loss:.3f}, "
            f"accuracy {accuracy:.1%}, {rate:,.1f} images/s, waited {wait_share:.1%}",
        )
        if is_logged:
            worker.log_event(
                "step",
                stage=self.stage.name,
                epoch=position.epoch,
                step=step + 1,
                pictures_seen=self.seen_before_epoch + epoch_images,
                loss=loss,
                accuracy=accuracy,
                lr=float(self.optimizer.param_groups[0]["lr"]),
                images_per_second=rate,
                wait_share=wait_share,
            )
