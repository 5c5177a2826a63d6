"""Rows on local disk: they arrive in any order, and are read again one partition at a time."""

import errno
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from index.archive.partitions import PartitionId, bits_for, split_by_folder
from infra.errors import DiskFull
from infra.store import ScratchFolder

_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")
_LENGTH_BYTES = 8
_SPLIT_ROWS = 1 << 16


class TableFile:
    """Tables of one schema in a local file, in the order in which they were appended.

    The file is deleted with the object; after a kill the next process does that, see `infra.store.scratch`.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.num_rows = 0
        self._folder = ScratchFolder()
        self._path = Path(self._folder.path, "tables")

    @classmethod
    def of(cls, tables: Iterable[pa.Table], schema: pa.Schema) -> "TableFile":
        """Return a file of some tables."""
        file = cls(schema)
        for table in tables:
            file.append(table)
        return file

    def append(self, table: pa.Table) -> None:
        """Append a table; an empty one leaves no trace."""
        if table.num_rows:
            _append(self._path, table)
            self.num_rows += table.num_rows

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the tables, one at a time, with these columns, in the order of the schema, or all."""
        positions = None if columns is None else [self.schema.get_field_index(name) for name in columns]
        return _read(self._path, positions)

    def read(self) -> pa.Table:
        """Return all rows in one table."""
        return pa.concat_tables([self.schema.empty_table(), *self.tables()])

    def take(self, positions: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> pa.Table:
        """Return the rows at some positions (n), ascending."""
        first, taken = 0, [self.schema.empty_table()]
        for table in self.tables():
            inside = positions[(positions >= first) & (positions < first + table.num_rows)]
            taken.append(table.take(pa.array(inside - first)))
            first += table.num_rows
        return pa.concat_tables(taken)

    def spread(self, count: int) -> pa.Table:
        """Return up to `count` rows, spread evenly."""
        positions = np.linspace(0, self.num_rows - 1, min(count, self.num_rows))
        return self.take(np.unique(positions.astype(np.int64)))


class Spool:
    """Rows with the columns crop_id and uri, below one archive, that are read back by partitions.

    Threads may add at the same time. In memory are the rows that are added and those of one partition.
    """

    def __init__(self, archive: str, schema: pa.Schema) -> None:
        self.archive = archive
        self.schema = schema
        self.rows: Counter[str] = Counter()
        self.num_rows = 0
        self._folder = ScratchFolder()
        self._files: dict[str, Path] = {}
        self._lock = threading.Lock()

    def add(self, rows: pa.Table, folder: str | None = None) -> None:
        """Add rows of the schema. folder: that of all of them, where it is known."""
        if not rows.num_rows:
            return
        for name, part in split_by_folder(rows, self.archive) if folder is None else [(folder, rows)]:
            with self._lock:
                path = self._files.setdefault(name, Path(self._folder.path, str(len(self._files))))
                self.rows[name] += part.num_rows
                self.num_rows += part.num_rows
                _append(path, part)

    def partitions(self, known: Mapping[str, int] | None = None) -> Iterator[tuple[PartitionId, pa.Table]]:
        """Yield each partition with its rows, in a fixed order; the rows are in no particular order.

        known: folder -> bits, in how many buckets a folder is cut at least. Every bucket of these folders
        comes, with or without rows.
        """
        known = known or {}
        for folder in sorted(set(self.rows) | set(known)):
            bits = max(known.get(folder, 0), bits_for(self.rows[folder]))
            if not bits:
                yield PartitionId(folder), self._table([self._files[folder]] if folder in self._files else [])
                continue
            buckets = self._split(folder, bits)
            for bucket in range(1 << bits):
                path = buckets / str(bucket)
                yield PartitionId(folder, bits, bucket), self._table([path] if path.exists() else [])
                path.unlink(missing_ok=True)

    def tables(self, folder: str) -> Iterator[pa.Table]:
        """Yield the rows of a folder, in the tables that were added."""
        return _read(self._files[folder])

    def read(self) -> pa.Table:
        """Return all rows in one table, in no particular order."""
        return self._table(list(self._files.values()))

    def _table(self, paths: list[Path]) -> pa.Table:
        tables = [table for path in paths for table in _read(path)]
        # A listing is sorted within its pages: in the order of their starts they need no sort.
        tables.sort(key=lambda table: table["uri"][0].as_py())
        return pa.concat_tables([self.schema.empty_table(), *tables])

    def _split(self, folder: str, bits: int) -> Path:
        """Write the rows of a folder into one file for each bucket; return the folder of these files."""
        target = Path(tempfile.mkdtemp(dir=self._folder.path))
        pending: list[pa.Table] = []
        count = 0
        for table in _read(self._files[folder]) if folder in self._files else ():
            pending.append(table)
            count += table.num_rows
            if count >= _SPLIT_ROWS << min(bits, 4):
                _write_buckets(pa.concat_tables(pending), bits, target)
                pending, count = [], 0
        if pending:
            _write_buckets(pa.concat_tables(pending), bits, target)
        return target


def _write_buckets(rows: pa.Table, bits: int, target: Path) -> None:
    low = np.asarray(rows["crop_id"]) & ((1 << bits) - 1)
    order = np.argsort(low, kind="stable")
    grouped = rows.take(pa.array(order))
    ends = np.searchsorted(low[order], np.arange((1 << bits) + 1))
    for bucket in range(1 << bits):
        part = grouped.slice(int(ends[bucket]), int(ends[bucket + 1] - ends[bucket]))
        if part.num_rows:
            _append(target / str(bucket), part)


def _append(path: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=_OPTIONS) as writer:
        writer.write_table(table)
    data = sink.getvalue()
    try:
        with path.open("ab") as file:
            file.write(len(data).to_bytes(_LENGTH_BYTES, "little"))
            file.write(data)
    except OSError as failure:
        if failure.errno != errno.ENOSPC:
            raise
        raise DiskFull(f"{path.parent} is full", remedy="Point TMPDIR at a larger disk.") from failure


def _read(path: Path, columns: Sequence[int] | None = None) -> Iterator[pa.Table]:
    if not path.exists():
        return
    options = pa.ipc.IpcReadOptions(included_fields=sorted(columns) if columns else None)
    with path.open("rb") as file:
        while length := file.read(_LENGTH_BYTES):
            data = file.read(int.from_bytes(length, "little"))
            yield pa.ipc.open_stream(data, options=options).read_all()
