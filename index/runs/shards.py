"""Shards: Parquet files of embeddings, with model and run in the footer, and their checks."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from index.parquet import ParquetReader, StoredFile, lists_of, open_parquet, require_same, sealed_parquet
from index.schema import (
    ATTRIBUTES,
    CONFIDENCES,
    EMBEDDING_DIM,
    MAX_BYTES,
    SHARD_SCHEMA,
    SHARD_SCHEMAS,
    shard_version,
)
from infra.errors import (
    CorruptObject,
    DuplicateCropId,
    FingerprintMismatch,
    ObjectMissing,
    SchemaMismatch,
    StoreUnreachable,
)
from infra.store import Store
from infra.store.settings import checked_key

ROW_GROUP_ROWS = 4096
"""17 MB of embeddings: what a scan reads where a camera or a time matches."""
_PACKED = pa.binary(4 * EMBEDDING_DIM)
REBUILD_REMEDY = (
    "Delete the file and write it again from its run; if it is a copy, compare it with the original."
)


@dataclass(frozen=True, slots=True)
class ShardInfo(StoredFile):
    """One shard. `crop_ids`, int64 (rows,), and `version` are set by `check_shard` only."""

    # Any, because pydantic knows no arrays; the ids are no part of the record.
    crop_ids: Annotated[Any, Field(exclude=True)] = field(default=None, compare=False, repr=False)
    version: Annotated[Any, Field(exclude=True)] = field(default=None, compare=False, repr=False)


def shard_table(
    crops: pa.Table,
    embeddings: NDArray[np.float32],
    model_ids: NDArray[np.int32],
    model_confidences: NDArray[np.float32],
    attributes: Mapping[str, tuple[NDArray[Any], NDArray[np.float32]]] | None = None,
) -> pa.Table:
    """Join manifest rows (n) with the outputs of the network, (n, 1024), (n,) and (n,), without a copy.

    attributes: the values and confidences, (n,) each, of those that the network predicts, if it predicts any.
    """
    if embeddings.shape != (crops.num_rows, EMBEDDING_DIM):
        raise ValueError(f"embeddings are {embeddings.shape}, expected {(crops.num_rows, EMBEDDING_DIM)}")
    outputs = {
        "embedding": lists_of(np.ascontiguousarray(embeddings, np.float32)),
        "model_id": pa.array(model_ids, pa.int32()),
        "model_confidence": pa.array(model_confidences, pa.float32()),
    }
    for name in ATTRIBUTES if attributes else ():
        nothing = np.full(crops.num_rows, ""), np.zeros(crops.num_rows, np.float32)
        values, confidences = (attributes or {}).get(name, nothing)
        outputs[name] = pa.array(values.tolist(), pa.string())
        outputs[f"{name}_confidence"] = pa.array(confidences, pa.float32())
    schema = SHARD_SCHEMAS[shard_version(outputs)]
    columns = [outputs[name] if name in outputs else crops[name] for name in schema.names]
    return pa.table(columns, schema=schema)


def write_shard(
    store: Store,
    key: str,
    rows: pa.Table | Iterable[pa.RecordBatch],
    *,
    fingerprint: str,
    run_id: str,
    dimension: int = EMBEDDING_DIM,
    is_part: bool = False,
) -> ShardInfo:
    """Write one shard in bounded memory and atomically; equal rows give equal bytes.

    `{digest}` in the key stands for the first digits of the file's SHA-256. dimension: the length of the
    embeddings; only a copy for an import, with transformed ones, has another than the network's. The
    version is the first one that has the columns of the rows. is_part: a file that only `read_parts` reads.
    Raises CorruptObject for values that violate the contract, SchemaMismatch for other columns, DiskFull.
    """
    groups = _row_groups(rows.to_batches() if isinstance(rows, pa.Table) else rows)
    first = next(groups, None)
    names = rows.schema.names if isinstance(rows, pa.Table) else first.schema.names if first else ()
    version = shard_version(names)
    footer = {"clvr.fingerprint": fingerprint, "clvr.schema": str(version), "clvr.run_id": run_id}
    schema = _with_packed_vectors(SHARD_SCHEMAS[version]) if is_part else SHARD_SCHEMAS[version]
    with sealed_parquet(schema, footer, compress=not is_part) as writer:
        for group in chain([first] if first else (), groups):
            check_columns(group.schema, key)
            check_values(group, key, first_row=writer.rows, dimension=dimension)
            writer.write_row_group(pa.Table.from_batches([_packed(group) if is_part else group]))
        stored = writer.put(store, key)
    return ShardInfo(stored.key, stored.rows, stored.bytes, stored.sha256)


def read_shards(
    store: Store,
    keys: Iterable[str],
    *,
    columns: Sequence[str] | None = None,
    fingerprint: str | None = None,
    batch_rows: int = ROW_GROUP_ROWS,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of shards in order, at most `batch_rows` at a time; each footer is checked first.

    Raises ObjectMissing, SchemaMismatch, FingerprintMismatch for another model than `fingerprint`,
    CorruptObject.
    """
    for key in keys:
        with _open_shard_file(store, key) as file:
            check_footer(file.schema, file.uri, fingerprint=fingerprint)
            yield from file.batches(batch_rows, columns)


