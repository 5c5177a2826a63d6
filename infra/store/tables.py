"""Tables that users write: CSV with a header line, or Parquet, from any store."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from infra.errors import BadInput
from infra.store.settings import StoreSettings, split_uri
from infra.store.store import open_store

if TYPE_CHECKING:
    import pyarrow as pa

_PARQUET_MAGIC = b"PAR1"
_PLACE = re.compile(r"In CSV column #(?P<column>\d+): (?:Row #(?P<row>\d+): )?")


def read_user_table(
    uri: str,
    *,
    types: Mapping[str, "pa.DataType"] | None = None,
    text: bool = False,
    settings: StoreSettings | None = None,
    error: type[BadInput] = BadInput,
) -> "pa.Table":
    """Read a CSV or Parquet file at any path or URI; its first bytes decide which of the two it is.

    A CSV file is UTF-8 with commas and a header line; a byte order mark, CRLF, blank lines and quoted fields
    are allowed. types: of columns of a CSV file. The values suggest the type of every other column; with
    `text` it is text, exactly as written.
    Raises ObjectMissing, StoreError, and `error` for a file that is neither. A message counts the data rows
    from 1, below the header: lines would be more, because of blank ones and of line breaks in quotes.
    """
    import pyarrow as pa  # most commands never need it, and it costs a part of a second
    import pyarrow.parquet

    root, key = split_uri(uri)
    data = open_store(root, settings).get(key)
    if data[:4] != _PARQUET_MAGIC:
        table = _read_csv(uri, data, dict(types or {}), pa.string() if text else None, error)
    else:
        try:
            table = pyarrow.parquet.read_table(pa.BufferReader(data))
        except (pa.ArrowException, OSError, ValueError) as failure:
            raise error(f"{uri} is not a usable Parquet file: {str(failure).splitlines()[0]}") from failure
    repeated = sorted({name for name in table.column_names if name and table.column_names.count(name) > 1})
    if repeated:
        raise error(f"{uri} has two columns named {repeated[0]}", remedy="Rename or remove one of them.")
    return table


def _read_csv(
    uri: str,
    data: bytes,
    types: "dict[str, pa.DataType]",
    default_type: "pa.DataType | None",
    error: type[BadInput],
) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.csv as csv

    uneven: list[Any] = []

    def refuse(row: Any) -> str:
        uneven.append(row)
        return "error"

    # Only one thread knows the number of a row, and on user tables it is as fast as several.
    read = csv.ReadOptions(use_threads=False)
    parse = csv.ParseOptions(newlines_in_values=True, invalid_row_handler=refuse)
    convert = csv.ConvertOptions(column_types=types, default_column_type=default_type)
    try:
        table = csv.read_csv(pa.BufferReader(data), read, parse, convert)
        _ = table.column_names  # a name that is not UTF-8 fails only here
    except (pa.ArrowException, ValueError) as failure:
        if uneven:
            raise error(
                f"{uri}, data row {uneven[0].number - 1}: {uneven[0].actual_columns} fields, but the header "
                f"has {uneven[0].expected_columns}",
                remedy="Put a field with a comma or a line break into double quotes.",
            ) from failure
        line = _first_line_outside_utf8(data)
        if line is not None:
            raise error(f"{uri}, line {line}: not UTF-8", remedy="Save the file as UTF-8.") from failure
        form = "Parquet or CSV" if uri.lower().endswith(".parquet") else "CSV"
        raise error(f"{uri} is not a usable {form} file: {_reason(failure, data)}") from failure
    return table


def _reason(failure: Exception, data: bytes) -> str:
    """Return the first line of pyarrow's message, with a column's name and data row for their numbers."""
    import pyarrow as pa
    import pyarrow.csv as csv

    reason = str(failure).splitlines()[0]
    place = _PLACE.match(reason)
    if place is None:
        return reason
    binary = csv.ConvertOptions(default_column_type=pa.binary())
    names = csv.open_csv(pa.BufferReader(data), convert_options=binary).schema.names
    row = f", data row {int(place['row']) - 1}" if place["row"] else ""
    return f"column {names[int(place['column'])]}{row}: {reason[place.end() :]}"


def _first_line_outside_utf8(data: bytes) -> int | None:
    try:
        data.decode()
    except UnicodeDecodeError as failure:
        return data.count(b"\n", 0, failure.start) + 1
    return None
