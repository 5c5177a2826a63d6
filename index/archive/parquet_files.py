"""Crops in Parquet files: one row a crop, its bytes in the column `image`.

The column holds bytes, or structs {bytes, path} as Hugging Face `datasets` writes them. A row's name is that
in the first of NAME_COLUMNS which names each row of the file once; without one it is the row's number from 0,
in nine digits. Its etag is '<etag of the file>@<row group>.<row in the group>': a file that is written again
counts as changed, with all its rows. Listing reads the footer and the columns of names, cameras, times and
tracks; a read takes from one row group what precedes the last wanted row. Sizes are known only then.

Statistics in the file are not used, and its numbers are limits at most. The decoding is done by a process
that a hostile file cannot leave, see `infra.store.parquet_rows`.
"""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from cachetools import LRUCache

from index.archive.container_kind import Body, Contents, Span
from index.archive.members import member_key
from index.schema import COLUMN_KINDS
from infra.errors import BadInput, CorruptObject, ObjectChanged, ObjectMissing
from infra.store import UNUSABLE_KEY_PATTERN, ObjectBody, ObjectInfo, Store, TimeRange
from infra.store.cells import Place as Cell
from infra.store.cells import convert
from infra.store.parquet_rows import (
    DamagedParquet,
    Ranges,
    RemoteParquet,
    parquet_cells,
    parquet_columns,
)

IMAGE_COLUMNS = ("image", "image.bytes")
NAME_COLUMNS = ("name", "key", "file_name", "image.path")
STATED_COLUMNS = ("camera_id", "captured_at", "track_id")
"""Columns of a manifest that a file may state; where they are null the key tells."""

ROW_DIGITS = 9
_PLACE = re.compile(r"(.*)@(\d{1,7})\.(\d{1,9})", re.DOTALL)
_COLUMNS_BUDGET = 256 << 20
_LONGEST_CELL = (32 << 20) + 1  # one byte more than an image may have, so that it is refused as too large
_LEAST_ROW_BYTES = 16  # of a row with an image; without this bound a small file could state a billion rows
_FEW_ROWS = 1 << 16
_CONCURRENT_READS = 8
_BEHIND = 1 << 62  # a row number behind all others


_sizes: LRUCache[tuple[str, str], int] = LRUCache(1024)
"""Sizes of files by URI and etag, for the reads of further row groups."""
_sizes_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class RowPlace:
    """A row of a Parquet file: the number of its row group, and its number within it."""

    file_etag: str
    group: int
    row: int

    @property
    def etag(self) -> str:
        """The etag of the crop."""
        return f"{self.file_etag}@{self.group}.{self.row}"

    @property
    def size(self) -> int:
        """-1: only a read tells."""
        return -1


class Rows(Mapping[str, RowPlace]):
    """The rows of a file by name. names: a string Array (n), or None where numbers are the names."""

    def __init__(self, file_etag: str, groups: Sequence[int], names: Any = None) -> None:
        self.file_etag = file_etag
        self.groups = groups
        self.names = names
        self.ends = np.array(list(accumulate(groups)), np.int64)
        self._rows: dict[str, int] | None = None

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.ends.size else 0

    def __iter__(self) -> Iterator[str]:
        if self.names is None:
            yield from (f"{row:0{ROW_DIGITS}}" for row in range(len(self)))
        else:
            yield from (name.as_py() for name in self.names)

    def __getitem__(self, name: str) -> RowPlace:
        row = self._row_of(name)
        group = int(np.searchsorted(self.ends, row, side="right"))
        return RowPlace(self.file_etag, group, row - int(self.ends[group] - self.groups[group]))

    def _row_of(self, name: str) -> int:
        if self.names is None:
            row = int(name) if re.fullmatch(rf"\d{{{ROW_DIGITS}}}", name, re.ASCII) else -1
            if not 0 <= row < len(self):
                raise KeyError(name)
            return row
        if self._rows is None:
            self._rows = {known: row for row, known in enumerate(self)}
        return self._rows[name]


