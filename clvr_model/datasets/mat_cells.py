"""Reader of the cell arrays of MATLAB 5 files: tables of texts and numbers, such as CompCars' names.

Only what a table of names needs is read: a two-dimensional cell array of character rows and single numbers.
Anything else is refused. Sizes are checked before memory is taken: a file may decompress to MAX_BYTES, and
an array may have MAX_CELLS.
Source: MathWorks, "MAT-File Format", level 5.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from infra.errors import BadLabels

Cell = str | float

MAX_BYTES: Final = 128 * 2**20
MAX_CELLS: Final = 1_000_000

_MATRIX, _COMPRESSED = 14, 15
_CELL, _CHAR = 1, 4
_NUMERIC: Final = range(6, 16)
# Type of data -> format of struct; text may be stored in any of the integer types, or as UTF-8 and UTF-16.
_FORMATS: Final = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
_UTF8, _UTF16 = 16, 17


class _Malformed(ValueError):
    pass


@dataclass(slots=True)
class _Reader:
    """Reads the elements of `data` from `position` to `end`, in the file's byte order."""

    data: bytes
    order: str
    position: int
    end: int

    def element(self) -> tuple[int, int, int]:
        """Return (type, start, size) of the next element, and go on to the one after it."""
        if self.end - self.position < 8:
            raise _Malformed("it ends within an element")
        kind, size = struct.unpack_from(f"{self.order}II", self.data, self.position)
        start, aligned = self.position + 8, -(-size // 8) * 8
        if kind >> 16:  # the small form: four bytes of data beside the tag
            kind, size, start, aligned = kind & 0xFFFF, kind >> 16, self.position + 4, 4
            if size > 4:
                raise _Malformed("a small element of more than four bytes")
        if kind == _COMPRESSED:
            aligned = size  # the only type without padding
        if size > self.end - start:
            raise _Malformed("it ends within an element")
        self.position = min(start + aligned, self.end)
        return kind, start, size

    def inner(self, start: int, size: int) -> "_Reader":
        return _Reader(self.data, self.order, start, start + size)

    def values(self) -> list[float]:
        """Return the numbers of the next element."""
        kind, start, size = self.element()
        form = _FORMATS.get(kind)
        if form is None:
            raise _Malformed(f"data of type {kind}")
        count = size // struct.calcsize(form)
        return list(struct.unpack_from(f"{self.order}{count}{form}", self.data, start))


def read_cells(data: bytes, variable: str, where: str) -> list[list[Cell]]:
    """Return the rows of the two-dimensional cell array `variable`; an empty cell is ''.

    Raises BadLabels, with `where`, for another format or version, a missing variable, a table that is none,
    and one above the budgets.
    """
    try:
        return _rows(data, variable)
    except (_Malformed, struct.error, zlib.error, UnicodeDecodeError) as error:
        raise BadLabels(f"{where} is not a MATLAB 5 file with the table {variable}: {error}") from None


def _rows(data: bytes, variable: str) -> list[list[Cell]]:
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if len(data) < 128 or order is None:
        is_hdf5 = data[:8] == b"\x89HDF\r\n\x1a\n" or b"HDF5" in data[:128]
        raise _Malformed("it is a MATLAB 7.3 file" if is_hdf5 else "it has no such header")
    reader = _Reader(data, order, 128, len(data))
    spent = 0
    while reader.position < reader.end:
        kind, start, size = reader.element()
        matrix = reader.inner(start, size)
        if kind == _COMPRESSED:
            inflater = zlib.decompressobj()
            inflated = inflater.decompress(data[start : start + size], MAX_BYTES - spent)
            if inflater.unconsumed_tail:
                raise _Malformed(f"it decompresses to more than {MAX_BYTES:,} bytes")
            spent += len(inflated)
            matrix = _Reader(inflated, order, 0, len(inflated))
            kind, start, size = matrix.element()
            matrix = matrix.inner(start, size)
        if kind == _MATRIX and (table := _table(matrix, variable)) is not None:
            return table
    raise _Malformed("it has no such variable")


def _table(matrix: _Reader, variable: str) -> list[list[Cell]] | None:
    """The rows of a matrix, or None if it has another name."""
    kind, dimensions, name = _head(matrix)
    if name != variable:
        return None
    if kind != _CELL or len(dimensions) != 2:
        raise _Malformed("the variable is no two-dimensional cell array")
    rows, columns = dimensions
    if rows < 0 or columns < 0 or rows * columns > MAX_CELLS:
        raise _Malformed(f"{rows:,} x {columns:,} cells, more than {MAX_CELLS:,}")
    cells = []
    for _ in range(rows * columns):
        element, start, size = matrix.element()
        if element != _MATRIX:
            raise _Malformed("a cell that is no array")
        cells.append(_cell(matrix.inner(start, size)) if size else "")
    return [cells[row::rows] for row in range(rows)]  # MATLAB stores columns


def _head(matrix: _Reader) -> tuple[int, list[int], str]:
    """Class, dimensions and name; the reader is then at the data."""
    flags = matrix.values()
    if not flags:
        raise _Malformed("an array without flags")
    dimensions = [int(each) for each in matrix.values()]
    _, start, size = matrix.element()
    name = matrix.data[start : start + size].decode("utf-8")
    return int(flags[0]) & 0xFF, dimensions, name


def _cell(matrix: _Reader) -> Cell:
    kind, dimensions, _ = _head(matrix)
    if 0 in dimensions:
        return ""
    if kind == _CHAR and len(dimensions) == 2 and dimensions[0] == 1:
        return _characters(matrix).strip()
    if kind in _NUMERIC and set(dimensions) == {1}:
        values = matrix.values()
        if len(values) == 1:
            return float(values[0])
    raise _Malformed("a cell that is neither a row of text nor one number")


def _characters(matrix: _Reader) -> str:
    kind, start, size = matrix.element()
    raw = matrix.data[start : start + size]
    if kind == _UTF8 or kind in (1, 2):
        return raw.decode("utf-8")
    if kind in (4, _UTF16):
        return raw.decode("utf-16-le" if matrix.order == "<" else "utf-16-be")
    raise _Malformed(f"text of type {kind}")
