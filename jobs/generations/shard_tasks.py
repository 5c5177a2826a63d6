"""The shards of a plan over Ray tasks: the full check of the gate reads all of them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import ray

from index.generations.load_plan import LoadPlan
from infra.settings import Settings
from jobs.runtime.ray_cluster import connect, num_cpus, root_cause

TASKS_PER_CPU = 4
"""More tasks than CPUs, because shards differ in size and a lost node repeats what it had."""


def over_tasks(settings: Settings) -> Callable[[Callable[[LoadPlan, int], Any], LoadPlan], list[Any]]:
    """Return a function that calls another one with parts of a plan in tasks, see `gate.OverShards`."""

    def call(function: Callable[[LoadPlan, int], Any], plan: LoadPlan) -> list[Any]:
        connect(settings)
        remote, shared = ray.remote(_call), ray.put(function)
        try:
            return list(ray.get([remote.remote(shared, part, first) for part, first in parts_of(plan)]))
        except Exception as error:
            raise root_cause(error) from error

    return call


def parts_of(plan: LoadPlan) -> list[tuple[LoadPlan, int]]:
    """Cut a plan into parts of about equally many rows, with the number of the first row of each."""
    starts = np.cumsum([0, *(shard.rows for shard in plan.shards)])
    wanted = np.linspace(0, plan.rows, TASKS_PER_CPU * num_cpus() + 1)
    cuts = np.unique(np.searchsorted(starts, wanted))
    return [
        (replace(plan, shards=plan.shards[first:last]), int(starts[first]))
        for first, last in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)
        if last > first
    ]


def _call(function: Callable[[LoadPlan, int], Any], plan: LoadPlan, first: int) -> Any:
    return function(plan, first)
