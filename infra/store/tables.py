"""Tables that users write: CSV with a header line, or Parquet, either gzipped or not, from any store.

A small file can decode to many gigabytes, so decoding has a budget, which the file's size sets.
"""

import codecs
import csv
import io
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import BadInput
from infra.store.cells import Kind, Place, convert
from infra.store.parquet_tables import OVER_BUDGET, decoded_parquet
from infra.store.settings import StoreSettings, split_uri
from infra.store.store import open_store
from infra.store.times import TimeRange

if TYPE_CHECKING:
    import pyarrow as pa

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".csv.gz", ".tsv.gz", ".parquet.gz")
"""Names of tables, where a folder could be given instead."""

MAX_DECODED_BYTES = 16 << 30
"""What the used columns of one table may decode to."""

_ALWAYS_ALLOWED_BYTES = 256 << 20
_MAX_RATIO = 200  # real tables have a different key in each row, and decode to 5 to 30 times their size
_HEADER_BYTES = 1 << 20
_BLOCK_BYTES = 16 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_PARQUET_MAGIC = b"PAR1"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_OTHER_FORMS = {
    b"PK\x03\x04": "a ZIP archive or a spreadsheet",
    b"\xd0\xcf\x11\xe0": "a spreadsheet",
    b"ARROW1": "an Arrow file",
    b"ORC": "an ORC file",
    b"Obj\x01": "an Avro file",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"SQLite format 3": "a database",
}
_FORM_REMEDY = "Save it as CSV in UTF-8 with a header line, or as Parquet."
_BOMB_REMEDY = "Keep only the columns that are needed, or split the table."
_PLACE = re.compile(r"In CSV column #\d+: (?:Row #(?P<row>\d+): )?")


def read_user_table(
    uri: str,
    kinds: Mapping[str, Kind],
    *,
    required: Sequence[str | tuple[str, ...]] = (),
    times: TimeRange | None = None,
    settings: StoreSettings | None = None,
    error: type[BadInput] = BadInput,
) -> "pa.Table":
    """Read the columns of a CSV or Parquet file that `kinds` names; the first bytes decide what it is.

    kinds: kind of each column that the caller uses, see `infra.store.cells`; others are not read. required:
    columns that must exist, a tuple if any one of several will do. times: the plausible values of columns of
    times that are not named last_modified.
    A CSV file is UTF-8 or UTF-16 with a header line and commas, semicolons, tabs or bars between its fields;
    a byte order mark, CRLF, blank lines and quoted fields are allowed.
    Returns string, int64 (id, integer, time) and float64 columns, null where a value is unknown, in the order
    of `kinds`. Raises ObjectMissing, StoreError, and `error` for a file or a value that is not usable. A
    message counts the data rows from 1, below the header: lines would be more, because of blank ones and of
    line breaks in quotes.
    """
    data = _read(uri, settings, error)
    if data[:2] == _GZIP_MAGIC:
        data = decompress_gzip(uri, data, error)
    if data[:4] == _PARQUET_MAGIC:
        return _read_parquet(uri, data, kinds, required, times, error)
    return _read_csv(uri, _as_utf8_csv(uri, data, error), kinds, required, times, error)


class _Budget:
    """What a file may still decode to."""

    def __init__(self, uri: str, file_bytes: int, error: type[BadInput]) -> None:
        self.uri = uri
        self.error = error
        self.left = min(MAX_DECODED_BYTES, max(_ALWAYS_ALLOWED_BYTES, _MAX_RATIO * file_bytes))
        self.file_bytes = file_bytes

    def require(self, num_bytes: int) -> None:
        """Raise `error` if so many bytes are not left."""
        if num_bytes > self.left:
            raise self.exceeded()

    def exceeded(self) -> BadInput:
        """Return the error for a file that decodes to more."""
        return self.error(
            f"{self.uri} has {self.file_bytes:,} bytes and decodes to more than a table of this size may",
            remedy=_BOMB_REMEDY,
        )

    def spend(self, num_bytes: int) -> None:
        """Take so many bytes. Raises `error` if they are not left."""
        self.require(num_bytes)
        self.left -= num_bytes


def _read(uri: str, settings: StoreSettings | None, error: type[BadInput]) -> bytes:
    root, key = split_uri(uri)
    store = open_store(root, settings)
    path = Path(store.uri_of(key))
    if store.local and path.exists() and not path.is_file():
        form = "a folder" if path.is_dir() else "not a regular file"
        raise error(f"{uri} is {form}, not a table", remedy="Name a CSV or Parquet file.")
    return store.get(key)


