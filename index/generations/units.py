"""Tracks as rows: the stored rows of generations with one row a track, and which crops are on each.

    units/<id>/shard-….parquet    ordinary shards: one row a track, or a crop without one
               members-….parquet  one row a crop, by crop_id: the row that it is on, and the track's time span
               units.json         the switch, last: names the files
               withdrawn-<erasure>.parquet  rows that searches hide, before a server deletes them

A folder follows from the rows that went into it, so generations of the same runs share one. An erased crop
hides the whole row that it had a share in, from every plan; a purge writes the files again without such rows.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.documents import JsonDocument, require_keys_inside
from index.generations import records
from index.generations.load_plan import NO_IDS, LoadPlan, PlannedShard, plan_load
from index.generations.records import GenerationRecord
from index.generations.selection import EraseSelection, matches
from index.parquet import ParquetReader, StoredFile, open_parquet, sealed_parquet, write_table
from index.runs.run import Run
from index.runs.shards import ShardInfo, read_shards, shard_ids, write_shard
from index.runs.tombstones import ErasedCrops, erasure_ids, read_tombstones
from index.transforms.transform import FeatureTransform
from infra.errors import CorruptObject, ObjectMissing
from infra.store import Store

Ids = NDArray[np.int64]
FOLDER = "units"
MEMBER_ROWS = 8192
"""Crops of a row group of members: what is read to look up one crop."""

MEMBERS_SCHEMA = pa.schema(
    [
        ("crop_id", pa.int64()),
        ("row_id", pa.int64()),
        ("camera_id", pa.string()),
        ("captured_at", pa.int64()),
        ("crops", pa.int32()),
        ("captured_from", pa.int64()),
        ("captured_to", pa.int64()),
    ]
)
"""One row a crop, by crop_id. row_id: the crop_id of its row. The last three are of all crops of that row."""
_WITHDRAWN_SCHEMA = pa.schema([("row_id", pa.int64())])


@dataclass(frozen=True, slots=True)
class Units(JsonDocument):
    """The files of one folder; `crops` counts the crops on all rows."""

    NOUN = "list of tracks"
    REMEDY = "Load the runs again with --unit track."

    units_id: str
    fingerprint: str
    schema_version: int
    run_ids: tuple[str, ...]
    crops: int
    shards: tuple[ShardInfo, ...]
    members: StoredFile

    def check(self, where: str) -> None:
        """Raise CorruptObject for a file outside of the folder."""
        require_keys_inside((self.units_id, *self.run_ids), where)
        keys = [self.members.key, *(shard.key for shard in self.shards)]
        require_keys_inside(keys, where)
        if not all(key.startswith(f"{FOLDER}/{self.units_id}/") for key in keys):
            raise CorruptObject(f"{where} names a file of another folder", remedy=self.REMEDY)


@dataclass(frozen=True, slots=True)
class TrackOfCrop:
    """The row of a crop: its crop_id, how many crops are on it, and their first and last time in ms.

    Times are -1 if none is known.
    """

    row_id: int
    crops: int
    captured_from: int
    captured_to: int


@dataclass(frozen=True, slots=True)
class RowChange:
    """Rows (m,) that an erasure takes out, how many erased crops are on them, and how many others."""

    row_ids: Ids
    crops: int
    withdrawn: int


class Members:
    """Looks crops up in the members of a folder, beside purges. Reads a row group for each crop."""

    def __init__(self, store: Store, units_id: str) -> None:
        self.store = store
        self.units_id = units_id

    def of(self, crop_ids: Sequence[int]) -> dict[int, TrackOfCrop]:
        """Return the rows of those crops that are on one; the caller leaves out erased crops."""
        names = ["crop_id", "row_id", "crops", "captured_from", "captured_to"]
        ids = np.asarray(crop_ids, np.int64)
        return {
            row.pop("crop_id"): TrackOfCrop(**row)
            for table in self._found(ids, names)
            for row in table.to_pylist()
        }

    def rows_of(self, crop_ids: Ids) -> Ids:
        """Return the row_ids (m,), ascending and unique, of crops (n,)."""
        found = [_column(table, "row_id") for table in self._found(crop_ids, ["crop_id", "row_id"])]
        return np.unique(np.concatenate([NO_IDS, *found]))

    def withdrawn(self) -> Ids:
        """Return the row_ids (m,) that erasures have taken out, finished or not."""
        found = [NO_IDS]
        known = {_withdrawn_key(self.units_id, name) for name in erasure_ids(self.store)}
        for key in known.intersection(_keys(self.store, self.units_id)):
            # A purge deletes it together with the rows.
            with suppress(ObjectMissing), open_parquet(self.store, key) as file:
                found.append(_column(file.read(), "row_id"))
        return np.concatenate(found)

    def _found(self, crop_ids: Ids, columns: list[str]) -> list[pa.Table]:
        while True:
            units = read_units(self.store, self.units_id)
            try:
                with _open_members(self.store, units) as file:
                    return list(_rows_of_crops(file, np.unique(crop_ids), columns))
            except ObjectMissing:
                if read_units(self.store, self.units_id) == units:
                    raise


def members_of(store: Store, generation: str) -> Members | None:
    """Return the members of a generation of tracks, by its record; None for one of crops."""
    record = records.read(store, generation)
    return Members(store, record.units) if record is not None and record.units else None


def read_units(store: Store, units_id: str) -> Units:
    """Read what a folder holds. Raises ObjectMissing, SchemaMismatch, CorruptObject."""
    return Units.read(store, units_key(units_id))


def units_key(units_id: str) -> str:
    """Return the key of the document that names the files of a folder."""
    return f"{FOLDER}/{units_id}/units.json"


def plan_units(store: Store, units_id: str, transform: FeatureTransform | None = None) -> LoadPlan:
    """Plan a generation of the stored rows of a folder, without those in which an erased crop has a share.

    Reads the crop_ids of all members if anything was erased. Raises what `read_units` raises.
    """
    units = read_units(store, units_id)
    hidden, on_hidden = _hidden(store, units, read_tombstones(store))
    planned = []
    for info in units.shards:
        excluded = NO_IDS
        if hidden.size:
            ids = shard_ids(store, info, fingerprint=units.fingerprint, run_id=units_id)
            excluded = np.intersect1d(ids, hidden)
        planned.append(PlannedShard(store, units_id, info, excluded))
    return LoadPlan(
        fingerprint=units.fingerprint,
        run_ids=units.run_ids,
        shards=tuple(planned),
        transform=transform,
        schema_version=units.schema_version,
        units_id=units_id,
        crops=units.crops - on_hidden,
    )


def plan_generation(
    store: Store,
    record: GenerationRecord | None,
    runs: Sequence[Run],
    transform: FeatureTransform | None = None,
) -> LoadPlan:
    """Plan the rows that a generation must have by its record: those of its runs, or of its tracks."""
    if record is not None and record.units:
        return plan_units(store, record.units, transform)
    return plan_load(runs, latest_wins=True, verify=False, transform=transform)


def kept_members(store: Store, units_id: str) -> Ids:
    """Return the crop_ids (n,), ascending, of the crops on all rows that are not hidden."""
    units = read_units(store, units_id)
    hidden, _ = _hidden(store, units, read_tombstones(store))
    found = [NO_IDS]
    for table in _scan(store, units, ["crop_id", "row_id"]):
        found.append(_column(table, "crop_id")[~np.isin(_column(table, "row_id"), hidden)])
    return np.concatenate(found)


def kept_rows(store: Store, units_id: str, erased: ErasedCrops) -> Ids:
    """Return the row_ids (m,), ascending, in which none of some erased crops has a share."""
    units = read_units(store, units_id)
    hidden, _ = _hidden(store, units, erased)
    found = [_column(table, "row_id") for table in _scan(store, units, ["row_id"])]
    return np.setdiff1d(np.concatenate([NO_IDS, *found]), hidden)


def select_members(store: Store, units_id: str, selection: EraseSelection) -> Ids:
    """Return the crops (n,) of a folder that an erasure selects: those of deleted runs are in no manifest."""
    found = [NO_IDS]
    for table in _scan(store, read_units(store, units_id), ["crop_id", "camera_id", "captured_at"]):
        found.append(_column(table.filter(matches(table, selection)), "crop_id"))
    return np.concatenate(found)


def change_of(store: Store, units_id: str, row_ids: Ids, crop_ids: Ids) -> RowChange:
    """Count the crops on some rows (m,): those of an erasure (n,), and the others that leave with them."""
    on_rows = erased = 0
    for table in _scan(store, read_units(store, units_id), ["crop_id", "row_id"]) if row_ids.size else ():
        mask = np.isin(_column(table, "row_id"), row_ids)
        on_rows += int(mask.sum())
        erased += int(np.isin(_column(table, "crop_id")[mask], crop_ids).sum())
    return RowChange(row_ids, erased, on_rows - erased)


def withdraw(store: Store, units_id: str, erasure_id: str, row_ids: Ids) -> None:
    """Hide rows (m,) from searches as soon as the erasure has its receipt, also if a deletion is lost."""
    table = pa.table({"row_id": row_ids}, schema=_WITHDRAWN_SCHEMA)
    write_table(store, _withdrawn_key(units_id, erasure_id), table, metadata={"clvr.units": units_id})


def purge_units(store: Store, erased: ErasedCrops) -> Iterator[tuple[str, int]]:
    """Write every folder again without the rows in which an erased crop has a share; yield id and rows.

    The caller holds the lock on rows. New files first, then the document, then the old files go.
    """
    remove_unreferenced(store)
    for units_id in list_units(store):
        units = read_units(store, units_id)
        hidden, on_hidden = _hidden(store, units, erased)
        if hidden.size:
            units = replace(
                units,
                crops=units.crops - on_hidden,
                shards=tuple(_shard_without(store, units, info, hidden) for info in units.shards),
                members=write_members(store, units_id, _members_without(store, units, hidden)),
            )
            store.put(units_key(units_id), units.to_json())
        named = {units_key(units_id), units.members.key, *(shard.key for shard in units.shards)}
        store.delete(*(key for key in _keys(store, units_id) if key not in named))
        yield units_id, int(hidden.size)


def remove_unreferenced(store: Store, *, keep: str = "") -> None:
    """Delete the folders that no generation has, but `keep`. The caller holds the lock on rows."""
    held = {record.units for record in records.list_records(store) if record.state != "dropped"} | {keep}
    for units_id in _folders(store):
        if units_id not in held:
            keys = _keys(store, units_id)
            store.delete(*(key for key in keys if key == units_key(units_id)))  # no document without files
            store.delete(*keys)


def write_members(store: Store, units_id: str, tables: Iterator[pa.Table]) -> StoredFile:
    """Write the members of a folder from tables that are sorted by crop_id, the first one with the lowest."""
    with sealed_parquet(MEMBERS_SCHEMA, {"clvr.units": units_id}) as writer:
        for table in tables:
            for first in range(0, table.num_rows, MEMBER_ROWS):
                writer.write_row_group(table.slice(first, MEMBER_ROWS))
        return writer.put(store, f"{FOLDER}/{units_id}/members-{{digest}}.parquet")


def _shard_without(store: Store, units: Units, info: ShardInfo, hidden: Ids) -> ShardInfo:
    ids = shard_ids(store, info, fingerprint=units.fingerprint, run_id=units.units_id)
    if not np.isin(ids, hidden).any():
        return info
    batches = read_shards(store, [info.key], fingerprint=units.fingerprint)
    kept = (batch.filter(pa.array(~np.isin(_column(batch, "crop_id"), hidden))) for batch in batches)
    stem = info.key.rpartition("/")[2].split("-")[1]
    key = f"{FOLDER}/{units.units_id}/shard-{stem}-{{digest}}.parquet"
    return write_shard(store, key, kept, fingerprint=units.fingerprint, run_id=units.units_id)


def _members_without(store: Store, units: Units, hidden: Ids) -> Iterator[pa.Table]:
    for table in _scan(store, units, MEMBERS_SCHEMA.names):
        yield table.filter(pa.array(~np.isin(_column(table, "row_id"), hidden)))


def _hidden(store: Store, units: Units, erased: ErasedCrops) -> tuple[Ids, int]:
    """Return the row_ids (m,) in which an erased crop has a share, and the number of crops on them."""
    if not len(erased):
        return NO_IDS, 0
    found = [NO_IDS]
    for table in _scan(store, units, ["crop_id", "row_id"]):
        found.append(_column(table, "row_id")[erased.is_erased(_column(table, "crop_id"))])
    hidden = np.unique(np.concatenate(found))
    if not hidden.size:
        return hidden, 0
    ids = (_column(table, "row_id") for table in _scan(store, units, ["row_id"]))
    return hidden, sum(int(np.isin(row_ids, hidden).sum()) for row_ids in ids)


def _scan(store: Store, units: Units, columns: list[str]) -> Iterator[pa.Table]:
    with _open_members(store, units) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns)


def _rows_of_crops(file: ParquetReader, crop_ids: Ids, columns: list[str]) -> Iterator[pa.Table]:
    """Yield columns of the members with these crop_ids (n,), ascending."""
    for group in range(file.num_row_groups):
        low, high = file.ranges(group)["crop_id"]
        wanted = crop_ids[np.searchsorted(crop_ids, low) : np.searchsorted(crop_ids, high, "right")]
        if wanted.size:
            table = file.read_row_group(group, columns)
            yield table.filter(pa.array(np.isin(_column(table, "crop_id"), wanted)))


def _withdrawn_key(units_id: str, erasure_id: str) -> str:
    return f"{FOLDER}/{units_id}/withdrawn-{erasure_id}.parquet"


def _open_members(store: Store, units: Units) -> Any:
    return open_parquet(store, units.members.key)


def list_units(store: Store) -> list[str]:
    """Return the names of all finished folders."""
    return [units_id for units_id in _folders(store) if store.head(units_key(units_id)) is not None]


def _folders(store: Store) -> list[str]:
    keys = [info.key.split("/") for info in store.list(FOLDER)]
    return sorted({key[1] for key in keys if len(key) == 3})


def _keys(store: Store, units_id: str) -> list[str]:
    return [info.key for info in store.list(f"{FOLDER}/{units_id}")]


def _column(rows: pa.Table | pa.RecordBatch, name: str) -> Ids:
    return np.asarray(rows.column(name))
