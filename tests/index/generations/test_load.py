"""Loading checks shards first, imports each row once, and resumes an interrupted load."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.generations import load, records
from index.generations.load import LoadOptions, choose_target, load_runs
from index.generations.load_plan import plan_load
from index.generations.reconcile import reconcile
from index.milvus import collection, waiting
from index.milvus.client import Milvus
from index.milvus.index_types import capabilities_of
from index.runs.run import Run
from index.schema import MANIFEST_SCHEMA
from infra.errors import (
    BadInput,
    BadSetting,
    CorruptObject,
    CountMismatch,
    DuplicateCropId,
    FingerprintMismatch,
    IndexRefused,
)
from infra.store import Store


def all_rows(milvus: Milvus, name: str, field: str) -> dict[int, object]:
    rows = milvus.call("query", name, filter="crop_id >= 0", output_fields=[field], limit=10_000)
    return {row["crop_id"]: row[field] for row in rows}


def test_every_row_of_every_shard_arrives_as_it_was(milvus: Milvus, store: Store, make_run) -> None:
    run = make_run("r1", 250, rows_per_shard=100)
    steps: list[tuple[int, int]] = []
    generation = load_runs(
        milvus,
        store,
        [run],
        alias="clvr",
        options=LoadOptions(progress=lambda done, total: steps.append((done, total))),
    )
    assert collection.row_count(milvus, generation) == 250
    assert steps == [(100, 250), (200, 250), (250, 250)]
    uris = all_rows(milvus, generation.name, "uri")
    manifest = run.manifest()
    assert uris == dict(zip(manifest["crop_id"].to_pylist(), manifest["uri"].to_pylist(), strict=True))
    stored = all_rows(milvus, generation.name, "embedding")
    for ids, vectors in plan_load([run]).blocks():
        for crop_id, vector in zip(ids.tolist(), vectors, strict=True):
            assert np.array_equal(np.asarray(stored[crop_id], np.float32), vector)


def test_loading_does_not_move_the_alias_and_leaves_a_ready_record(
    milvus: Milvus, store: Store, make_run
) -> None:
    generation = load_runs(milvus, store, [make_run("r1", 30)], alias="clvr")
    assert collection.live_generation(milvus, "clvr") is None
    record = records.read(store, generation.name)
    assert record is not None
    assert (record.state, record.rows, record.run_ids, record.target) == (
        "ready",
        30,
        ("r1",),
        "stream_insert",
    )


@pytest.mark.parametrize("index_type", ["HNSW", "IVF_FLAT", "ivf_sq8"])
def test_the_index_is_built_with_l2_after_the_flush_and_with_its_parameters(
    milvus: Milvus, store: Store, make_run, index_type: str
) -> None:
    generation = load_runs(
        milvus, store, [make_run("r1", 64)], alias="clvr", options=LoadOptions(index_type=index_type)
    )
    description = milvus.call("describe_index", generation.name, "embedding")
    assert (description["index_type"], description["metric_type"]) == (index_type.upper(), "L2")
    assert description["indexed_rows"] == 64
    # pymilvus and Milvus Lite do not agree about how parameters are sent: without them it takes its own.
    assert description["params"] == generation.index.params


def test_runs_of_one_model_make_one_generation(milvus: Milvus, store: Store, make_run) -> None:
    runs = [make_run("night1", 50), make_run("night2", 20, first=50)]
    generation = load_runs(milvus, store, runs, alias="clvr")
    assert generation.run_ids == ("night1", "night2")
    assert collection.row_count(milvus, generation) == 70


def test_runs_of_two_models_are_refused_with_both_fingerprints(
    milvus: Milvus, store: Store, make_run
) -> None:
    with pytest.raises(FingerprintMismatch, match=r"(?s)aaaa.*bbbb"):
        load_runs(
            milvus,
            store,
            [make_run("r1", 20, fingerprint="aaaa"), make_run("r2", 20, first=20, fingerprint="bbbb")],
            alias="clvr",
        )
    assert collection.list_generations(milvus) == []


def test_a_crop_in_two_runs_is_refused_unless_the_later_run_wins(
    milvus: Milvus, store: Store, make_run
) -> None:
    old, new = make_run("old", 50, seed=1, rows_per_shard=20), make_run("new", 25, first=30, seed=2)
    with pytest.raises(DuplicateCropId, match="20 crops of run old"):
        load_runs(milvus, store, [old, new], alias="clvr")

    generation = load_runs(milvus, store, [old, new], alias="clvr", options=LoadOptions(latest_wins=True))
    assert collection.row_count(milvus, generation) == 55
    stored = all_rows(milvus, generation.name, "embedding")
    for ids, vectors in plan_load([new]).blocks():
        for crop_id, vector in zip(ids.tolist(), vectors, strict=True):
            assert np.array_equal(np.asarray(stored[crop_id], np.float32), vector)


def test_a_shard_whose_rows_are_all_superseded_is_left_out(milvus: Milvus, store: Store, make_run) -> None:
    old, new = make_run("old", 20, seed=1), make_run("new", 20, seed=2)
    generation = load_runs(milvus, store, [old, new], alias="clvr", options=LoadOptions(latest_wins=True))
    assert collection.row_count(milvus, generation) == 20


def test_no_runs_are_refused(milvus: Milvus, store: Store) -> None:
    with pytest.raises(BadInput, match="no runs"):
        load_runs(milvus, store, [], alias="clvr")


def test_an_unfinished_run_is_refused(milvus: Milvus, store: Store) -> None:
    columns = {name: [1] if name != "uri" else ["s3://a/1.jpg"] for name in MANIFEST_SCHEMA.names}
    columns |= {"etag": ["e"], "camera_id": ["c"], "track_id": ["t"]}
    run = Run.create(
        store,
        "half",
        manifest=pa.table(columns, schema=MANIFEST_SCHEMA),
        archive="a",
        fingerprint="f",
        model="m",
        settings={},
    )
    with pytest.raises(CountMismatch, match="half is not finished"):
        load_runs(milvus, store, [run], alias="clvr")


def test_a_shard_that_was_altered_never_reaches_milvus(milvus: Milvus, store: Store, make_run) -> None:
    run = make_run("r1", 40)
    path = Path(store.uri_of(run.shard_keys()[0]))
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0x55
    path.write_bytes(bytes(damaged))
    with pytest.raises(CorruptObject, match="was altered"):
        load_runs(milvus, store, [run], alias="clvr")
    assert collection.list_generations(milvus) == []
    assert list(records.list_records(store, "clvr")) == []


def interrupted_load(milvus: Milvus, store: Store, run: Run, **options) -> collection.Generation:
    """Return a generation whose load was killed after its last row, before its record was updated."""
    generation = load_runs(milvus, store, [run], alias="clvr", options=LoadOptions(**options))
    records.update(store, generation.name, state="loading")
    return generation


def states(store: Store) -> list[str]:
    return sorted(record.state for record in records.list_records(store, "clvr"))


@pytest.mark.parametrize("indexed", [True, False], ids=["while it was loaded", "before its index"])
def test_a_load_killed_after_its_last_row_is_verified_and_finished(
    milvus: Milvus, store: Store, make_run, indexed: bool
) -> None:
    run = make_run("r1", 40)
    half = interrupted_load(milvus, store, run)
    if not indexed:
        milvus.call("release_collection", half.name)
        milvus.call("drop_index", half.name, "embedding")
    inserted: list[int] = []

    def progress(done: int, total: int) -> None:
        inserted.append(done)

    assert load_runs(milvus, store, [run], alias="clvr", options=LoadOptions(progress=progress)) == half
    assert inserted == []
    assert states(store) == ["ready"]
    assert collection.row_count(milvus, half) == 40


def test_a_load_killed_before_its_last_row_is_dropped_and_built_again(
    milvus: Milvus, store: Store, make_run
) -> None:
    run = make_run("r1", 40)
    half = interrupted_load(milvus, store, run)
    milvus.call("delete", half.name, filter="captured_at == -1")

    whole = load_runs(milvus, store, [run], alias="clvr")

    assert collection.list_generations(milvus) == [whole]
    assert whole != half
    assert states(store) == ["dropped", "ready"]


def test_a_killed_load_with_wrong_rows_is_dropped_although_their_number_is_right(
    milvus: Milvus, store: Store, make_run
) -> None:
    run = make_run("r1", 40)
    half = interrupted_load(milvus, store, run)
    (first, *_) = plan_load([run]).crop_ids().tolist()
    (row,) = milvus.call("query", half.name, filter=f"crop_id == {first}", output_fields=["*"])
    milvus.call("delete", half.name, filter=f"crop_id == {first}")
    milvus.call("insert", half.name, [{**row, "crop_id": 7}])
    milvus.call("flush", half.name)

    whole = load_runs(milvus, store, [run], alias="clvr")

    assert whole != half
    assert not reconcile(milvus, store, whole, [run]).differences
    assert states(store) == ["dropped", "ready"]


def test_a_killed_load_is_finished_only_by_a_load_of_the_same_runs_and_index(
    milvus: Milvus, store: Store, make_run
) -> None:
    run, other = make_run("r1", 40), make_run("r2", 40, first=40)
    interrupted_load(milvus, store, run, index_type="IVF_FLAT")
    whole = load_runs(milvus, store, [run], alias="clvr", options=LoadOptions(index_type="HNSW"))
    assert whole.index.type == "HNSW"
    records.update(store, whole.name, state="loading")
    assert load_runs(milvus, store, [other], alias="clvr").run_ids == ("r2",)
    assert states(store) == ["dropped", "dropped", "ready"]


def test_a_load_killed_before_its_collection_was_created_is_cleared_too(
    milvus: Milvus, store: Store, make_run
) -> None:
    records.create(
        store,
        records.GenerationRecord("clvr_x_1", "clvr", "f", ("r",), 1, "stream_insert", "loading", "then"),
    )
    load_runs(milvus, store, [make_run("r1", 20)], alias="clvr")
    record = records.read(store, "clvr_x_1")
    assert record is not None
    assert record.state == "dropped"


def test_another_alias_is_not_touched_by_clearing(milvus: Milvus, store: Store, make_run) -> None:
    run = make_run("r1", 20)
    other = load_runs(milvus, store, [run], alias="other")
    records.update(store, other.name, state="loading")
    load_runs(milvus, store, [run], alias="clvr")
    assert collection.get_generation(milvus, other.name) == other


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_a_load_that_fails_leaves_no_generation(
    milvus: Milvus, store: Store, make_run, interruption: type[BaseException]
) -> None:
    def stop(done: int, total: int) -> None:
        raise interruption

    with pytest.raises(interruption):
        load_runs(milvus, store, [make_run("r1", 20)], alias="clvr", options=LoadOptions(progress=stop))
    assert collection.list_generations(milvus) == []
    assert [record.state for record in records.list_records(store, "clvr")] == ["dropped"]


def test_rows_that_do_not_arrive_are_an_error_with_both_numbers(
    milvus: Milvus, store: Store, make_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Milvus.call

    def lose_rows_on_flush(self: Milvus, method: str, *args: object, **kwargs: object) -> object:
        result = call(self, method, *args, **kwargs)
        if method == "flush":
            call(self, "delete", args[0], filter="captured_at == -1")
        return result

    monkeypatch.setattr(Milvus, "call", lose_rows_on_flush)
    monkeypatch.setattr(waiting, "ROW_COUNT_STALL_SECONDS", 0.5)
    with pytest.raises(CountMismatch, match="36 rows in the index, 40 in the shards"):
        load_runs(milvus, store, [make_run("r1", 40)], alias="clvr")
    assert collection.list_generations(milvus) == []


def test_the_import_interface_depends_on_version_bucket_and_size(milvus: Milvus, make_run) -> None:
    plan = plan_load([make_run("r1", 20)])
    bucket = plan.shards[0].store.uri  # a local folder stands for the server's bucket: nothing is imported
    server = Milvus("http://x", None, capabilities_of("2.3.5", lite=False), 1.0)
    assert choose_target(server, plan, "auto", bucket) == "stream_insert"  # too few rows to be worth it
    assert choose_target(server, plan, "grpc_v1", bucket) == "grpc_v1"
    with pytest.raises(BadSetting, match="own bucket"):
        choose_target(server, plan, "grpc_v1", None)
    for target in ("grpc_v1", "rest_v2"):
        with pytest.raises(IndexRefused, match=target):
            choose_target(milvus, plan, target, bucket)


def test_large_shards_in_the_servers_bucket_are_imported(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "MIN_ROWS_FOR_IMPORT", 10)
    plan = plan_load([make_run("r1", 20)])
    server = Milvus("http://x", None, capabilities_of("2.3.5", lite=False), 1.0)
    assert choose_target(server, plan, "auto", plan.shards[0].store.uri) == "grpc_v1"
    assert choose_target(server, plan, "auto", None) == "stream_insert"
    later = Milvus("http://x", None, capabilities_of("2.6.0", lite=False), 1.0)
    assert choose_target(later, plan, "auto", plan.shards[0].store.uri) == "rest_v2"


def test_local_shards_are_copied_to_a_bucket_only_on_request(
    make_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "MIN_ROWS_FOR_IMPORT", 10)
    server = Milvus("http://x", None, capabilities_of("2.3.5", lite=False), 1.0)
    plan = plan_load([make_run("r1", 20)])
    assert choose_target(server, plan, "auto", "s3://elsewhere") == "stream_insert"
    assert choose_target(server, plan, "grpc_v1", "s3://elsewhere") == "grpc_v1"


def test_a_plan_without_verification_reads_only_the_ids(store: Store, make_run) -> None:
    run = make_run("r1", 30)
    path = Path(store.uri_of(run.shard_keys()[0]))
    table = pq.read_table(path)
    assert plan_load([run], verify=False).rows == table.num_rows == 30


def test_a_repeated_load_returns_what_nobody_has_measured(milvus: Milvus, store: Store, make_run) -> None:
    first, second = make_run("r1", 60), make_run("r2", 40, first=60)
    reuse = LoadOptions(reuse=True)
    built = load_runs(milvus, store, [first], alias="clvr", options=reuse)
    assert load_runs(milvus, store, [first], alias="clvr", options=reuse) == built
    others = [
        load_runs(milvus, store, [first, second], alias="clvr", options=reuse),
        load_runs(milvus, store, [first], alias="other", options=reuse),
        load_runs(milvus, store, [first], alias="clvr"),
    ]
    assert len({built.name, *(other.name for other in others)}) == 4

    # A row is missing: what is left is no generation of these runs.
    newest = others[-1]
    milvus.call("delete", newest.name, filter=f"crop_id == {first.manifest()['crop_id'][0].as_py()}")
    again = load_runs(milvus, store, [first], alias="clvr", options=reuse)
    assert again.name == built.name

    records.update(store, built.name, gate={"passed": False})
    measured = load_runs(milvus, store, [first], alias="clvr", options=reuse)
    assert measured.name not in (built.name, newest.name)
