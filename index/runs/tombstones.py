"""Tombstones: the crop_ids of erased crops, which no later load may index again.

erasures/<erasure_id>/crops.parquet     one column, crop_id
                      receipt.json      see generations.erasure
"""

import secrets
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.parquet import open_parquet, write_table
from infra.store import Store, ignore_missing_root

_SCHEMA = pa.schema([("crop_id", pa.int64())])


def new_erasure_id() -> str:
    """Return a new name for an erasure; names sort by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def write_tombstones(store: Store, erasure_id: str, crop_ids: NDArray[np.int64]) -> None:
    """Write the tombstones of one erasure. May be repeated."""
    table = pa.table([pa.array(np.sort(crop_ids), pa.int64())], schema=_SCHEMA)
    write_table(store, _key(erasure_id), table, metadata={"clvr.erasure": erasure_id})


def read_tombstones(store: Store, erasure_id: str) -> NDArray[np.int64]:
    """Return the crop_ids (n,) of one erasure, ascending. Raises ObjectMissing, CorruptObject."""
    with open_parquet(store, _key(erasure_id)) as file:
        return np.asarray(file.read(["crop_id"])["crop_id"])


def erasure_ids(store: Store) -> list[str]:
    """Return the names of all erasures, finished or not, oldest first."""
    folders: list[str] = []
    with ignore_missing_root(store):
        folders = store.folders("erasures")
    return [folder.rpartition("/")[2] for folder in folders]


def erased_ids(store: Store) -> NDArray[np.int64]:
    """Return the crop_ids (n,) of all erasures, ascending, each once."""
    arrays = [np.empty(0, np.int64), *(read_tombstones(store, name) for name in erasure_ids(store))]
    return np.unique(np.concatenate(arrays))


def _key(erasure_id: str) -> str:
    return f"erasures/{erasure_id}/crops.parquet"
