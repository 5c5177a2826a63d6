"""List the crops of an archive, in parallel over its folders, or over its newest days only."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.fs

from index.archive.key_pattern import KeyPattern
from index.archive.manifest import BATCH_ROWS, crop_id_of, manifest_batch, normalize_manifest
from index.schema import MANIFEST_SCHEMA
from infra.errors import BadSetting, EmptyArchive
from infra.store import ObjectInfo, Store

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_MAX_PREFIX_OBJECTS = 1000


@dataclass(frozen=True, slots=True)
class Listing:
    """A manifest, the number of objects that are not images, and of crops whose key misses the pattern."""

    manifest: pa.Table
    num_not_images: int
    unmatched: int


def list_crops(
    store: Store, *, pattern: KeyPattern | None = None, workers: int = 16, since: date | None = None
) -> Listing:
    """List an archive, in parallel over folders named like 'dt=…' and 'cam=…', into a sorted manifest.

    Images are recognised by their suffix, in upper or lower case. Crops whose key misses the pattern stay in
    the manifest with an unknown camera, time and track.
    since: list only the folders dt=… of this day and later.
    Raises EmptyArchive, BadSetting if the archive has no such folders, and what `Store.list` raises.
    """
    if since is None:
        sources = _sources(store, workers)
    else:
        sources = [source for day in days_since(store, since) for source in _sources(store, workers, day)]

    def collect(source: Iterable[ObjectInfo]) -> tuple[list[pa.RecordBatch], int, int]:
        batches, num_not_images, unmatched = [], 0, 0
        objects = iter(source)
        while page := list(islice(objects, BATCH_ROWS)):
            images = [info for info in page if info.key.lower().endswith(IMAGE_SUFFIXES)]
            num_not_images += len(page) - len(images)
            batch, missed = _batch(store, images, pattern)
            batches.append(batch)
            unmatched += missed
        return batches, num_not_images, unmatched

    with ThreadPoolExecutor(workers, thread_name_prefix="list-archive") as pool:
        results = list(pool.map(collect, sources))
    table = pa.Table.from_batches([batch for batches, _, _ in results for batch in batches], MANIFEST_SCHEMA)
    num_not_images = sum(count for _, count, _ in results)
    if not table.num_rows:
        raise EmptyArchive(
            f"no images below {store.uri} ({num_not_images:,} other objects)",
            remedy=f"Check the prefix; names of images end in {', '.join(IMAGE_SUFFIXES)}.",
        )
    return Listing(normalize_manifest(table), num_not_images, sum(count for _, _, count in results))


def days_since(store: Store, since: date) -> list[str]:
    """Return the folders 'dt=yyyy-mm-dd' (or dt=yyyymmdd) of a day and later. Raises BadSetting if none."""
    days = {folder: day for folder in store.folders() if (day := day_of(folder)) is not None}
    if not days:
        raise BadSetting(
            f"{store.uri} has no folders dt=yyyy-mm-dd, so there are no days to look back over",
            remedy="Leave out --lookback-days to list and compare the whole archive.",
        )
    return sorted(folder for folder, day in days.items() if day >= since)


def day_of(key: str) -> date | None:
    """Return the day in the name of a key's first folder, such as 'dt=2026-11-22/…'."""
    name, _, text = key.partition("/")[0].partition("=")
    try:
        return date.fromisoformat(text) if name == "dt" else None
    except ValueError:
        return None


def _batch(store: Store, images: list[ObjectInfo], pattern: KeyPattern | None) -> tuple[pa.RecordBatch, int]:
    # Each page becomes Arrow columns at once: a million Python objects would take a gigabyte.
    uris = [store.uri_of(info.key) for info in images]
    columns: dict[str, Any] = {
        "crop_id": pa.array([crop_id_of(uri) for uri in uris], pa.int64()),
        "uri": pa.array(uris, pa.string()),
        "etag": pa.array([info.etag for info in images], pa.string()),
        "size": pa.array([info.size for info in images], pa.int64()),
        "last_modified": pa.array(
            [round(info.last_modified.timestamp() * 1000) for info in images], pa.int64()
        ),
    }
    return manifest_batch(columns, pa.array([info.key for info in images], pa.string()), pattern)


def _sources(store: Store, workers: int, root: str = "") -> list[Iterable[ObjectInfo]]:
    """Split an archive into `workers` listings or more, if two levels of its folders allow that."""
    prefixes, sources = [root], list[Iterable[ObjectInfo]]()
    for _ in range(1 if root else 2):
        subfolders: list[str] = []
        for prefix in prefixes:
            folders = store.folders(prefix)
            objects = None
            if folders and all(map(_is_partition, folders)):
                objects = _objects_at_prefix(store, prefix)
            if objects is None:
                sources.append(store.list(prefix))
            else:
                sources.append(objects)
                subfolders += folders
        prefixes = subfolders
        if len(prefixes) >= workers:
            break
    return sources + [store.list(prefix) for prefix in prefixes]


def _is_partition(folder: str) -> bool:
    return "=" in folder.rpartition("/")[2]


def _objects_at_prefix(store: Store, prefix: str) -> list[ObjectInfo] | None:
    """Return the objects directly at a prefix, without its folders; None if there are too many."""
    filesystem, root = store.arrow()
    entries = filesystem.get_file_info(pyarrow.fs.FileSelector(f"{root}/{prefix}".rstrip("/")))
    names = [entry.base_name for entry in entries if entry.type == pyarrow.fs.FileType.File]
    if len(names) > _MAX_PREFIX_OBJECTS:
        return None
    infos = [store.head(f"{prefix}/{name}".lstrip("/")) for name in names]
    return [info for info in infos if info is not None]
