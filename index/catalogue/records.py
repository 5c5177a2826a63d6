"""The catalogue of a run: what the archive is known to hold after it, one entry for each partition.

catalogue/runs/<run_id>.json            the switch: every partition with its file, its digests and counts
catalogue/partitions/<digest>.parquet   rows of one partition; several catalogues may name one file
catalogue/taken/<digest>.parquet        see `index.catalogue.taken`
catalogue/ids.json                      see `index.archive.reassigned`
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from index.archive.partitions import PartitionId
from index.documents import JsonDocument, require_keys_inside
from index.parquet import StoredFile
from infra.errors import CorruptObject, CountMismatch

CATALOGUE_VERSION = 1
FOLDER = "catalogue"
CATALOGUE_SCHEMA = pa.schema(
    [
        ("crop_id", pa.int64()),
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("size", pa.int64()),
        ("run_id", pa.string()),
        ("state", pa.string()),
    ]
)
"""One row for each crop that the archive is known to hold, sorted by URI. run_id: of the run that embedded or
quarantined it last, which is its state."""

EMBEDDED, QUARANTINED = "embedded", "quarantined"


@dataclass(frozen=True, slots=True)
class Partition(JsonDocument):
    """The entry of one partition that has crops. listed: see `index.archive.partitions.listing_digest`."""

    folder: str
    bits: int
    bucket: int
    file: StoredFile
    listed: str
    embedded: int
    quarantined: int

    @property
    def id(self) -> PartitionId:
        """Its name."""
        return PartitionId(self.folder, self.bits, self.bucket)


@dataclass(frozen=True, slots=True)
class Catalogue(JsonDocument):
    """What the archive is known to hold after a run and those that it continues.

    listed = crops in the partitions + superseded + vanished + erased, over all these runs.
    """

    FORMAT = ("catalogue_version", CATALOGUE_VERSION)
    NOUN = "catalogue of this system"
    REMEDY = "Delete it: the next incremental run makes it again from the runs."

    run_id: str
    archive: str
    runs: tuple[str, ...]
    """The runs, the oldest first."""
    partitions: tuple[Partition, ...]
    listed: int
    """Crops of the manifests of all these runs, without duplicates."""
    superseded: int
    """... that a later run has again."""
    vanished: int
    """... that are gone from the archive."""
    erased: int
    """... that were erased."""
    created: str
    catalogue_version: int = CATALOGUE_VERSION
    taken: tuple[StoredFile, ...] = ()
    """Files of the crop_ids of all partitions; none in a catalogue of an earlier release."""

    def check(self, where: str) -> None:
        """Raise CorruptObject for a key outside of the folder, CountMismatch for sums that do not add up."""
        require_keys_inside([self.run_id, *self.runs, *self.file_keys, *self.taken_keys], where)
        if any(part.file.rows != part.embedded + part.quarantined for part in self.partitions):
            raise CorruptObject(f"{where} states a partition that does not add up", remedy=self.REMEDY)
        gone = self.superseded + self.vanished + self.erased
        if self.listed != self.rows + gone:
            raise CountMismatch(
                f"{where}: listed {self.listed:,} is not known {self.rows:,} + superseded "
                f"{self.superseded:,} + vanished {self.vanished:,} + erased {self.erased:,}",
                remedy=self.REMEDY,
            )

    @property
    def rows(self) -> int:
        """Crops that the archive is known to hold."""
        return sum(part.file.rows for part in self.partitions)

    @property
    def file_keys(self) -> set[str]:
        """Keys of all files of partitions, in the store."""
        return {part.file.key for part in self.partitions}

    @property
    def taken_keys(self) -> set[str]:
        """Keys of the files of crop_ids, in the store."""
        return {file.key for file in self.taken}


def catalogue_key(run_id: str) -> str:
    """Return the key of the catalogue of a run."""
    return f"{FOLDER}/runs/{run_id}.json"


def bits_by_folder(partitions: Iterable[Partition]) -> dict[str, int]:
    """Return into how many buckets, as a power of two, each folder is cut."""
    return {part.folder: part.bits for part in partitions}
