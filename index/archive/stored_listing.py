"""A listing in object storage, section by section, so that many processes make it and a killed one goes on.

    listings/<id>/listing.json               first: when the listing started
                  <section>-<digest>.parquet crops of a section, of one folder of partitions
                  <section>.json             last: the mark of a listed section, with its files and counts

The id follows from what is listed. Sections that are marked are taken over by the next planner, if the
listing started less than MAX_AGE ago; an older listing is dropped as a whole. Crops that were added to a
section after its listing are found by the next incremental run, as those added after any listing.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

import pyarrow as pa
from pydantic import AwareDatetime
from xxhash import xxh3_128_hexdigest

from index.archive.listing import ContainerCounts, Counts, Listing
from index.archive.manifest import normalize_manifest
from index.archive.sections import Section
from index.archive.skipped import SkippedObjects
from index.archive.spool import Spool
from index.documents import JsonDocument, require_keys_inside
from index.parquet import StoredFile, open_parquet, write_table
from index.schema import MANIFEST_SCHEMA
from infra.errors import ObjectMissing
from infra.store import Store, ignore_missing_root

FOLDER = "listings"
MAX_AGE = timedelta(hours=6)
FILE_ROWS = 1 << 16
_READS = 8
_MARKS = 64


@dataclass(frozen=True, slots=True)
class ListingInfo(JsonDocument):
    """What a listing is of, and when it started."""

    NOUN = "listing of this system"
    REMEDY = "Delete its folder: it is made again."

    archive: str
    started: AwareDatetime

    @property
    def is_fresh(self) -> bool:
        """Whether its sections may be taken over."""
        return datetime.now(UTC) - self.started < MAX_AGE


@dataclass(frozen=True, slots=True)
class FolderFile(JsonDocument):
    """Crops of one folder of partitions, see `index.archive.partitions`."""

    folder: str
    file: StoredFile


@dataclass(frozen=True, slots=True)
class ListedSection(JsonDocument):
    """The mark of a listed section."""

    NOUN = "section of a listing"
    REMEDY = "Delete the folder of the listing: it is made again."

    folder: str
    files: tuple[FolderFile, ...]
    num_not_images: int
    unmatched: int
    skipped: dict[str, int]
    examples: dict[str, tuple[str, ...]]
    containers: dict[str, int]
    unindexed: int
    bytes_read: int

    def check(self, where: str) -> None:
        """Raise CorruptObject for a file outside of the store."""
        require_keys_inside((one.file.key for one in self.files), where)


class StoredListing:
    """One listing in a folder of runs. It is pickled as its store, id and archive."""

    def __init__(self, store: Store, listing_id: str, archive: str) -> None:
        self.store = store
        self.id = listing_id
        self.archive = archive

    @classmethod
    def open(cls, store: Store, archive: str, request: str) -> Self | None:
        """Return a listing that is not too old, if any. request: text that decides what is listed."""
        listing = cls(store, _digest(archive, request), archive)
        with ignore_missing_root(store), suppress(ObjectMissing):
            if ListingInfo.read(store, listing._key("listing.json")).is_fresh:
                return listing
        return None

    @classmethod
    def start(cls, store: Store, archive: str, request: str) -> Self:
        """Start a listing anew; an earlier one of the same is dropped, and all that are too old."""
        listing = cls(store, _digest(archive, request), archive)
        listing.delete()
        for listing_id in _ids(store):
            with suppress(ObjectMissing):
                if ListingInfo.read(store, f"{FOLDER}/{listing_id}/listing.json").is_fresh:
                    continue
            cls(store, listing_id, archive).delete()
        store.put(listing._key("listing.json"), ListingInfo(archive, datetime.now(UTC)).to_json())
        return listing

    def pending(self, sections: Sequence[Section]) -> list[Section]:
        """Return those of some sections that are not listed yet."""
        names = {info.key.rpartition("/")[2] for info in self.store.list(f"{FOLDER}/{self.id}")}
        return [section for section in sections if f"{_name(section)}.json" not in names]

    def write(self, section: Section, listed: Listing) -> None:
        """Write the crops of a section, and then its mark; of repeated writes the last one counts."""
        files = [
            FolderFile(folder, self._write(section, rows))
            for folder in sorted(listed.crops.rows)
            for rows in _joined(listed.crops.tables(folder))
        ]
        mark = ListedSection(
            folder=section.folder,
            files=tuple(files),
            num_not_images=listed.num_not_images,
            unmatched=listed.unmatched,
            skipped=dict(listed.skipped.counts),
            examples={cause: tuple(keys) for cause, keys in listed.skipped.examples.items()},
            containers=dict(listed.containers.files),
            unindexed=listed.containers.unindexed,
            bytes_read=listed.containers.bytes_read,
        )
        self.store.put(self._mark_key(section), mark.to_json())

    def read(self, sections: Sequence[Section]) -> Listing:
        """Return what some listed sections hold, on local disk. Raises ObjectMissing, CorruptObject."""
        crops, skipped, total = Spool(self.archive, MANIFEST_SCHEMA), SkippedObjects(), Counts()
        with ThreadPoolExecutor(_READS, thread_name_prefix="read-listing") as pool:
            for first in range(0, len(sections), _MARKS):
                marks = list(pool.map(self._read_mark, sections[first : first + _MARKS]))
                files = [file for mark in marks for file in mark.files]
                for start in range(0, len(files), _READS):
                    for folder, rows in pool.map(self._read, files[start : start + _READS]):
                        crops.add(rows, folder)
                for mark in marks:
                    skipped.update(mark.skipped, mark.examples)
                    containers = ContainerCounts(mark.containers, mark.unindexed, mark.bytes_read)
                    total += Counts(mark.num_not_images, mark.unmatched, containers)
        return Listing(crops, total.num_not_images, total.unmatched, skipped, total.containers)

    def delete(self) -> None:
        """Delete it: first the document without which it does not count."""
        with ignore_missing_root(self.store):
            self.store.delete(self._key("listing.json"))
            self.store.delete(*(info.key for info in self.store.list(f"{FOLDER}/{self.id}")))

    def _key(self, name: str) -> str:
        return f"{FOLDER}/{self.id}/{name}"

    def _mark_key(self, section: Section) -> str:
        return self._key(f"{_name(section)}.json")

    def _read_mark(self, section: Section) -> ListedSection:
        return ListedSection.read(self.store, self._mark_key(section))

    def _write(self, section: Section, rows: pa.Table) -> StoredFile:
        key = self._key(f"{_name(section)}-{{digest}}.parquet")
        return write_table(self.store, key, rows, metadata={"clvr.listing": self.id})

    def _read(self, stated: FolderFile) -> tuple[str, pa.Table]:
        with open_parquet(self.store, stated.file.key, expected=stated.file) as file:
            return stated.folder, file.read().cast(MANIFEST_SCHEMA)


def delete_listings(store: Store) -> None:
    """Delete all listings of a folder of runs: they name crops."""
    for listing_id in _ids(store):
        StoredListing(store, listing_id, "").delete()


def _ids(store: Store) -> list[str]:
    folders: list[str] = []
    with ignore_missing_root(store):
        folders = store.folders(FOLDER)
    return [folder.rpartition("/")[2] for folder in folders]


def _name(section: Section) -> str:
    return _digest(section.folder, str(section.is_deep), section.after, section.until)


def _digest(*texts: str) -> str:
    return xxh3_128_hexdigest("\n".join(texts).encode())


def _joined(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Join tables of a listing to files of about FILE_ROWS, each sorted."""
    pending: list[pa.Table] = []
    for table in tables:
        pending.append(table)
        if sum(one.num_rows for one in pending) >= FILE_ROWS:
            yield normalize_manifest(pa.concat_tables(pending))
            pending = []
    if pending:
        yield normalize_manifest(pa.concat_tables(pending))
