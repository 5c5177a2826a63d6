"""Reads cells of Parquet files of unknown origin in a process of its own, see `parquet_worker` for why.

`infra.store.parquet_rows` starts it, keeps it for many files, and fetches the bytes that it asks for, so
nothing of a file is read but what the cells need. Both sides send frames: eight bytes that give the length of
a JSON document, the document, and as many bytes as its `bytes` says.

    {"do": "columns", "file", "size", "cells", "columns", "budget"}
        -> {"groups": [rows of each row group], "cells": whether the file has such a column, "bytes"}: the
           columns of all rows, as an Arrow stream
    {"do": "cells", "file", "size", "cells", "group", "rows", "longest"}
        -> {"rows", "sizes", "bytes"}: some of the cells; {"do": "more"} asks for the next ones, until `rows`
           is empty
    any -> {"read": [[offset, length]]}, which wants a frame with these bytes; or {"error": one line}
"""

import io
import json
import os
import resource
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ADDRESS_SPACE = 3 << 29
"""Bytes that the process may use, of which its libraries take 0.3 GB."""

FAILURES = (
    pa.ArrowException,
    OSError,
    ValueError,
    MemoryError,
    NotImplementedError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    RecursionError,
    OverflowError,
)
_BLOCK_BYTES = 8 << 20
_BUFFER_BYTES = 1 << 20
_BATCH_BYTES = 4 << 20
_MAX_BATCH_ROWS = 1024
_SMALLER = 32
_COLUMN_ROWS = 65_536
_FETCH_BYTES = 32 << 20  # of small column chunks that are asked for together


class Frames:
    """Frames over two pipes."""

    def __init__(self, source: int, target: int) -> None:
        self.source, self.target = os.fdopen(source, "rb", buffering=0), os.fdopen(target, "wb")

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """Return a document and the bytes behind it. Ends the process where the other side is gone."""
        length = int.from_bytes(self._read(8), "little")
        document: dict[str, Any] = json.loads(self._read(length))
        return document, self._read(document.get("bytes", 0))

    def send(self, document: dict[str, Any], *data: bytes | memoryview) -> None:
        """Send a document with bytes."""
        if data:
            document["bytes"] = sum(map(len, data))
        text = json.dumps(document).encode()
        for piece in (len(text).to_bytes(8, "little"), text, *data):
            self.target.write(piece)
        self.target.flush()

    def _read(self, size: int) -> bytes:
        pieces = []
        while size:
            piece = self.source.read(size)
            if not piece:
                os._exit(0)
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)


class RemoteFile(io.RawIOBase):
    """A file whose bytes the other side fetches. window: where reads go on, so that they come in blocks."""

    def __init__(self, frames: Frames, size: int) -> None:
        self.frames, self.file_size = frames, size
        self.position = 0
        self.window = (0, 0)
        self.starts: list[int] = []
        self.blocks: list[memoryview] = []

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position."""
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position}.get(whence, self.file_size)
        return self.position

    def read(self, size: int = -1) -> bytes:
        """Read from the position on."""
        end = self.file_size if size < 0 else min(self.position + size, self.file_size)
        start, self.position = self.position, max(end, self.position)
        if end <= start:
            return b""
        kept = self._kept(start)
        if len(kept) >= end - start:
            return bytes(kept[: end - start])
        # A page may lie over the end of a block.
        behind, stop = start + len(kept), end
        if self.window[0] <= behind < self.window[1]:
            stop = max(end, min(behind + _BLOCK_BYTES, self.window[1], self.file_size))
        self.fetch([(behind, stop)])
        return bytes(kept) + bytes(self._kept(behind)[: end - behind])

    def _kept(self, start: int) -> memoryview:
        """Return what is here of the bytes from a position on."""
        number = bisect_right(self.starts, start) - 1
        if number < 0:
            return memoryview(b"")
        return self.blocks[number][start - self.starts[number] :]

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Ask for ranges, and keep them until the next ones."""
        self.frames.send({"read": [[start, end - start] for start, end in sorted(ranges)]})
        data = memoryview(self.frames.receive()[1])
        self.starts, self.blocks = [], []
        for start, end in sorted(ranges):
            self.starts.append(start)
            self.blocks.append(data[: end - start])
            data = data[end - start :]


