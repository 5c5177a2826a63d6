"""Generations as collections and records: names, descriptions, the live one, and drops."""

import re
from copy import copy
from dataclasses import replace

import pytest

from index.generations import records
from index.generations.load import load_runs
from index.generations.promotion import promote
from index.milvus import collection, index_types
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.milvus.index_types import IndexSpec, capabilities_of
from index.schema import SHARD_SCHEMA
from infra.errors import BadInput, BadSetting, CorruptObject, IndexRefused, ObjectExists, SchemaMismatch
from infra.store import Store

PRINT = "f00dcafe" * 8


def create_generation(
    milvus: Milvus, store: Store, alias: str = "clvr", fingerprint: str = PRINT
) -> Generation:
    index = index_types.index_spec(milvus.capabilities, "auto", 100)
    generation = records.new_generation(
        milvus, store, alias=alias, fingerprint=fingerprint, run_ids=["r1", "r2"], index=index
    )
    collection.create_collection(milvus, generation)
    return generation


def test_the_name_has_alias_model_and_time(milvus: Milvus, store: Store) -> None:
    assert re.fullmatch(r"clvr_f00dcafe_\d{8}T\d{6}", create_generation(milvus, store).name)


def test_two_generations_of_one_second_have_two_names(milvus: Milvus, store: Store) -> None:
    assert create_generation(milvus, store).name != create_generation(milvus, store).name


def test_a_generation_is_described_by_its_collection(milvus: Milvus, store: Store) -> None:
    generation = create_generation(milvus, store)
    assert collection.list_generations(milvus, "clvr") == [generation]
    assert collection.get_generation(milvus, generation.name) == generation
    assert generation.run_ids == ("r1", "r2")
    assert generation.index == IndexSpec("HNSW", {"M": 16, "efConstruction": 200})


def test_a_collection_has_the_columns_of_a_shard(milvus: Milvus, store: Store) -> None:
    description = milvus.call("describe_collection", create_generation(milvus, store).name)
    assert [field["name"] for field in description["fields"]] == SHARD_SCHEMA.names
    assert not description["auto_id"]
    assert not description["enable_dynamic_field"]


def test_collections_of_other_programs_are_no_generations(milvus: Milvus) -> None:
    milvus.call("create_collection", "theirs", dimension=4)
    assert collection.list_generations(milvus) == []
    with pytest.raises(BadInput, match="theirs is no generation"):
        collection.get_generation(milvus, "theirs")
    with pytest.raises(SchemaMismatch, match="another program"):
        collection.live_generation(milvus, "theirs")


@pytest.mark.parametrize("alias", ["", "9lives", "a b", "a-b", "x" * 129, 'a"'])
def test_an_invalid_alias_is_refused(milvus: Milvus, store: Store, alias: str) -> None:
    with pytest.raises(BadSetting, match="cannot be an alias"):
        create_generation(milvus, store, alias)


@pytest.mark.parametrize("index_type", ["DISKANN", "GPU_CAGRA", "FLAT", "NONSENSE"])
def test_an_index_type_that_the_server_cannot_build_is_refused(milvus: Milvus, index_type: str) -> None:
    with pytest.raises(IndexRefused, match=index_type) as caught:
        index_types.index_spec(milvus.capabilities, index_type, 100)
    assert "HNSW" in caught.value.remedy


def test_the_index_of_a_small_local_file_is_hnsw_and_of_a_large_one_ivf(milvus: Milvus) -> None:
    assert index_types.index_spec(milvus.capabilities, "auto", 19_999).type == "HNSW"
    assert index_types.index_spec(milvus.capabilities, "auto", 20_000) == IndexSpec(
        "IVF_FLAT", {"nlist": 256}
    )


def test_the_index_on_a_server_is_hnsw_up_to_five_million_rows(milvus: Milvus) -> None:
    server = copy(milvus)
    server.capabilities = capabilities_of("2.3.5", lite=False)
    assert index_types.index_spec(server.capabilities, "auto", 5_000_000).type == "HNSW"
    assert index_types.index_spec(server.capabilities, "auto", 5_000_001).type == "IVF_SQ8"


