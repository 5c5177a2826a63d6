"""Decodes columns of one Parquet file in a process of its own; `infra.store.parquet_tables` starts it.

The Parquet library ends its process at some damaged files, and a small file can decode to many gigabytes.
Here neither harms the caller: the process has limits of its own.

    python parquet_worker.py '{"columns": [...], "budget": bytes}' < file.parquet > batches.arrow

The columns go to stdout as an Arrow stream, strings of dictionary pages as dictionaries; one JSON line on
stderr says what the file has and what stopped the work.
"""

import json
import resource
import sys
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_BATCH_ROWS = 65_536
_SMALL_BATCH_ROWS = 256
_OWN_BYTES = 3 << 30  # address space of the process itself

FAILURES = (pa.ArrowException, OSError, ValueError, MemoryError, NotImplementedError, KeyError, TypeError)


class OverBudgetError(Exception):
    """The file decodes to more than the budget."""


def decode(source: Any, target: Any, columns: list[str], budget: int) -> dict[str, Any]:
    """Write the columns as an Arrow stream; return the names of all columns and the types of nested ones.

    Stops before anything is decoded if columns are nested or repeated. Raises OverBudgetError.
    """
    with pq.ParquetFile(source) as file:
        schema = file.schema_arrow
        found = {"names": schema.names, "nested": {}, "rows": file.metadata.num_rows}
        used = [name for name in schema.names if name.strip() in columns]
        if len({name.strip() for name in used}) < len(used):
            return found
        found["nested"] = {
            name: str(schema.field(name).type) for name in used if pa.types.is_nested(schema.field(name).type)
        }
        if found["nested"] or not used:
            return found
        strings = _check_footer(file, used, budget)
    with pq.ParquetFile(source, read_dictionary=strings) as file:
        _write(file, target, used, budget)
    return found


def _check_footer(file: Any, used: list[str], budget: int) -> list[str]:
    """Raise OverBudgetError by the sizes in the footer; return the columns to read as dictionaries."""
    # A column of a single value takes no space in the file, and this for each row once it is decoded.
    total = 0
    strings: set[str] = set()
    if 4 * file.metadata.num_rows * len(used) > budget:
        raise OverBudgetError
    for number in range(file.metadata.num_row_groups):
        for chunk in _chunks(file, number, used):
            total += chunk.total_uncompressed_size
            if chunk.physical_type == "BYTE_ARRAY" and any("DICT" in name for name in chunk.encodings):
                strings.add(chunk.path_in_schema)
    if total > budget:
        raise OverBudgetError
    return sorted(strings)


def _write(file: Any, target: Any, used: list[str], budget: int) -> None:
    writer: Any = None
    written = 0
    for number in range(file.metadata.num_row_groups):
        encodings = {name for chunk in _chunks(file, number, used) for name in chunk.encodings}
        # Each value of this encoding may repeat a long beginning that the file holds once.
        rows = _SMALL_BATCH_ROWS if "DELTA_BYTE_ARRAY" in encodings else _BATCH_ROWS
        for batch in file.iter_batches(rows, row_groups=[number], columns=used, use_threads=False):
            written += batch.nbytes
            if written > budget:
                raise OverBudgetError
            if writer is None:
                writer = pa.ipc.new_stream(target, batch.schema)
            writer.write_batch(batch)
    if writer is not None:
        writer.close()


def _chunks(file: Any, number: int, used: list[str]) -> list[Any]:
    group = file.metadata.row_group(number)
    chunks = [group.column(index) for index in range(group.num_columns)]
    return [chunk for chunk in chunks if chunk.path_in_schema in used]


def main() -> None:
    """Decode stdin as the first argument says."""
    request = json.loads(sys.argv[1])
    limit = _OWN_BYTES + 3 * request["budget"]
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer: dict[str, Any] = {"names": [], "nested": {}}
    try:
        with open(0, "rb", closefd=False) as source, open(1, "wb", closefd=False) as target:
            answer = decode(source, target, request["columns"], request["budget"])
    except OverBudgetError:
        answer["stopped"] = "budget"
    except FAILURES as failure:
        lines = str(failure).splitlines() or [type(failure).__name__]
        answer["stopped"] = lines[0][:300]
    sys.stderr.write("\n" + json.dumps(answer))


if __name__ == "__main__":
    main()
