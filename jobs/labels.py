"""Label tables: CSV or Parquet, anywhere a store reaches."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from infra.errors import BadLabels, ObjectMissing
from infra.store import open_store, split_uri


def read_label_table(uri: str, *, split: str | None = None) -> pa.Table:
    """Read a `.csv` or `.parquet` of labels, or of its rows those whose column `split` says so.

    Raises BadLabels if it is missing, neither of the two, or has no such rows.
    """
    root, key = split_uri(uri)
    try:
        data = open_store(root).get(key)
    except ObjectMissing as error:
        raise BadLabels(f"no label file at {uri}", remedy="check the path") from error
    source = pa.BufferReader(data)
    try:
        table = pa.csv.read_csv(source) if key.lower().endswith(".csv") else pa.parquet.read_table(source)
    except pa.ArrowInvalid as error:
        kind = "CSV" if key.lower().endswith(".csv") else "Parquet"
        raise BadLabels(f"{uri} is not {kind}: {str(error).splitlines()[0]}") from error
    if split is None:
        return table
    rows = (
        table.filter(pc.equal(table["split"], split)) if "split" in table.column_names else table.slice(0, 0)
    )
    if not rows.num_rows:
        raise BadLabels(f"{uri} has no row whose column split is {split!r}", remedy="leave out --split")
    return rows
