"""The lock: one owner, a clear refusal, an end by release, by expiry and by death."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from index.lock import acquire
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
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path))
    return open_store(request.getfixturevalue("bucket"), request.getfixturevalue("seaweedfs").settings)


@pytest.mark.integration
def test_one_of_many_gets_it_and_the_others_are_told_who(places: Store) -> None:
    start, all_told = threading.Barrier(8), threading.Barrier(8)

    def attempt(number: int) -> str:
        start.wait()
        try:
            with acquire(places, "rows", "a load"):
                all_told.wait(30)  # so nobody comes after its end
        except Locked as refused:
            all_told.wait(30)
            return refused.message
        return "held"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(8)))
    assert outcomes.count("held") == 1
    assert all("a load" in outcome for outcome in outcomes if outcome != "held")


@pytest.mark.integration
def test_it_is_given_back_also_after_an_error(places: Store) -> None:
    with pytest.raises(RuntimeError), acquire(places, "rows", "a load"):
        raise RuntimeError
    with acquire(places, "rows", "a load"):
        pass


def test_locks_of_two_names_do_not_meet(store: Store) -> None:
    with acquire(store, "rows", "a load"), acquire(store, "alias-a", "a promotion"):
        pass


def test_the_refusal_says_what_is_under_way_who_does_it_and_when_it_ends(store: Store) -> None:
    with (
        acquire(store, "rows", "a load of alias vehicles"),
        pytest.raises(Locked) as refused,
        acquire(store, "rows", "an erasure"),
    ):
        pass
    assert "a load of alias vehicles is under way: " in refused.value.message
    assert "process" in refused.value.message
    assert "ends by itself at 20" in refused.value.remedy


def test_it_is_renewed_for_as_long_as_it_is_held(store: Store) -> None:
    with acquire(store, "rows", "a load", seconds=0.6) as lock:
        time.sleep(1.5)
        lock.require()
        with pytest.raises(Locked), acquire(store, "rows", "a load"):
            pass


def test_a_lock_that_ran_out_is_taken_over_and_its_late_owner_notices(store: Store) -> None:
    with acquire(store, "rows", "a load") as mine:
        expired = store.get("locks/rows.json").replace(b'"expires": ', b'"expires": -')
        store.put("locks/rows.json", expired)
        with acquire(store, "rows", "another load") as theirs:
            mine._done.set()
            mine._done.clear()
            with pytest.raises(Exception, match="changed"):
                mine._write(mine._holder)
            theirs.require()


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


def test_storage_that_is_away_for_too_long_costs_the_lock(tmp_path: Path) -> None:
    store = Store(str(tmp_path), StoreSettings())
    with acquire(store, "rows", "a load", seconds=0.4) as lock:
        (tmp_path / "locks").rename(tmp_path / "away")
        time.sleep(0.8)
        with pytest.raises(Locked, match="ran out"):
            lock.require()


def test_something_else_in_its_place_is_named(store: Store) -> None:
    store.put("locks/rows.json", b"[]")
    with (
        pytest.raises(SchemaMismatch, match=r"locks/rows\.json is no lock"),
        acquire(store, "rows", "a load"),
    ):
        pass
