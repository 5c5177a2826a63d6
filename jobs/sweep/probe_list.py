"""The probes of a sweep: a folder of images, or a table of their URIs."""

import pyarrow as pa

from infra.errors import BadInput
from infra.store import open_store, read_user_table
from jobs.sweep.state import checked_list

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
TABLE_SUFFIXES = (".csv", ".parquet")


def read_probe_list(uri: str) -> pa.Table:
    """Read the probes (probe_id, uri) of a folder or a table.

    A `.csv` or `.parquet` has the column `uri` (a path, s3://… or crop:ID) and may have `probe_id`. Any other
    URI is a folder, and the key of each image is its probe_id. Raises BadInput, StoreError.
    """
    if uri.lower().endswith(TABLE_SUFFIXES):
        table = _table(uri)
        uris = [str(value or "") for value in table["uri"].to_pylist()]
        has_ids = "probe_id" in table.column_names
        ids = [str(value or "") for value in table["probe_id"].to_pylist()] if has_ids else uris
        return checked_list(ids, uris, uri)
    store = open_store(uri)
    store.ensure()
    keys = sorted(info.key for info in store.list() if info.key.lower().endswith(IMAGE_SUFFIXES))
    return checked_list(keys, [store.uri_of(key) for key in keys], uri)


def _table(uri: str) -> pa.Table:
    table = read_user_table(uri)
    if "uri" not in table.column_names:
        raise BadInput(f"{uri} has no column uri", remedy="add it: a path, s3://… or crop:ID per probe")
    return table
