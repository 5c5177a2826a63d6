"""The identity of crops, and the one form of a manifest."""

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from xxhash import xxh3_64_intdigest

from index.schemas import MANIFEST_SCHEMA
from infra.errors import DuplicateCropId, SchemaMismatch

_DIGEST_ROWS = 65_536
_TAKEN_ROWS = 1_000_000
_63_BITS = (1 << 63) - 1
_LABELS = {"vehicle_id", "model_id"}


def crop_id_of(uri: str) -> int:
    """Return the crop_id: 63 bits of xxh3 over the URI in UTF-8, so it fits a signed int64."""
    return xxh3_64_intdigest(uri.encode()) & _63_BITS


def canonical(manifest: pa.Table) -> pa.Table:
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
        if name not in _LABELS and table[name].null_count:
            raise SchemaMismatch(f"the manifest has {table[name].null_count:,} nulls in column {name}")
    uris = table["uri"]
    # S3 lists in order, so most manifests need no sort.
    if pc.all(pc.less(uris[:-1], uris[1:]), min_count=0).as_py():
        return table
    return _taken(table, pc.sort_indices(table, [("uri", "ascending"), ("last_modified", "descending")]))


def check_unique(manifest: pa.Table) -> tuple[pa.Table, int]:
    """Drop rows that name a URI once more, keeping the first, and return the rest with their number.

    Raises DuplicateCropId, with up to ten pairs, where two URIs have one crop_id.
    """
    ids = np.asarray(manifest["crop_id"])
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if not again.size:
        return manifest, 0
    uris = manifest.select(["uri"])
    before = _taken(uris, pa.array(order[again]))["uri"]
    after = _taken(uris, pa.array(order[again + 1]))["uri"]
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


def _taken(table: pa.Table, places: Any) -> pa.Table:
    # Arrow joins all chunks to take from them, and 2 GB of text (25 million crops) is too long for one string
    # array: hence the detour over large strings and back in pieces.
    large = [
        (field.name, pa.large_string() if field.type == pa.string() else field.type) for field in table.schema
    ]
    joined = table.cast(pa.schema(large)).combine_chunks()
    pieces = [joined.take(places.slice(at, _TAKEN_ROWS)) for at in range(0, len(places), _TAKEN_ROWS)]
    return pa.concat_tables([table.schema.empty_table(), *(piece.cast(table.schema) for piece in pieces)])
