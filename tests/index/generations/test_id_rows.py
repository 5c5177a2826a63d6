"""Rows beyond memory are chosen and compared as those in memory: range by range, in the same order."""

import numpy as np
import pytest

from index.generations import id_rows
from index.generations.id_rows import IdRows
from index.generations.keys import compare_keys
from index.generations.load import LoadOptions, load_runs
from index.generations.load_plan import plan_load
from index.milvus import collection
from index.milvus.client import Milvus
from index.runs.run import Run
from infra.errors import DuplicateCropId
from infra.store import Store


def collected(rows: IdRows) -> list[tuple[int, int, int]]:
    columns = [(one.ids.tolist(), one.runs.tolist(), one.shards.tolist()) for one in rows.ranges()]
    return [row for three in columns for row in zip(*three, strict=True)]


def test_rows_on_disk_are_those_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    ids = np.append(random.integers(0, 2**63 - 1, 2000), [0, 0, 2**63 - 1])
    inside, outside = IdRows(), IdRows()
    for rows, held in ((inside, 1 << 20), (outside, 100)):
        monkeypatch.setattr(id_rows, "IN_MEMORY", held)
        for run, part in enumerate(np.array_split(ids, 9)):
            rows.add(part, run=run, shard=run % 3 - 1)
    assert collected(outside) == collected(inside)
    assert len(list(inside.ranges())) == 1 and len(list(outside.ranges())) == id_rows.RANGES
    assert [crop_id for crop_id, _, _ in collected(outside)] == sorted(ids.tolist())
    for one in outside.ranges():
        assert all((one.low or 0) <= crop_id < (one.high or 2**63) for crop_id in one.ids.tolist())


def test_a_plan_beyond_memory_is_the_plan_in_memory(
    milvus: Milvus, store: Store, make_run, monkeypatch: pytest.MonkeyPatch, hide
) -> None:
    runs: list[Run] = [make_run("r0", 60), make_run("r1", 30, first=50, seed=1), make_run("r2", 9, first=78)]
    hide(store, runs[0].manifest()["crop_id"].to_pylist()[:3])
    inside = plan_load(runs, latest_wins=True)
    monkeypatch.setattr(id_rows, "IN_MEMORY", 20)
    outside = plan_load(runs, latest_wins=True)
    assert outside == inside and (inside.superseded, inside.erased) == (12, 3)
    for one, other in zip(outside.shards, inside.shards, strict=True):
        assert one.excluded_ids.tolist() == other.excluded_ids.tolist()
    with pytest.raises(DuplicateCropId, match="2 crops of run r1 are in a later run too"):
        plan_load(runs)
    generation = load_runs(milvus, store, runs, alias="clvr", options=LoadOptions(latest_wins=True))
    assert not compare_keys(milvus, generation.name, outside).any
    gone = outside.crop_ids()[[3, 40]]
    collection.delete(milvus, generation.name, gone)
    found = compare_keys(milvus, generation.name, outside)
    assert (found.missing, found.missing_count, found.indexed) == (gone.tolist(), 2, outside.rows - 2)
    found = compare_keys(milvus, generation.name, plan_load(runs[1:], latest_wins=True))
    assert found.foreign_count == outside.rows - 2 - (found.indexed - found.foreign_count)
    assert found.foreign == sorted(found.foreign) and len(found.foreign) == 10
