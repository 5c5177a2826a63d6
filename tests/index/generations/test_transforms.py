"""A generation carries its transform: load, increment, gate, copy and search use it, and no other one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from index.filters import Filters
from index.generations import records
from index.generations.copy import replace_by_copy
from index.generations.gate import check_gate
from index.generations.load import LoadOptions, load_runs
from index.generations.load_plan import plan_load
from index.generations.promotion import promote, rollback
from index.generations.reconcile import reconcile
from index.generations.staging import import_source
from index.generations.upsert import load_into_live
from index.lock import ROWS, acquire
from index.milvus import collection
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.milvus.index_types import capabilities_of, index_spec
from index.runs.run import Run
from index.runs.shards import vectors_of
from index.runs.tombstones import TombstoneWatch
from index.search.milvus_source import MilvusSource
from index.search.probe import Probe, Sighting, image_probe, merge_probes
from index.search.retrieval import Rules, retrieve
from index.search.scan_source import ScanSource
from index.transforms.fitting import TransformSettings, fit
from index.transforms.statistics import COLUMNS, Sampling, collect
from index.transforms.stored import read_transform, store_transform
from index.transforms.transform import FeatureTransform
from infra.errors import CorruptObject, FingerprintMismatch, TransformMismatch
from infra.store import Store

DIMENSIONS = 32


@pytest.fixture
def fitted(store: Store) -> Callable[..., FeatureTransform]:
    """Fit a transform to runs and store it; return the stored one."""

    def make(
        *runs: Run, kind: str = "whiten-camera", dimensions: int | None = DIMENSIONS
    ) -> FeatureTransform:
        plan = plan_load(runs, latest_wins=True)
        batches = (batch for shard in plan.shards for batch in shard.batches(100, COLUMNS))
        settings = TransformSettings(kind, dimensions)  # type: ignore[arg-type]
        found = collect(batches, Sampling(groups=True), 1024)
        document = store_transform(
            store,
            fit(found.fitted, settings),
            fingerprint=plan.fingerprint,
            shrinkage=settings.shrinkage,
            camera_prior=settings.camera_prior,
            run_ids=plan.run_ids,
            rows=plan.rows,
            sampled_of=plan.rows,
        )
        transform = read_transform(store, plan.fingerprint, document.transform_id)
        assert transform is not None
        return transform

    return make


def load(milvus: Milvus, store: Store, runs: list[Run], transform: FeatureTransform | None) -> Generation:
    options = LoadOptions(transform=transform, latest_wins=True)
    return load_runs(milvus, store, runs, alias="clvr", options=options)


def stored_vectors(milvus: Milvus, generation: Generation) -> dict[int, Any]:
    ids = collection.fetch_ids(milvus, generation.name).tolist()
    rows = collection.fetch_rows(milvus, generation.name, ids, ["crop_id", "embedding"])
    return {row["crop_id"]: np.asarray(row["embedding"], np.float32) for row in rows}


def expected_vectors(runs: list[Run], transform: FeatureTransform) -> dict[int, Any]:
    expected = {}
    for batch in plan_load(runs, latest_wins=True).batches(1000):
        cameras, times = (batch.column(name) for name in ("camera_id", "captured_at"))
        vectors = transform(vectors_of(batch), cameras.to_pylist(), times.to_numpy())
        expected |= dict(zip(batch.column("crop_id").to_pylist(), vectors, strict=True))
    return expected


def assert_same_vectors(actual: dict[int, Any], expected: dict[int, Any]) -> None:
    assert actual.keys() == expected.keys()
    for crop_id, vector in expected.items():
        np.testing.assert_allclose(actual[crop_id], vector, atol=1e-6)


def test_a_generation_has_transformed_vectors_and_passes_the_gate(
    milvus: Milvus, store: Store, make_run, fitted
) -> None:
    run = make_run("r1", 120, rows_per_shard=50)
    transform = fitted(run)
    generation = load(milvus, store, [run], transform)
    record = records.read(store, generation.name)
    assert record is not None
    assert (generation.transform, generation.dimension) == (transform.transform_id, DIMENSIONS)
    assert record.transform == transform.transform_id
    assert collection.get_generation(milvus, generation.name) == generation
    assert_same_vectors(stored_vectors(milvus, generation), expected_vectors([run], transform))
    report = check_gate(milvus, store, generation, [run], probes=40)
    assert report.passed, report.failures
    assert reconcile(milvus, store, generation, [run]).differences == ()


def test_index_and_scan_give_equal_answers_with_a_transform(
    milvus: Milvus, store: Store, make_run, fitted, look_alikes
) -> None:
    run = make_run("r1", 120)
    transform = fitted(run)
    generation = load(milvus, store, [run], transform)
    index = MilvusSource(milvus, generation, TombstoneWatch([store]), transform)
    scan = ScanSource([run], transform=transform)
    archived = plan_load([run]).crop_ids()[:3].tolist()
    vectors, sightings = scan.vectors(archived), scan.sightings(archived)
    assert_same_vectors(index.vectors(archived), vectors)
    probes = [
        Probe("archived", vectors[archived[0]], (sightings[archived[0]],), transform.transform_id),
        image_probe("unknown camera", look_alikes(np.array([33]), 5)[0], transform),
        image_probe("known camera", look_alikes(np.array([33]), 5)[0], transform, Sighting("cam-3", "", 9)),
    ]
    assert not np.array_equal(probes[1].features, probes[2].features)
    for rules in (Rules(top=10), Rules(top=5, filters=Filters(cameras=("cam-1",)), rerank_depth=10)):
        answers = [retrieve(source, probes, rules) for source in (index, scan)]
        for one, other in zip(*answers, strict=True):
            assert [match.hit.crop_id for match in one] == [match.hit.crop_id for match in other]
            np.testing.assert_allclose(
                [match.hit.distance for match in one], [match.hit.distance for match in other], atol=1e-5
            )


def test_increments_and_copies_keep_the_transform_of_the_live_generation(
    milvus: Milvus, store: Store, make_run, fitted
) -> None:
    night1, night2 = make_run("n1", 100), make_run("n2", 10, first=95, seed=3)
    transform = fitted(night1)
    generation = load(milvus, store, [night1], transform)
    promote(milvus, store, generation.name, force="a test")
    runs = {"n1": night1, "n2": night2}

    def increment(run: Run) -> Any:
        opened = lambda names: [runs[name] for name in names]  # noqa: E731
        return load_into_live(milvus, store, [run], opened, alias="clvr", options=LoadOptions())

    assert increment(night2).upserted == 10
    expected = expected_vectors([night1, night2], transform)
    assert_same_vectors(stored_vectors(milvus, generation), expected)

    runs["n3"] = make_run("n3", 60, first=200)
    grown = increment(runs["n3"])
    assert grown.promote_next
    assert grown.generation.transform == transform.transform_id

    with acquire(store, ROWS, "a test"):
        copied = replace_by_copy(milvus, store, generation)
    assert (copied.transform, copied.dimension) == (transform.transform_id, DIMENSIONS)
    assert_same_vectors(stored_vectors(milvus, copied), expected)


def test_an_interrupted_load_is_resumed_only_with_the_same_transform(
    milvus: Milvus, store: Store, make_run, fitted
) -> None:
    run = make_run("r1", 60)
    transform = fitted(run)
    first = load(milvus, store, [run], transform)
    records.update(store, first.name, state="loading")  # killed before its last step
    assert load(milvus, store, [run], transform).name == first.name
    records.update(store, first.name, state="loading")
    plain = load(milvus, store, [run], None)
    assert (plain.transform, plain.dimension) == ("", 1024)
    assert not milvus.call("has_collection", first.name)


def test_a_rollback_returns_to_the_transform_of_that_generation(
    milvus: Milvus, store: Store, make_run, fitted
) -> None:
    run = make_run("r1", 60)
    plain, whitened = load(milvus, store, [run], None), load(milvus, store, [run], fitted(run))
    promote(milvus, store, plain.name, force="a test")
    promote(milvus, store, whitened.name, force="a test")
    live = rollback(milvus, store, "clvr").generation
    assert (live.name, live.transform, live.dimension) == (plain.name, "", 1024)


def test_mixed_transforms_are_refused(milvus: Milvus, store: Store, make_run, fitted) -> None:
    run = make_run("r1", 60)
    one, other = fitted(run), fitted(run, kind="whiten")
    generation = load(milvus, store, [run], one)
    for wrong in (None, other):
        with pytest.raises(TransformMismatch, match=one.transform_id):
            MilvusSource(milvus, generation, TombstoneWatch([store]), wrong)
    source = MilvusSource(milvus, generation, TombstoneWatch([store]), one)
    feature = np.ones(1024, np.float32)
    foreign = image_probe("p", feature, other)
    with pytest.raises(TransformMismatch, match="the probe p"):
        retrieve(source, [foreign], Rules())
    with pytest.raises(TransformMismatch):
        retrieve(source, [Probe("p", feature)], Rules())
    with pytest.raises(TransformMismatch):
        merge_probes("both", [image_probe("p", feature, one), foreign])
    with pytest.raises(FingerprintMismatch, match=one.transform_id):
        plan_load([make_run("r2", 10, first=500, fingerprint="bb")], transform=one)


def test_a_merged_probe_of_unit_vectors_has_unit_length(make_run, fitted, look_alikes) -> None:
    transform = fitted(make_run("r1", 60), kind="whiten")
    probes = [image_probe("p", look_alikes(np.array([number]))[0], transform) for number in (1, 50)]
    merged = merge_probes("both", probes)
    assert merged.transform == transform.transform_id
    assert np.linalg.norm(merged.features) == pytest.approx(1, abs=1e-6)


def test_a_lost_or_altered_transform_stops_the_gate_and_verify(
    milvus: Milvus, store: Store, make_run, fitted
) -> None:
    run = make_run("r1", 60)
    transform = fitted(run)
    generation = load(milvus, store, [run], transform)
    key = f"transforms/{transform.fingerprint}/{transform.transform_id}.safetensors"
    data = bytearray(store.get(key))
    data[len(data) // 2] ^= 4
    store.put(key, bytes(data))
    for check in (check_gate, reconcile):
        with pytest.raises(CorruptObject, match="safetensors was altered"):
            check(milvus, store, generation, [run])


def test_a_shard_is_staged_with_transformed_vectors(store: Store, make_run, fitted, tmp_path) -> None:
    run = make_run("r1", 50)
    transform = fitted(run)
    plan = plan_load([run], transform=transform)
    bucket = store.uri  # the shards are in the server's bucket, and yet they are rewritten
    with import_source(plan, "g", bucket) as files:
        (file,) = list(files)
        table = pq.read_table(f"{bucket}/{file.key}")
        vectors = vectors_of(table, DIMENSIONS)
        actual = dict(zip(table["crop_id"].to_pylist(), vectors, strict=True))
        assert_same_vectors(actual, expected_vectors([run], transform))
    assert list(store.list("clvr-import")) == []


def test_the_parts_of_a_product_quantizer_divide_the_dimension() -> None:
    server = capabilities_of("2.3.5", lite=False)
    assert index_spec(server, "IVF_PQ", 1000).params["m"] == 64
    assert index_spec(server, "IVF_PQ", 1000, 200).params["m"] == 50
