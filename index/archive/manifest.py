"""Manifests: one row per crop, read from a list of keys or made of a listing, in one normal form."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from index.archive.key_pattern import KeyPattern
from index.archive.skipped import SkippedObjects
from index.schema import COLUMN_KINDS, MANIFEST_SCHEMA, UNKNOWN
from infra.errors import BadInput, DuplicateCropId, EmptyArchive, SchemaMismatch
from infra.store import UNADDRESSABLE, UNUSABLE_KEY_PATTERN, StoreSettings, TimeRange, read_user_table

BATCH_ROWS = 16_384
"""Rows that become Arrow columns at a time: Python strings of a million URIs would take 150 MB."""

CROP_ID_MASK = (1 << 63) - 1
"""The bits of a crop_id."""

_DIGEST_ROWS = 65_536
_TAKE_ROWS = 1_000_000
_LIST_KINDS = {name: COLUMN_KINDS[name] for name in ("key", *MANIFEST_SCHEMA.names)}
_NULLABLE = {name for name, unknown in UNKNOWN.items() if unknown is None}


def crop_id_of(uri: str, attempt: int = 0) -> int:
    """Return the crop_id: 63 bits of xxh3 over the URI in UTF-8, which fit a signed int64.

    attempt: the seed of the hash; not 0 only for a crop whose id another crop had first: see
    `index.archive.reassigned`.
    """
    return xxh3_64_intdigest(uri.encode(), seed=attempt) & CROP_ID_MASK


def crop_ids_of(uris: Iterable[str]) -> NDArray[np.int64]:
    """Return the crop_ids (n,) of URIs."""
    mask = CROP_ID_MASK
    return np.fromiter((xxh3_64_intdigest(uri.encode()) & mask for uri in uris), np.int64)


def read_manifest(
    uri: str,
    *,
    archive: str | None = None,
    pattern: KeyPattern | None = None,
    settings: StoreSettings | None = None,
    times: TimeRange | None = None,
    skipped: SkippedObjects | None = None,
) -> pa.Table:
    """Read a list of crops, Parquet or CSV with a header line, into a sorted manifest.

    The list has the column `uri`, or `key` together with the archive's URI, and may have further columns of
    MANIFEST_SCHEMA. Missing columns are read from the keys by the pattern, if given, or are unknown. Rows
    whose key no store can address are left out and counted in `skipped`.
    times: the plausible values of captured_at; None: those of the environment.
    Raises BadInput, with the data row, for missing columns, values of another type, rows without a crop, and
    crop_ids that do not match the URIs; EmptyArchive for a list without crops.
    """
    table = read_user_table(
        uri,
        _LIST_KINDS,
        required=["uri"] if archive is None else [("uri", "key")],
        times=times or TimeRange.from_env(),
        settings=settings,
    )
    if not table.num_rows:
        raise EmptyArchive(f"{uri} lists no crops", remedy="Give a list with at least one row.")
    name = "uri" if "uri" in table.schema.names else "key"
    if table[name].null_count:
        row = pc.index(table[name].is_null(), True).as_py() + 1
        raise BadInput(f"{uri}, data row {row}: empty {name}", remedy="Remove the row.")
    table = _addressable(table, name, skipped or SkippedObjects())
    if not table.num_rows:
        raise EmptyArchive(
            f"{uri} lists only crops whose keys cannot be addressed", remedy="Rename the objects."
        )
    uris = table["uri"] if name == "uri" else below(archive or "", table["key"])
    crop_ids = _crop_ids(uris)
    if "crop_id" in table.schema.names:
        differs = pc.fill_null(pc.not_equal(table["crop_id"], crop_ids), False)
        if (row := pc.index(differs, True).as_py()) >= 0:
            raise BadInput(
                f"{uri}: crop_id {table['crop_id'][row]} does not belong to its URI {uris[row]}",
                remedy="Leave out the column crop_id.",
            )
    columns = {name: table[name] for name in UNKNOWN if name in table.schema.names}
    if pattern is not None:
        keys = pc.replace_substring_regex(uris.combine_chunks(), rf"\A{re.escape((archive or '') + '/')}", "")
        columns = _known_or(columns, pattern.extract(keys))
    for name, value in UNKNOWN.items():
        data_type = MANIFEST_SCHEMA.field(name).type
        columns.setdefault(name, pa.repeat(pa.scalar(value, data_type), table.num_rows))
        if value is not None:
            columns[name] = pc.fill_null(columns[name], value)
    columns |= {"crop_id": crop_ids, "uri": uris}
    return normalize_manifest(pa.table({name: columns[name] for name in MANIFEST_SCHEMA.names}))


def below(root: str, keys: Any) -> Any:
    """Return the URIs of keys (string Array or ChunkedArray) below a root."""
    return pc.binary_join_element_wise(root.rstrip("/"), keys, "/")


def _addressable(table: pa.Table, name: str, skipped: SkippedObjects) -> pa.Table:
    """Return the rows whose URI or key every kind of store can address; count the others as skipped."""
    texts = table[name]
    keys = pc.replace_substring_regex(texts, r"\A(s3:/)?/", "") if name == "uri" else texts
    is_unusable = pc.match_substring_regex(keys, UNUSABLE_KEY_PATTERN)
    if not pc.any(is_unusable).as_py():
        return table
    for text in texts.filter(is_unusable).to_pylist():
        skipped.add(UNADDRESSABLE, text)
    return table.filter(pc.invert(is_unusable))


def _crop_ids(uris: Any) -> Any:
    batches = (uris.slice(first, BATCH_ROWS) for first in range(0, len(uris), BATCH_ROWS))
    return pa.chunked_array([pa.array(crop_ids_of(batch.to_pylist())) for batch in batches], pa.int64())


def _known_or(columns: dict[str, Any], extracted: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a list; where a value is unknown there, what the keys say."""
    return {
        name: pc.coalesce(columns[name], extracted[name]) if name in columns else extracted[name]
        for name in extracted
    } | {name: column for name, column in columns.items() if name not in extracted}


