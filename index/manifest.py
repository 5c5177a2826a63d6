"""Manifests: one row a crop, from a listing of the archive or from a list of keys."""

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.fs

from index.crops import canonical, check_unique, crop_id_of, manifest_digest
from index.key_pattern import KeyPattern
from index.labels import LabelReport, with_labels
from index.parquet import opened
from index.schemas import MANIFEST_SCHEMA, UNKNOWN_TIME
from infra.errors import BadInput, BadSetting, EmptyArchive
from infra.store import ObjectInfo, Store, StoreSettings, open_store, split_uri

__all__ = [
    "MANIFEST_SCHEMA",
    "UNKNOWN_TIME",
    "KeyPattern",
    "LabelReport",
    "Listing",
    "canonical",
    "check_unique",
    "crop_id_of",
    "day_of",
    "days_since",
    "list_archive",
    "manifest_batch",
    "manifest_digest",
    "read_manifest",
    "survey_archive",
    "with_labels",
]

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

_BATCH_ROWS = 16_384
_MOST_LOOSE = 1000
_UNKNOWN: dict[str, Any] = {
    "etag": "",
    "size": -1,
    "last_modified": UNKNOWN_TIME,
    "camera_id": "",
    "captured_at": UNKNOWN_TIME,
    "track_id": "",
    "vehicle_id": None,
    "model_id": None,
}


@dataclass(frozen=True, slots=True)
class Listing:
    """What a listing found: the manifest, keys that are no pictures, crops whose key the pattern misses."""

    manifest: pa.Table
    ignored: int
    unmatched: int


def list_archive(store: Store, *, pattern: KeyPattern | None = None, workers: int = 16) -> pa.Table:
    """Return the manifest of every picture below the store's root. See `survey_archive`."""
    return survey_archive(store, pattern=pattern, workers=workers).manifest


def survey_archive(
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
        while page := list(islice(objects, _BATCH_ROWS)):
            pictures = [found for found in page if found.key.lower().endswith(PICTURE_SUFFIXES)]
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
            remedy=f"Pictures end in {', '.join(PICTURE_SUFFIXES)}; check the prefix.",
        )
    return Listing(canonical(table), ignored, sum(found[2] for found in collected))


def read_manifest(
    uri: str,
    *,
    archive: str | None = None,
    pattern: KeyPattern | None = None,
    settings: StoreSettings | None = None,
) -> pa.Table:
    """Read a list of crops, Parquet or CSV with a header line, into a sorted manifest.

    It needs the column `uri`, or `key` together with the archive's URI; further columns of MANIFEST_SCHEMA
    are taken where they are, and what is missing comes from the pattern (if given) or is unknown.
    Raises BadInput for missing columns, values of another type, or crop_ids that are not those of the URIs.
    """
    root, name = split_uri(uri)
    table = _read_key_list(open_store(root, settings), name)
    if not table.num_rows:
        raise EmptyArchive(f"{uri} lists no crops")
    if "uri" in table.schema.names:
        uris = table["uri"]
    elif "key" in table.schema.names and archive is not None:
        uris = pc.binary_join_element_wise(archive.rstrip("/"), table["key"].cast(pa.string()), "/")
    else:
        raise BadInput(
            f"{uri} has neither a column 'uri' nor a column 'key' below a known archive",
            remedy="Add the column 'uri', or name the archive's root.",
        )
    if uris.null_count:
        raise BadInput(f"{uri} has {uris.null_count:,} rows without a crop")
    columns = {name: table[name] for name in _UNKNOWN if name in table.schema.names}
    if pattern is not None:
        keys = pc.replace_substring_regex(uris.combine_chunks(), rf"\A{re.escape((archive or '') + '/')}", "")
        columns = pattern.extract(keys) | columns
    for name, value in _UNKNOWN.items():
        kind = MANIFEST_SCHEMA.field(name).type
        columns.setdefault(name, pa.repeat(pa.scalar(value, kind), table.num_rows))
        if value is not None:
            columns[name] = pc.fill_null(columns[name], value)
    # Slice by slice: a million Python strings at once would take 150 MB.
    pieces = (uris.slice(first, _BATCH_ROWS) for first in range(0, table.num_rows, _BATCH_ROWS))
    crop_ids = pa.chunked_array(
        [pa.array([crop_id_of(text) for text in piece.to_pylist()], pa.int64()) for piece in pieces]
    )
    if "crop_id" in table.schema.names and not pc.all(pc.equal(table["crop_id"], crop_ids)).as_py():
        raise BadInput(f"{uri} has crop_ids that do not belong to its URIs", remedy="Leave out that column.")
    columns |= {"crop_id": crop_ids, "uri": uris}
    return canonical(pa.table({name: columns[name] for name in MANIFEST_SCHEMA.names}))


def _read_key_list(store: Store, name: str) -> pa.Table:
    if name.endswith(".parquet"):
        with opened(store, name) as file:
            return file.read()
    types: dict[str, Any] = {"key": pa.string()} | {field.name: field.type for field in MANIFEST_SCHEMA}
    options = pyarrow.csv.ConvertOptions(column_types=types)
    try:
        return pyarrow.csv.read_csv(pa.BufferReader(store.get(name)), convert_options=options)
    except pa.ArrowInvalid as invalid:
        raise BadInput(f"{store.uri_of(name)} is not a usable CSV file: {invalid}") from invalid


def manifest_batch(
    columns: dict[str, Any], keys: Any, pattern: KeyPattern | None
) -> tuple[pa.RecordBatch, int]:
    """Complete columns (n) of crops to MANIFEST_SCHEMA: from the pattern where it matches their keys, else
    unknown. Returns them with the number of keys that the pattern misses."""
    missed = 0
    if pattern is not None:
        facts = pattern.extract(keys)
        missed = len(keys) - pc.sum(facts.pop("matched"), min_count=0).as_py()
        columns = facts | columns
    for name, value in _UNKNOWN.items():
        if name not in columns:
            columns[name] = pa.repeat(pa.scalar(value, MANIFEST_SCHEMA.field(name).type), len(keys))
    return pa.record_batch({name: columns[name] for name in MANIFEST_SCHEMA.names}, MANIFEST_SCHEMA), missed


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
