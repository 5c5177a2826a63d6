"""Parquet files in a store: written whole or not at all, sealed, and checked as they are read.

The footer of a file holds a sealed index: digest and range of each column of each row group, and the other
metadata. So whoever reads one column of one row group can check it, without the rest of the file.

Vectors are neither compressed nor cut into pages. The index says where the numbers of a row group are, and a
reader takes them from this place: decoding the levels of their lists would take longer than a scan of them.
"""

import errno
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index.digests import column_digest, type_name
from index.documents import JsonDocument
from index.schema import RANGE_COLUMNS, REPEATING_COLUMNS
from infra.errors import CorruptObject, DiskFull, ObjectMissing, SchemaMismatch, StoreUnreachable
from infra.store import ScratchFolder, Store
from infra.store.sealed import seal, unseal
from infra.store.settings import checked_key

Ranges = dict[str, tuple[Any, Any]]
"""column -> (minimum, maximum) of its values in a row group."""

INDEX_KEY = "clvr.index"
_MARK = "sealed Parquet"
"""A second trace of the index in the bytes of the footer, should the first one be altered."""
_REMEDY = "Write the file again; if it is a copy, compare it with its source."
_NAME_DIGITS = 16
_VECTORS = pa.list_(pa.float32())
_BYTES = 4  # of a number
_ONE_PAGE = 1 << 30  # bytes: no row group has so many
_REQUESTS, _MIN_REQUEST_BYTES = 4, 1 << 20


@dataclass(frozen=True, slots=True)
class StoredFile(JsonDocument):
    """One file that was written: its key, its rows, its size in bytes, and their SHA-256."""

    key: str
    rows: int
    bytes: int
    sha256: str


