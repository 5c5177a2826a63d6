"""List the crops of an archive, in parallel over its folders or its newest days, onto local disk."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
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
from index.archive.skipped import SkippedObjects
from index.archive.spool import Spool
from index.schema import MANIFEST_SCHEMA
from infra.errors import BadSetting, EmptyArchive
from infra.store import FOLDER_MARKER, ObjectInfo, Store, UnusableObject

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_MAX_PREFIX_OBJECTS = 1000


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


def list_crops(
    store: Store,
    *,
    pattern: KeyPattern | None = None,
    workers: int = 16,
    since: date | None = None,
    choice: KeyChoice = VISIBLE_KEYS,
) -> Listing:
    """List an archive, in parallel over folders named like 'dt=…' and 'cam=…', into rows of a manifest.

    Images are recognised by their suffix, in upper or lower case; those in tar files, and
    the rows of Parquet files, are crops too. Crops
    whose key misses the pattern stay in the manifest with an unknown camera, time and track.
    since: list only the folders dt=… of this day and later. choice: the keys to take; without hidden ones by
    default.
    Raises EmptyArchive, BadSetting if the archive has no such folders, and what `Store.list` raises.
    """
    skipped, crops = SkippedObjects(), Spool(store.uri, MANIFEST_SCHEMA)
    if since is None:
        sources = _sources(store, workers, skipped)
    else:
        days = days_since(store, since)
        sources = [source for day in days for source in _sources(store, workers, skipped, day)]

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

    def collect(source: Iterable[ObjectInfo]) -> tuple[Counts, list[ObjectInfo]]:
        num_not_images = unmatched = 0
        files: list[ObjectInfo] = []
        objects = iter(source)
        while page := list(islice(objects, BATCH_ROWS)):
            images = [info for info in page if info.key.endswith(IMAGE_SUFFIXES) or is_image(info.key)]
            if len(images) < len(page):
                files += [info for info in page if container_suffix(info.key)]
                indexes = sum(is_tar_index(info.key) for info in page)
                num_not_images += len(page) - len(images) - indexes
            if not choice.takes_all([info.key for info in images]):
                images = [info for info in images if is_taken_object(info.key)]
            batch, missed = _batch(store, images, pattern)
            crops.add(pa.Table.from_batches([batch]))
            unmatched += missed
        return Counts(num_not_images - len(files), unmatched), files

    with ThreadPoolExecutor(workers, thread_name_prefix="list-archive") as pool:
        listed = list(pool.map(collect, sources))
        files = [file for _, some in listed for file in some if is_taken(file.key, choice.why_not_inside)]
        members = pool.map(lambda file: list_members(store, file, pattern, choice, skipped, crops), files)
        total = sum([*(counts for counts, _ in listed), *members], Counts())
    num_not_images = total.num_not_images
    if not crops.num_rows:
        raise EmptyArchive(
            "; ".join([f"no images below {store.uri} ({num_not_images:,} other objects)", *skipped.notes()]),
            remedy=f"Check the prefix; names of images end in {', '.join(IMAGE_SUFFIXES)}.",
        )
    return Listing(crops, num_not_images, total.unmatched, skipped, total.containers)


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


def days_since(store: Store, since: date) -> list[str]:
    """Return the folders 'dt=yyyy-mm-dd' (or dt=yyyymmdd) of a day and later. Raises BadSetting if none."""
    days = {folder: day for folder in store.folders() if (day := day_of(folder)) is not None}
    if not days:
        raise BadSetting(
            f"{store.uri} has no folders dt=yyyy-mm-dd, so there are no days to look back over",
            remedy="Leave out --lookback-days to list and compare the whole archive.",
        )
    return sorted(folder for folder, day in days.items() if day >= since)


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


def _sources(
    store: Store, workers: int, skipped: SkippedObjects, root: str = ""
) -> list[Iterable[ObjectInfo]]:
    """Split an archive into `workers` listings or more, if two levels of its folders allow that."""

    def skip(found: UnusableObject) -> None:
        if found.cause != FOLDER_MARKER:
            skipped.add(found.cause, found.key)

    prefixes, sources = [root], list[Iterable[ObjectInfo]]()
    for _ in range(1 if root else 2):
        subfolders: list[str] = []
        for prefix in prefixes:
            level = store.level(prefix)
            is_partitioned = bool(level.folders) and all(map(_is_partition, level.folders))
            if is_partitioned and len(level.objects) <= _MAX_PREFIX_OBJECTS:
                sources.append([found for found in level.objects if isinstance(found, ObjectInfo)])
                for found in level.objects:
                    if isinstance(found, UnusableObject):
                        skip(found)
                subfolders += level.folders
            else:
                sources.append(store.list(prefix, unusable=skip))
        prefixes = subfolders
        if len(prefixes) >= workers:
            break
    return sources + [store.list(prefix, unusable=skip) for prefix in prefixes]


def _is_partition(folder: str) -> bool:
    return "=" in folder.rpartition("/")[2]
