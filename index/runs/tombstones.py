"""Tombstones: the crop_ids that were erased, kept so that no later load can bring their rows back.

erasures/<erasure_id>/crops.parquet     one column, crop_id
                      receipt.json      see forget
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
    """Return a name for an erasure; names sort by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def write_tombstones(store: Store, erasure_id: str, crop_ids: NDArray[np.int64]) -> None:
    """Write the tombstones of one erasure. May be repeated."""
    table = pa.table([pa.array(np.sort(crop_ids), pa.int64())], schema=_SCHEMA)
    write_table(store, _key(erasure_id), table, metadata={"clvr.erasure": erasure_id})


def read_tombstones(store: Store, erasure_id: str) -> NDArray[np.int64]:
    """Return the crop_ids (n,) of one erasure, ascending. Raises ObjectMissing, CorruptShard."""
    with open_parquet(store, _key(erasure_id)) as file:
        return np.asarray(file.read(columns=["crop_id"])["crop_id"])


def erasure_ids(store: Store) -> list[str]:
    """Return the names of all erasures that were begun, oldest first."""
    folders: list[str] = []
    with ignore_missing_root(store):
        folders = store.folders("erasures")
    return [folder.rpartition("/")[2] for folder in folders]


def erased_ids(store: Store) -> NDArray[np.int64]:
    """Return the crop_ids (n,) of all erasures, ascending, each once."""
    found = [np.empty(0, np.int64), *(read_tombstones(store, name) for name in erasure_ids(store))]
    return np.unique(np.concatenate(found))


def _key(erasure_id: str) -> str:
    return f"erasures/{erasure_id}/crops.parquet"
