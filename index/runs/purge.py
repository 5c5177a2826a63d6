"""Purge: a run is written again without its erased crops, under the rules of every other write.

New objects first, under names of their contents; then run.json, the one switch, which names the next
revision; then the old objects go. A kill at any point leaves the run as it was or as it shall be, and a
repeat ends it.

A purged crop stays a row of the manifest and of the quarantine, as a number that cannot be linked to it,
without URI, camera, time and label. So a run accounts for as many crops as before: listed = embedded +
quarantined + duplicates, and the cause `manifest/erased` counts those that were purged.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.archive.manifest import manifest_digest
from index.archive.reassigned import read_reassigned
from index.documents import utc_now
from index.parquet import StoredFile, open_parquet, write_table
from index.runs.accounting import (
    ERASED_CAUSE,
    ERASED_URI,
    QuarantinedCrop,
    crop_ids,
    quarantine_table,
    verify_shards,
)
from index.runs.folder import RunFolder
from index.runs.records import RunInfo
from index.runs.run import Run, vanished_uris
from index.runs.shards import ShardInfo, read_shards, write_shard
from index.runs.tombstones import ErasedCrops, anonymous_ids
from index.schema import MANIFEST_SCHEMA, QUARANTINE_SCHEMA, UNKNOWN
from infra.errors import CorruptObject
from infra.store import Store

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PurgedRun:
    """Rows of erased crops in the manifest, the shards, the quarantine and the list of vanished crops.

    `parts` counts finished parts of an unfinished run that were dropped and are embedded again.
    """

    run_id: str
    manifest: int = 0
    shards: int = 0
    quarantine: int = 0
    vanished: int = 0
    parts: int = 0

    @property
    def rows(self) -> int:
        """All rows together."""
        return self.manifest + self.shards + self.quarantine + self.vanished


def purge_run(run: Run, erased: ErasedCrops) -> PurgedRun:
    """Write a run again without its erased crops, and delete all that it does not name any more.

    The caller holds the lock on rows. An unfinished run keeps its finished parts unless they hold such crops.
    Of a run without such crops only the crop_ids of its manifest are read, and of another one the shards
    whose parts have some. Memory for one file of the manifest. Raises CorruptObject, CountMismatch if the run
    does not add up, DiskFull, StoreError.
    """
    parts = _erased_by_part(run, erased)
    found = _count(run, erased, parts)
    if found.rows:
        run = _rewrite_finished(run, erased, parts) if run.finished else _rewrite_unfinished(run, erased)
    dropped = 0 if run.finished else _drop_parts(run, erased)
    _delete_unnamed(run)
    return replace(found, parts=dropped)


def count_erased(run: Run, erased: ErasedCrops) -> PurgedRun:
    """Count the rows of erased crops in the objects of a run. Raises CorruptObject."""
    return _count(run, erased, _erased_by_part(run, erased))


def _erased_by_part(run: Run, erased: ErasedCrops) -> Counter[int]:
    """Return how many crops of each part of the manifest were erased, of those that have any."""
    counts: Counter[int] = Counter()
    part = 0
    for number in range(len(run.folder.manifest_keys())):
        with run.folder.open_manifest(number) as file:
            for group in range(file.num_row_groups):
                rows = int(erased.is_erased(crop_ids(file.read_row_group(group, ["crop_id"]))).sum())
                if rows:
                    counts[part] = rows
                part += 1
    return counts


def _count(run: Run, erased: ErasedCrops, parts: Counter[int]) -> PurgedRun:
    def count(ids: Ids) -> int:
        return int(erased.is_erased(ids).sum())

    numbers = run.info.shards_of(parts) if run.finished else []
    shards = [run.folder.absolute(run.summary.shards[number]) for number in numbers]
    keys = [shard.key for shard in shards if shard.rows]
    return PurgedRun(
        run.run_id,
        manifest=parts.total(),
        shards=sum(count(crop_ids(batch)) for batch in read_shards(run.store, keys, columns=["crop_id"])),
        quarantine=sum(count(crop_ids(run.quarantine_of(number, ["crop_id"]))) for number in numbers),
        vanished=count(_vanished_ids(run)),
    )


def _rewrite_finished(run: Run, erased: ErasedCrops, parts: Iterable[int]) -> Run:
    folder = _next_folder(run, erased)
    shards: list[ShardInfo] = []
    quarantine: list[StoredFile] = []
    holding = set(run.info.shards_of(parts))
    for number, shard in enumerate(map(run.folder.absolute, run.summary.shards)):
        if number not in holding and run.summary.quarantine is not None:
            shards.append(shard)
            quarantine.append(run.folder.absolute(run.summary.quarantine[number]))
            continue
        kept, removed = _without_erased(run, shard, erased, folder)
        shards.append(kept)
        rows = run.quarantine_of(number)
        is_erased = erased.is_erased(crop_ids(rows))
        if run.summary.quarantine is not None and not removed.size and not is_erased.any():
            quarantine.append(run.folder.absolute(run.summary.quarantine[number]))
            continue
        removed = np.concatenate([removed, crop_ids(rows)[is_erased]])
        anonymous = quarantine_table(
            QuarantinedCrop(int(crop_id), ERASED_URI, "manifest", ERASED_CAUSE, "the crop was erased")
            for crop_id in anonymous_ids(run.store, removed)
        )
        key = folder.key(f"quarantine/quarantine-{number:05d}-{{digest}}.parquet")
        table = pa.concat_tables([rows.filter(pa.array(~is_erased)), anonymous])
        quarantine.append(write_table(run.store, key, table, metadata=folder.footer))
    tables = (folder.read_files(QUARANTINE_SCHEMA, [file]) for file in quarantine)
    counts = verify_shards(folder, zip(shards, tables, strict=True))
    summary = replace(
        run.summary,
        manifest=folder.info.manifest,
        embedded=counts.embedded,
        quarantined=counts.quarantined,
        causes=dict(counts.causes),
        shards=tuple(map(folder.relative, shards)),
        quarantine=tuple(map(folder.relative, quarantine)),
        finished=utc_now(),
    )
    run.store.put(folder.done_key(), summary.to_json())
    return _switch(run, folder.info)


def _rewrite_unfinished(run: Run, erased: ErasedCrops) -> Run:
    return _switch(run, _next_folder(run, erased).info)


def _vanished_ids(run: Run) -> Ids:
    """Return the crop_ids (n,) of the vanished crops of a run, in the order of their list."""
    return read_reassigned(run.store).ids_of(vanished_uris(run)["uri"].to_pylist())


def _next_folder(run: Run, erased: ErasedCrops) -> RunFolder:
    """Write the manifest and the list of vanished crops of the next revision; return its folder."""
    if manifest_digest(run.manifest_tables()) != run.info.manifest:
        raise CorruptObject(
            f"the manifest of run {run.run_id} was altered", remedy="Start a new run: `clvr embed`."
        )

    def anonymised() -> Iterator[pa.Table]:
        return (anonymise(table, erased, run.store) for table in run.manifest_tables())

    digest = manifest_digest(anonymised())
    info = replace(run.info, revision=run.info.revision + 1, manifest=digest, vanished=())
    folder = RunFolder(run.store, info)
    folder.write_manifest(anonymised())
    gone = vanished_uris(run)["uri"]
    kept = gone.filter(pa.array(~erased.is_erased(_vanished_ids(run))))
    if len(kept):
        folder = RunFolder(run.store, replace(info, vanished=(folder.write_vanished(kept),)))
    return folder


def anonymise(manifest: pa.Table, erased: ErasedCrops, store: Store) -> pa.Table:
    """Return a manifest (n) in whose rows of erased crops nothing is known but an anonymous number."""
    ids = crop_ids(manifest)
    is_erased = erased.is_erased(ids)
    numbers = ids.copy()
    numbers[is_erased] = anonymous_ids(store, ids[is_erased])
    columns = {"crop_id": pa.array(numbers)}
    for name in MANIFEST_SCHEMA.names:
        if name not in columns:
            unknown = pa.scalar(UNKNOWN.get(name, ERASED_URI), MANIFEST_SCHEMA.field(name).type)
            columns[name] = pc.if_else(pa.array(is_erased), unknown, manifest[name])
    return pa.table(columns, schema=MANIFEST_SCHEMA)


def _without_erased(
    run: Run, shard: ShardInfo, erased: ErasedCrops, folder: RunFolder
) -> tuple[ShardInfo, Ids]:
    """Write a shard without its erased rows, if it has any; return its record and the ids that went."""
    batches = read_shards(run.store, [shard.key], columns=["crop_id"], fingerprint=run.fingerprint)
    ids = np.concatenate([np.empty(0, np.int64), *(crop_ids(batch) for batch in batches)])
    removed = ids[erased.is_erased(ids)]
    if not removed.size:
        return shard, removed

    def kept() -> Iterator[pa.RecordBatch]:
        for batch in read_shards(run.store, [shard.key], fingerprint=run.fingerprint):
            yield batch.filter(pa.array(~np.isin(crop_ids(batch), removed)))

    stem = shard.key.rpartition("/")[2].removesuffix(".parquet").split("-")[1]
    key = folder.key(f"shards/shard-{stem}-{{digest}}.parquet")
    written = write_shard(run.store, key, kept(), fingerprint=run.fingerprint, run_id=run.run_id)
    return written, removed


def _switch(run: Run, info: RunInfo) -> Run:
    """Make a revision the one that counts. Raises ObjectChanged if the run changed meanwhile."""
    key = run.folder.key("run.json")
    stored = run.store.fetch(key)
    if RunInfo.from_json(stored.data, run.store.uri_of(key)) != run.info:
        raise CorruptObject(f"{run.store.uri_of(key)} changed during a purge", remedy="Run it again.")
    run.store.replace(key, info.to_json(), etag=stored.etag)
    return Run(run.store, info)


def _drop_parts(run: Run, erased: ErasedCrops) -> int:
    """Delete the finished parts of a run that hold erased crops, so that they are embedded again."""
    objects = {info.key for info in run.store.list(run.folder.key("parts"))}
    holding = set()
    for key in (key for key in objects if key.endswith(".parquet")):
        with open_parquet(run.store, key) as file:
            if erased.is_erased(crop_ids(file.read(["crop_id"]))).any():
                holding.add(key)
    marks = {
        key
        for number in run.folder.done_parts()
        if (mark := run.folder.part_mark(number)) and {mark.shard.key, mark.quarantine.key} & holding
        for key in (run.folder.part_mark_key(number),)
    }
    compacted = (
        {key for key in objects if key.startswith(run.folder.key("parts/compacted-"))} if marks else set()
    )
    run.store.delete(*marks, *compacted)  # before their objects: a mark never names what is gone
    run.store.delete(*holding)
    return len(marks)


def _named(run: Run) -> Iterator[str]:
    """Yield the keys of all objects that a run names, without those of work in progress."""
    yield run.folder.key("run.json")
    yield from run.folder.manifest_keys()
    yield from (file.key for file in run.vanished())
    if run.info.vanished is None:
        yield run.folder.vanished_key()
    if not run.finished:
        return
    yield run.folder.done_key()
    yield from (run.folder.key(file.key) for file in run.summary.shards)
    if run.summary.quarantine is None:
        yield from (run.folder.quarantine_key(number) for number in range(run.info.shards))
    else:
        yield from (run.folder.key(file.key) for file in run.summary.quarantine)


def _delete_unnamed(run: Run) -> None:
    """Delete what the run names no more. Work in progress and timings stay."""
    if run.info.revision:
        named, kept = set(_named(run)), (run.folder.key("parts/"), run.folder.key("timings/"))
        objects = [info.key for info in run.store.list(run.folder.key())]
        run.store.delete(*(key for key in objects if key not in named and not key.startswith(kept)))
