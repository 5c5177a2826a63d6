"""Erasure: crops leave every generation, tombstones hide them from every reader, a receipt records it.

    erasures/<erasure_id>/pending.parquet   first: crop_ids and MD5s, only while the erasure is under way
                          hashes.parquet    the tombstones
                          receipt.json      the switch: now the tombstones count; written again at the end

An interrupted erasure is finished by the next erasure and by every load. Several folders of runs may share a
server: an erasure writes tombstones and a receipt into each of them, and refuses to start if it cannot.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.documents import current_user, utc_now
from index.generations import records
from index.generations.receipt import GenerationErasure, Receipt, beyond_reach, read_receipt, receipt_key
from index.generations.records import GenerationRecord
from index.generations.selection import EraseSelection, SelectedCrops, select_crops
from index.generations.units import Members, change_of, select_members, withdraw
from index.lock import ROWS, acquire, boot_time
from index.milvus import collection
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.parquet import open_parquet, write_table
from index.runs import tombstones
from index.runs.run import Run, list_runs
from index.runs.shards import read_shards
from infra.errors import (
    BadInput,
    BadSetting,
    ClvrError,
    CorruptObject,
    CountMismatch,
    ObjectExists,
    ObjectMissing,
)
from infra.store import Store, TimeRange, ignore_missing_root, open_store

Ids = NDArray[np.int64]
_PENDING_SCHEMA = pa.schema([("crop_id", pa.int64()), ("md5", pa.binary())])
_LOST_REMEDY = "Restore the folder from a backup: without its tombstones erased crops come back."


def forget(
    milvus: Milvus,
    store: Store,
    selection: EraseSelection,
    *,
    reason: str,
    dry_run: bool,
    purge: bool = False,
    wait: float = 0.0,
    times: TimeRange | None = None,
) -> Receipt:
    """Erase the selected crops from all generations on the server, and hide them from every reader.

    store: a folder of runs; those of other generations on the server are erased too. With `dry_run` the
    receipt tells what would be erased. With `purge` its state at the end is 'purging': see
    `index.generations.purge`. wait: how long to wait for other operations that change rows, in s. times: the
    plausible capture times: an erasure by time is refused if a crop that it could match has another one.
    Raises BadSetting for an empty reason or selection, BadInput for a generation whose folder of runs cannot
    be opened, Locked if another operation changes rows, CountMismatch if matching rows remain.
    """
    if not reason.strip():
        raise BadSetting("an erasure needs a reason", remedy="Give --reason; the receipt records it.")
    selection.require_criteria()
    if dry_run:
        return _plan_erasure(milvus, folders_of(milvus, store), selection, reason, purge, times)[0]
    with lock_folders(milvus, store, wait=wait) as stores:
        held = {folder.uri for folder in stores}
        for folder in stores:
            resume_erasures(milvus, folder, held=held)
        draft, selected = _plan_erasure(milvus, stores, selection, reason, purge, times)
        if not selected.crop_ids.size:
            return replace(draft, state="nothing matches")
        receipt = replace(draft, erasure_id=tombstones.new_erasure_id(), state="begun")
        _begin(store, receipt, selected)
        return _finish(milvus, store, receipt.erasure_id, held)


def resume_erasures(milvus: Milvus, store: Store, *, held: Collection[str] = ()) -> list[Receipt]:
    """Finish interrupted erasures; return their receipts. The caller holds the lock on rows of `store`.

    An erasure without a receipt deleted nothing, and is dropped. held: URIs of further folders of runs whose
    locks the caller holds. Raises CorruptObject if an erasure that a generation's record names is gone,
    Locked if an erasure reaches another folder whose rows are being changed.
    """
    names = tombstones.erasure_ids(store)
    require_recorded(store, names)
    states = {name: read_receipt(store, name).state for name in names}
    _drop_leftovers(store, states)
    tombstones.seal_old_tombstones(store, [name for name in names if states[name] != "begun"])
    return [_finish(milvus, store, name, held) for name in names if states[name] == "begun"]


def folders_of(milvus: Milvus, store: Store) -> list[Store]:
    """Return the folders of runs of all generations on the server, with `store` first.

    Raises BadInput for a generation whose folder is unknown or cannot be opened: its record and its
    tombstones would not follow an erasure.
    """
    folders = {store.uri: store}
    for generation in collection.list_generations(milvus):
        if records.read(store, generation.name) is None:
            other = _other_folder(store, generation)
            folders[other.uri] = other
    return list(folders.values())


@contextmanager
def lock_folders(milvus: Milvus, store: Store, *, wait: float = 0.0) -> Iterator[list[Store]]:
    """Hold the lock on rows of every folder of runs on the server; yield the folders, with `store` first.

    wait: how long to wait for all of them together, in s.
    """
    folders = folders_of(milvus, store)
    deadline = boot_time() + wait
    with ExitStack() as locks:
        # In one order everywhere, so that two erasures never wait in a ring.
        for folder in sorted(folders, key=lambda folder: folder.uri):
            locks.enter_context(acquire(folder, ROWS, "an erasure", wait=deadline - boot_time()))
        yield folders


def begin_purge(milvus: Milvus, store: Store, reason: str, folders: Sequence[str]) -> None:
    """Write the receipt of a purge that erases no further crop. The caller holds the lock on rows."""
    receipt = Receipt(
        erasure_id=tombstones.new_erasure_id(),
        state="purging",
        wanted={},
        reason=reason,
        by=current_user(),
        begun=utc_now(),
        crops=0,
        unknown_time=0,
        runs={},
        generations=(),
        purge=True,
        folders=tuple(folders),
        by_design=beyond_reach(
            [store], {run.info.archive for run in list_runs(store)}, server=not milvus.capabilities.lite
        ),
    )
    tombstones.write_tombstones(store, receipt.erasure_id, np.empty(0, np.int64), [])
    store.create(receipt_key(receipt.erasure_id), receipt.to_json())


def rows_by_run(runs: Sequence[Run], selected: SelectedCrops) -> dict[str, int]:
    """Count the embedded rows of selected crops in each finished run that has any.

    Reads the crop_ids of the shards of the parts that have them, and no other shard.
    """
    counts: dict[str, int] = {}
    for run in runs:
        numbers = run.info.shards_of(selected.parts_of(run))
        if not numbers or not run.finished:
            continue
        shards = [run.folder.absolute(run.summary.shards[number]) for number in numbers]
        batches = read_shards(run.store, [shard.key for shard in shards if shard.rows], columns=["crop_id"])
        rows = sum(
            int(np.isin(batch.column("crop_id").to_numpy(), selected.crop_ids).sum()) for batch in batches
        )
        if rows:
            counts[run.run_id] = rows
    return counts


def _other_folder(store: Store, generation: Generation) -> Store:
    remedy = "Erase with the folder of its runs (CLVR_RUNS), or drop it: `clvr retire --alias NAME`."
    if not generation.folder:
        raise BadInput(f"{generation.name} is on this server, but no folder of runs knows it", remedy=remedy)
    with suppress(ClvrError):
        other = open_store(generation.folder, None if store.local else store.settings)
        if records.read(other, generation.name) is not None:
            return other
    raise BadInput(
        f"{generation.name} is on this server, and its folder of runs {generation.folder} cannot be read",
        remedy=remedy,
    )


def _plan_erasure(
    milvus: Milvus,
    stores: Sequence[Store],
    selection: EraseSelection,
    reason: str,
    purge: bool,
    times: TimeRange | None,
) -> tuple[Receipt, SelectedCrops]:
    runs = [run for folder in stores for run in list_runs(folder)]
    selected = select_crops(runs, selection, times)
    generations = list(_loaded_generations(milvus, stores))
    if expression := selection.expression():
        # Rows of runs that were deleted are in no manifest, but must be erased too.
        for folder, generation, record in generations:
            selected.add(collection.fetch_ids(milvus, generation.name, expression))
            if record.units:
                selected.add(select_members(folder, record.units, selection))
    crop_ids = selected.crop_ids
    receipt = Receipt(
        erasure_id="",
        state="dry run",
        wanted=selection.document(),
        reason=reason,
        by=current_user(),
        begun=utc_now(),
        crops=int(crop_ids.size),
        unknown_time=selected.unknown_time,
        runs=rows_by_run(runs, selected),
        generations=tuple(
            _count_before(milvus, folder, generation, record, crop_ids)
            for folder, generation, record in generations
        ),
        copies=selected.copies,
        unread=selected.contents().count(None) if selection.names_crops else 0,
        purge=purge,
        folders=tuple(folder.uri for folder in stores),
        by_design=beyond_reach(
            stores, {run.info.archive for run in runs}, server=not milvus.capabilities.lite
        ),
    )
    return receipt, selected


def _loaded_generations(
    milvus: Milvus, stores: Sequence[Store]
) -> Iterator[tuple[Store, Generation, GenerationRecord]]:
    """Load and yield all generations but those of interrupted loads, which the next load drops."""
    for generation in collection.list_generations(milvus):
        for folder in stores:
            record = records.read(folder, generation.name)
            if record is not None:
                if record.state != "loading":
                    collection.ensure_loaded(milvus, generation)
                    yield folder, generation, record
                break


def _rows_with(store: Store, record: GenerationRecord | None, crop_ids: Ids) -> Ids:
    """Return the primary keys (m,) of the rows in which some crops (n,) have a share, if they are there."""
    if record is None or not record.units:
        return crop_ids
    return np.union1d(crop_ids, Members(store, record.units).rows_of(crop_ids))


def _count_before(
    milvus: Milvus, folder: Store, generation: Generation, record: GenerationRecord, crop_ids: Ids
) -> GenerationErasure:
    current = collection.live_generation(milvus, generation.alias)
    rows = _rows_with(folder, record, crop_ids)
    counts: dict[str, Any] = {}
    if record.units:
        rows = collection.present_ids(milvus, generation.name, rows)
        change = change_of(folder, record.units, rows, crop_ids)
        counts = {"unit": record.unit, "crops": change.crops, "withdrawn": change.withdrawn}
    return GenerationErasure(
        generation=generation.name,
        alias=generation.alias,
        live=current is not None and current.name == generation.name,
        rows_before=collection.row_count(milvus, generation),
        matching=collection.count_of(milvus, generation.name, rows),
        folder=folder.uri,
        **counts,
    )


def _begin(store: Store, receipt: Receipt, selected: SelectedCrops) -> None:
    contents = selected.contents()
    pending = pa.table([pa.array(selected.crop_ids), pa.array(contents, pa.binary())], schema=_PENDING_SCHEMA)
    write_table(
        store, _pending_key(receipt.erasure_id), pending, metadata={"clvr.erasure": receipt.erasure_id}
    )
    tombstones.write_tombstones(store, receipt.erasure_id, selected.crop_ids, contents)
    for planned in receipt.generations:
        record = records.read(store, planned.generation) if planned.unit == "track" else None
        if record is not None and record.state != "dropped":
            row_ids = np.setdiff1d(_rows_with(store, record, selected.crop_ids), selected.crop_ids)
            withdraw(store, record.units, receipt.erasure_id, row_ids)
    store.create(receipt_key(receipt.erasure_id), receipt.to_json())


def _finish(milvus: Milvus, store: Store, erasure_id: str, held: Collection[str]) -> Receipt:
    """Finish an erasure that has begun in `store`, in all folders of runs that it reaches."""
    receipt, selected = read_receipt(store, erasure_id), _read_pending(store, erasure_id)
    settings = None if store.local else store.settings
    others = [open_store(uri, settings) for uri in receipt.folders if uri != store.uri]
    with ExitStack() as locks:
        for other in others:
            if other.uri not in held:
                locks.enter_context(acquire(other, ROWS, "an erasure"))
        # Every folder has its tombstones before any row goes; the folder that began is done last.
        for other in others:
            with suppress(ObjectExists):
                _begin(other, receipt, selected)
        for other in others:
            if read_receipt(other, erasure_id).state == "begun":
                _finish_folder(milvus, other, receipt, selected.crop_ids)
        return _finish_folder(milvus, store, receipt, selected.crop_ids)


def _finish_folder(milvus: Milvus, store: Store, receipt: Receipt, crop_ids: Ids) -> Receipt:
    erasure_id = receipt.erasure_id
    erased = tuple(_erase(milvus, store, erasure_id, planned, crop_ids) for planned in receipt.generations)
    finished = replace(
        receipt,
        state="purging" if receipt.purge else "done",
        generations=erased,
        tombstones=store.uri_of(f"erasures/{erasure_id}"),
        finished=utc_now(),
    )
    incomplete = [generation for generation in erased if generation.left]
    if incomplete:
        raise CountMismatch(
            f"{incomplete[0].left:,} rows that match are still in {incomplete[0].generation}",
            remedy="Run the same command again; the tombstones are already written.",
        )
    store.put(receipt_key(erasure_id), finished.to_json())
    store.delete(_pending_key(erasure_id))
    tombstones.seal_old_tombstones(store, [erasure_id])
    return finished


def _erase(
    milvus: Milvus, store: Store, erasure_id: str, planned: GenerationErasure, crop_ids: Ids
) -> GenerationErasure:
    name = planned.generation
    if not milvus.call("has_collection", name):
        return replace(planned, rows_after=0, left=0)
    generation = collection.get_generation(milvus, name)
    collection.ensure_loaded(milvus, generation)
    record = records.read(store, name)
    # A row of a track goes with the first crop that is erased of it. The next load makes it of the others.
    row_ids = _rows_with(store, record, crop_ids)
    collection.delete(milvus, name, row_ids)
    with suppress(ClvrError):
        # Milvus frees the bytes when it rewrites its segments: now by this request, otherwise later.
        milvus.call("compact", name, timeout=60)
    erased = replace(
        planned,
        rows_after=collection.row_count(milvus, generation),
        left=collection.count_of(milvus, name, row_ids),
    )
    if record and erasure_id not in {change.get("erasure_id") for change in record.changes}:
        # Subtract the erased rows instead of counting again: rows lost otherwise must still be noticed.
        rows_after = record.rows - planned.matching
        change = {
            "at": utc_now(),
            "kind": "erasure",
            "erasure_id": erasure_id,
            "rows_before": record.rows,
            "rows_after": rows_after,
        }
        crops = None
        if record.crops is not None:
            crops = record.crops - (planned.crops or 0) - planned.withdrawn
            change |= {"crops_before": record.crops, "crops_after": crops, "withdrawn": planned.withdrawn}
        # The rows matching may be those of an interrupted increment: it counts again.
        changes = (*record.changes, change)
        records.update(store, name, rows=rows_after, changes=changes, pending_rows=None, crops=crops)
    return erased


def _read_pending(store: Store, erasure_id: str) -> SelectedCrops:
    # The second key is that of release 0.1.
    for key in (_pending_key(erasure_id), f"erasures/{erasure_id}/crops.parquet"):
        with suppress(ObjectMissing), open_parquet(store, key) as file:
            table = file.read()
            crop_ids = table["crop_id"].to_pylist()
            md5s = table["md5"].to_pylist() if "md5" in table.schema.names else []
            known = {crop_id: md5 for crop_id, md5 in zip(crop_ids, md5s, strict=False) if md5 is not None}
            return SelectedCrops(np.asarray(table["crop_id"]), known)
    raise CorruptObject(
        f"erasure {erasure_id} was interrupted, and its list of crops is gone",
        remedy="Erase the same crops again.",
    )


def _drop_leftovers(store: Store, states: Mapping[str, str]) -> None:
    """Delete what erasures that never began left, and the lists of crops of those that have ended."""
    keys: list[str] = []
    with ignore_missing_root(store):
        keys = [info.key for info in store.list("erasures") if info.key.count("/") == 2]
    for key in keys:
        name = key.split("/")[1]
        state = states.get(name)
        if state is None or (state != "begun" and key == _pending_key(name)):
            store.delete(key)


def require_recorded(store: Store, names: Sequence[str]) -> None:
    """Raise CorruptObject if the record of a generation names an erasure that is gone."""
    for record in records.list_records(store):
        for change in record.changes:
            if change.get("kind") == "erasure" and change["erasure_id"] not in names:
                raise CorruptObject(
                    f"{record.name} was changed by erasure {change['erasure_id']}, and "
                    f"{store.uri_of('erasures')} has no receipt of it",
                    remedy=_LOST_REMEDY,
                )


def _pending_key(erasure_id: str) -> str:
    return f"erasures/{erasure_id}/pending.parquet"
