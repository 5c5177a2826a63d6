"""The pure functions of one partition: its file, the crops of later runs added to it, erased ones removed."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index.archive.partitions import PartitionId, in_bucket, listing_digest
from index.catalogue.records import CATALOGUE_SCHEMA, EMBEDDED, FOLDER, Catalogue, Partition
from index.parquet import open_parquet, write_table
from index.runs.accounting import Ids, crop_ids
from index.runs.tombstones import ErasedCrops
from infra.errors import CorruptObject
from infra.store import Store

VANISHED = "vanished"
"""State of an added row that marks a crop as gone; no catalogue keeps it."""

ADDED_SCHEMA = CATALOGUE_SCHEMA.append(pa.field("age", pa.int32()))
"""Rows of later runs: age counts these runs, the oldest first."""


@dataclass(frozen=True, slots=True)
class MergedPartition:
    """The rows of a partition after some runs, and how many rows left it, for each cause."""

    rows: pa.Table
    superseded: int
    vanished: int
    erased: int


def merge_partition(known: pa.Table, added: pa.Table, erased: ErasedCrops) -> MergedPartition:
    """Add rows of later runs (ADDED_SCHEMA) to the known crops of a partition (CATALOGUE_SCHEMA).

    Of a crop in several runs the latest row counts; a crop that vanished is known no more.
    """
    before = known.append_column("age", pa.repeat(pa.scalar(-1, pa.int32()), known.num_rows))
    rows = pa.concat_tables([before, added])
    uris = rows["uri"]
    if not pc.all(pc.less(uris[:-1], uris[1:]), min_count=0).as_py():
        rows = rows.combine_chunks()
        rows = rows.take(pc.sort_indices(rows, [("uri", "ascending"), ("age", "ascending")]))
        uris = rows["uri"]
    has_next = np.zeros(rows.num_rows, bool)
    has_next[:-1] = np.asarray(pc.equal(uris[:-1], uris[1:]))
    is_mark = np.asarray(pc.equal(rows["state"], VANISHED))
    next_is_mark = np.append(is_mark[1:], False)[: rows.num_rows]
    is_current = ~has_next & ~is_mark
    is_erased = is_current & erased.is_erased(crop_ids(rows))
    return MergedPartition(
        rows=rows.filter(pa.array(is_current & ~is_erased)).select(CATALOGUE_SCHEMA.names),
        superseded=int((has_next & ~is_mark & ~next_is_mark).sum()),
        vanished=int((has_next & ~is_mark & next_is_mark).sum()),
        erased=int(is_erased.sum()),
    )


def write_partition(store: Store, name: PartitionId, rows: pa.Table) -> Partition:
    """Write the rows (CATALOGUE_SCHEMA, sorted by URI) of a partition, under a name of their content."""
    key = f"{FOLDER}/partitions/{{digest}}.parquet"
    footer = {"clvr.partition": f"{name.folder}/{name.bits}/{name.bucket}"}
    file = write_table(store, key, rows, metadata=footer)
    embedded = pc.sum(pc.equal(rows["state"], EMBEDDED), min_count=0).as_py()
    return Partition(
        folder=name.folder,
        bits=name.bits,
        bucket=name.bucket,
        file=file,
        listed=listing_digest(rows),
        embedded=embedded,
        quarantined=rows.num_rows - embedded,
    )


def read_partition(store: Store, partition: Partition) -> pa.Table:
    """Return the rows of a partition. Raises CorruptObject, ObjectMissing."""
    with open_parquet(store, partition.file.key, expected=partition.file) as file:
        return file.read().cast(CATALOGUE_SCHEMA)


def partition_ids(store: Store, partition: Partition) -> Ids:
    """Return the crop_ids (n,) of a partition; no other column is read. Raises CorruptObject."""
    with open_parquet(store, partition.file.key) as file:
        if file.num_rows != partition.file.rows:
            raise CorruptObject(
                f"{file.uri} has {file.num_rows:,} rows, its catalogue states {partition.file.rows:,}",
                remedy=Catalogue.REMEDY,
            )
        return crop_ids(file.read(["crop_id"]))


def known_rows(store: Store, entry: Partition | None, name: PartitionId) -> pa.Table:
    """Return the crops of a partition, sorted by URI, from the entry that contains them.

    Raises CorruptObject, ObjectMissing.
    """
    if entry is None:
        return CATALOGUE_SCHEMA.empty_table()
    rows = read_partition(store, entry)
    if entry.bits == name.bits:
        return rows
    return rows.filter(pa.array(in_bucket(crop_ids(rows), name.bits, name.bucket)))


class KnownPartitions:
    """The partitions of a catalogue, found by their names; those of a finer cut are made of them.

    store: holds their files. keeper: what must live as long as this object, such as a temporary folder.
    """

    def __init__(self, store: Store, catalogue: Catalogue, *, keeper: object = None) -> None:
        self._keeper = keeper
        self.store = store
        self.catalogue = catalogue
        self._by_id = {part.id: part for part in catalogue.partitions}
        self.bits = {part.folder: part.bits for part in catalogue.partitions}

    def exactly(self, name: PartitionId) -> Partition | None:
        """Return the entry of a partition, if the catalogue is cut as finely and has crops in it."""
        return self._by_id.get(name)

    def containing(self, name: PartitionId) -> Partition | None:
        """Return the entry with the known crops of a partition, which may be cut less finely."""
        bits = self.bits.get(name.folder, name.bits)
        return self._by_id.get(PartitionId(name.folder, bits, name.bucket & ((1 << bits) - 1)))

    def rows(self, name: PartitionId) -> pa.Table:
        """Return the known crops of a partition, sorted by URI. Raises CorruptObject, ObjectMissing."""
        return known_rows(self.store, self.containing(name), name)
