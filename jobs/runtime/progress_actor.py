"""An actor to which workers report their progress, for the driver to show."""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.runtime.progress import ProgressState


class ProgressActor:
    """Counts and a note of the work so far; runs as a Ray actor, see `start_progress_actor`."""

    def __init__(self, total: int) -> None:
        self.done = 0
        self.quarantined = 0
        self.total = total
        self.note = ""

    def add(self, done: int, quarantined: int = 0) -> None:
        """Count finished work; `quarantined` failed, in addition to `done`."""
        self.done += done + quarantined
        self.quarantined += quarantined

    def update(self, done: int, note: str) -> None:
        """Set the finished work and the note to show with it."""
        self.done, self.note = done, note

    def read(self) -> ProgressState:
        """Return the state for a progress display."""
        quarantined = f"{self.quarantined:,} quarantined" if self.quarantined else ""
        return ProgressState(self.done, self.total, ", ".join(filter(None, (self.note, quarantined))))


def start_progress_actor(total: int, *, done: int = 0) -> Any:
    """Start a progress actor that takes no CPU; a call `actor.add.remote(…)` does not wait."""
    actor = actor_on_driver_node(ProgressActor).remote(total)
    actor.add.remote(done)
    return actor


def actor_on_driver_node(cls: type) -> Any:
    """Make an actor class of `cls` that takes no CPU and runs on the driver's node.

    On another node, the loss of that node would end the actor, though the job would survive.
    """
    driver_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=driver_node)(cls)


def read_progress(actor: Any) -> ProgressState:
    """Read a progress actor from the driver."""
    state: ProgressState = ray.get(actor.read.remote())
    return state
