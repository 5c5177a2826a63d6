"""Results as one table, for a spreadsheet, pandas or DuckDB: CSV or Parquet, at a path or an s3:// URI."""

import io
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from index.outputs import OutputKind, record_output
from index.parquet import write_table
from index.runs.tombstones import read_tombstones
from infra.errors import BadInput
from infra.store import open_store, split_uri

if TYPE_CHECKING:
    from infra.store import Store


def write_result_table(uri: str, table: pa.Table) -> None:
    """Write a table whole, as CSV if the name ends with .csv, otherwise as Parquet. Raises StoreError.

    In CSV, `captured_at` is a time in UTC and not ms since the epoch.
    """
    root, key = split_uri(uri)
    folder = open_store(root)
    if not uri.endswith(".csv"):
        write_table(folder, key, table, metadata={})
        return
    if "captured_at" in table.schema.names:
        place = table.schema.get_field_index("captured_at")
        table = table.set_column(place, "captured_at", _utc_times(table["captured_at"]))
    text = io.BytesIO()
    csv.write_csv(table, text)
    folder.put(key, text.getvalue())


def write_crop_table(runs: "Store", uri: str, table: pa.Table) -> None:
    """Write a table with a row per crop, and record it in the folder of runs, so that a purge finds it.

    table: crops by `crop_id`, and by `uri` if it has one. Raises BadInput if one of them was erased
    meanwhile, StoreError.
    """
    root, key = split_uri(uri)
    folder = open_store(root)
    # A purge takes rows out of Parquet, and deletes a text that names an erased crop.
    kind: OutputKind = "page" if uri.endswith(".csv") else "table"
    record_output(runs, kind, folder.uri_of(key))
    write_result_table(uri, table)
    # A purge has either not started, and will see the table, or is seen here.
    if read_tombstones(runs).erased_ids(pc.fill_null(table["crop_id"], -1).to_numpy()):
        folder.delete(key)
        raise BadInput(f"a crop in {uri} was erased meanwhile", remedy="Run the same command again.")


def _utc_times(milliseconds: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return ms since the epoch as timestamps in UTC; unknown times, which are negative, as null."""
    known = pc.if_else(pc.less(milliseconds, 0), None, milliseconds)
    return known.cast(pa.timestamp("ms", tz="UTC"))