class ParquetReader:
    """One Parquet file; every column chunk that is read is compared with the file's index.

    A file without an index, of a release before digests, is read as it is. Every method raises CorruptObject
    for bytes that were altered, StoreUnreachable, ObjectMissing.
    """

    def __init__(self, store: Store, key: str, source: Any) -> None:
        self.store = store
        self.key = key
        self.uri = store.uri_of(key)
        self._source = source
        with self._errors():
            self._file = pq.ParquetFile(source)
            self._index = self._checked_index(source)
            # Of the schema, Arrow keeps a second copy of the metadata, which nothing checks.
            metadata = {name: value for name, value in self._metadata().items() if name != INDEX_KEY.encode()}
            self.schema: pa.Schema = self._file.schema_arrow.with_metadata(metadata)

    @property
    def sealed(self) -> bool:
        """Whether the file has an index."""
        return self._index is not None

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return int(self._file.metadata.num_rows)

    @property
    def num_row_groups(self) -> int:
        """Number of row groups."""
        return int(self._file.metadata.num_row_groups)

    def rows_of(self, group: int) -> int:
        """Return the number of rows of a row group."""
        return int(self._file.metadata.row_group(group).num_rows)

    def ranges(self, group: int) -> Ranges:
        """Return the range of each column of a row group of which it is known; such columns have no nulls."""
        if self._index is not None:
            found = self._index["groups"][group]["ranges"]
            return {name: (low, high) for name, (low, high) in found.items()}
        with self._errors():
            row_group = self._file.metadata.row_group(group)
            columns = (row_group.column(number) for number in range(row_group.num_columns))
            return {
                column.path_in_schema: (column.statistics.min, column.statistics.max)
                for column in columns
                if column.statistics is not None and column.statistics.has_min_max
            }

    def read_row_group(self, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read columns of a row group, in the order of the file; all of them without `columns`.

        Raises SchemaMismatch for a column that the file does not have.
        """
        names = self._names(columns)
        if not 0 <= group < self.num_row_groups:
            raise self._corrupt(f"has no row group {group}")
        with self._errors():
            vectors = {name: self._vectors_in_place(group, name) for name in names}
            others = [name for name in names if vectors[name] is None]
            table = self._file.read_row_group(group, columns=others)
            self._verify(group, table)
            for place, name in enumerate(names):
                if vectors[name] is not None:
                    table = table.add_column(place, self.schema.field(name), vectors[name])
        return table.replace_schema_metadata(self.schema.metadata)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read columns of the whole file; all of them without `columns`. Raises SchemaMismatch."""
        groups = [self.read_row_group(group, columns) for group in range(self.num_row_groups)]
        if not groups:
            schema = pa.schema([self.schema.field(name) for name in self._names(columns)])
            return schema.with_metadata(self.schema.metadata).empty_table()
        return pa.concat_tables(groups)

    def batches(
        self, batch_rows: int, columns: Sequence[str] | None = None, *, group: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield columns of a row group, or of all, in order, at most `batch_rows` rows at a time.

        A sealed file is read and checked by whole row groups first. Raises SchemaMismatch.
        """
        groups = range(self.num_row_groups) if group is None else [group]
        if self._index is None:
            with self._errors():
                yield from self._file.iter_batches(
                    batch_size=batch_rows, row_groups=list(groups), columns=self._names(columns)
                )
            return
        for number in groups:
            yield from self.read_row_group(number, columns).combine_chunks().to_batches(batch_rows)

    def _metadata(self) -> dict[bytes, bytes]:
        found = self._file.metadata.metadata or {}
        return {name: value for name, value in found.items() if name != b"ARROW:schema"}

    def _names(self, columns: Sequence[str] | None) -> list[str]:
        names = self.schema.names if columns is None else [str(name) for name in columns]
        missing = sorted(set(names) - set(self.schema.names))
        if missing:
            raise SchemaMismatch(f"{self.uri} has no column {', '.join(missing)}")
        return [name for name in self.schema.names if name in names]

    def _checked_index(self, source: Any) -> dict[str, Any] | None:
        """Return the index, compared with the rest of the footer; None for a file without one."""
        found = self._metadata()
        if INDEX_KEY.encode() not in found:
            size, footer = source.size(), self._file.metadata.serialized_size + 8
            tail = source.read_at(min(footer, size), max(0, size - footer))
            if INDEX_KEY.encode() in tail or _MARK.encode() in tail:
                raise self._corrupt("was altered: the index in its footer cannot be found")
            return None
        index = unseal(found[INDEX_KEY.encode()], f"the index of {self.uri}", remedy=_REMEDY)
        if not isinstance(index, dict) or index.get("mark") != _MARK:
            raise self._corrupt("was altered: it has no index of this system")
        metadata = {
            name.decode(errors="replace"): value.decode(errors="replace")
            for name, value in found.items()
            if name != INDEX_KEY.encode()
        }
        rows = [self._file.metadata.row_group(number).num_rows for number in range(self.num_row_groups)]
        for subject, stated, actual in (
            ("metadata", index["metadata"], metadata),
            ("columns", index["columns"], _columns(self._file.schema_arrow)),
            ("numbers of rows", [group["rows"] for group in index["groups"]], rows),
            ("number of rows", sum(group["rows"] for group in index["groups"]), self.num_rows),
        ):
            if stated != actual:
                raise self._corrupt(f"was altered: the {subject} in its footer are not those of its index")
        return index

    def _vectors_in_place(self, group: int, name: str) -> Any | None:
        """Return a column of vectors whose place is in the index; None leaves it to the Parquet reader."""
        stated = self._index["groups"][group] if self._index is not None else {}
        offset, dimension = stated.get("vectors", {}).get(name, (0, 0))
        size = _BYTES * dimension * self.rows_of(group)
        kind = self.schema.field(name).type
        if kind != _VECTORS or not 0 < size <= self._source.size() - offset:
            return None
        numbers = np.frombuffer(self._read_at(offset, size), np.float32)
        vectors = lists_of(numbers.reshape(-1, dimension)).cast(kind)
        return vectors if column_digest([vectors]) == stated["digests"][name] else None

    def _read_at(self, offset: int, size: int) -> bytes:
        """Read a part of the file; from a server by several requests, each of which has a limited rate."""
        if self.store.local or size <= _MIN_REQUEST_BYTES:
            data: bytes = self._source.read_at(size, offset)
            return data
        step, end = max(_MIN_REQUEST_BYTES, -(-size // _REQUESTS)), offset + size
        with ThreadPoolExecutor(_REQUESTS) as threads:
            read = threads.map(
                lambda start: self._source.read_at(min(step, end - start), start), range(offset, end, step)
            )
            return b"".join(read)

    def _verify(self, group: int, table: pa.Table) -> None:
        if self._index is None:
            return
        stated = self._index["groups"][group]
        if table.num_rows != stated["rows"]:
            raise self._corrupt(f"was altered: row group {group} has {table.num_rows:,} rows")
        for name, column in zip(table.schema.names, table.columns, strict=True):
            if _digest(column) != stated["digests"].get(name):
                raise self._corrupt(f"was altered: row group {group}, column {name} has another digest")

    def _corrupt(self, problem: str) -> CorruptObject:
        return CorruptObject(f"{self.uri} {problem}", remedy=_REMEDY)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        # pyarrow answers altered bytes with any of these.
        kinds = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError, AttributeError)
        with _reading(self.store, self.key, kinds):
            yield


@contextmanager
def open_parquet(store: Store, key: str, *, expected: StoredFile | None = None) -> Iterator[ParquetReader]:
    """Open a Parquet object for reading, checked against its index.

    expected: its record; the object is then read as a whole into memory first, and must have these bytes.
    Raises ObjectMissing, BadInput for a key outside the store, CorruptObject.
    """
    checked_key(key)
    if expected is not None:
        data = store.get(key)
        digest = hashlib.sha256(data).hexdigest()
        require_same(StoredFile(key, expected.rows, len(data), digest), expected, store.uri_of(key))
        file = ParquetReader(store, key, pa.BufferReader(data))
        require_same(StoredFile(key, file.num_rows, len(data), digest), expected, store.uri_of(key))
        yield file
        return
    filesystem, root = store.arrow()
    kinds = (pa.ArrowException, OSError)  # others are errors of the caller's block
    with _reading(store, key, kinds), filesystem.open_input_file(f"{root}/{key}") as source:
        yield ParquetReader(store, key, source)


def require_same(found: StoredFile, expected: StoredFile, where: str) -> None:
    """Raise CorruptObject unless a file has the bytes and the rows of its record."""
    if (found.bytes, found.sha256) != (expected.bytes, expected.sha256):
        raise CorruptObject(
            f"{where} was altered: {found.bytes:,} bytes with SHA-256 {found.sha256[:12]}…, "
            f"but {expected.bytes:,} bytes with {expected.sha256[:12]}… were written",
            remedy=_REMEDY,
        )
    if found.rows != expected.rows:
        raise CorruptObject(
            f"{where} has {found.rows:,} rows, but {expected.rows:,} were written", remedy=_REMEDY
        )


class SealedWriter:
    """Writes a local Parquet file row group by row group, and its index at the end."""

    def __init__(self, path: Path, schema: pa.Schema, metadata: dict[str, str], *, compress: bool) -> None:
        self.path = path
        self.rows = 0
        self._schema = schema
        self._metadata = metadata
        self._groups: list[dict[str, Any]] = []
        self._sink = pa.OSFile(str(path), "wb")
        compressed = [field.name for field in schema if compress and field.type != _VECTORS]
        self._writer = pq.ParquetWriter(
            self._sink,
            schema.with_metadata(metadata),
            compression={name: "zstd" if name in compressed else "none" for name in schema.names},
            compression_level=dict.fromkeys(compressed, 1) or None,
            data_page_size=_ONE_PAGE if _VECTORS in schema.types else None,
            # Vectors never repeat, and min/max of their elements help nobody.
            use_dictionary=[name for name in schema.names if name in REPEATING_COLUMNS],
            write_statistics=[name for name in schema.names if name != "embedding"],
        )

    def write_row_group(self, table: pa.Table) -> None:
        """Write one row group of a table of the writer's schema."""
        table = table.cast(self._schema)
        if not table.num_rows:
            return
        start = self._sink.tell()
        self._writer.write_table(table, table.num_rows)
        self.rows += table.num_rows
        group = {
            "rows": table.num_rows,
            "digests": {name: _digest(table[name]) for name in table.schema.names},
            "ranges": _ranges(table),
        }
        if places := dict(self._places(table, start)):
            group["vectors"] = places
        self._groups.append(group)

    def _places(self, table: pa.Table, start: int) -> Iterator[tuple[str, list[int]]]:
        """Yield the columns of vectors of a row group at `start`: where their numbers are, and their length.

        Arrow does not say where, so this looks for the first vector among all bytes that are no numbers.
        Readers compare the digest: a wrong place would cost time only.
        """
        for name in table.schema.names:
            if not (dimension := _dimension(table[name])):
                continue
            numbers = table[name].combine_chunks().flatten().to_numpy()
            first = numbers[:dimension].tobytes()
            with self.path.open("rb") as file:
                file.seek(start)
                position = file.read(self._sink.tell() - start - numbers.nbytes + len(first)).find(first)
            if position >= 0:
                yield name, [start + position, dimension]

    def put(self, store: Store, key: str) -> StoredFile:
        """Close the file and store it; `{digest}` in the key stands for the first digits of its SHA-256."""
        index = {
            "mark": _MARK,
            "metadata": self._metadata,
            "columns": _columns(self._schema),
            "groups": self._groups,
        }
        self._writer.add_key_value_metadata({INDEX_KEY: seal(index).decode()})
        self.close()
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        key = key.replace("{digest}", digest[:_NAME_DIGITS])
        stored = StoredFile(key, self.rows, self.path.stat().st_size, digest)
        store.put(key, self.path)
        return stored

    def close(self) -> None:
        """Close the file. May be repeated."""
        try:
            self._writer.close()
        finally:
            self._sink.close()


@contextmanager
def sealed_parquet(
    schema: pa.Schema, metadata: dict[str, str], *, compress: bool = True
) -> Iterator[SealedWriter]:
    """Give a writer of a local file that vanishes afterwards. Raises DiskFull."""
    try:
        with ScratchFolder() as folder:
            writer = SealedWriter(Path(folder.path, "file.parquet"), schema, metadata, compress=compress)
            try:
                yield writer
            finally:
                writer.close()
    except OSError as failure:
        if failure.errno != errno.ENOSPC:
            raise
        raise DiskFull(
            f"{tempfile.gettempdir()} is full", remedy="Point TMPDIR at a larger disk."
        ) from failure


def write_table(
    store: Store,
    key: str,
    table: pa.Table,
    *,
    metadata: dict[str, str],
    row_group_rows: int = 65_536,
    compress: bool = True,
) -> StoredFile:
    """Write a table in one go; it appears whole or not at all, and equal tables give equal bytes.

    `{digest}` in the key stands for the first digits of the file's SHA-256. Raises DiskFull.
    """
    with sealed_parquet(table.schema.remove_metadata(), metadata, compress=compress) as writer:
        for first in range(0, table.num_rows, row_group_rows):
            writer.write_row_group(table.slice(first, row_group_rows))
        return writer.put(store, key)


def lists_of(vectors: NDArray[np.float32]) -> pa.ListArray:
    """Return vectors float32 (n, d) as a column of lists, without a copy."""
    offsets = np.arange(len(vectors) + 1, dtype=np.int32) * np.int32(vectors.shape[1])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(vectors.reshape(-1)))


def _columns(schema: pa.Schema) -> list[list[Any]]:
    return [[field.name, type_name(field.type), field.nullable] for field in schema]


def _dimension(column: pa.ChunkedArray) -> int:
    """Return the length of vectors of numbers, 0 if they differ in it or some are missing."""
    if (
        column.type != _VECTORS
        or column.null_count
        or any(chunk.flatten().null_count for chunk in column.chunks)
    ):
        return 0
    lengths = pc.unique(pc.list_value_length(column))
    return int(lengths[0].as_py()) if len(lengths) == 1 else 0


def _digest(column: pa.ChunkedArray) -> str:
    return column_digest(column.chunks or [pa.array([], column.type)])


def _ranges(table: pa.Table) -> dict[str, list[Any]]:
    names = [name for name in table.schema.names if name in RANGE_COLUMNS and not table[name].null_count]
    found = {name: pc.min_max(table[name]) for name in names}
    return {name: [both["min"].as_py(), both["max"].as_py()] for name, both in found.items()}


@contextmanager
def _reading(store: Store, key: str, kinds: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn the errors of reading a Parquet object into ours."""
    where = store.uri_of(key)
    try:
        yield
    except FileNotFoundError as missing:
        raise ObjectMissing(f"{where} does not exist") from missing
    except kinds as failure:
        if store.head(key) is None:
            raise ObjectMissing(f"{where} does not exist") from failure
        if "AWS Error" in str(failure):
            raise StoreUnreachable(f"reading {where} failed: {failure}") from failure
        reason = (str(failure).splitlines() or [type(failure).__name__])[0]
        raise CorruptObject(
            f"{where} is truncated, altered or no Parquet file: {reason}", remedy=_REMEDY
        ) from failure
