"""Interrupted loads: resumed if all rows are verifiably in Milvus, dropped otherwise."""

from contextlib import suppress

import numpy as np

from index.generations import records
from index.generations.load_plan import LoadPlan
from index.generations.records import GenerationRecord
from index.generations.staging import delete_copies
from index.milvus import collection
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.milvus.index_types import IndexSpec
from index.milvus.rest_import import RestImporter
from index.milvus.waiting import wait_for_orphaned_jobs
from infra.errors import CountMismatch, IndexRefused
from infra.store import Store


def resume_load(
    milvus: Milvus, store: Store, plan: LoadPlan, index: IndexSpec, *, alias: str, bucket: str | None
) -> Generation | None:
    """Return the generation of an interrupted load of the same plan that has all rows; drop all others.

    Drops that were cut off are completed first.

    A load is resumed if it has the same runs, the same transform and the same index, if all its imports are
    completed, and if Milvus counts as many rows as the plan. Which rows these are is verified once they can
    be read: see `verify_primary_keys`. bucket: that of the server, which may have copies of shards.
    """
    records.finish_drops(milvus, store, alias)
    resumable = None
    interrupted = [record for record in records.list_records(store, alias) if record.state == "loading"]
    for record in sorted(interrupted, key=lambda record: record.name, reverse=True):
        generation = None if resumable else _resumable_generation(milvus, record, plan, index)
        if generation is None:
            drop_partial(milvus, store, record.name)
        resumable = resumable or generation
        if bucket is not None:
            delete_copies(plan, record.name, bucket)
    return resumable


def verify_primary_keys(milvus: Milvus, generation: Generation, plan: LoadPlan) -> None:
    """Compare every primary key of a loaded generation with the plan. Raises CountMismatch."""
    indexed, expected = collection.fetch_ids(milvus, generation.name), plan.crop_ids()
    if not np.array_equal(indexed, expected):
        missing = np.setdiff1d(expected, indexed).size
        raise CountMismatch(
            f"{generation.name}: {missing:,} crops are missing; {indexed.size:,} rows instead of "
            f"{expected.size:,}",
            remedy="Load again: `clvr load`.",
        )


def drop_partial(milvus: Milvus, store: Store, name: str) -> None:
    """Drop the generation of an interrupted load after its imports have ended; its record stays."""
    if name in milvus.call("list_collections"):
        if milvus.capabilities.import_interface == "grpc_v1":
            wait_for_orphaned_jobs(milvus, name)
        milvus.call("drop_collection", name, timeout=collection.DROP_TIMEOUT_SECONDS)
    records.update(store, name, state="dropped")


def _resumable_generation(
    milvus: Milvus, record: GenerationRecord, plan: LoadPlan, index: IndexSpec
) -> Generation | None:
    is_same = (record.run_ids, record.fingerprint, record.rows, record.transform) == (
        plan.run_ids,
        plan.fingerprint,
        plan.rows,
        plan.transform_id,
    )
    if not is_same or record.name not in milvus.call("list_collections"):
        return None
    generation = collection.get_generation(milvus, record.name)
    if generation.index != index:
        return None
    with suppress(IndexRefused):
        if _is_filled(milvus, record):
            rows = int(milvus.call("get_collection_stats", record.name)["row_count"])
            return generation if rows == plan.rows else None
    return None


def _is_filled(milvus: Milvus, record: GenerationRecord) -> bool:
    """Return whether all imports into the generation have ended, and none failed."""
    if record.target == "grpc_v1":
        wait_for_orphaned_jobs(milvus, record.name)
        return all(task.state_name == "Completed" for task in milvus.bulk_inserts(record.name))
    if record.target == "rest_v2":
        with RestImporter(milvus) as importer:
            return all(state == "Completed" for state in importer.states(record.name))
    milvus.call("flush", record.name, timeout=600)
    return True