def read_parts(
    store: Store, files: Iterable[ShardInfo], *, fingerprint: str, batch_rows: int = ROW_GROUP_ROWS
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of parts; each file is held in memory as a whole and compared with its record.

    Raises CorruptObject for other bytes, and what `read_shards` raises.
    """
    for expected in files:
        with _open_shard_file(store, expected.key, expected) as file:
            check_footer(_with_vectors(file.schema), file.uri, fingerprint=fingerprint)
            yield from map(_unpacked, file.batches(batch_rows))


@contextmanager
def open_shard(
    store: Store, info: ShardInfo, *, fingerprint: str | None = None, run_id: str | None = None
) -> Iterator[ParquetReader]:
    """Open the shard of an entry in done.json, and compare its footer with it, so a swap is noticed.

    Raises CorruptObject for a shard of another run or with another number of rows, and what `read_shards`
    raises.
    """
    with _open_shard_file(store, info.key) as file:
        check_footer(file.schema, file.uri, fingerprint=fingerprint)
        found = file.schema.metadata.get(b"clvr.run_id", b"").decode(errors="replace")
        if run_id not in (None, found):
            raise CorruptObject(
                f"{file.uri} is a shard of run {found}, not of run {run_id}", remedy=REBUILD_REMEDY
            )
        if file.num_rows != info.rows:
            raise CorruptObject(
                f"{file.uri} has {file.num_rows:,} rows, its run wrote {info.rows:,}", remedy=REBUILD_REMEDY
            )
        yield file


@contextmanager
def _open_shard_file(store: Store, key: str, expected: StoredFile | None = None) -> Iterator[ParquetReader]:
    """Open a shard; one that is missing is an error with what to do about it."""
    try:
        with open_parquet(store, key, expected=expected) as file:
            yield file
    except ObjectMissing as missing:
        if store.head(key) is not None:
            raise  # of another object, which the caller's block reads
        raise ObjectMissing(
            f"{store.uri_of(key)} does not exist",
            remedy="A purge may have replaced it: run the same command again. If it fails again, restore the "
            "shard from a copy, or embed its run anew.",
        ) from missing


def shard_ids(store: Store, info: ShardInfo, *, fingerprint: str, run_id: str) -> NDArray[np.int64]:
    """Return the crop_ids (rows,) of a shard in done.json. Raises what `open_shard` raises."""
    with open_shard(store, info, fingerprint=fingerprint, run_id=run_id) as file:
        ids: NDArray[np.int64] = file.read(["crop_id"])["crop_id"].to_numpy()
        return ids


def vectors_of(rows: pa.RecordBatch | pa.Table, dimension: int = EMBEDDING_DIM) -> NDArray[np.float32]:
    """Return the embeddings of a batch as a read-only view (n, dimension), without a copy.

    A table of several chunks is copied once. Raises CorruptObject for a missing vector or one of another
    length.
    """
    column = rows.column("embedding")
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    check_vectors(column, "the batch", first_row=0, dimension=dimension)
    flat: NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=True)
    return flat.reshape(-1, dimension)


def _with_packed_vectors(schema: pa.Schema) -> pa.Schema:
    """Return the schema of a part: a vector is a value of 4 KB, so Parquet keeps no levels for its elements.

    That halves the time of writing, which is the model's process; but Milvus imports lists only.
    """
    return schema.set(schema.get_field_index("embedding"), pa.field("embedding", _PACKED))


def _with_vectors(schema: pa.Schema) -> pa.Schema:
    """Return the schema of a shard, given that of a part; parts of older releases have it."""
    number = schema.get_field_index("embedding")
    if number < 0 or schema.field(number).type != _PACKED:
        return schema
    return schema.set(number, SHARD_SCHEMA.field("embedding"))


def _packed(batch: pa.RecordBatch) -> pa.RecordBatch:
    number = batch.schema.get_field_index("embedding")
    values = pa.py_buffer(vectors_of(batch))
    column = pa.FixedSizeBinaryArray.from_buffers(_PACKED, batch.num_rows, [None, values])
    return batch.set_column(number, pa.field("embedding", _PACKED), column)


def _unpacked(batch: pa.RecordBatch) -> pa.RecordBatch:
    number = batch.schema.get_field_index("embedding")
    column = batch.column(number)
    if column.type != _PACKED:
        return batch
    first, count = (EMBEDDING_DIM * rows for rows in (column.offset, len(batch)))
    numbers = np.frombuffer(column.buffers()[1], np.float32, count, 4 * first)
    return batch.set_column(
        number, SHARD_SCHEMA.field("embedding"), lists_of(numbers.reshape(-1, EMBEDDING_DIM))
    )


def check_shard(store: Store, key: str, *, fingerprint: str, expected: ShardInfo | None = None) -> ShardInfo:
    """Read a whole shard and check its bytes, footer, columns, values and unique crop_ids.

    expected: its entry in done.json. Raises what `read_shards` raises, DuplicateCropId, and CorruptObject:
    with row and column, or for another digest or number of rows.
    """
    where = store.uri_of(key)
    if expected is not None:
        check_bytes(store, expected)
    columns, rows, version = [np.empty(0, np.int64)], 0, 1
    for batch in read_shards(store, [key], fingerprint=fingerprint):
        check_values(batch, where, first_row=rows)
        rows += batch.num_rows
        version = shard_version(batch.schema.names)
        columns.append(batch.column("crop_id").to_numpy())
    crop_ids = np.concatenate(columns)
    require_unique(crop_ids, where)
    size, digest = (expected.bytes, expected.sha256) if expected else _stored_digest(store, key)
    info = ShardInfo(key, rows, size, digest, crop_ids, version)
    require_same(info, expected or info, where)
    return info


def check_bytes(store: Store, expected: ShardInfo) -> None:
    """Compare the bytes of a shard with its entry in done.json, by their SHA-256; nothing is decoded.

    They are those that `write_shard` wrote, which checks every value first. Raises CorruptObject,
    ObjectMissing.
    """
    size, digest = _stored_digest(store, expected.key)
    found = ShardInfo(expected.key, expected.rows, size, digest)
    require_same(found, expected, store.uri_of(expected.key))


def check_footer(schema: pa.Schema, key: str, *, fingerprint: str | None) -> None:
    """Check the footer of a shard. Raises SchemaMismatch, and FingerprintMismatch with both fingerprints."""
    metadata = {
        name.decode(): value.decode()
        for name, value in (schema.metadata or {}).items()
        if name.startswith(b"clvr.")
    }
    version = metadata.get("clvr.schema")
    if version is None or "clvr.fingerprint" not in metadata:
        raise SchemaMismatch(f"{key} is a Parquet file, but no shard of this system")
    if version not in map(str, SHARD_SCHEMAS):
        raise SchemaMismatch(
            f"{key} is a shard of version {version}, this release reads versions 1 to {max(SHARD_SCHEMAS)}",
            remedy="Read it with the release that wrote it, or embed the archive again.",
        )
    _require_columns(schema, SHARD_SCHEMAS[int(version)], key)
    if fingerprint not in (None, metadata["clvr.fingerprint"]):
        raise FingerprintMismatch(
            f"{key} was made by model {metadata['clvr.fingerprint']}, not by model {fingerprint}",
            remedy="Embed the archive with the model of the search, or search with the model of the run.",
        )


def check_columns(schema: pa.Schema, key: str) -> None:
    """Raise SchemaMismatch, naming the columns, unless they are those of a version of SHARD_SCHEMAS."""
    _require_columns(schema, SHARD_SCHEMAS[shard_version(schema.names)], key)


def _require_columns(schema: pa.Schema, of_version: pa.Schema, key: str) -> None:
    if schema.remove_metadata().equals(of_version):
        return
    types = {column.name: column.type for column in schema}
    expected = {column.name: column.type for column in of_version}
    differing = sorted(name for name in types | expected if types.get(name) != expected.get(name))
    raise SchemaMismatch(f"{key} has other columns than a shard: {', '.join(differing) or 'their order'}")


def check_values(batch: pa.RecordBatch, key: str, *, first_row: int, dimension: int = EMBEDDING_DIM) -> None:
    """Check the values of a batch.

    Raises CorruptObject, with row and column, for a null, an over-long or non-UTF-8 string, a vector that is
    not of `dimension` finite numbers, or a confidence that is not finite.
    """
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if column.null_count:
            raise _corrupt(key, first_row, column.is_null(), name, "is null")
        if name in MAX_BYTES:
            try:
                column.validate(full=True)
            except pa.ArrowInvalid as invalid:
                raise CorruptObject(
                    f"{key}, near row {first_row}, column {name}: {invalid}", remedy=REBUILD_REMEDY
                ) from invalid
            is_too_long = pc.greater(pc.binary_length(column), MAX_BYTES[name])
            if pc.any(is_too_long).as_py():
                raise _corrupt(key, first_row, is_too_long, name, f"is longer than {MAX_BYTES[name]} bytes")
    for name in (name for name in CONFIDENCES if name in batch.schema.names):
        is_finite = pc.is_finite(batch.column(name))
        if not pc.all(is_finite, min_count=0).as_py():
            raise _corrupt(key, first_row, pc.invert(is_finite), name, "is not finite")
    embedding = batch.column("embedding")
    check_vectors(embedding, key, first_row=first_row, dimension=dimension)
    finite = np.isfinite(embedding.flatten().to_numpy(zero_copy_only=True))
    if not finite.all():
        bad = ~finite.reshape(-1, dimension).all(axis=1)
        raise _corrupt(key, first_row, bad, "embedding", "holds a number that is not finite")


def check_vectors(column: Any, key: str, *, first_row: int, dimension: int = EMBEDDING_DIM) -> None:
    """Raise CorruptObject unless a list<float32> Array (n,) holds vectors of `dimension`, without nulls."""
    is_other_length = pc.not_equal(pc.fill_null(pc.list_value_length(column), -1), dimension)
    if pc.any(is_other_length, min_count=0).as_py():
        raise _corrupt(key, first_row, is_other_length, "embedding", f"is not of {dimension} numbers")
    flat = column.flatten()
    if flat.null_count:
        missing = np.asarray(flat.is_null()).reshape(-1, dimension).any(axis=1)
        raise _corrupt(key, first_row, missing, "embedding", "holds a null")


def require_unique(crop_ids: NDArray[np.int64], where: str) -> None:
    """Raise DuplicateCropId, with up to ten ids, if a crop_id (n,) occurs twice."""
    ordered = np.sort(crop_ids)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if repeated.size:
        examples = ", ".join(map(str, repeated[:10]))
        raise DuplicateCropId(
            f"{where} holds {repeated.size:,} crop_ids more than once: {examples}",
            remedy="Embed the archive again as a new run.",
        )


def _corrupt(key: str, first_row: int, bad: Any, column: str, problem: str) -> CorruptObject:
    row = first_row + int(np.flatnonzero(np.asarray(bad))[0])
    return CorruptObject(f"{key}, row {row}, column {column} {problem}", remedy=REBUILD_REMEDY)


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    # Row groups must not depend on the batches, or a repeated write would give other bytes.
    pending: list[Any] = []
    rows = 0
    for batch in batches:
        while batch.num_rows:
            head = batch.slice(0, ROW_GROUP_ROWS - rows)
            batch = batch.slice(head.num_rows)
            pending.append(head)
            rows += head.num_rows
            if rows == ROW_GROUP_ROWS:
                yield pa.concat_batches(pending)
                pending, rows = [], 0
    if pending:
        yield pa.concat_batches(pending)


def _stored_digest(store: Store, key: str) -> tuple[int, str]:
    filesystem, root = store.arrow()
    digest, size = hashlib.sha256(), 0
    try:
        with filesystem.open_input_stream(f"{root}/{checked_key(key)}", compression=None) as stream:
            while block := stream.read(1 << 23):
                digest.update(block)
                size += len(block)
    except FileNotFoundError as missing:
        raise ObjectMissing(f"{store.uri_of(key)} does not exist") from missing
    except OSError as failure:
        raise StoreUnreachable(f"reading {store.uri_of(key)} failed: {failure}") from failure
    return size, digest.hexdigest()