def decompress_gzip(uri: str, data: bytes, error: type[BadInput] = BadInput) -> bytes:
    """Return the content of a gzip file of any number of members. Raises `error` if it is too much or cut."""
    budget = _Budget(uri, len(data), error)
    pieces: list[bytes] = []
    try:
        while data:
            member = zlib.decompressobj(wbits=31)
            while not member.eof:
                piece = member.decompress(data, _BLOCK_BYTES)
                data = member.unconsumed_tail
                if not piece and not data and not member.eof:
                    raise error(f"{uri} is cut short: its gzip data has no end", remedy="Copy it again.")
                budget.spend(len(piece))
                pieces.append(piece)
            data = member.unused_data.lstrip(b"\0")  # gzip allows zeros between its members
    except zlib.error as failure:
        raise error(f"{uri} is not a usable gzip file: {failure}", remedy="Copy it again.") from failure
    return b"".join(pieces)


def _as_utf8_csv(uri: str, data: bytes, error: type[BadInput]) -> bytes:
    """Return the text of a CSV file in UTF-8, or raise `error` if it is clearly something else."""
    for magic, form in _OTHER_FORMS.items():
        if data.startswith(magic):
            raise error(f"{uri} is {form}, neither CSV nor Parquet", remedy=_FORM_REMEDY)
    if data[:2] in _UTF16_MARKS:
        try:
            data = data.decode("utf-16").encode()
        except UnicodeDecodeError as failure:
            raise error(f"{uri} is not valid UTF-16", remedy=_FORM_REMEDY) from failure
    if not data.removeprefix(b"\xef\xbb\xbf").strip():
        raise error(f"{uri} is empty", remedy="A table has a header line with the names of its columns.")
    if b"\0" in data[:_HEADER_BYTES]:
        raise error(f"{uri} is neither CSV nor Parquet: it has zero bytes", remedy=_FORM_REMEDY)
    if data[:4].lower() == b"sep=":  # spreadsheets write it before the header
        data = data.partition(b"\n")[2]
    line = _first_line_outside_utf8(data)
    if line is not None:
        raise error(f"{uri}, line {line}: not UTF-8", remedy="Save the file as UTF-8.")
    return data if b"\n" in data else data + b"\n"


def _used_columns(
    uri: str,
    names: Sequence[str],
    kinds: Mapping[str, Kind],
    required: Sequence[str | tuple[str, ...]],
    error: type[BadInput],
) -> dict[str, str]:
    """Return the used columns that a file has, by their name without white space: its name in the file."""
    found = {name.strip(): name for name in names if name.strip() in kinds}
    for name in found:
        if sum(other.strip() == name for other in names) > 1:
            raise error(f"{uri} has two columns named {name}", remedy="Rename or remove one of them.")
    for names_of_one in required:
        choice = (names_of_one,) if isinstance(names_of_one, str) else names_of_one
        if not found.keys() & set(choice):
            shown = ", ".join(name.strip()[:40] for name in names[:20])
            wanted = " or ".join(choice)
            raise error(f"{uri} has no column {wanted}", remedy=f"Add it; the file has: {shown}.")
    return {name: found[name] for name in kinds if name in found}


class _Columns:
    """Collects converted chunks of the used columns."""

    def __init__(
        self,
        uri: str,
        used: Mapping[str, str],
        kinds: Mapping[str, Kind],
        times: TimeRange | None,
        budget: _Budget,
    ) -> None:
        self.uri = uri
        self.used = used
        self.kinds = kinds
        self.times = times
        self.budget = budget
        self.chunks: dict[str, list[Any]] = {name: [] for name in used}
        self.rows = 0

    def add(self, batch: Any) -> None:
        """Convert and keep the next rows."""
        for name, in_file in self.used.items():
            values = batch.column(batch.schema.get_field_index(in_file))
            place = Place(self.uri, name, self.rows + 1, self.budget.error)
            self.budget.require(_expanded_bytes(values))
            times = self.times if name != "last_modified" else None
            converted = convert(values, self.kinds[name], place, times)
            self.budget.spend(converted.nbytes)
            self.chunks[name].append(converted)
        self.rows += batch.num_rows

    def table(self) -> "pa.Table":
        """Return the table of all rows."""
        import pyarrow as pa

        types: dict[str, Any] = {"text": pa.string(), "number": pa.float64()}
        return pa.table(
            {
                name: pa.chunked_array(chunks, types.get(self.kinds[name], pa.int64()))
                for name, chunks in self.chunks.items()
            }
        )