class ParquetFiles:
    """The kind of Parquet files, see `ContainerKind`."""

    noun = "Parquet files"
    images_by_suffix = False

    def contents(self, store: Store, file: ObjectInfo) -> Contents | None:
        """List the rows; None for a file without a column of images.

        Raises CorruptObject, ObjectChanged, StoreError, and BadInput for a time or a camera that is none.
        """
        where = store.uri_of(file.key)
        try:
            found = parquet_columns(
                _remote(store, file.key, file.etag, file.size),
                cells=IMAGE_COLUMNS,
                columns=(*NAME_COLUMNS, *STATED_COLUMNS),
                budget=_COLUMNS_BUDGET,
            )
        except DamagedParquet as damage:
            raise _corrupt(where, str(damage)) from damage
        if not found.has_cells:
            return None
        num_rows = sum(found.groups)
        if min(found.groups, default=0) < 0 or num_rows > file.size // _LEAST_ROW_BYTES + _FEW_ROWS:
            raise _corrupt(where, f"its footer states {num_rows:,} rows in {file.size:,} bytes")
        table = found.columns if found.columns is not None else pa.table({})
        if table.num_columns and table.num_rows != num_rows:
            raise _corrupt(where, f"its footer states {num_rows:,} rows, and there are {table.num_rows:,}")
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        stated = {name: _stated(columns[name], name, where) for name in STATED_COLUMNS if name in columns}
        return Contents(Rows(file.etag, found.groups, _names(columns, where)), stated)

    def columns(self, store: Store, file: ObjectInfo, names: Sequence[str]) -> pa.Table:
        """Read further columns of a file with images, those of them that it has: a row per member, in order.

        Raises CorruptObject, ObjectChanged, StoreError.
        """
        try:
            found = parquet_columns(
                _remote(store, file.key, file.etag, file.size),
                cells=IMAGE_COLUMNS,
                columns=names,
                budget=_COLUMNS_BUDGET,
            )
        except DamagedParquet as damage:
            raise _corrupt(store.uri_of(file.key), str(damage)) from damage
        table = found.columns if found.columns is not None else pa.table({})
        if table.num_columns and table.num_rows != sum(found.groups):
            raise _corrupt(store.uri_of(file.key), f"its columns have {table.num_rows:,} rows")
        return table

    def place_of(self, etag: str) -> RowPlace | None:
        """Read the etag of a row; None for another one."""
        parts = _PLACE.fullmatch(etag)
        return RowPlace(parts[1], int(parts[2]), int(parts[3])) if parts else None

    def spans(self, wanted: Sequence[tuple[int, str, RowPlace]]) -> list[Span]:
        """Group rows by row group."""
        spans: list[Span] = []
        group = None
        for position, file, place in sorted(
            wanted, key=lambda one: (one[1], one[2].file_etag, one[2].group, one[2].row)
        ):
            if group != (file, place.file_etag, place.group):
                group = (file, place.file_etag, place.group)
                spans.append(Span(file))
            spans[-1].add(position, place)
        return spans

    def read(self, store: Store, span: Span, names: Sequence[str]) -> Iterator[Body]:
        """Yield the images of rows of a row group, a few megabytes at a time."""
        first: RowPlace = span.places[0]
        size = _size_of(store, span.file, first.file_etag)
        file = _remote(store, span.file, first.file_etag, size)
        wanted = sorted({place.row for place in span.places})
        cells = parquet_cells(
            file, cells=IMAGE_COLUMNS, group=first.group, rows=wanted, longest=_LONGEST_CELL
        )
        reason = "its row group has fewer rows"
        row, data = -1, b""
        for place, name in zip(span.places, names, strict=True):
            try:
                while row < place.row:
                    row, data = next(cells, (_BEHIND, b""))
            except DamagedParquet as damage:
                reason, row = str(damage), _BEHIND
            if row == place.row:
                yield ObjectBody(data, place.etag)
            else:
                uri = store.uri_of(member_key(span.file, name))
                yield _corrupt(uri, reason)


PARQUET_FILES = ParquetFiles()


def _size_of(store: Store, key: str, etag: str) -> int:
    """Return the size of the file of an etag. Raises ObjectMissing, ObjectChanged."""
    kept = (store.uri_of(key), etag)
    with _sizes_lock:
        size = _sizes.get(kept)
    if size is None:
        info = store.head(key)
        if info is None:
            raise ObjectMissing(f"no object {store.uri_of(key)}", remedy="List the archive again.")
        if info.etag != etag:
            raise ObjectChanged(f"the etag is {info.etag}; it was {etag} when the object was listed")
        size = info.size
        with _sizes_lock:
            _sizes[kept] = size
    return size


def _remote(store: Store, key: str, etag: str, size: int) -> RemoteParquet:
    def fetch(one: tuple[int, int]) -> bytes:
        return store.fetch_range(key, *one, etag=etag)

    def read(ranges: Ranges) -> list[bytes]:
        if len(ranges) == 1:
            return [fetch(ranges[0])]
        with ThreadPoolExecutor(_CONCURRENT_READS, thread_name_prefix="read-parquet") as pool:
            return list(pool.map(fetch, ranges))

    return RemoteParquet(f"{store.uri_of(key)}@{etag}", size, read)


def _names(columns: Mapping[str, Any], where: str) -> Any:
    """Return the column that names each row once, by names that a key can have; None without one."""
    for name in NAME_COLUMNS:
        if name not in columns:
            continue
        try:
            names = convert(columns[name], "text", Cell(where, name, 1, BadInput))
        except BadInput:
            continue
        is_unusable = pc.match_substring_regex(names, UNUSABLE_KEY_PATTERN)
        if names.null_count or pc.any(is_unusable, min_count=0).as_py():
            continue
        if pc.count_distinct(names).as_py() == len(names):
            return names
    return None


def _stated(values: Any, name: str, where: str) -> Any:
    """Return a column of a manifest; an implausible time is unknown, as in a key."""
    found = convert(values, COLUMN_KINDS[name], Cell(where, name, 1, BadInput))
    if name == "captured_at":
        return pc.if_else(pc.fill_null(TimeRange.from_env().mask(found), False), found, None)
    return found


def _corrupt(where: str, reason: str) -> CorruptObject:
    return CorruptObject(
        f"{where} cannot be read as Parquet: {reason}"[:600],
        remedy="Write the file again, or leave it out by --exclude.",
    )
