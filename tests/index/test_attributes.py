"""Shards with and without attributes: their versions, and generations whose model predicts none."""

from collections.abc import Callable

import numpy as np
import pytest

from index.filters import Filters
from index.generations.load import load_runs
from index.generations.load_plan import plan_load
from index.milvus import collection
from index.milvus.client import Milvus
from index.milvus.search import search_generation
from index.runs.run import Run
from index.runs.shards import check_shard, read_shards
from index.runs.tombstones import TombstoneWatch
from index.schema import SHARD_SCHEMAS
from index.search.milvus_source import MilvusSource
from index.search.scan_source import ScanSource
from infra.errors import BadSetting, SchemaMismatch
from infra.store import Store

MakeRun = Callable[..., Run]
PROBE = np.ones((1, 1024), np.float32)


def test_a_shard_has_the_columns_of_its_model(make_run: MakeRun, store: Store) -> None:
    plain, rich = make_run("plain", 20), make_run("rich", 20, first=20, attributes=True)
    for run, version in ((plain, 1), (rich, 2)):
        (key,) = run.shard_keys()
        assert check_shard(store, key, fingerprint=run.fingerprint).version == version
        (batch,) = read_shards(store, [key])
        assert batch.schema.remove_metadata().equals(SHARD_SCHEMAS[version])
        assert batch.schema.metadata[b"clvr.schema"] == str(version).encode()
    # What the model does not predict is unknown.
    assert set(batch["body_type"].to_pylist()) == {""}
    assert set(batch["body_type_confidence"].to_pylist()) == {0.0}
    assert {"red", ""} < set(batch["color"].to_pylist())
    # A model decides the columns of its runs: two kinds by one fingerprint are no archive of ours.
    with pytest.raises(SchemaMismatch, match="version 1 in run plain and version 2 in run rich"):
        plan_load([plain, rich])


def test_a_generation_without_attributes_refuses_their_filters_in_one_line(
    make_run: MakeRun, milvus: Milvus, store: Store
) -> None:
    run = make_run("plain", 20)
    generation = load_runs(milvus, store, [run], alias="clvr")
    sources = (ScanSource([run]), MilvusSource(milvus, generation, TombstoneWatch([store])))
    for source in sources:
        (hits,) = source.nearest(PROBE, 3, Filters())
        assert {(hit.color, hit.color_confidence, hit.body_type) for hit in hits} == {("", 0.0, "")}
        for filters in (Filters(colors=("red",)), Filters(min_body_type_confidence=0.5)):
            with pytest.raises(BadSetting, match=r"has no column (color|body_type): its model predicts none"):
                source.nearest(PROBE, 3, filters)


def test_an_increment_keeps_the_columns_of_its_generation(
    make_run: MakeRun, milvus: Milvus, store: Store
) -> None:
    first = make_run("rich", 30, attributes=True)
    generation = load_runs(milvus, store, [first], alias="clvr")
    assert generation.schema_version == 2
    assert [run.schema_version for run in collection.list_generations(milvus)] == [2]
    plan = plan_load([make_run("more", 10, first=30, attributes=True)])
    assert list(collection.insert_rows(milvus, "upsert", generation, plan.batches(1000))) == [10]
    (hits,) = next(search_generation(milvus, generation, PROBE, 40, Filters(colors=("red",))))
    assert len(hits) == 8
    assert {hit.color for hit in hits} == {"red"}