def _expanded_bytes(values: Any) -> int:
    """Return the bytes that a dictionary or run-length encoded array has when it is expanded."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(values.type):
        return 16 * len(values) if pa.types.is_run_end_encoded(values.type) else 0
    kind = values.type.value_type
    if not (pa.types.is_string(kind) or pa.types.is_binary(kind)):
        return 16 * len(values)
    sizes = pc.binary_length(values.dictionary).cast(pa.int64())
    counts = pc.value_counts(values.indices.drop_null())
    total = pc.sum(pc.multiply(sizes.take(counts.field("values")), counts.field("counts")), min_count=0)
    return 4 * len(values) + int(total.as_py())


def _read_parquet(
    uri: str,
    data: bytes,
    kinds: Mapping[str, Kind],
    required: Sequence[str | tuple[str, ...]],
    times: TimeRange | None,
    error: type[BadInput],
) -> "pa.Table":
    budget = _Budget(uri, len(data), error)
    with decoded_parquet(data, list(kinds), budget.left) as parquet:
        used = _used_columns(uri, parquet.names, kinds, required, error) if parquet.names else {}
        for name, data_type in parquet.nested.items():
            raise Place(uri, name.strip(), 1, error).refuse_type(data_type, kinds[name.strip()])
        if parquet.stopped == OVER_BUDGET:
            raise budget.exceeded()
        if parquet.stopped:
            raise error(f"{uri} is not a usable Parquet file: {parquet.stopped}", remedy="Write it again.")
        columns = _Columns(uri, used, kinds, times, budget)
        for batch in parquet.batches():
            columns.add(batch)
    return columns.table()


def _read_csv(
    uri: str,
    data: bytes,
    kinds: Mapping[str, Kind],
    required: Sequence[str | tuple[str, ...]],
    times: TimeRange | None,
    error: type[BadInput],
) -> "pa.Table":
    names, delimiter = _header(uri, data, error)
    used = _used_columns(uri, names, kinds, required, error)
    columns = _Columns(uri, used, kinds, times, _Budget(uri, max(len(data), _ALWAYS_ALLOWED_BYTES), error))
    if used:
        for batch in _csv_table(uri, data, list(used.values()), delimiter, error).to_batches():
            columns.add(batch)
    return columns.table()


def _header(uri: str, data: bytes, error: type[BadInput]) -> tuple[list[str], str]:
    """Return the names of the columns of a CSV file and the character between its fields."""
    text = data[:_HEADER_BYTES].decode("utf-8-sig", errors="ignore")  # the cut may split a character
    text = text.lstrip("\r\n")
    first_line = re.split(r"[\r\n]", re.sub(r'"[^"]*"', "", text), maxsplit=1)[0]
    delimiter = max(",;\t|", key=first_line.count)
    try:
        names = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except (csv.Error, StopIteration) as failure:
        raise error(f"{uri} is not a usable CSV file: its header cannot be read ({failure})") from failure
    return names, delimiter


def _csv_table(uri: str, data: bytes, names: list[str], delimiter: str, error: type[BadInput]) -> "pa.Table":
    """Read columns of a CSV file as text, exactly as written."""
    import pyarrow as pa
    import pyarrow.csv

    uneven: list[Any] = []

    def refuse(row: Any) -> str:
        uneven.append(row)
        return "error"

    # Only one thread knows the number of a row, and on user tables it is as fast as several.
    read = pyarrow.csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES)
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=refuse)
    types = dict.fromkeys(names, pa.string())
    columns = pyarrow.csv.ConvertOptions(column_types=types, include_columns=names)
    try:
        return pyarrow.csv.read_csv(pa.BufferReader(data), read, parse, columns)
    except (pa.ArrowException, ValueError, KeyError) as failure:
        if uneven:
            raise error(
                f"{uri}, data row {uneven[0].number - 1}: {uneven[0].actual_columns} fields, but the header "
                f"has {uneven[0].expected_columns}",
                remedy=f"Put a field with {delimiter!r} or a line break into double quotes.",
            ) from failure
        reason = _PLACE.sub("", _first_line(failure))
        if "straddling" in reason:
            reason = f"a row of more than {_BLOCK_BYTES >> 20} MB, or a double quote that is never closed"
        raise error(f"{uri} is not a usable CSV file: {reason}", remedy=_FORM_REMEDY) from failure


def _first_line(failure: BaseException) -> str:
    return next(iter(str(failure).splitlines()), type(failure).__name__)[:300]


def _first_line_outside_utf8(data: bytes) -> int | None:
    if data.isascii():
        return None
    decoder, view = codecs.getincrementaldecoder("utf-8")(), memoryview(data)
    for start in range(0, len(data), _BLOCK_BYTES):
        kept = len(decoder.getstate()[0])
        try:
            decoder.decode(view[start : start + _BLOCK_BYTES], final=start + _BLOCK_BYTES >= len(data))
        except UnicodeDecodeError as failure:
            return data.count(b"\n", 0, start - kept + failure.start) + 1
    return None
