"""Object storage: one interface over S3 and over a local folder."""

from infra.store.backend import ObjectBody, ObjectInfo
from infra.store.settings import UNUSABLE_KEY_PATTERN, StoreSettings, split_uri
from infra.store.store import Store, ignore_missing_root, open_store
from infra.store.tables import TABLE_SUFFIXES, read_user_table
from infra.store.times import TimeRange, format_ms

__all__ = [
    "TABLE_SUFFIXES",
    "UNUSABLE_KEY_PATTERN",
    "ObjectBody",
    "ObjectInfo",
    "Store",
    "StoreSettings",
    "TimeRange",
    "format_ms",
    "ignore_missing_root",
    "open_store",
    "read_user_table",
    "split_uri",
]
