"""Manifests: one row a crop, from a listing of the archive or from a list of keys."""

import hashlib
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.fs
from xxhash import xxh3_64_intdigest

from index.archive.key_pattern import KeyPattern
from index.schema import MANIFEST_SCHEMA, UNKNOWN
from infra.errors import BadInput, DuplicateCropId, EmptyArchive, SchemaMismatch
from infra.store import StoreSettings, read_user_table

_DIGEST_ROWS = 65_536
_TAKEN_ROWS = 1_000_000
_INT63_MASK = (1 << 63) - 1
_NULLABLE = {name for name, unknown in UNKNOWN.items() if unknown is None}


def crop_id_of(uri: str) -> int:
    """Return the crop_id: 63 bits of xxh3 over the URI in UTF-8, so it fits a signed int64."""
    return xxh3_64_intdigest(uri.encode()) & _INT63_MASK


def normalize_manifest(manifest: pa.Table) -> pa.Table:
    """Bring a manifest into its one form: columns of MANIFEST_SCHEMA, rows by URI, of equal URIs the newest
    first. Raises SchemaMismatch for missing columns, other types, or nulls outside the labels."""
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
    # S3 lists in order, so most manifests need no sort.
    if pc.all(pc.less(uris[:-1], uris[1:]), min_count=0).as_py():
        return table
    return _take_large(table, pc.sort_indices(table, [("uri", "ascending"), ("last_modified", "descending")]))


def drop_duplicates(manifest: pa.Table) -> tuple[pa.Table, int]:
    """Drop rows that name a URI once more, keeping the first, and return the rest with their number.

    Raises DuplicateCropId, with up to ten pairs, where two URIs have one crop_id.
    """
    ids = np.asarray(manifest["crop_id"])
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if not again.size:
        return manifest, 0
    uris = manifest.select(["uri"])
    before = _take_large(uris, pa.array(order[again]))["uri"]
    after = _take_large(uris, pa.array(order[again + 1]))["uri"]
    collided = np.flatnonzero(np.asarray(pc.not_equal(before, after)))
    if collided.size:
        pairs = [f"{ids[order][again[i]]} ({before[int(i)]} and {after[int(i)]})" for i in collided[:10]]
        raise DuplicateCropId(
            f"{collided.size:,} pairs of crops share a crop_id: {'; '.join(pairs)}",
            remedy="Rename one crop of each pair, or leave it out of the archive.",
        )
    keep = np.ones(len(ids), bool)
    keep[order[again + 1]] = False
    return manifest.filter(pa.array(keep)), int(again.size)


def manifest_digest(manifest: pa.Table) -> str:
    """Return SHA-256 (hex) over the rows in their order, however the table is cut into chunks."""
    digest = hashlib.sha256()
    for first in range(0, manifest.num_rows, _DIGEST_ROWS):
        for name in MANIFEST_SCHEMA.names:
            column = manifest[name].slice(first, _DIGEST_ROWS).combine_chunks()
            digest.update(np.asarray(column.is_valid()).tobytes())
            if column.type == pa.string():
                digest.update(np.asarray(pc.binary_length(column)).tobytes())
                digest.update("".join(column.to_pylist()).encode())
            else:
                digest.update(np.asarray(pc.fill_null(column, 0)).tobytes())
    return digest.hexdigest()


def _take_large(table: pa.Table, places: Any) -> pa.Table:
    # Arrow joins all chunks to take from them, and 2 GB of text (25 million crops) is too long for one string
    # array: hence the detour over large strings and back in pieces.
    large = [
        (field.name, pa.large_string() if field.type == pa.string() else field.type) for field in table.schema
    ]
    joined = table.cast(pa.schema(large)).combine_chunks()
    pieces = [joined.take(places.slice(at, _TAKEN_ROWS)) for at in range(0, len(places), _TAKEN_ROWS)]
    return pa.concat_tables([table.schema.empty_table(), *(piece.cast(table.schema) for piece in pieces)])


BATCH_ROWS = 16_384
_LIST_TYPES = {"key": pa.string()} | {field.name: field.type for field in MANIFEST_SCHEMA}


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
    table = read_user_table(uri, types=_LIST_TYPES, settings=settings)
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
    columns = {name: table[name] for name in UNKNOWN if name in table.schema.names}
    if pattern is not None:
        keys = pc.replace_substring_regex(uris.combine_chunks(), rf"\A{re.escape((archive or '') + '/')}", "")
        columns = pattern.extract(keys) | columns
    for name, value in UNKNOWN.items():
        kind = MANIFEST_SCHEMA.field(name).type
        columns.setdefault(name, pa.repeat(pa.scalar(value, kind), table.num_rows))
        if value is not None:
            columns[name] = pc.fill_null(columns[name], value)
    # Slice by slice: a million Python strings at once would take 150 MB.
    pieces = (uris.slice(first, BATCH_ROWS) for first in range(0, table.num_rows, BATCH_ROWS))
    crop_ids = pa.chunked_array(
        [pa.array([crop_id_of(text) for text in piece.to_pylist()], pa.int64()) for piece in pieces]
    )
    if "crop_id" in table.schema.names and not pc.all(pc.equal(table["crop_id"], crop_ids)).as_py():
        raise BadInput(f"{uri} has crop_ids that do not belong to its URIs", remedy="Leave out that column.")
    columns |= {"crop_id": crop_ids, "uri": uris}
    return normalize_manifest(pa.table({name: columns[name] for name in MANIFEST_SCHEMA.names}))


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
    for name, value in UNKNOWN.items():
        if name not in columns:
            columns[name] = pa.repeat(pa.scalar(value, MANIFEST_SCHEMA.field(name).type), len(keys))
    return pa.record_batch({name: columns[name] for name in MANIFEST_SCHEMA.names}, MANIFEST_SCHEMA), missed
