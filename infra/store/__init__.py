"""Object storage: one interface over S3 and over a local folder."""

from infra.store.backend import ObjectBody, ObjectInfo
from infra.store.settings import StoreSettings, split_uri
from infra.store.store import Store, ignore_missing_root, open_store
from infra.store.tables import read_user_table

__all__ = [
    "ObjectBody",
    "ObjectInfo",
    "Store",
    "StoreSettings",
    "ignore_missing_root",
    "open_store",
    "read_user_table",
    "split_uri",
]