def manifest_batch(
    columns: dict[str, Any], keys: Any, pattern: KeyPattern | None
) -> tuple[pa.RecordBatch, int]:
    """Complete columns (n) of crops to MANIFEST_SCHEMA; return them and the number of unmatched keys.

    Missing columns and nulls are read from the keys by the pattern; where it does not match, they are
    unknown.
    """
    unmatched = 0
    if pattern is not None:
        extracted = pattern.extract(keys)
        unmatched = len(keys) - pc.sum(extracted.pop("matched"), min_count=0).as_py()
        columns = _known_or(columns, extracted)
    for name, value in UNKNOWN.items():
        if name not in columns:
            columns[name] = pa.repeat(pa.scalar(value, MANIFEST_SCHEMA.field(name).type), len(keys))
        elif value is not None:
            columns[name] = pc.fill_null(columns[name], value)
    rows = pa.record_batch({name: columns[name] for name in MANIFEST_SCHEMA.names}, MANIFEST_SCHEMA)
    return rows, unmatched


def normalize_manifest(manifest: pa.Table) -> pa.Table:
    """Return a manifest with the columns of MANIFEST_SCHEMA, sorted by URI and newest first.

    Raises SchemaMismatch for missing columns, other types, or nulls outside the labels.
    """
    missing = set(MANIFEST_SCHEMA.names) - set(manifest.schema.names)
    if missing:
        raise SchemaMismatch(f"the manifest lacks the columns {', '.join(sorted(missing))}")
    try:
        table = manifest.select(MANIFEST_SCHEMA.names).cast(MANIFEST_SCHEMA)
    except (pa.ArrowException, ValueError) as failure:
        raise SchemaMismatch(f"the manifest has a column of another type: {failure}") from failure
    for name in MANIFEST_SCHEMA.names:
        if name not in _NULLABLE and table[name].null_count:
            raise SchemaMismatch(f"the manifest has {table[name].null_count:,} nulls in column {name}")
    uris = table["uri"]
    # S3 lists in this order, so most manifests need no sort.
    if pc.all(pc.less(uris[:-1], uris[1:]), min_count=0).as_py():
        return table
    return _take_large(table, pc.sort_indices(table, [("uri", "ascending"), ("last_modified", "descending")]))