@pytest.mark.parametrize(("rows", "lists"), [(1, 16), (100_000, 256), (1_000_000, 1024), (10**12, 65536)])
def test_the_lists_of_an_ivf_index_grow_with_the_root_of_the_rows(
    milvus: Milvus, rows: int, lists: int
) -> None:
    assert index_types.index_spec(milvus.capabilities, "ivf_flat", rows).params == {"nlist": lists}


def test_no_generation_is_live_at_first(milvus: Milvus) -> None:
    assert collection.live_generation(milvus, "clvr") is None


@pytest.mark.parametrize("indexed", [False, True])
def test_search_without_a_live_generation_names_the_command_to_run(
    milvus: Milvus, store: Store, indexed: bool
) -> None:
    expected = "clvr load"
    if indexed:
        expected = f"clvr promote {create_generation(milvus, store).name}"
    with pytest.raises(BadInput, match="points to nothing") as caught:
        collection.require_live(milvus, "clvr", PRINT)
    assert expected in caught.value.remedy


def test_the_live_and_the_previous_generation_are_dropped_only_by_force(
    milvus: Milvus, store: Store, make_run
) -> None:
    runs = [make_run("r1", 60)]
    first, second, third = (load_runs(milvus, store, runs, alias="clvr") for _ in range(3))
    promote(milvus, store, first.name, force="test")
    promote(milvus, store, second.name, force="test")

    with pytest.raises(BadInput, match="is live as clvr"):
        records.drop(milvus, store, second.name)
    with pytest.raises(BadInput, match="to which a rollback of clvr returns"):
        records.drop(milvus, store, first.name)
    records.drop(milvus, store, third.name)
    records.drop(milvus, store, first.name, force=True)
    assert collection.list_generations(milvus) == [second]
    assert records.previous(milvus, store, "clvr") is None

    records.drop(milvus, store, second.name, force=True)
    assert collection.live_generation(milvus, "clvr") is None
    assert {record.state for record in records.list_records(store, "clvr")} == {"dropped"}


def test_an_alias_is_never_dropped_as_a_generation(milvus: Milvus, store: Store) -> None:
    generation = create_generation(milvus, store)
    milvus.call("create_alias", generation.name, "clvr")
    with pytest.raises(BadInput, match="clvr is no generation"):
        records.drop(milvus, store, "clvr", force=True)
    assert collection.live_generation(milvus, "clvr") == generation


RECORD = records.GenerationRecord(
    name="g", alias="a", fingerprint=PRINT, run_ids=("r",), rows=1, target="t", state="loading", updated="now"
)


def test_a_record_is_read_back_as_it_was_written(store: Store) -> None:
    records.create(store, RECORD)
    assert records.read(store, "g") == RECORD
    changed = records.update(store, "g", state="ready", gate={"recall": 0.99})
    assert changed == records.read(store, "g")
    assert changed == replace(
        RECORD, state="ready", gate={"recall": 0.99}, updated=changed.updated if changed else ""
    )


def test_a_record_is_created_once_and_only_updated_if_it_exists(store: Store) -> None:
    records.create(store, RECORD)
    with pytest.raises(ObjectExists):
        records.create(store, RECORD)
    assert records.read(store, "other") is None
    assert records.update(store, "other", state="ready") is None


@pytest.mark.parametrize("content", [b"[]", b'{"name": "g"}'])
def test_another_record_is_named(store: Store, content: bytes) -> None:
    store.put("generations/g.json", content)
    with pytest.raises(SchemaMismatch, match=r"generations/g\.json is no generation record"):
        records.read(store, "g")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_a_damaged_record_is_named(store: Store, content: bytes) -> None:
    store.put("generations/g.json", content)
    with pytest.raises(CorruptObject, match=r"generations/g\.json is truncated"):
        records.read(store, "g")
