"""List the crops of an archive, or of sections of it, onto local disk."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from index.archive.containers import kind_of
from index.archive.key_choice import VISIBLE_KEYS, KeyChoice
from index.archive.key_pattern import KeyPattern
from index.archive.manifest import BATCH_ROWS, crop_ids_of, manifest_batch
from index.archive.members import container_suffix, is_tar_index, member_key, split_member
from index.archive.partitions import day_of
from index.archive.sections import FolderNotFlat, Section, sections_of
from index.archive.skipped import SkippedObjects
from index.archive.spool import Spool
from index.schema import MANIFEST_SCHEMA
from infra.errors import EmptyArchive
from infra.store import FOLDER_MARKER, ObjectInfo, Store, UnusableObject

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True, slots=True)
class ContainerCounts:
    """Containers of a listing by kind ('tar files'), and those that had to be read whole with their bytes."""

    files: Mapping[str, int] = field(default_factory=dict)
    unindexed: int = 0
    bytes_read: int = 0

    def __add__(self, other: "ContainerCounts") -> "ContainerCounts":
        return ContainerCounts(
            Counter(self.files) + Counter(other.files),
            self.unindexed + other.unindexed,
            self.bytes_read + other.bytes_read,
        )

    def notes(self) -> list[str]:
        """Return a line on the containers, and how to list them faster."""
        if not self.files:
            return []
        note = ", ".join(f"{number:,} {noun}" for noun, number in sorted(self.files.items()))
        if self.unindexed:
            read = f"{self.bytes_read / 1e6:,.0f} MB"
            note += (
                f", of which {self.unindexed:,} have no index and were read ({read}): "
                "`clvr pack --index` writes indexes"
            )
        return [note]


@dataclass(frozen=True, slots=True)
class Listing:
    """Rows of a manifest, and the numbers of objects that are no images and of keys that miss the pattern.

    skipped: the objects that were left out of the manifest though they may be images. containers: files
    whose members are listed, and how many of them have no index, so that they were read whole.
    """

    crops: Spool
    num_not_images: int
    unmatched: int
    skipped: SkippedObjects = field(default_factory=SkippedObjects)
    containers: ContainerCounts = field(default_factory=ContainerCounts)

    def require_crops(self, archive: Store) -> None:
        """Raise EmptyArchive if no crop is listed."""
        if not self.crops.num_rows:
            others = f"{self.num_not_images:,} other objects"
            raise EmptyArchive(
                "; ".join([f"no images below {archive.uri} ({others})", *self.skipped.notes()]),
                remedy=f"Check the prefix; names of images end in {', '.join(IMAGE_SUFFIXES)}.",
            )

    def notes(self) -> list[str]:
        """Return what a user should know of it, a line each."""
        return [*self.containers.notes(), *self.skipped.notes()]


@dataclass(frozen=True, slots=True)
class Counts:
    """What the listing of some folders, or of one container, counted."""

    num_not_images: int = 0
    unmatched: int = 0
    containers: ContainerCounts = field(default_factory=ContainerCounts)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.num_not_images + other.num_not_images,
            self.unmatched + other.unmatched,
            self.containers + other.containers,
        )


class TooManyCrops(Exception):
    """A listing has more crops than its caller wants from one process."""


def list_crops(
    store: Store,
    *,
    pattern: KeyPattern | None = None,
    workers: int = 16,
    since: date | None = None,
    choice: KeyChoice = VISIBLE_KEYS,
) -> Listing:
    """List an archive, in parallel over its folders, into rows of a manifest.

    since: list only the folders dt=… of this day and later. Raises EmptyArchive, BadSetting if the archive
    has no such folders, and what `list_sections` raises.
    """
    sections = sections_of(store, workers, since)
    listing = list_sections(store, sections, pattern=pattern, workers=workers, choice=choice)
    listing.require_crops(store)
    return listing


def list_sections(
    store: Store,
    sections: Sequence[Section],
    *,
    pattern: KeyPattern | None = None,
    workers: int = 16,
    choice: KeyChoice = VISIBLE_KEYS,
    limit: int | None = None,
) -> Listing:
    """List some sections of an archive, up to `workers` at the same time, into rows of a manifest.

    Images are recognised by their suffix, in upper or lower case; those in tar files, and
    the rows of Parquet files, are crops too. Crops
    whose key misses the pattern stay in the manifest with an unknown camera, time and track.
    choice: the keys to take; without hidden ones by default. limit: raise TooManyCrops beyond so many crops.
    Raises what `Store.list` and `list_members` raise.
    """
    skipped, crops = SkippedObjects(), Spool(store.uri, MANIFEST_SCHEMA)

    def check_limit() -> None:
        if limit is not None and crops.num_rows > limit:
            raise TooManyCrops

    def is_taken(key: str, why_not: Callable[[str], str] = choice.why_not) -> bool:
        cause = why_not(key)
        if cause:
            skipped.add(cause, key)
        return not cause

    def is_taken_object(key: str) -> bool:
        if split_member(key):
            skipped.add("a key like that of a crop in a container", key)
            return False
        return is_taken(key)

    def collect(section: Section) -> tuple[Counts, list[ObjectInfo]]:
        num_not_images = unmatched = 0
        files: list[ObjectInfo] = []
        objects = iter(_objects(store, section, skipped))
        day = _day_folder(section)
        while page := list(islice(objects, BATCH_ROWS)):
            images = [info for info in page if info.key.endswith(IMAGE_SUFFIXES) or is_image(info.key)]
            if len(images) < len(page):
                files += [info for info in page if container_suffix(info.key)]
                indexes = sum(is_tar_index(info.key) for info in page)
                num_not_images += len(page) - len(images) - indexes
            if not choice.takes_all([info.key for info in images]):
                images = [info for info in images if is_taken_object(info.key)]
            batch, missed = _batch(store, images, pattern)
            crops.add(pa.Table.from_batches([batch]), day)
            unmatched += missed
            check_limit()
        return Counts(num_not_images - len(files), unmatched), files

    def open_container(file: ObjectInfo) -> Counts:
        counts = list_members(store, file, pattern, choice, skipped, crops)
        check_limit()
        return counts

    with ThreadPoolExecutor(max(1, min(workers, len(sections))), thread_name_prefix="list-archive") as pool:
        listed = list(pool.map(collect, sections))
    files = [file for _, some in listed for file in some if is_taken(file.key, choice.why_not_inside)]
    with ThreadPoolExecutor(workers, thread_name_prefix="list-members") as pool:
        members = pool.map(open_container, files)
        total = sum([*(counts for counts, _ in listed), *members], Counts())
    return Listing(crops, total.num_not_images, total.unmatched, skipped, total.containers)


def list_members(
    store: Store,
    file: ObjectInfo,
    pattern: KeyPattern | None,
    choice: KeyChoice,
    skipped: SkippedObjects,
    crops: Spool,
) -> Counts:
    """Add the crops in a container; a file that holds none counts as another object.

    Raises CorruptObject if it is damaged, ObjectChanged, StoreError.
    """
    kind = kind_of(file.key)
    contents = kind.contents(store, file)
    if contents is None:
        return Counts(num_not_images=1)
    for cause, name in contents.skipped:
        skipped.add(cause, member_key(file.key, name))
    if contents.truncated:
        skipped.add("the rest of a file that is damaged or cut short", file.key)
    num_not_images = unmatched = 0
    members, first = iter(contents.members.items()), 0
    while page := list(islice(members, BATCH_ROWS)):
        images, rows = [], []
        for row, (name, place) in enumerate(page, first):
            key = member_key(file.key, name)
            if kind.images_by_suffix and not is_image(name):
                num_not_images += 1
            elif cause := choice.why_not(key):
                skipped.add(cause, key)
            else:
                images.append(replace(file, key=key, size=place.size, etag=place.etag))
                rows.append(row)
        taken = pa.array(rows, pa.int64())
        stated = {name: column.take(taken) for name, column in contents.columns.items()}
        batch, missed = _batch(store, images, pattern, stated)
        crops.add(pa.Table.from_batches([batch]))
        unmatched += missed
        first += len(page)
    read = contents.bytes_read
    return Counts(num_not_images, unmatched, ContainerCounts({kind.noun: 1}, int(read > 0), read))


def is_image(key: str) -> bool:
    """Whether an object is an image, by its suffix."""
    return key.lower().endswith(IMAGE_SUFFIXES)


def _batch(
    store: Store,
    images: list[ObjectInfo],
    pattern: KeyPattern | None,
    stated: Mapping[str, Any] | None = None,
) -> tuple[pa.RecordBatch, int]:
    # Each page becomes Arrow columns at once: a million Python objects would take a gigabyte.
    root = store.uri_of("")
    uris = [root + info.key for info in images]
    times = pa.array([info.last_modified for info in images], pa.timestamp("us", "UTC"))
    times_ms = pa.timestamp("ms", "UTC")
    columns: dict[str, Any] = dict(stated or {}) | {
        "crop_id": pa.array(crop_ids_of(uris)),
        "uri": pa.array(uris, pa.string()),
        "etag": pa.array([info.etag for info in images], pa.string()),
        "size": pa.array([info.size for info in images], pa.int64()),
        "last_modified": pc.round_temporal(times, unit="millisecond").cast(times_ms).cast(pa.int64()),
    }
    return manifest_batch(columns, pa.array([info.key for info in images], pa.string()), pattern)


def _objects(store: Store, section: Section, skipped: SkippedObjects) -> Iterator[ObjectInfo]:
    """Yield the objects of a section. Raises FolderNotFlat."""

    def skip(found: UnusableObject) -> None:
        if section.is_range and not _is_in_range(section, found.key, store):
            return
        if found.cause != FOLDER_MARKER:
            skipped.add(found.cause, found.key)

    if section.is_range:
        last = section.after
        for found in store.list(section.folder, unusable=skip, after=section.after):
            if found.key <= last:
                raise FolderNotFlat(f"{store.uri_of(section.folder)} is not listed in the order of its keys")
            if not _is_in_range(section, found.key, store):
                return
            last = found.key
            yield found
    elif section.is_deep:
        yield from store.list(section.folder, unusable=skip)
    else:
        for listed in store.level(section.folder).objects:
            if isinstance(listed, ObjectInfo):
                yield listed
            else:
                skip(listed)


def _is_in_range(section: Section, key: str, store: Store) -> bool:
    # Without folders, every store lists in the order of the keys, so that a range ends at its last key.
    if "/" in key[len(section.folder) :].removeprefix("/"):
        raise FolderNotFlat(f"{store.uri_of(section.folder)} has folders, such as that of {key!r}")
    return not section.until or key <= section.until


def _day_folder(section: Section) -> str | None:
    """Return the day folder that all crops of a section are in, if there is one."""
    name = section.folder.partition("/")[0]
    return name if day_of(f"{name}/") else None