def drop_duplicates(manifest: pa.Table) -> tuple[pa.Table, int]:
    """Keep the first row of each URI; return these rows and the number of rows dropped.

    Raises DuplicateCropId, with up to ten pairs, if two URIs share a crop_id.
    """
    ids = np.asarray(manifest["crop_id"])
    ordered = np.sort(ids)  # much faster than the order of the rows, which is rarely needed
    if not (ordered[1:] == ordered[:-1]).any():
        return manifest, 0
    order = np.argsort(ids, kind="stable")
    repeats = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    uris = manifest.select(["uri"])
    first = _take_large(uris, pa.array(order[repeats]))["uri"]
    second = _take_large(uris, pa.array(order[repeats + 1]))["uri"]
    collisions = np.flatnonzero(np.asarray(pc.not_equal(first, second)))
    if collisions.size:
        pairs = [f"{ids[order][repeats[i]]} ({first[int(i)]} and {second[int(i)]})" for i in collisions[:10]]
        raise DuplicateCropId(
            f"{collisions.size:,} pairs of crops share a crop_id: {'; '.join(pairs)}",
            remedy="Rename one crop of each pair, or leave it out of the archive.",
        )
    mask = np.ones(len(ids), bool)
    mask[order[repeats + 1]] = False
    return manifest.filter(pa.array(mask)), int(repeats.size)


def manifest_digest(tables: Iterable[pa.Table]) -> str:
    """Return SHA-256 (hex) over the rows in their order, however they are cut into tables."""
    digest = hashlib.sha256()
    for rows in in_tables_of(tables, _DIGEST_ROWS):
        for name in MANIFEST_SCHEMA.names:
            column = rows[name].combine_chunks()
            digest.update(np.asarray(column.is_valid()).tobytes())
            if column.type == pa.string():
                digest.update(np.asarray(pc.binary_length(column)).tobytes())
                digest.update(_text_of(column))
            else:
                digest.update(np.asarray(pc.fill_null(column, 0)).tobytes())
    return digest.hexdigest()


def in_tables_of(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of exactly so many rows; only the last one may have fewer."""
    pending: list[pa.Table] = []
    missing = rows
    for table in tables:
        first = 0
        while first < table.num_rows:
            piece = table.slice(first, missing)
            pending.append(piece)
            first += piece.num_rows
            missing -= piece.num_rows
            if not missing:
                yield pa.concat_tables(pending)
                pending, missing = [], rows
    if pending:
        yield pa.concat_tables(pending)


def _text_of(column: Any) -> Any:
    """Return the bytes of a string Array (n,), joined."""
    offsets, text = column.buffers()[1:]
    if text is None or not len(column):
        return b""
    ends = np.frombuffer(offsets, np.int32, len(column) + 1, column.offset * 4)
    return memoryview(text)[int(ends[0]) : int(ends[-1])]


def _take_large(table: pa.Table, indices: Any) -> pa.Table:
    # Arrow joins all chunks before it takes rows, and one string array cannot hold more than 2 GB of text
    # (25 million crops). Large strings can, and each slice of the result fits a string array again.
    large = [
        (field.name, pa.large_string() if field.type == pa.string() else field.type) for field in table.schema
    ]
    joined = table.cast(pa.schema(large)).combine_chunks()
    parts = [joined.take(indices.slice(start, _TAKE_ROWS)) for start in range(0, len(indices), _TAKE_ROWS)]
    return pa.concat_tables([table.schema.empty_table(), *(part.cast(table.schema) for part in parts)])
