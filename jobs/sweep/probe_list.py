"""The probes of a sweep: a folder of pictures, or a table that names them."""

import pyarrow as pa

from infra.errors import BadInput
from infra.store import open_store, read_user_table
from jobs.sweep.state import checked_list

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
TABLES = (".csv", ".parquet")


def read_probe_list(uri: str) -> pa.Table:
    """The probes (probe_id, uri) behind a URI.

    A `.csv` or `.parquet` has the column `uri` (a path, s3://… or crop:ID) and may have `probe_id`; anything
    else is a folder, whose pictures are named by their keys. Raises BadInput, StoreError.
    """
    if uri.lower().endswith(TABLES):
        table = _table(uri)
        uris = [str(value or "") for value in table["uri"].to_pylist()]
        named = "probe_id" in table.column_names
        ids = [str(value or "") for value in table["probe_id"].to_pylist()] if named else uris
        return checked_list(ids, uris, uri)
    store = open_store(uri)
    store.ensure()
    keys = sorted(info.key for info in store.list() if info.key.lower().endswith(PICTURES))
    return checked_list(keys, [store.uri_of(key) for key in keys], uri)


def _table(uri: str) -> pa.Table:
    table = read_user_table(uri)
    if "uri" not in table.column_names:
        raise BadInput(f"{uri} has no column uri", remedy="name the pictures: a path, s3://… or crop:ID")
    return table
