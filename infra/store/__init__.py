"""Object storage: one interface over S3 and over a local folder."""

from infra.store.backend import FOLDER_MARKER, UNADDRESSABLE, ObjectBody, ObjectInfo, UnusableObject
from infra.store.hidden import is_hidden, may_hide
from infra.store.scratch import ScratchFolder
from infra.store.settings import UNUSABLE_KEY_PATTERN, StoreSettings, is_usable_key, split_uri
from infra.store.store import Store, ignore_missing_root, open_store
from infra.store.tables import TABLE_SUFFIXES, read_user_table
from infra.store.times import TimeRange, format_ms

__all__ = [
    "FOLDER_MARKER",
    "TABLE_SUFFIXES",
    "UNADDRESSABLE",
    "UNUSABLE_KEY_PATTERN",
    "ObjectBody",
    "ObjectInfo",
    "ScratchFolder",
    "Store",
    "StoreSettings",
    "TimeRange",
    "UnusableObject",
    "format_ms",
    "ignore_missing_root",
    "is_hidden",
    "is_usable_key",
    "may_hide",
    "open_store",
    "read_user_table",
    "split_uri",
]
