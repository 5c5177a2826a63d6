"""Where driver and training workers meet: how far the work is, whether it shall stop, and what ended it."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import ray

from infra.errors import ClvrError
from jobs.board import Board, pinned, standing_of
from jobs.progress import Standing


class TrainBoard(Board):
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


class StopAsked:
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
    return pinned(TrainBoard).remote(total)


def standing_once_begun(board: Any, stop: threading.Event) -> Standing:
    """Answer for a progress display, once the workers said a word: rates shall not count their start."""
    while not (now := standing_of(board)).note and not stop.wait(0.5):
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
