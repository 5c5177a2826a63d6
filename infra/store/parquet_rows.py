"""Cells of Parquet files of unknown origin, read by ranges; `infra.store.parquet_rows_worker` decodes them.

A worker is a process that stays for many files. One that dies, hangs or asks for too much costs its file
only, not the caller.
"""

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Ranges = list[tuple[int, int]]

_WORKER = Path(__file__).with_name("parquet_rows_worker.py")
_ATTEMPTS = 2
_MAX_IDLE = 4
_MAX_READ = 64 << 20
_MAX_ANSWER = 1 << 30
_SILENT_SECONDS = 120.0
"""A worker answers within seconds; a file that keeps it longer is damaged."""


class DamagedParquet(Exception):
    """A Parquet file that cannot be decoded within the limits, with one line on why."""


class _Died(DamagedParquet):
    """A worker died: of the file, or of a machine without memory, so that another one may fare better."""


@dataclass(frozen=True, slots=True)
class RemoteParquet:
    """A file to read. name: of these bytes, such as URI and etag; read: fetches ranges (start, end)."""

    name: str
    size: int
    read: Callable[[Ranges], list[bytes]]


@dataclass(frozen=True, slots=True)
class ParquetColumns:
    """What a listing needs of a file: the rows of each row group, and the columns that it has.

    has_cells: whether the file has a column of cells; if not, `columns` is None.
    """

    groups: list[int]
    has_cells: bool
    columns: Any


def parquet_columns(
    file: RemoteParquet, *, cells: Sequence[str], columns: Sequence[str], budget: int
) -> ParquetColumns:
    """Read columns of a file, those of them that it has; a dot leads into a struct: 'image.path'.

    cells: names of which one has the bytes that `parquet_cells` reads. budget: bytes of the decoded columns.
    Raises DamagedParquet, and what `file.read` raises.
    """
    import pyarrow as pa

    request = {"do": "columns", "cells": list(cells), "columns": list(columns), "budget": budget}
    for attempt in range(_ATTEMPTS):
        try:
            with _worker(file) as worker:
                answer, data = worker.ask(request)
            break
        except _Died:
            if attempt == _ATTEMPTS - 1:
                raise
    table = pa.ipc.open_stream(data).read_all() if data else None
    return ParquetColumns(answer["groups"], answer["cells"], table)


def parquet_cells(
    file: RemoteParquet, *, cells: Sequence[str], group: int, rows: Sequence[int], longest: int
) -> Iterator[tuple[int, bytes]]:
    """Yield (row, bytes) of some rows of a row group, ascending; rows that it does not have are left out.

    A null is no bytes, and a longer cell than `longest` is cut there. A few megabytes are held at a time.
    Raises as `parquet_columns` does.
    """
    left = list(rows)
    for attempt in range(_ATTEMPTS):
        request: dict[str, Any] = {
            "do": "cells",
            "cells": list(cells),
            "group": group,
            "rows": left,
            "longest": longest,
        }
        try:
            with _worker(file) as worker:
                while True:
                    answer, data = worker.ask(request)
                    if not answer["rows"]:
                        return
                    start = 0
                    for row, size in zip(answer["rows"], answer["sizes"], strict=True):
                        yield row, bytes(data[start : start + size])
                        start += size
                    left = left[len(answer["rows"]) :]
                    request = {"do": "more"}
        except _Died:
            if attempt == _ATTEMPTS - 1:
                raise


class _Worker:
    """One process, used by one thread at a time."""

    def __init__(self) -> None:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "ARROW_DEFAULT_MEMORY_POOL": "system",  # the others reserve gigabytes of address space
            "OPENBLAS_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self.file: RemoteParquet | None = None

    def ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], memoryview]:
        """Send a request about the worker's file; return the answer and its bytes. Raises DamagedParquet."""
        assert self.file is not None  # noqa: S101  # for the type checker
        try:
            self._send(request | {"file": self.file.name, "size": self.file.size})
            while True:
                answer, data = self._receive()
                if "read" not in answer:
                    break
                parts = self.file.read(_checked_ranges(answer["read"], self.file.size))
                wanted = [length for _, length in answer["read"]]
                if [len(part) for part in parts] != wanted:
                    raise DamagedParquet("it is shorter than it was when it was listed")
                self._send({}, *parts)
        except (OSError, ValueError, KeyError, TypeError) as error:  # none that a store raises
            self.end()
            raise _Died("the Parquet library fails at it") from error
        except BaseException:
            self.end()
            raise
        if "error" in answer:
            raise DamagedParquet(str(answer["error"]))
        return answer, data

    @property
    def alive(self) -> bool:
        """Whether the process can be asked again."""
        return self.process.poll() is None

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        self.process.wait()

    def _send(self, document: dict[str, Any], *data: bytes) -> None:
        if data:
            document["bytes"] = sum(map(len, data))
        text = json.dumps(document).encode()
        assert self.process.stdin is not None  # noqa: S101  # it is a pipe
        for piece in (len(text).to_bytes(8, "little"), text, *data):
            self.process.stdin.write(piece)
        self.process.stdin.flush()

    def _receive(self) -> tuple[dict[str, Any], memoryview]:
        length = int.from_bytes(self._read(8), "little")
        document: dict[str, Any] = json.loads(bytes(self._read(length)))
        return document, self._read(int(document.get("bytes", 0)))

    def _read(self, size: int) -> memoryview:
        if size > _MAX_ANSWER:
            raise ValueError("an answer of gigabytes")
        assert self.process.stdout is not None  # noqa: S101  # it is a pipe
        number, data, filled = self.process.stdout.fileno(), bytearray(size), 0
        poll = select.poll()
        poll.register(number, select.POLLIN)
        last = time.monotonic()
        while filled < size:
            if not poll.poll(1000):
                if time.monotonic() - last > _SILENT_SECONDS:
                    raise DamagedParquet(f"it takes longer than {_SILENT_SECONDS:.0f} s to decode")
                continue
            count = os.readv(number, [memoryview(data)[filled:]])
            if not count:
                raise OSError("the worker died")
            filled += count
            last = time.monotonic()
        return memoryview(data)


def _checked_ranges(wanted: Any, size: int) -> Ranges:
    ranges = [(int(start), int(start) + int(length)) for start, length in wanted]
    if any(not 0 <= start <= end <= size for start, end in ranges) or (
        sum(end - start for start, end in ranges) > _MAX_READ
    ):
        raise DamagedParquet("its footer, or a page of it, states sizes of more than 64 MB")
    return ranges


_idle: list[_Worker] = []
_lock = threading.Lock()


@contextmanager
def _worker(file: RemoteParquet) -> Iterator[_Worker]:
    """Give a worker, one that knows the file if there is one."""
    with _lock:
        known = [one for one in _idle if one.file is not None and one.file.name == file.name] or _idle
        worker = known[-1] if known else None
        if worker is not None:
            _idle.remove(worker)
    if worker is None or not worker.alive:
        worker = _Worker()
    worker.file = file
    try:
        yield worker
    finally:
        with _lock:
            keep = worker.alive and len(_idle) < _MAX_IDLE
            if keep:
                _idle.append(worker)
        if not keep:
            worker.end()
