"""A board in the cluster on which workers pin up how far they are, for the driver to show."""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.runtime.progress import ProgressState


class ProgressActor:
    """Counts and a note; lives as a Ray actor, see `new_board`."""

    def __init__(self, total: int) -> None:
        self.done = 0
        self.quarantined = 0
        self.total = total
        self.note = ""

    def add(self, done: int, quarantined: int = 0) -> None:
        """Count finished work; `quarantined` is the part of it that failed, in addition to `done`."""
        self.done += done + quarantined
        self.quarantined += quarantined

    def say(self, done: int, note: str) -> None:
        """Set how far the work is, and what to say behind it."""
        self.done, self.note = done, note

    def read(self) -> ProgressState:
        """Answer for a progress display."""
        quarantined = f"{self.quarantined:,} quarantined" if self.quarantined else ""
        return ProgressState(self.done, self.total, ", ".join(filter(None, (self.note, quarantined))))


def start_progress_actor(total: int, *, done: int = 0) -> Any:
    """Start a board as an actor that takes no CPU; `board.add.remote(…)` does not wait for it."""
    board = actor_on_driver_node(ProgressActor).remote(total)
    board.add.remote(done)
    return board


def actor_on_driver_node(kind: type) -> Any:
    """Make an actor class of `kind` that takes no CPU and lives on the driver's node.

    Elsewhere it would be lost with a node whose loss the job itself survives.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(kind)


def read_progress(board: Any) -> ProgressState:
    """Ask a board, from the driver."""
    standing: ProgressState = ray.get(board.read.remote())
    return standing
