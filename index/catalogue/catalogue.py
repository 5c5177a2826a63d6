"""Catalogues: read, made from the runs of a folder, carried on from run to run, and purged.

New files of partitions come first, under names of their contents; then the one switch, a sealed document with
the digest of every file; then files that no document names go. A kill at any point leaves the catalogue as it
was or as it shall be, and whoever needs it next makes what is missing: a catalogue follows from the runs, so
losing it costs time and nothing else.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index.archive.partitions import bits_for
from index.archive.reassigned import drop_reassigned, read_reassigned
from index.archive.spool import Spool
from index.catalogue.partition import (
    ADDED_SCHEMA,
    VANISHED,
    KnownPartitions,
    merge_partition,
    partition_ids,
    read_partition,
    write_partition,
)
from index.catalogue.records import EMBEDDED, FOLDER, QUARANTINED, Catalogue, Partition, catalogue_key
from index.catalogue.taken import TakenIds, without_erased
from index.documents import utc_now
from index.lock import acquire
from index.parquet import StoredFile
from index.runs.accounting import ERASED_URI, crop_ids
from index.runs.lineage import ancestors
from index.runs.run import Run, vanished_uris
from index.runs.tombstones import ErasedCrops, erasure_ids, read_tombstones
from index.schema import UNKNOWN
from infra.errors import ObjectMissing
from infra.store import ScratchFolder, Store, ignore_missing_root, open_store

LOCK = "catalogue"
WAIT_SECONDS = 600.0
"""How long to wait for another process that changes a catalogue of the same folder of runs."""

_MANIFEST_COLUMNS = ["crop_id", "uri", "etag", "size"]


def open_catalogue(store: Store, run_id: str, *, keep: bool = True) -> KnownPartitions:
    """Open the catalogue of a finished run; where it is missing, make it from the runs.

    Made is what is missing since the last run of the chain that has one, so the first incremental run after
    an upgrade makes all of it. keep: write it; without, it is made in a temporary folder.
    Linear in the runs that it has to read; memory for one partition. Raises ObjectMissing, BadInput for a
    chain of runs that leads back to itself, CountMismatch for an unfinished run, CorruptObject, Locked.
    """
    known = _read(store, run_id)
    if known is not None:
        return KnownPartitions(store, known)
    if not keep:
        scratch = ScratchFolder()
        folder, runs = open_store(str(scratch.path)), list(ancestors(store, run_id))[::-1]
        made = _fold(folder, None, runs, read_tombstones(store))
        return KnownPartitions(folder, made, keeper=scratch)
    with acquire(store, LOCK, f"an update of the catalogue to run {run_id}", wait=WAIT_SECONDS):
        known = _read(store, run_id) or _update(store, run_id)
    return KnownPartitions(store, known)


def purge_catalogues(store: Store, erased: ErasedCrops) -> int:
    """Write the catalogues of a folder of runs again without erased crops; return the rows removed."""
    with acquire(store, LOCK, "a purge of the catalogue", wait=WAIT_SECONDS):
        removed = _purge(store, erased)
        drop_reassigned(store, erased.is_erased)
    return removed


def _update(store: Store, run_id: str) -> Catalogue:
    base: Catalogue | None = None
    runs: list[Run] = []
    for run in ancestors(store, run_id):
        base = _read(store, run.run_id)
        if base is not None:
            break
        runs.insert(0, run)
    names = erasure_ids(store)
    catalogue = _fold(store, base, runs, read_tombstones(store))
    store.put(catalogue_key(run_id), catalogue.to_json())
    if erasure_ids(store) != names:
        # An erasure began meanwhile, and its purge may have looked before this was written.
        _purge(store, read_tombstones(store))
        catalogue = Catalogue.read(store, catalogue_key(run_id))
    # The one before stays, for a run that was planned after it and is not created yet.
    kept = {run_id, base.run_id if base else run_id}
    _delete_unnamed(store, set(catalogue.runs) - kept)
    return catalogue


def _fold(
    store: Store,
    base: Catalogue | None,
    runs: Sequence[Run],
    erased: ErasedCrops,
) -> Catalogue:
    """Add the crops of runs, oldest first, to a catalogue, partition by partition; its files are written."""
    archive = runs[-1].info.archive
    added = Spool(archive, ADDED_SCHEMA)
    num_erased = sum(_add_run(added, run, age) for age, run in enumerate(runs))
    known = KnownPartitions(store, base) if base else None
    rows_before = dict.fromkeys(added.rows, 0)
    for part in base.partitions if base else ():
        if part.folder in rows_before:
            rows_before[part.folder] += part.file.rows
    bits = {
        folder: max(known.bits.get(folder, 0) if known else 0, bits_for(rows_before[folder] + count))
        for folder, count in added.rows.items()
    }
    partitions = [part for part in (base.partitions if base else ()) if part.folder not in bits]
    taken = TakenIds(store, base.taken if base else ())
    has_taken = base is not None and bool(base.taken)
    if not has_taken:
        for part in partitions:
            taken.add(partition_ids(store, part))
    superseded = vanished = 0
    for name, rows in added.partitions(bits):
        entry = known.exactly(name) if known else None
        if entry is not None and not rows.num_rows:
            partitions.append(entry)
            if not has_taken:
                taken.add(partition_ids(store, entry))
            continue
        before = known.rows(name) if known else rows.slice(0, 0).select(rows.schema.names[:-1])
        merged = merge_partition(before, rows, erased)
        if merged.rows.num_rows:
            partitions.append(write_partition(store, name, merged.rows))
            ids = crop_ids(merged.rows)
            taken.add(np.setdiff1d(ids, crop_ids(before)) if has_taken else ids)
        superseded += merged.superseded
        vanished += merged.vanished
        num_erased += merged.erased
    catalogue = Catalogue(
        run_id=runs[-1].run_id,
        archive=archive,
        runs=(*(base.runs if base else ()), *(run.run_id for run in runs)),
        partitions=tuple(sorted(partitions, key=lambda part: part.id)),
        listed=(base.listed if base else 0) + sum(run.info.rows for run in runs),
        superseded=(base.superseded if base else 0) + superseded,
        vanished=(base.vanished if base else 0) + vanished,
        erased=(base.erased if base else 0) + num_erased,
        created=utc_now(),
        taken=taken.files(),
    )
    catalogue.check(store.uri_of(catalogue_key(catalogue.run_id)))
    return catalogue


def _add_run(added: Spool, run: Run, age: int) -> int:
    """Add the crops of a finished run and the marks of vanished ones; return how many rows were purged."""
    run.summary  # noqa: B018  raises CountMismatch for a run that is not finished
    quarantined = np.sort(np.concatenate([np.empty(0, np.int64), *run.quarantined_ids()]))
    num_purged = 0
    for number in range(len(run.folder.manifest_keys())):
        with run.folder.open_manifest(number) as file:
            for group in _groups(file.num_row_groups):
                crops = pa.concat_tables([file.read_row_group(at, _MANIFEST_COLUMNS) for at in group])
                present = crops.filter(pc.not_equal(crops["uri"], ERASED_URI))
                num_purged += crops.num_rows - present.num_rows
                is_quarantined = np.isin(crop_ids(present), quarantined)
                states = pc.if_else(pa.array(is_quarantined), QUARANTINED, EMBEDDED)
                added.add(_added(present, run.run_id, states, age))
    gone = vanished_uris(run)
    if gone.num_rows:
        ids = read_reassigned(run.store).ids_of(gone["uri"].to_pylist())
        unknown = {name: pa.repeat(UNKNOWN[name], gone.num_rows) for name in ("etag", "size")}
        marks = pa.table({"crop_id": ids, "uri": gone["uri"], **unknown})
        added.add(_added(marks, run.run_id, pa.repeat(VANISHED, gone.num_rows), age))
    return num_purged


def _groups(count: int, together: int = 16) -> Iterator[range]:
    for first in range(0, count, together):
        yield range(first, min(first + together, count))


def _added(crops: pa.Table, run_id: str, states: pa.Array, age: int) -> pa.Table:
    columns = {name: crops[name] for name in _MANIFEST_COLUMNS}
    count = crops.num_rows
    columns |= {"run_id": pa.repeat(run_id, count), "state": states, "age": pa.repeat(age, count)}
    return pa.table(columns).cast(ADDED_SCHEMA)


def _purge(store: Store, erased: ErasedCrops) -> int:
    removed = 0
    written: dict[str, tuple[Partition | None, int]] = {}
    taken: dict[str, list[StoredFile]] = {}
    for key in _document_keys(store):
        catalogue = Catalogue.read(store, key)
        for file in catalogue.taken:
            if file.key not in taken:
                taken[file.key] = list(without_erased(store, file, erased))
        ids = tuple(kept for file in catalogue.taken for kept in taken[file.key])
        if catalogue.taken and ids == catalogue.taken:
            continue  # no crop of it was erased
        for part in catalogue.partitions:
            if part.file.key not in written:
                written[part.file.key] = _without_erased(store, part, erased)
        kept = [written[part.file.key] for part in catalogue.partitions]
        count = sum(rows for _, rows in kept)
        if count or ids != catalogue.taken:
            changed = replace(
                catalogue,
                partitions=tuple(part for part, _ in kept if part is not None),
                erased=catalogue.erased + count,
                taken=ids,
            )
            store.put(key, changed.to_json())
            removed += count
    _delete_unnamed(store, set())
    return removed


def _without_erased(store: Store, part: Partition, erased: ErasedCrops) -> tuple[Partition | None, int]:
    is_erased = erased.is_erased(partition_ids(store, part))
    if not is_erased.any():
        return part, 0
    rows = read_partition(store, part).filter(pa.array(~is_erased))
    return (write_partition(store, part.id, rows) if rows.num_rows else None), int(is_erased.sum())


def _document_keys(store: Store) -> list[str]:
    return [info.key for info in store.list(f"{FOLDER}/runs") if info.key.endswith(".json")]


def _delete_unnamed(store: Store, dropped_runs: set[str]) -> None:
    """Delete the catalogues of some runs, and then the files that no catalogue names. The lock is held."""
    store.delete(*(catalogue_key(run_id) for run_id in sorted(dropped_runs)))
    catalogues = [Catalogue.read(store, key) for key in _document_keys(store)]
    named = {key for one in catalogues for key in one.file_keys | one.taken_keys}
    files = [info.key for name in ("partitions", "taken") for info in store.list(f"{FOLDER}/{name}")]
    store.delete(*(key for key in files if key not in named))


def _read(store: Store, run_id: str) -> Catalogue | None:
    with ignore_missing_root(store), suppress(ObjectMissing):
        return Catalogue.read(store, catalogue_key(run_id))
    return None
