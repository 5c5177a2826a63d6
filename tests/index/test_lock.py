"""A lock has one owner, refuses others, and ends by release, by expiry and by the death of its owner."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from index.lock import LockRecord, acquire
from infra.errors import Locked, SchemaMismatch
from infra.store import Store, StoreSettings, open_store

HOLD = """
import sys, time
from index.lock import acquire
from infra.store import open_store
with acquire(open_store(sys.argv[1]), "rows", "a load of alias vehicles"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["local", "s3"])
def shared_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path))
    return open_store(request.getfixturevalue("bucket"), request.getfixturevalue("seaweedfs").settings)


@pytest.mark.integration
def test_one_of_several_competitors_gets_the_lock(shared_store: Store) -> None:
    start, all_tried = threading.Barrier(8), threading.Barrier(8)

    def attempt(number: int) -> str:
        start.wait()
        try:
            with acquire(shared_store, "rows", "a load"):
                all_tried.wait(30)  # holds the lock until all others were refused
        except Locked as refused:
            all_tried.wait(30)
            return refused.message
        return "held"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(8)))
    assert outcomes.count("held") == 1
    assert all("a load" in outcome for outcome in outcomes if outcome != "held")


@pytest.mark.integration
def test_a_lock_is_released_after_an_error(shared_store: Store) -> None:
    with pytest.raises(RuntimeError), acquire(shared_store, "rows", "a load"):
        raise RuntimeError
    with acquire(shared_store, "rows", "a load"):
        pass


def test_locks_of_two_names_are_held_independently(store: Store) -> None:
    with acquire(store, "rows", "a load") as rows, acquire(store, "alias-a", "a promotion") as alias:
        rows.require()
        alias.require()
        for name in ("rows", "alias-a"):
            with pytest.raises(Locked), acquire(store, name, "another operation"):
                pass


def test_the_refusal_names_purpose_owner_and_end(store: Store) -> None:
    with (
        acquire(store, "rows", "a load of alias vehicles"),
        pytest.raises(Locked) as refused,
        acquire(store, "rows", "an erasure"),
    ):
        pass
    assert "a load of alias vehicles is under way: " in refused.value.message
    assert "process" in refused.value.message
    assert "ends by itself at 20" in refused.value.remedy


def test_a_lock_is_renewed_while_it_is_held(store: Store) -> None:
    with acquire(store, "rows", "a load", seconds=0.6) as lock:
        time.sleep(1.5)
        lock.require()
        with pytest.raises(Locked), acquire(store, "rows", "a load"):
            pass


def test_an_expired_lock_is_taken_over_and_its_former_owner_notices(store: Store) -> None:
    with acquire(store, "rows", "a load", seconds=0.6) as expired:
        record = LockRecord.read(store, "locks/rows.json")
        store.put("locks/rows.json", replace(record, expires=-record.expires).to_json())
        with acquire(store, "rows", "another load") as current:
            time.sleep(0.4)  # longer than the former owner waits before it renews its lock
            with pytest.raises(Locked, match="ran out"):
                expired.require()
            current.require()
        assert LockRecord.read(store, "locks/rows.json").purpose == "another load"


def test_the_lock_of_a_killed_process_is_taken_over_at_once(store: Store) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, store.uri], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        with pytest.raises(Locked, match=f"process {owner.pid}"), acquire(store, "rows", "a load"):
            pass
        owner.kill()
        owner.wait()
        with acquire(store, "rows", "a load"):
            pass


def test_a_lock_is_lost_while_storage_is_unreachable(tmp_path: Path) -> None:
    store = Store(str(tmp_path), StoreSettings())
    with acquire(store, "rows", "a load", seconds=0.4) as lock:
        (tmp_path / "locks").rename(tmp_path / "away")
        time.sleep(0.8)
        with pytest.raises(Locked, match="ran out"):
            lock.require()


def test_a_damaged_lock_is_named(store: Store) -> None:
    store.put("locks/rows.json", b"[]")
    with (
        pytest.raises(SchemaMismatch, match=r"locks/rows\.json is no lock"),
        acquire(store, "rows", "a load"),
    ):
        pass
