"""The shards of a plan are read in Ray tasks, each once and in order."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from index.generations.load_plan import LoadPlan, plan_load
from infra.errors import CorruptObject
from infra.settings import load_settings
from infra.store import open_store
from jobs.generations import shard_tasks
from jobs.generations.shard_tasks import over_tasks


def _ids(plan: LoadPlan, first: int) -> tuple[int, Any]:
    return first, np.concatenate([ids for ids, _ in plan.blocks()])


@pytest.mark.integration
def test_the_parts_of_a_plan_are_its_rows_in_order(
    ray_cluster: Any,
    tmp_path: Path,
    make_finished_run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shard_tasks, "TASKS_PER_CPU", 1)
    store = open_store(str(tmp_path))
    plan = plan_load([make_finished_run(store, "r0", range(300), rows_per_shard=20)])
    whole = np.concatenate([ids for ids, _ in plan.blocks()]).tolist()
    call = over_tasks(load_settings({"runs": str(tmp_path), "ray": ray_cluster.address}))
    try:
        found = call(_ids, plan)
        store.put(plan.shards[7].info.key, b"PAR1 altered")
        with pytest.raises(CorruptObject):
            call(_ids, plan)
    finally:
        ray.shutdown()
    assert len(found) > 1
    assert [first for first, _ in found] == np.cumsum([0, *(len(ids) for _, ids in found)])[:-1].tolist()
    assert np.concatenate([ids for _, ids in found]).tolist() == whole
