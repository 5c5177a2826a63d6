"""Compare a listing with a catalogue, partition by partition: new, changed and vanished crops.

A partition whose listing has the digest that the catalogue states is not read. In memory are the crops of one
partition; those to embed go to local disk.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index.archive.diff import Changes, PartitionChanges, diff_partition
from index.archive.manifest import normalize_manifest
from index.archive.partitions import PartitionId, day_of, listing_digest
from index.archive.reassigned import ReassignedIds, free_ids, repeated_ids
from index.archive.spool import Spool, TableFile
from index.catalogue.partition import KnownPartitions, known_rows, partition_ids
from index.catalogue.records import Partition
from index.catalogue.taken import find_taken
from index.runs.accounting import Ids, crop_ids
from index.runs.run import Run
from index.runs.tombstones import ErasedCrops
from index.schema import MANIFEST_SCHEMA
from infra.store import Store

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""`map`, in this process or over others; results come in the order of the items."""

_NEW_SCHEMA = pa.schema([("crop_id", pa.int64()), ("uri", pa.string())])
_FILTER_BITS = 24
_COMPARED_IDS = 1 << 22


@dataclass(frozen=True, slots=True)
class ListedCrops:
    """The crops of a listing to embed, and what is new, changed and vanished, if it was compared.

    crops: manifest rows by partition, sorted by URI in each. new: crop_id and uri of those that are not
    known. listed: rows of the listing without erased crops. erased: rows left out.
    """

    crops: TableFile
    new: TableFile
    listed: int
    erased: int
    changes: Changes | None = None


@dataclass(frozen=True, slots=True)
class ListedPartition:
    """The listed crops of a partition, and the entry of a catalogue with those that are known of it."""

    name: PartitionId
    rows: pa.Table
    known: Partition | None


@dataclass(frozen=True, slots=True)
class PartitionComparison:
    """The number of listed crops of a partition, without erased ones; changes: None if nothing changed."""

    listed: int
    changes: PartitionChanges | None = None


def newest_day(known: KnownPartitions) -> date | None:
    """Return the newest day of which crops are known."""
    return max(filter(None, (day_of(f"{folder}/") for folder in known.bits)), default=None)


def take_listing(listed: Spool, erased: ErasedCrops, reassigned: ReassignedIds) -> ListedCrops:
    """Take all crops of a listing but the erased ones."""
    crops = TableFile(MANIFEST_SCHEMA)
    for _, rows in listed.partitions():
        crops.append(_usable(rows, erased, reassigned))
    return ListedCrops(crops, crops, crops.num_rows, listed.num_rows - crops.num_rows)


def compare_partition(
    store: Store, erased: ErasedCrops, reassigned: ReassignedIds, listed: ListedPartition
) -> PartitionComparison:
    """Compare the listed crops of one partition with the known ones in a store.

    Those are read only if the listing has another digest than the catalogue states.
    Raises CorruptObject, ObjectMissing.
    """
    rows = _usable(listed.rows, erased, reassigned)
    entry = listed.known
    is_comparable = entry is not None and entry.id == listed.name and entry.file.rows == rows.num_rows
    if is_comparable and entry.listed == listing_digest(rows):  # type: ignore[union-attr]
        return PartitionComparison(rows.num_rows)
    before = known_rows(store, entry, listed.name)
    before = before.filter(pa.array(~erased.is_erased(crop_ids(before))))
    return PartitionComparison(rows.num_rows, diff_partition(rows, before))


def compare_listing(
    listed: Spool,
    known: KnownPartitions,
    erased: ErasedCrops,
    reassigned: ReassignedIds,
    *,
    since: date | None = None,
    each: Mapper = map,
) -> ListedCrops:
    """Take the crops of a listing that are new or changed since a catalogue.

    since: the listing holds only day folders of this day and later; no other partition is looked at. each:
    `map`, or one over several processes. Raises CorruptObject, ObjectMissing.
    """
    crops, new = TableFile(MANIFEST_SCHEMA), TableFile(_NEW_SCHEMA)
    gone: list[pa.Array] = []
    changed = unchanged = num_listed = 0
    in_window = {folder: bits for folder, bits in known.bits.items() if _is_listed(folder, since)}
    partitions = (
        ListedPartition(name, rows, known.containing(name)) for name, rows in listed.partitions(in_window)
    )
    for compared in each(partial(compare_partition, known.store, erased, reassigned), partitions):
        num_listed += compared.listed
        found = compared.changes
        if found is None:
            unchanged += compared.listed
            continue
        crops.append(found.to_embed)
        new.append(found.to_embed.filter(pa.array(found.is_new)).select(_NEW_SCHEMA.names))
        changed += found.changed
        unchanged += found.unchanged
        if len(found.vanished):
            gone.append(found.vanished)
    vanished = pa.concat_arrays([pa.array([], pa.string()), *gone])
    changes = Changes(new.num_rows, changed, unchanged, vanished)
    return ListedCrops(crops, new, num_listed, listed.num_rows - num_listed, changes)


