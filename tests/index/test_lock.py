"""A lock has one owner, refuses others, and ends by release, by expiry and by the death of its owner."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from index import lock as lock_module
from index.lock import LockRecord, acquire
from infra.errors import BadSetting, CorruptObject, Locked, SchemaMismatch
from infra.store import Store, StoreSettings, open_store

HOLD = """
import sys, time
from index.lock import acquire
from infra.store import open_store
with acquire(open_store(sys.argv[1]), "rows", "a load of alias vehicles", seconds=float(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""
DAY = 86_400.0
KEY = "locks/rows.json"


def hold(store: Store, seconds: float = 60) -> subprocess.Popen[bytes]:
    """Start a process that holds the lock on rows, and wait until it does."""
    owner = subprocess.Popen([sys.executable, "-c", HOLD, store.uri, str(seconds)], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"held\n"
    return owner


def write_lock(store: Store, **changes: Any) -> None:
    """Write the lock of a process of another host, with a clock of its own."""
    fields: dict[str, Any] = {
        "owner": "them@elsewhere, process 7",
        "doing": "a load of alias far",
        "process": "other-boot pid:[1] 7 7",
        "since": "2026-11-22T00:00:00.000+00:00",
        "expires": time.time() + 60,
        "nonce": "cafe",
        "released": False,
        "seconds": 60.0,
    }
    store.put(KEY, json.dumps(fields | changes).encode())


def fields_of(store: Store) -> dict[str, Any]:
    """Return the fields of the lock's object, without its digest."""
    fields: dict[str, Any] = json.loads(store.get(KEY))
    fields.pop("digest", None)
    return fields


def make_older(store: Store, seconds: float) -> None:
    """Let the store say that the lock was written `seconds` ago."""
    path = Path(store.uri_of(KEY))
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


@contextmanager
def renewed_every(store: Store, seconds: float, expires: float) -> Iterator[None]:
    """Renew the lock of another host in the background."""
    stopped = threading.Event()

    def renew() -> None:
        count = 0
        while not stopped.wait(seconds):
            count += 1
            write_lock(store, expires=expires + count, renewals=count, seconds=10)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


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
    assert "ends by itself within 60 s" in refused.value.remedy


def test_a_lock_is_renewed_while_it_is_held(store: Store) -> None:
    with acquire(store, "rows", "a load", seconds=0.6) as lock:
        time.sleep(1.5)
        lock.require()
        with pytest.raises(Locked), acquire(store, "rows", "a load"):
            pass


def test_a_lock_that_both_clocks_call_ended_is_taken_at_once_and_its_former_owner_notices(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with acquire(store, "rows", "a load", seconds=0.6) as expired:
        monkeypatch.setattr(lock_module, "_is_running", lambda process: False)  # as if on another host
        record = fields_of(store)
        store.put(KEY, json.dumps(record | {"expires": time.time() - DAY}).encode())
        make_older(store, DAY)
        monkeypatch.setattr(lock_module, "_changes_within", lambda *watched: pytest.fail("it watched"))
        with acquire(store, "rows", "another load") as current:
            time.sleep(0.4)  # longer than the former owner waits before it renews its lock
            with pytest.raises(Locked, match="ran out"):
                expired.require()
            current.require()
        assert LockRecord.read(store, KEY).purpose == "another load"


@pytest.mark.parametrize("expires_in", [30 * DAY, -30 * DAY, 1.0], ids=["ahead", "behind", "right"])
@pytest.mark.parametrize("age", [0.0, 30 * DAY, -30 * DAY], ids=["fresh", "old", "of-the-future"])
def test_a_dead_host_blocks_for_the_time_of_its_lock_whatever_its_clock_says(
    store: Store, expires_in: float, age: float
) -> None:
    write_lock(store, expires=time.time() + expires_in, seconds=1.5)
    make_older(store, age)
    with acquire(store, "rows", "another load", wait=60) as lock:
        lock.require()
    assert LockRecord.read(store, KEY).purpose == "another load"


@pytest.mark.parametrize("expires_in", [30 * DAY, -30 * DAY], ids=["ahead", "behind"])
def test_a_living_host_keeps_its_lock_whatever_its_clock_says(store: Store, expires_in: float) -> None:
    expires = time.time() + expires_in
    write_lock(store, expires=expires, seconds=10)
    with (
        renewed_every(store, 0.5, expires),
        pytest.raises(Locked, match="a load of alias far is under way"),
        acquire(store, "rows", "another load"),
    ):
        pass


@pytest.mark.parametrize("shift", [30 * DAY, -30 * DAY], ids=["ahead", "behind"])
def test_a_competitor_with_a_wrong_clock_does_not_take_a_living_lock(
    store: Store, monkeypatch: pytest.MonkeyPatch, shift: float
) -> None:
    wall = time.time
    with hold(store, seconds=8) as owner:
        monkeypatch.setattr(lock_module, "_is_running", lambda process: False)  # as if on another host
        with monkeypatch.context() as clock:
            clock.setattr(time, "time", lambda: wall() + shift)
            with pytest.raises(Locked, match=f"process {owner.pid}"), acquire(store, "rows", "a load"):
                pass
        owner.kill()


def test_the_owner_of_a_lock_does_not_measure_by_the_wall_clock(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = time.time
    with acquire(store, "rows", "a load") as lock:
        monkeypatch.setattr(time, "time", lambda: wall() + 30 * DAY)
        lock.require()
    monkeypatch.setattr(time, "time", lambda: -5.0)
    with acquire(store, "rows", "a load") as lock:
        lock.require()


def test_the_lock_of_a_stopped_process_ends_by_its_time(store: Store) -> None:
    with hold(store, seconds=1.5) as owner:
        os.kill(owner.pid, 19)  # SIGSTOP: it exists, and renews nothing
        with acquire(store, "rows", "another load", wait=30) as lock:
            lock.require()
        owner.kill()


def test_a_renewal_whose_answer_was_lost_keeps_the_lock(store: Store) -> None:
    with acquire(store, "rows", "a load", seconds=0.8) as lock:
        record = fields_of(store)
        store.put(KEY, json.dumps(record | {"renewals": 9}).encode())  # ours, with an etag unknown to us
        time.sleep(1.2)
        lock.require()
    assert LockRecord.read(store, KEY).released


def test_a_lock_of_the_earlier_format_has_the_default_time(store: Store) -> None:
    write_lock(store)
    record = fields_of(store)
    del record["seconds"]
    store.put(KEY, json.dumps(record).encode())
    assert LockRecord.read(store, KEY).seconds == 60
    with pytest.raises(Locked, match="a load of alias far"), acquire(store, "rows", "another load"):
        pass


# ---- waiting ------------------------------------------------------------------------------------------


def test_waiting_names_the_owner_once_and_takes_the_lock_when_it_is_free(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    monkeypatch.setattr(lock_module._logger, "info", lambda text, *values: messages.append(text % values))
    held, finish = threading.Event(), threading.Event()

    def load() -> None:
        with acquire(store, "rows", "a load of alias vehicles"):
            held.set()
            finish.wait(30)

    owner = threading.Thread(target=load)
    owner.start()
    held.wait(30)
    threading.Timer(2.5, finish.set).start()
    with acquire(store, "rows", "an erasure", wait=30):
        assert finish.is_set()
    owner.join()
    assert len(messages) == 1
    assert "a load of alias vehicles is under way" in messages[0]


def test_waiting_ends_with_a_refusal(store: Store) -> None:
    with acquire(store, "rows", "a load"):
        started = time.monotonic()
        with pytest.raises(Locked, match="a load is under way"), acquire(store, "rows", "b", wait=1.2):
            pass
        assert time.monotonic() - started >= 1.2


def test_the_lock_of_a_killed_process_is_taken_over_at_once(store: Store) -> None:
    with hold(store) as owner:
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


VALID = {
    "owner": "x",
    "doing": "x",
    "process": "x",
    "since": "x",
    "expires": 1.0,
    "nonce": "x",
    "released": False,
}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        *(
            json.dumps(VALID | change).encode()
            for change in (
                {"expires": 1e18},
                {"expires": -1},
                {"expires": float("inf")},
                {"expires": float("nan")},
                {"expires": "soon"},
                {"expires": 10**400},
                {"expires": None},
                {"expires": []},
                {"seconds": 0},
                {"seconds": -1},
                {"seconds": 1e9},
                {"seconds": float("nan")},
                {"seconds": "long"},
                {"owner": 5},
                {"released": "perhaps"},
                {"format": 9},
            )
        ),
    ],
    ids=lambda content: content[-24:].decode(errors="replace"),
)
def test_odd_contents_are_one_clear_error(store: Store, content: bytes) -> None:
    store.put(KEY, content)
    with (
        pytest.raises((SchemaMismatch, CorruptObject)) as refused,
        acquire(store, "rows", "a load", wait=30),
    ):
        pass
    assert re.match(
        rf"{store.uri_of(KEY)} is (no lock|truncated, altered or no JSON): ", refused.value.message
    )
    assert "\n" not in refused.value.message
    assert refused.value.remedy == "Delete it if nothing is running."
    assert store.get(KEY) == content


@pytest.mark.parametrize("process", ["", "x", "a b c d", "a b 99999999999999 1", "\x00 \x00 1 1", "a b -1 1"])
def test_an_odd_process_is_of_another_host(store: Store, process: str) -> None:
    write_lock(store, process=process)
    with pytest.raises(Locked, match="a load of alias far"), acquire(store, "rows", "another load"):
        pass


@pytest.mark.parametrize("seconds", [0, -1, 1e9, float("nan"), float("inf")])
def test_a_lock_of_no_possible_time_is_refused(store: Store, seconds: float) -> None:
    with pytest.raises(BadSetting, match="is not between"), acquire(store, "rows", "a", seconds=seconds):
        pass


@pytest.mark.integration
def test_a_dead_host_blocks_for_the_time_of_its_lock_on_s3(shared_store: Store) -> None:
    for expires_in in (30 * DAY, -30 * DAY):
        write_lock(shared_store, expires=time.time() + expires_in, seconds=2)
        started = time.monotonic()
        with acquire(shared_store, "rows", "another load") as lock:
            lock.require()
        assert time.monotonic() - started >= 2
