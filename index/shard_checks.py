"""What a shard must be: its footer, its columns, its values, and one row a crop."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.schemas import EMBEDDING_DIM, MAX_NAME_BYTES, MAX_URI_BYTES, SHARD_SCHEMA, SHARD_VERSION
from infra.errors import CorruptShard, DuplicateCropId, FingerprintMismatch, SchemaMismatch

REBUILD = (
    "Delete the file and write it again from its run; if it is copied, compare the copy with the source."
)

_LONGEST = {"uri": MAX_URI_BYTES, "camera_id": MAX_NAME_BYTES, "track_id": MAX_NAME_BYTES}


def check_footer(schema: pa.Schema, key: str, *, fingerprint: str | None) -> None:
    """Hold a footer to the contract. Raises SchemaMismatch, and FingerprintMismatch with both names."""
    metadata = {
        name.decode(): value.decode()
        for name, value in (schema.metadata or {}).items()
        if name.startswith(b"clvr.")
    }
    version = metadata.get("clvr.schema")
    if version is None or "clvr.fingerprint" not in metadata:
        raise SchemaMismatch(f"{key} is a Parquet file, but no shard of this system")
    if version != str(SHARD_VERSION):
        raise SchemaMismatch(
            f"{key} is a shard of version {version}, this release reads version {SHARD_VERSION}",
            remedy="Read it with the release that wrote it, or embed the archive again.",
        )
    check_columns(schema, key)
    if fingerprint not in (None, metadata["clvr.fingerprint"]):
        raise FingerprintMismatch(
            f"{key} was made by model {metadata['clvr.fingerprint']}, but model {fingerprint} is asked for",
            remedy="Embed the archive with the model you search with, or choose the model that made the run.",
        )


def check_columns(schema: pa.Schema, key: str) -> None:
    """Raise SchemaMismatch, naming the columns, unless they are those of SHARD_SCHEMA."""
    if schema.remove_metadata().equals(SHARD_SCHEMA):
        return
    found = {column.name: column.type for column in schema}
    wanted = {column.name: column.type for column in SHARD_SCHEMA}
    differing = sorted(name for name in found | wanted if found.get(name) != wanted.get(name))
    raise SchemaMismatch(f"{key} has other columns than a shard: {', '.join(differing) or 'their order'}")


def check_values(batch: pa.RecordBatch, key: str, *, first_row: int) -> None:
    """Raise CorruptShard, naming row and column, for a null, an over-long or non-UTF-8 string, a vector
    that is not of 1024 finite numbers, or a confidence that is not finite."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if column.null_count:
            raise _corrupt(key, first_row, column.is_null(), name, "is null")
        if name in _LONGEST:
            try:
                column.validate(full=True)
            except pa.ArrowInvalid as invalid:
                raise CorruptShard(
                    f"{key}, near row {first_row}, column {name}: {invalid}", remedy=REBUILD
                ) from invalid
            longer = pc.greater(pc.binary_length(column), _LONGEST[name])
            if pc.any(longer).as_py():
                raise _corrupt(key, first_row, longer, name, f"is longer than {_LONGEST[name]} bytes")
    confidence = batch.column("model_confidence")
    if not pc.all(pc.is_finite(confidence), min_count=0).as_py():
        raise _corrupt(
            key, first_row, pc.invert(pc.is_finite(confidence)), "model_confidence", "is not finite"
        )
    embedding = batch.column("embedding")
    check_vectors(embedding, key, first_row=first_row)
    finite = np.isfinite(embedding.flatten().to_numpy(zero_copy_only=True))
    if not finite.all():
        bad = ~finite.reshape(-1, EMBEDDING_DIM).all(axis=1)
        raise _corrupt(key, first_row, bad, "embedding", "holds a number that is not finite")


def check_vectors(column: Any, key: str, *, first_row: int) -> None:
    """Raise CorruptShard unless a list<float32> Array (n,) holds n vectors of 1024 numbers, without nulls."""
    other = pc.not_equal(pc.fill_null(pc.list_value_length(column), -1), EMBEDDING_DIM)
    if pc.any(other, min_count=0).as_py():
        raise _corrupt(key, first_row, other, "embedding", f"is not of {EMBEDDING_DIM} numbers")
    flat = column.flatten()
    if flat.null_count:
        missing = np.asarray(flat.is_null()).reshape(-1, EMBEDDING_DIM).any(axis=1)
        raise _corrupt(key, first_row, missing, "embedding", "holds a null")


def require_unique(crop_ids: NDArray[np.int64], where: str) -> None:
    """Raise DuplicateCropId, with up to ten ids, if a crop_id (n,) occurs twice."""
    ordered = np.sort(crop_ids)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if twice.size:
        shown = ", ".join(map(str, twice[:10]))
        raise DuplicateCropId(
            f"{where} holds {twice.size:,} crop_ids more than once: {shown}",
            remedy="Embed the archive again as a new run.",
        )


def _corrupt(key: str, first_row: int, bad: Any, column: str, what: str) -> CorruptShard:
    row = first_row + int(np.flatnonzero(np.asarray(bad))[0])
    return CorruptShard(f"{key}, row {row}, column {column} {what}", remedy=REBUILD)
