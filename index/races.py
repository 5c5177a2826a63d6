"""Which of several ways is the fastest on this machine, told by running them."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


def least_seconds(ways: Mapping[Name, Callable[[], object]], turns: int) -> dict[Name, float]:
    """The least CPU seconds that each way took.

    In turns, by CPU time, the best of each: a neighbour's burst of work must not decide.
    """
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(turns):
        for name, way in ways.items():
            started = time.process_time()
            way()
            seconds[name] = min(seconds[name], time.process_time() - started)
    return seconds
