"""What a training took, over all its attempts: hours, nodes and money, read from its log."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True, slots=True)
class Cost:
    """hours: wall time of all attempts together. node_hours: that, times the nodes of each attempt."""

    hours: float
    node_hours: float
    attempts: int
    price_per_node_hour: float | None = None

    @property
    def money(self) -> float | None:
        """In the unit of the price; None without one."""
        return None if self.price_per_node_hour is None else self.node_hours * self.price_per_node_hour


def cost_of(log: Sequence[dict[str, Any]], price_per_node_hour: float | None = None) -> Cost:
    """Add up the attempts: each from its `start` to the last line before the next one.

    What a killed attempt did after its last line is not in the log, and not counted.
    """
    starts = [place for place, line in enumerate(log) if line["event"] == "start"]
    hours = node_hours = 0.0
    for begin, end in pairwise([*starts, len(log)]):
        seconds = max(0.0, log[end - 1]["time"] - log[begin]["time"])
        hours += seconds / 3600
        node_hours += seconds / 3600 * log[begin].get("nodes", 1)
    return Cost(hours, node_hours, len(starts), price_per_node_hour)
