"""The probes of a sweep: a folder of images, or a table of their URIs."""

import pyarrow as pa

from infra.store import TABLE_SUFFIXES, is_hidden, open_store, read_user_table
from jobs.sweep.state import checked_list

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def read_probe_list(uri: str) -> pa.Table:
    """Read the probes (probe_id, uri) of a folder or a table.

    A name in TABLE_SUFFIXES is a table with the column `uri` (a path, s3://… or crop:ID), which may have
    `probe_id`. Any other URI is a folder, and the key of each image is its probe_id. Raises BadInput,
    StoreError.
    """
    if uri.lower().endswith(TABLE_SUFFIXES):
        table = read_user_table(uri, {"uri": "text", "probe_id": "text"}, required=["uri"])
        uris = [value or "" for value in table["uri"].to_pylist()]
        has_ids = "probe_id" in table.column_names
        ids = [value or "" for value in table["probe_id"].to_pylist()] if has_ids else uris
        return checked_list(ids, uris, uri)
    store = open_store(uri)
    store.ensure()
    keys = sorted(
        info.key
        for info in store.list()
        if info.key.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(info.key)
    )
    return checked_list(keys, [store.uri_of(key) for key in keys], uri)
