"""Interrupted loads: resumed if all rows are verifiably in Milvus, dropped otherwise."""

from contextlib import suppress

from index.generations import records
from index.generations.keys import compare_keys
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

    A load is resumed if it has the same runs, transform, rows of tracks and index, if all its imports are
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


def find_equal(
    milvus: Milvus, store: Store, plan: LoadPlan, index: IndexSpec, *, alias: str
) -> Generation | None:
    """Return a finished generation of the same plan that was not measured or promoted; None without one.

    A load that is killed after its last write, and repeated, then builds no second generation. One that the
    gate has measured may be wrong, and is built anew. Every primary key is compared with the plan.
    """
    live = collection.live_generation(milvus, alias)
    for record in sorted(records.list_records(store, alias), key=lambda record: record.name, reverse=True):
        is_untouched = not (record.gate or record.promotions or record.changes or record.pending)
        if record.state != "ready" or not is_untouched or (live and live.name == record.name):
            continue
        generation = _same_generation(milvus, record, plan, index)
        if generation is not None:
            with suppress(CountMismatch, IndexRefused):
                collection.ensure_loaded(milvus, generation)
                verify_primary_keys(milvus, generation, plan)
                return generation
    return None


def verify_primary_keys(milvus: Milvus, generation: Generation, plan: LoadPlan) -> None:
    """Compare every primary key of a loaded generation with the plan. Raises CountMismatch."""
    found = compare_keys(milvus, generation.name, plan)
    if found.any:
        raise CountMismatch(
            f"{generation.name}: {found.missing_count:,} crops are missing; {found.indexed:,} rows "
            f"instead of {plan.rows:,}",
            remedy="Load again: `clvr load`.",
        )


def drop_partial(milvus: Milvus, store: Store, name: str) -> None:
    """Drop the generation of an interrupted load after its imports have ended; its record stays."""
    if name in milvus.call("list_collections"):
        if milvus.capabilities.import_interface == "grpc_v1":
            wait_for_orphaned_jobs(milvus, name)
        milvus.call("drop_collection", name, timeout=collection.DROP_TIMEOUT_SECONDS)
    records.update(store, name, state="dropped")


def _same_generation(
    milvus: Milvus, record: GenerationRecord, plan: LoadPlan, index: IndexSpec
) -> Generation | None:
    """Return the collection of a record if it is of the same plan and has the same index."""
    is_same = (record.run_ids, record.fingerprint, record.rows, record.transform, record.units) == (
        plan.run_ids,
        plan.fingerprint,
        plan.rows,
        plan.transform_id,
        plan.units_id,
    )
    if not is_same or record.name not in milvus.call("list_collections"):
        return None
    generation = collection.get_generation(milvus, record.name)
    return generation if generation.index == index else None


def _resumable_generation(
    milvus: Milvus, record: GenerationRecord, plan: LoadPlan, index: IndexSpec
) -> Generation | None:
    generation = _same_generation(milvus, record, plan, index)
    if generation is None:
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
