"""Loads that were cut off: taken up where all rows can be proven to be in, and dropped where they cannot."""

from contextlib import suppress

import numpy as np

from index.generations import records
from index.generations.load_plan import LoadPlan
from index.generations.records import GenerationRecord
from index.generations.staging import delete_copies
from index.milvus import collection
from index.milvus.bulk_import import wait_for_orphaned_jobs
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.milvus.index_types import IndexSpec
from index.milvus.rest_import import RestImporter
from infra.errors import CountMismatch, IndexRefused
from infra.store import Store


def resume_load(
    milvus: Milvus, store: Store, plan: LoadPlan, index: IndexSpec, *, alias: str, bucket: str | None
) -> Generation | None:
    """Return the generation of a load of this plan that was cut off after its last row; drop all others.

    It is taken up if it was to hold the same runs under the same index, if every import into it is completed,
    and if Milvus counts as many rows as the plan has. Which rows they are is proven when they can be read:
    see `require_keys`. `bucket`: the server's, in which copies of shards may be left.
    """
    found = None
    cut_off = [entry for entry in records.list_records(store, alias) if entry.state == "loading"]
    for entry in sorted(cut_off, key=lambda one: one.name, reverse=True):
        generation = None if found else _is_resumable(milvus, entry, plan, index)
        if generation is None:
            drop_partial(milvus, store, entry.name)
        found = found or generation
        if bucket is not None:
            delete_copies(plan, entry.name, bucket)
    return found


def verify_primary_keys(milvus: Milvus, generation: Generation, plan: LoadPlan) -> None:
    """Hold every primary key of a loaded generation against the plan. Raises CountMismatch."""
    held, wanted = collection.fetch_ids(milvus, generation.name), plan.crop_ids()
    if not np.array_equal(held, wanted):
        lost = np.setdiff1d(wanted, held).size
        raise CountMismatch(
            f"{generation.name}: {lost:,} crops are missing, {held.size:,} rows stand for {wanted.size:,}",
            remedy="Load again.",
        )


def drop_partial(milvus: Milvus, store: Store, name: str) -> None:
    """Drop what a load left, once nothing is imported into it any more; the ledger remembers it."""
    if name in milvus.call("list_collections"):
        if milvus.capabilities.import_interface == "grpc_v1":
            wait_for_orphaned_jobs(milvus, name)
        milvus.call("drop_collection", name, timeout=collection.DROP_SECONDS)
    records.update(store, name, state="dropped")


def _is_resumable(
    milvus: Milvus, entry: GenerationRecord, plan: LoadPlan, index: IndexSpec
) -> Generation | None:
    same = (entry.run_ids, entry.fingerprint, entry.rows) == (plan.run_ids, plan.fingerprint, plan.rows)
    if not same or entry.name not in milvus.call("list_collections"):
        return None
    generation = collection.get_generation(milvus, entry.name)
    if generation.index != index:
        return None
    with suppress(IndexRefused):
        if _has_rows(milvus, entry):
            counted = int(milvus.call("get_collection_stats", entry.name)["row_count"])
            return generation if counted == plan.rows else None
    return None


def _has_rows(milvus: Milvus, entry: GenerationRecord) -> bool:
    """Whether nothing comes in any more, and nothing that was to come in failed."""
    if entry.target == "grpc_v1":
        wait_for_orphaned_jobs(milvus, entry.name)
        return all(one.state_name == "Completed" for one in milvus.bulk_inserts(entry.name))
    if entry.target == "rest_v2":
        with RestImporter(milvus) as importer:
            return all(state == "Completed" for state in importer.states(entry.name))
    milvus.call("flush", entry.name, timeout=600)
    return True
