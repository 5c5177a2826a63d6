"""Files that a local write leaves when it is cut off: found and removed, unless the write goes on."""

import os
import threading
import time
from pathlib import Path

import pytest

from infra.store import Store, open_store
from infra.store.interrupted import interrupted_writes, remove_interrupted_writes


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "runs"))
    store.put("runs/r/shards/shard-00000.parquet", b"whole")
    return store


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_only_files_of_writes_are_found(store: Store) -> None:
    folder = Path(store.uri, "runs/r/shards")
    for name in ("shard-00000.parquet#1", "notes#2.txt", "car.jpg#3", "shard-00000.parquet#x"):
        (folder / name).write_bytes(b"half")
    assert interrupted_writes(store) == ["runs/r/shards/shard-00000.parquet#1"]
    assert interrupted_writes(store, "runs/other") == []
    assert interrupted_writes(open_store(str(Path(store.uri) / "nowhere"))) == []


def test_what_nobody_writes_any_more_is_removed(store: Store) -> None:
    left = Path(store.uri, "runs/r/run.json#12")
    left.write_bytes(b"half")
    age(left, 120)
    assert remove_interrupted_writes(store) == 1
    assert not left.exists()
    assert store.get("runs/r/shards/shard-00000.parquet") == b"whole"
    assert remove_interrupted_writes(store) == 0


def test_a_write_under_way_is_waited_for(store: Store) -> None:
    under_way = Path(store.uri, "runs/r/shards/shard-00001.parquet#1")
    under_way.write_bytes(b"more")
    renamed = under_way.with_name("shard-00001.parquet")
    threading.Timer(0.2, under_way.rename, [renamed]).start()
    assert remove_interrupted_writes(store, quiet=30.0) == 0
    assert renamed.read_bytes() == b"more"


def test_a_file_from_a_clock_that_is_ahead_is_removed_too(store: Store) -> None:
    left = Path(store.uri, "runs/r/run.json#1")
    left.write_bytes(b"half")
    age(left, -3600)
    assert remove_interrupted_writes(store, quiet=0.2) == 1