class Worker:
    """Answers requests, one after the other; the footer of the last file is kept."""

    def __init__(self, frames: Frames) -> None:
        self.frames = frames
        self.name = ""
        self.metadata: Any = None

    def serve(self) -> None:
        """Answer until the other side is gone."""
        cells: Iterator[tuple[list[int], list[int], list[memoryview]]] = iter(())
        while True:
            request, _ = self.frames.receive()
            try:
                if request["do"] == "columns":
                    self._send_columns(request)
                    continue
                if request["do"] == "cells":
                    cells = self._cells(request)
                rows, sizes, data = next(cells, ([], [], []))
            except FAILURES as failure:
                cells = iter(())
                line = next(iter(str(failure).splitlines()), "") or type(failure).__name__
                self.frames.send({"error": line[:300]})
                continue
            self.frames.send({"rows": rows, "sizes": sizes}, *data)

    def _open(self, request: dict[str, Any]) -> tuple[RemoteFile, Any]:
        source = RemoteFile(self.frames, request["size"])
        if self.name != request["file"]:
            self.name = ""
            source.window = (max(0, request["size"] - (64 << 10)), request["size"])
            self.metadata = pq.read_metadata(source)
            self.name = request["file"]
        return source, pq.ParquetFile(source, metadata=self.metadata, buffer_size=_BUFFER_BYTES)

    def _leaf(self, name: str) -> int | None:
        """Return the number of a column of bytes or text, in no list; None if there is none."""
        schema = self.metadata.schema
        for number in range(self.metadata.num_columns):
            column = schema.column(number)
            if column.path == name and column.max_repetition_level == 0:
                return number
        return None

    def _cell_leaf(self, names: Sequence[str]) -> tuple[str, int] | None:
        for name in names:
            number = self._leaf(name)
            if number is None:
                continue
            column = self.metadata.schema.column(number)
            # A table of labels may name its images in a column of text.
            if column.physical_type == "BYTE_ARRAY" and column.logical_type.type == "NONE":
                return name, number
        return None

    def _send_columns(self, request: dict[str, Any]) -> None:
        source, file = self._open(request)
        groups = [self.metadata.row_group(number).num_rows for number in range(self.metadata.num_row_groups)]
        if self._cell_leaf(request["cells"]) is None:
            self.frames.send({"groups": groups, "cells": False})
            return
        leaves = {name: number for name in request["columns"] if (number := self._leaf(name)) is not None}
        sink = pa.BufferOutputStream()
        writer = None
        written = 0
        if leaves:
            for numbers in self._fetched_groups(source, list(leaves.values()), request["budget"]):
                for batch in file.iter_batches(
                    _COLUMN_ROWS, row_groups=numbers, columns=list(leaves), use_threads=False
                ):
                    flat = pa.record_batch({name: _plain(_leaf_values(batch, name)) for name in leaves})
                    written += flat.nbytes
                    if written > request["budget"]:
                        raise ValueError("its columns of names and cameras decode to too much")
                    writer = writer or pa.ipc.new_stream(sink, flat.schema)
                    writer.write_batch(flat)
        if writer is not None:
            writer.close()
        self.frames.send({"groups": groups, "cells": True}, memoryview(sink.getvalue()))

    def _fetched_groups(self, source: RemoteFile, leaves: list[int], budget: int) -> Iterator[list[int]]:
        """Yield numbers of row groups whose chunks of some columns were fetched together."""
        pending: list[int] = []
        ranges: list[tuple[int, int]] = []
        total = 0
        for number in range(self.metadata.num_row_groups):
            chunks = [_extent(self.metadata.row_group(number).column(leaf)) for leaf in leaves]
            size = sum(end - start for start, end in chunks)
            total += size
            if total > budget:
                raise ValueError("its columns of names and cameras are too large")
            if pending and sum(end - start for start, end in ranges) + size > _FETCH_BYTES:
                source.fetch(ranges)
                yield pending
                pending, ranges = [], []
            pending.append(number)
            ranges += [(start, end) for start, end in chunks if 0 <= start < end <= source.file_size]
        if pending:
            source.fetch(ranges)
            yield pending

    def _cells(self, request: dict[str, Any]) -> Iterator[tuple[list[int], list[int], list[memoryview]]]:
        """Yield row numbers within the row group, bytes of each cell, and the cells' beginnings."""
        source, file = self._open(request)
        leaf = self._cell_leaf(request["cells"])
        if leaf is None or not 0 <= request["group"] < self.metadata.num_row_groups:
            raise ValueError("it has no such row group of images")
        group = self.metadata.row_group(request["group"])
        chunk = group.column(leaf[1])
        source.window = _extent(chunk)
        average = max(1, chunk.total_uncompressed_size // max(1, group.num_rows))
        batch_rows = min(max(1, _BATCH_BYTES // average), _MAX_BATCH_ROWS)
        left: list[int] = request["rows"]
        while left:
            try:
                batches = self._batches(file, leaf[0], request["group"], batch_rows, left, request["longest"])
                for found in batches:
                    left = left[len(found[0]) :]
                    yield found
                return
            except (MemoryError, pa.ArrowException):
                # The average in the footer may be far from the truth.
                if batch_rows == 1:
                    raise
                batch_rows = max(1, batch_rows // _SMALLER)

    def _batches(
        self, file: Any, name: str, group: int, batch_rows: int, wanted: list[int], longest: int
    ) -> Iterator[tuple[list[int], list[int], list[memoryview]]]:
        first = position = 0
        for batch in file.iter_batches(batch_rows, row_groups=[group], columns=[name], use_threads=False):
            column = _leaf_values(batch, name)
            end = first + batch.num_rows
            rows: list[int] = []
            sizes: list[int] = []
            data: list[memoryview] = []
            while position < len(wanted) and wanted[position] < end:
                view = _cell(column, wanted[position] - first)[:longest]
                rows.append(wanted[position])
                sizes.append(len(view))
                data.append(view)
                position += 1
                if sum(sizes) > _BLOCK_BYTES:
                    yield rows, sizes, data
                    rows, sizes, data = [], [], []
            if rows:
                yield rows, sizes, data
            if position == len(wanted):
                return
            first = end


def _leaf_values(batch: Any, name: str) -> Any:
    """Return a column of a batch, or a field of a column of structs, by its path."""
    first, *fields = name.split(".")
    values = batch.column(batch.schema.get_field_index(first))
    for field in fields:
        values = pc.struct_field(values, field)
    return values


def _plain(values: Any) -> Any:
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def _cell(column: Any, row: int) -> memoryview:
    """Return the bytes of one value; a null has none."""
    if pa.types.is_dictionary(column.type):
        number = column.indices[row].as_py()
        if number is None:
            return memoryview(b"")
        column, row = column.dictionary, number
    found = column[row].as_buffer()
    return memoryview(b"" if found is None else found)


def _extent(chunk: Any) -> tuple[int, int]:
    starts = [chunk.data_page_offset]
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        starts.append(chunk.dictionary_page_offset)
    return min(starts), min(starts) + chunk.total_compressed_size


def main() -> None:
    """Serve over the standard streams, which libraries cannot write to any more."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source, target = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    Worker(Frames(source, target)).serve()


if __name__ == "__main__":
    main()
