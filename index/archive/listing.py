"""List the crops of an archive, and look back over its newest days."""

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
_MOST_LOOSE = 1000


@dataclass(frozen=True, slots=True)
class Listing:
    """What a listing found: the manifest, keys that are no pictures, crops whose key the pattern misses."""

    manifest: pa.Table
    ignored: int
    unmatched: int


def list_archive(store: Store, *, pattern: KeyPattern | None = None, workers: int = 16) -> pa.Table:
    """Return the manifest of every picture below the store's root. See `survey_archive`."""
    return list_crops(store, pattern=pattern, workers=workers).manifest


def list_crops(
    store: Store, *, pattern: KeyPattern | None = None, workers: int = 16, since: date | None = None
) -> Listing:
    """List an archive, in parallel over folders named like 'dt=…' and 'cam=…', into a sorted manifest.

    since: only the folders dt=… of this day and later; an archive without such folders raises BadSetting.

    Pictures go by their suffix, in either case; other keys are counted as ignored. Keys that the pattern
    misses are kept with an unknown camera, time and track, and counted.
    Raises EmptyArchive, and what `Store.list` raises.
    """
    if since is None:
        sources = _sources(store, workers)
    else:
        sources = [source for day in days_since(store, since) for source in _sources(store, workers, day)]

    def collect(source: Iterable[ObjectInfo]) -> tuple[list[pa.RecordBatch], int, int]:
        batches, ignored, unmatched = [], 0, 0
        objects = iter(source)
        while page := list(islice(objects, BATCH_ROWS)):
            pictures = [found for found in page if found.key.lower().endswith(IMAGE_SUFFIXES)]
            ignored += len(page) - len(pictures)
            batch, missed = _batch(store, pictures, pattern)
            batches.append(batch)
            unmatched += missed
        return batches, ignored, unmatched

    with ThreadPoolExecutor(workers, thread_name_prefix="list-archive") as pool:
        collected = list(pool.map(collect, sources))
    ignored = sum(found[1] for found in collected)
    table = pa.Table.from_batches([batch for found in collected for batch in found[0]], MANIFEST_SCHEMA)
    if not table.num_rows:
        raise EmptyArchive(
            f"no picture below {store.uri} ({ignored:,} other objects)",
            remedy=f"Pictures end in {', '.join(IMAGE_SUFFIXES)}; check the prefix.",
        )
    return Listing(normalize_manifest(table), ignored, sum(found[2] for found in collected))


def days_since(store: Store, since: date) -> list[str]:
    """Return the folders 'dt=yyyy-mm-dd' (or dt=yyyymmdd) from a day on. Raises BadSetting without any."""
    days = {folder: day for folder in store.folders() if (day := day_of(folder)) is not None}
    if not days:
        raise BadSetting(
            f"{store.uri} has no folders dt=yyyy-mm-dd, so there are no days to look back over",
            remedy="Leave out --lookback-days: the whole archive is listed and compared.",
        )
    return sorted(folder for folder, day in days.items() if day >= since)


def day_of(key: str) -> date | None:
    """Return the day that a key's first folder names: 'dt=2026-11-22/…'."""
    name, _, text = key.partition("/")[0].partition("=")
    try:
        return date.fromisoformat(text) if name == "dt" else None
    except ValueError:
        return None


def _batch(
    store: Store, pictures: list[ObjectInfo], pattern: KeyPattern | None
) -> tuple[pa.RecordBatch, int]:
    # The rows become Arrow columns page by page: a million Python objects would take a gigabyte.
    uris = [store.uri_of(found.key) for found in pictures]
    columns: dict[str, Any] = {
        "crop_id": pa.array([crop_id_of(uri) for uri in uris], pa.int64()),
        "uri": pa.array(uris, pa.string()),
        "etag": pa.array([found.etag for found in pictures], pa.string()),
        "size": pa.array([found.size for found in pictures], pa.int64()),
        "last_modified": pa.array(
            [round(found.last_modified.timestamp() * 1000) for found in pictures], pa.int64()
        ),
    }
    return manifest_batch(columns, pa.array([found.key for found in pictures], pa.string()), pattern)


def _sources(store: Store, workers: int, root: str = "") -> list[Iterable[ObjectInfo]]:
    """Split an archive into `workers` listings or more, where two levels of its folders allow that."""
    level, sources = [root], list[Iterable[ObjectInfo]]()
    for _ in range(1 if root else 2):
        below: list[str] = []
        for prefix in level:
            folders = store.folders(prefix)
            loose = _loose(store, prefix) if folders and all(map(_is_partition, folders)) else None
            if loose is None:
                sources.append(store.list(prefix))
            else:
                sources.append(loose)
                below += folders
        level = below
        if len(level) >= workers:
            break
    return sources + [store.list(prefix) for prefix in level]


def _is_partition(folder: str) -> bool:
    return "=" in folder.rpartition("/")[2]


def _loose(store: Store, prefix: str) -> list[ObjectInfo] | None:
    """Return the objects right below a prefix, beside its folders. None if they are many."""
    filesystem, root = store.arrow()
    here = f"{root}/{prefix}".rstrip("/")
    found = filesystem.get_file_info(pyarrow.fs.FileSelector(here))
    names = [entry.base_name for entry in found if entry.type == pyarrow.fs.FileType.File]
    if len(names) > _MOST_LOOSE:
        return None
    heads = [store.head(f"{prefix}/{name}".lstrip("/")) for name in names]
    return [head for head in heads if head is not None]