def find_shared_ids(found: ListedCrops, known: KnownPartitions | None) -> dict[int, set[str]]:
    """Return the crop_ids that several crops share, each with those crops that are to be embedded.

    Linear in the crops to embed and, by 8 bytes each in a few files, in the known ones. The partitions are
    looked at only if an id may be taken.
    """
    shared = set(repeated_ids(map(crop_ids, found.crops.tables(["crop_id"])))[0].tolist())
    in_catalogue: set[int] = set()
    if known is not None:
        for block in _blocks(map(crop_ids, found.new.tables(["crop_id"]))):
            in_catalogue |= _known_among(block, known)
    wanted = pa.array(sorted(shared | in_catalogue), pa.int64())
    uris: dict[int, set[str]] = {}
    if len(wanted):
        for table in found.crops.tables(_NEW_SCHEMA.names):
            rows = table.filter(pc.is_in(table["crop_id"], value_set=wanted))
            for row in rows.to_pylist():
                uris.setdefault(row["crop_id"], set()).add(row["uri"])
    return {crop_id: names for crop_id, names in uris.items() if len(names) > 1 or crop_id in in_catalogue}


def choose_ids(
    shared: dict[int, set[str]], runs: Iterable[Run], found: ListedCrops, known: KnownPartitions | None
) -> dict[str, int]:
    """Return another id for each crop whose id belongs to another one.

    It belongs to the crop that the first of the runs has, oldest first; else to the first by URI.
    """
    holders = _holders(set(shared), runs)
    losers = [
        uri for crop_id, names in shared.items() for uri in names if uri != holders.get(crop_id, min(names))
    ]

    def taken() -> Iterator[Ids]:
        yield from map(crop_ids, found.crops.tables(["crop_id"]))
        for part in known.catalogue.partitions if known else ():
            yield partition_ids(known.store, part)  # type: ignore[union-attr]

    return free_ids(losers, taken)


def with_ids(found: ListedCrops, ids: ReassignedIds) -> ListedCrops:
    """Return the same crops with other ids for some of them."""
    crops = TableFile.of(map(ids.apply, found.crops.tables()), MANIFEST_SCHEMA)
    return ListedCrops(crops, found.new, found.listed, found.erased, found.changes)


def _usable(rows: pa.Table, erased: ErasedCrops, reassigned: ReassignedIds) -> pa.Table:
    rows = reassigned.apply(normalize_manifest(rows))
    is_erased = erased.is_erased(crop_ids(rows))
    return rows.filter(pa.array(~is_erased)) if is_erased.any() else rows


def _is_listed(folder: str, since: date | None) -> bool:
    if since is None:
        return True
    day = day_of(f"{folder}/")
    return day is not None and day >= since


def _blocks(chunks: Iterable[Ids]) -> Iterator[Ids]:
    pending: list[Ids] = []
    count = 0
    for chunk in chunks:
        pending.append(chunk)
        count += len(chunk)
        if count >= _COMPARED_IDS:
            yield np.sort(np.concatenate(pending))
            pending, count = [], 0
    if pending:
        yield np.sort(np.concatenate(pending))


def _known_among(ids: Ids, known: KnownPartitions) -> set[int]:
    """Return those of some ids (n,), ascending, that a catalogue has."""
    if known.catalogue.taken:
        ids = find_taken(known.store, known.catalogue.taken, ids)
        if not len(ids):
            return set()
    mask = (1 << _FILTER_BITS) - 1
    is_likely = np.zeros(mask + 1, bool)
    is_likely[ids & mask] = True
    found: set[int] = set()
    for part in known.catalogue.partitions:
        there = partition_ids(known.store, part)
        there = there[is_likely[there & mask]]
        found.update(there[np.isin(there, ids)].tolist())
    return found


def _holders(ids: set[int], runs: Iterable[Run]) -> dict[int, str]:
    """Return which crop has each id in the manifests of runs, where any has."""
    holders: dict[int, str] = {}
    wanted = pa.array(sorted(ids), pa.int64())
    for run in runs:
        for number in range(len(run.folder.manifest_keys())):
            with run.folder.open_manifest(number) as file:
                for group in range(file.num_row_groups):
                    rows = file.read_row_group(group, ["crop_id", "uri"])
                    for row in rows.filter(pc.is_in(rows["crop_id"], value_set=wanted)).to_pylist():
                        holders.setdefault(row["crop_id"], row["uri"])
    return holders
