"""Copies of generations: how the bytes of deleted rows leave Milvus Lite, which never rewrites its files."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pyarrow as pa

from index.documents import utc_now
from index.generations import records
from index.generations.records import GenerationRecord
from index.generations.resume import drop_partial
from index.lock import acquire, alias_lock
from index.milvus import collection
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.milvus.waiting import wait_for_index, wait_for_row_count
from index.schema import SHARD_SCHEMAS
from infra.errors import CountMismatch
from infra.store import Store


def replace_by_copy(milvus: Milvus, store: Store, generation: Generation) -> Generation:
    """Copy the rows of a generation into a new one, which takes its place in every respect; drop the old one.

    The caller holds the lock on rows. A repeat after a kill continues: a whole copy is used, a part of one is
    dropped. Memory for one batch and the ids. Raises CountMismatch if a row did not arrive, Locked if another
    operation moves the alias.
    """
    with ExitStack() as locks:
        locks.enter_context(acquire(store, alias_lock(generation.alias), f"a copy of {generation.name}"))
        copied = _whole_copy(milvus, store, generation) or _copy(milvus, store, generation)
        for record in list(records.list_records(store, generation.alias)):
            _rename_previous(store, record, generation.name, copied.name)
        for alias in list(milvus.call("list_aliases", generation.name)["aliases"]):
            milvus.call("alter_alias", copied.name, alias)
        records.drop(milvus, store, generation.name, force=True)
    return copied


def _rename_previous(store: Store, record: GenerationRecord, old: str, new: str) -> None:
    """Let a rollback that would return to the old generation return to its copy."""
    moves = tuple(
        {**move, "replaced": new} if move.get("replaced") == old else move for move in record.promotions
    )
    previous = new if record.previous == old else record.previous
    if (previous, moves) != (record.previous, record.promotions):
        records.update(store, record.name, previous=previous, promotions=moves)


def _whole_copy(milvus: Milvus, store: Store, generation: Generation) -> Generation | None:
    """Return the finished copy that an interrupted attempt made; drop unfinished ones."""
    for record in list(records.list_records(store, generation.alias)):
        if record.changes and record.changes[0].get("kind") == records.COPY and record.state != "dropped":
            if record.changes[0]["of"] != generation.name:
                continue
            if record.state == "ready" and milvus.call("has_collection", record.name):
                return collection.get_generation(milvus, record.name)
            drop_partial(milvus, store, record.name)
    return None


def _copy(milvus: Milvus, store: Store, generation: Generation) -> Generation:
    old = records.read(store, generation.name)
    assert old is not None  # noqa: S101  only generations of this folder are copied
    target = records.new_generation(
        milvus,
        store,
        alias=generation.alias,
        fingerprint=generation.fingerprint,
        run_ids=generation.run_ids,
        index=generation.index,
        schema_version=generation.schema_version,
        transform=generation.transform,
        dimension=generation.dimension,
    )
    change = {"at": utc_now(), "kind": records.COPY, "of": generation.name, "changes": len(old.changes)}
    copied: GenerationRecord = replace(
        old, name=target.name, state="loading", changes=(change, *old.changes), updated=utc_now()
    )
    records.create(store, copied)
    collection.create_collection(milvus, target)
    collection.ensure_loaded(milvus, generation)
    crop_ids = collection.fetch_ids(milvus, generation.name)
    batches = _batches(milvus, generation, crop_ids)
    for _ in collection.insert_rows(milvus, "insert", target, batches):
        pass
    milvus.call("flush", target.name, timeout=600)
    collection.create_index(milvus, target)
    wait_for_index(milvus, target)
    collection.ensure_loaded(milvus, target)
    wait_for_row_count(milvus, target, len(crop_ids))
    if not np.array_equal(collection.fetch_ids(milvus, target.name), crop_ids):
        raise CountMismatch(
            f"{target.name} does not have the rows of {generation.name}", remedy="Run the same command again."
        )
    records.update(store, target.name, state="ready")
    return target


def _batches(milvus: Milvus, generation: Generation, crop_ids: np.ndarray) -> Iterator[pa.RecordBatch]:
    name, schema = generation.name, SHARD_SCHEMAS[generation.schema_version]
    for first in range(0, len(crop_ids), collection.INSERT_ROWS):
        ids = crop_ids[first : first + collection.INSERT_ROWS].tolist()
        rows = list(collection.fetch_rows(milvus, name, ids, schema.names))
        if len(rows) != len(ids):
            raise CountMismatch(f"{name} gave {len(rows):,} of {len(ids):,} rows")
        columns = {field.name: pa.array([row[field.name] for row in rows], field.type) for field in schema}
        yield pa.record_batch(columns, schema=schema)
