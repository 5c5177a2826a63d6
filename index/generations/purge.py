"""Purge: the bytes of erased crops leave runs, documents and Milvus. `erasure` hides them first.

Every run is written again under the rules of `index.runs.purge`; every document of the folder that names an
erased crop is replaced by one that does not; every generation whose rows were deleted is compacted by a
server, or copied in Milvus Lite. Each step may be repeated: the same command ends a purge that was cut off.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from index.archive.stored_listing import delete_listings
from index.catalogue.catalogue import purge_catalogues
from index.documents import current_user, utc_now
from index.generations import records
from index.generations.copy import replace_by_copy
from index.generations.erasure import begin_purge, lock_folders, resume_erasures
from index.generations.merge import remove_merged
from index.generations.receipt import Place, Receipt, read_receipt, receipt_key
from index.generations.traces import erased_tokens, redact
from index.generations.units import FOLDER, plan_units, purge_units, remove_unreferenced
from index.milvus import collection
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.milvus.waiting import compact
from index.runs import tombstones
from index.runs.purge import PurgedRun, purge_run
from index.runs.run import list_runs
from index.runs.tombstones import ErasedCrops, read_tombstones
from infra.errors import CorruptObject, CountMismatch, ObjectChanged
from infra.store import ObjectInfo, Store
from infra.store.interrupted import remove_interrupted_writes
from infra.store.sealed import seal, unseal

SETTLE_SECONDS = 8.0
"""After a compaction, until the server answers from the new segments."""

_MAX_COMPACTIONS = 5

OtherPlaces = Callable[[Sequence[Store], ErasedCrops], list[Place]]
"""Purges what commands wrote elsewhere: sweeps, pages, evaluations, trainings."""


def purge(
    milvus: Milvus, store: Store, other_places: OtherPlaces, *, reason: str = "", wait: float = 0.0
) -> Receipt:
    """Remove the bytes of all crops that were ever erased; return the receipt of the last erasure.

    Without an erasure that waits for its purge, a receipt of the purge itself is written. Linear in the rows
    of all runs, and of the generations whose rows were deleted.
    Raises Locked if another operation changes rows, and the errors of `purge_run` and `replace_by_copy`.
    """
    with lock_folders(milvus, store, wait=wait) as stores:
        held = {folder.uri for folder in stores}
        for folder in stores:
            resume_erasures(milvus, folder, held=held)
        erased = read_tombstones(*stores)
        if not _waiting(store):
            begin_purge(
                milvus, store, reason or "purge of all erased crops", [folder.uri for folder in stores]
            )
        places = [place for folder in stores for place in _purge_folder(milvus, folder, erased)]
        places += other_places(stores, erased)
        receipts = [_finish(folder, name, places) for folder in reversed(stores) for name in _waiting(folder)]
        return receipts[-1]


def _waiting(store: Store) -> list[str]:
    return [name for name in tombstones.erasure_ids(store) if read_receipt(store, name).state == "purging"]


def _finish(store: Store, name: str, places: Sequence[Place]) -> Receipt:
    receipt = replace(read_receipt(store, name), state="done", places=tuple(places), finished=utc_now())
    store.put(receipt_key(name), receipt.to_json())
    return receipt


def _purge_folder(milvus: Milvus, store: Store, erased: ErasedCrops) -> Iterator[Place]:
    remove_merged(store)
    for run in list_runs(store):
        yield _place_of(store, purge_run(run, erased))
    for units_id, rows in purge_units(store, erased):
        note = "rows of tracks with a share of an erased crop" if rows else ""
        yield Place("tracks", store.uri_of(f"{FOLDER}/{units_id}"), rows, rows, note)
    if removed := purge_catalogues(store, erased):
        yield Place("catalogue", store.uri_of("catalogue"), removed, removed, "rows removed")
    delete_listings(store)
    for info in list(store.list()):
        if is_document(info.key) and (place := _purge_document(store, info, erased)):
            yield place
    for name in records.finish_drops(milvus, store):
        yield Place("generation", name, 0, 0, "its drop, which was cut off, was completed")
    compacted = []
    for generation in collection.list_generations(milvus):
        record = records.read(store, generation.name)
        if record is not None and record.state == "ready":
            place, is_compacted = _purge_generation(milvus, store, generation, record, erased)
            yield place
            compacted += [generation] if is_compacted else []
    remove_unreferenced(store)
    _keep_deleted(milvus, store, compacted, erased)
    if removed := remove_interrupted_writes(store):
        yield Place("folder", store.uri, removed, removed, "files of interrupted writes deleted")


def _place_of(store: Store, purged: PurgedRun) -> Place:
    parts = (
        f"manifest {purged.manifest:,}, shards {purged.shards:,}, quarantine {purged.quarantine:,}, "
        f"vanished {purged.vanished:,} rows" + (f"; {purged.parts:,} parts dropped" if purged.parts else "")
    )
    return Place("run", store.uri_of(f"runs/{purged.run_id}"), purged.rows, purged.rows, parts)


def _purge_generation(
    milvus: Milvus,
    store: Store,
    generation: Generation,
    record: records.GenerationRecord,
    erased: ErasedCrops,
) -> tuple[Place, bool]:
    """Make a generation physically free of deleted rows; return the place, and whether a server compacted."""
    kinds = [change.get("kind") for change in record.changes]
    since = len(kinds) - 1 - kinds[::-1].index("purge") if "purge" in kinds else -1
    deleted = [
        change for change in record.changes[since + 1 :] if change.get("kind") in ("erasure", "increment")
    ]
    rows = sum(max(0, change["rows_before"] - change["rows_after"]) for change in deleted)
    collection.ensure_loaded(milvus, generation)
    # Asked of the rows and not of the record: see _keep_deleted.
    rows += _delete_erased(milvus, store, generation, erased)
    if not deleted and not rows:
        note = "no row was deleted since it was built or purged"
        return Place("generation", generation.name, 0, 0, note), False
    is_server = not milvus.capabilities.lite
    name, note = generation.name, "compacted; the server deletes the old segments at its garbage collection"
    if is_server:
        compact(milvus, generation)
    else:
        name = replace_by_copy(milvus, store, generation).name
        note = f"copied to {name}"
    current = records.read(store, name)
    assert current is not None  # noqa: S101  it has just been read or made
    change = {"at": utc_now(), "kind": "purge", "by": current_user()}
    records.update(store, name, changes=(*current.changes, change))
    return Place("generation", generation.name, rows, rows, note), is_server


def _delete_erased(milvus: Milvus, store: Store, generation: Generation, erased: ErasedCrops) -> int:
    """Delete the rows of erased crops that are in a generation; return how many there were.

    In a generation of tracks they are those that its stored rows do not have any more.
    """
    crop_ids = collection.fetch_ids(milvus, generation.name)
    mask = erased.is_erased(crop_ids)
    record = records.read(store, generation.name)
    if record is not None and record.units:
        mask |= ~np.isin(crop_ids, plan_units(store, record.units).crop_ids())
    crop_ids = crop_ids[mask]
    if crop_ids.size:
        collection.delete(milvus, generation.name, crop_ids)
    return int(crop_ids.size)


def _keep_deleted(
    milvus: Milvus, store: Store, generations: Sequence[Generation], erased: ErasedCrops
) -> None:
    """Look again for deleted rows after a compaction, and delete those that came back.

    Milvus 2.3.5 may lose deletions when it compacts: once in 30 purges on a loaded machine, the ten deleted
    rows of a generation were back within six seconds. Raises CountMismatch if rows come back every time.
    """
    for _ in range(_MAX_COMPACTIONS):
        if not generations:
            return
        time.sleep(SETTLE_SECONDS)
        generations = [one for one in generations if _delete_erased(milvus, store, one, erased)]
        for generation in generations:
            compact(milvus, generation)
    raise CountMismatch(
        f"deleted rows of {generations[0].name} come back after each compaction",
        remedy="Load its runs again (`clvr load`), promote that, and retire this one.",
    )


def is_document(key: str) -> bool:
    """Return whether an object is a document or a page by itself, and no part of a run or the like."""
    tables = ("runs", "catalogue", "listings", "erasures", "locks", FOLDER)
    return key.partition("/")[0] not in tables and key.endswith((".json", ".html"))


def _purge_document(store: Store, info: ObjectInfo, erased: ErasedCrops) -> Place | None:
    body = store.fetch(info.key)
    text = body.data.decode(errors="replace")
    if not erased_tokens(text, erased):
        return None
    where = store.uri_of(info.key)
    if info.key.endswith(".html"):
        store.delete(info.key)
        return Place("page", where, 1, 1, "deleted")
    values, count = redact(unseal(body.data, where), erased)
    try:
        store.replace(info.key, seal(values), etag=body.etag)
    except ObjectChanged as changed:
        raise CorruptObject(
            f"{where} changed during a purge", remedy="Run the same command again."
        ) from changed
    return Place("document", where, count, count, "names replaced")
