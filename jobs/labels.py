"""Label tables: CSV or Parquet, anywhere a store reaches."""

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from infra.errors import BadLabels, ObjectMissing
from infra.store import open_store, split_uri


def read_label_table(uri: str) -> pa.Table:
    """Read a `.csv` or `.parquet` of labels whole. Raises BadLabels if it is missing or neither."""
    root, key = split_uri(uri)
    try:
        data = open_store(root).get(key)
    except ObjectMissing as error:
        raise BadLabels(f"no label file at {uri}", remedy="check the path") from error
    source = pa.BufferReader(data)
    try:
        if key.lower().endswith(".csv"):
            return pa.csv.read_csv(source)
        return pa.parquet.read_table(source)
    except pa.ArrowInvalid as error:
        kind = "CSV" if key.lower().endswith(".csv") else "Parquet"
        raise BadLabels(f"{uri} is not {kind}: {str(error).splitlines()[0]}") from error
