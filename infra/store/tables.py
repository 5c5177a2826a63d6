"""Tables that users write: CSV with a header line, or Parquet, from any store."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from infra.errors import BadInput
from infra.store.settings import StoreSettings, split_uri
from infra.store.store import open_store

if TYPE_CHECKING:
    import pyarrow as pa

_PARQUET_MAGIC = b"PAR1"


def read_user_table(
    uri: str,
    *,
    types: Mapping[str, "pa.DataType"] | None = None,
    settings: StoreSettings | None = None,
    error: type[BadInput] = BadInput,
) -> "pa.Table":
    """Read a CSV or Parquet file at any path or URI; its first bytes decide which of the two it is.

    types: of columns of a CSV file; other columns get the type that their values suggest.
    Raises ObjectMissing, StoreError, and `error` for a file that is neither.
    """
    import pyarrow as pa  # most commands never need it, and it costs a part of a second
    import pyarrow.csv
    import pyarrow.parquet

    root, key = split_uri(uri)
    data = open_store(root, settings).get(key)
    is_parquet = data[:4] == _PARQUET_MAGIC
    try:
        if is_parquet:
            return pyarrow.parquet.read_table(pa.BufferReader(data))
        options = pyarrow.csv.ConvertOptions(column_types=dict(types or {}))
        return pyarrow.csv.read_csv(pa.BufferReader(data), convert_options=options)
    except (pa.ArrowException, OSError, ValueError) as failure:
        form = "Parquet" if is_parquet or key.lower().endswith(".parquet") else "CSV"
        raise error(f"{uri} is not a usable {form} file: {str(failure).splitlines()[0]}") from failure
