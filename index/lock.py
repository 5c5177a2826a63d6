"""Locks in object storage: one owner at a time, and each lock ends by itself.

A lock is taken and renewed by conditional writes only, so one of several competitors wins. It ends when its
owner releases it, when its owner's process is seen to be dead, or when it is not renewed for its `seconds`.

No clock that another process has set decides alone. The owner measures its time by the clock of its boot. A
competitor believes the two wall clocks, the owner's and the store's, only if both say the same. Otherwise it
watches the object for the `seconds` of the lock: an object that is renewed meanwhile is alive.
"""

import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from index.documents import JsonDocument, current_user, utc_now
from infra.errors import (
    BadSetting,
    ClvrError,
    CorruptObject,
    Locked,
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    SchemaMismatch,
)
from infra.store import Store

LOCK_TTL_SECONDS = 60.0
"""How long a lock outlives an owner on another machine."""

MAX_LOCK_SECONDS = 3600.0

ROWS = "rows"
"""Lock of all operations that add or remove rows of generations: loads, erasures, retirement."""

_CLOCK_KEY = "locks/store-clock"
_POLL_SECONDS = 1.0
_STORE_CLOCK_STEP = 1.0  # S3 cuts the time of an object off at the second
_LAST_EPOCH_SECOND = 253_402_300_799.0  # of the year 9999
_ATTEMPTS = 20  # of reading a lock that changes meanwhile
_PROCESS = re.compile(r"(\S+ \S+) ([0-9]{1,10}) [0-9]+")
_logger = logging.getLogger("clvr.lock")


def alias_lock(alias: str) -> str:
    """Return the name of the lock of all operations that move this alias."""
    return f"alias-{alias}"


@dataclass(frozen=True, slots=True)
class LockRecord(JsonDocument):
    """The owner of a lock.

    `process` identifies a process of a machine and boot. The lock ends `seconds` after its last renewal;
    `expires` (s, epoch) is that time by the owner's clock. `renewals` makes every renewal another object.
    """

    NOUN = "lock"
    REMEDY = "Delete it if nothing is running."

    owner: str
    purpose: Annotated[str, Field(alias="doing")]
    process: str
    since: str
    expires: Annotated[float, Field(ge=0, le=_LAST_EPOCH_SECOND, allow_inf_nan=False)]
    nonce: str
    released: bool = False
    seconds: Annotated[float, Field(gt=0, le=MAX_LOCK_SECONDS, allow_inf_nan=False)] = LOCK_TTL_SECONDS
    renewals: int = 0


class Lock:
    """A lock that this process holds; a thread renews it in the background."""

    def __init__(self, store: Store, key: str, record: LockRecord, etag: str, written: float) -> None:
        """Hold the lock of `record`, whose object has this etag; `written`: boot time before its write, s."""
        self._store = store
        self._key = key
        self._record = record
        self._etag = etag
        self._deadline = written + record.seconds
        self._lost = threading.Event()
        self._stopped = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name=f"lock {key}", daemon=True)
        self._renewer.start()

    def require(self) -> None:
        """Raise Locked if this process lost the lock, because storage was unreachable for too long."""
        if self._lost.is_set() or boot_time() > self._deadline:
            raise Locked(
                f"the lock on {self._record.purpose} ran out while object storage was unreachable",
                remedy="Run the same command again; it finds and clears incomplete work.",
            )

    def release(self) -> None:
        """Release the lock. If storage is unreachable, it ends by itself."""
        self._stopped.set()
        self._renewer.join()
        if self._lost.is_set():
            return
        with suppress(ClvrError):
            try:
                self._write(replace(self._record, released=True))
            except ObjectChanged:
                if self._is_still_ours():
                    self._write(replace(self._record, released=True))

    def _renew(self) -> None:
        while not self._stopped.wait(self._record.seconds / 4):
            started = boot_time()
            record = self._record
            renewed = replace(record, expires=_expiry(record.seconds), renewals=record.renewals + 1)
            try:
                self._write(renewed)
            except (ObjectChanged, ObjectMissing, SchemaMismatch, CorruptObject):
                if not self._is_still_ours():
                    self._lost.set()
                    return
            except ClvrError:
                continue  # storage is unreachable; `require` fails if that lasts too long
            else:
                self._deadline = started + self._record.seconds

    def _write(self, record: LockRecord) -> None:
        self._store.replace(self._key, record.to_json(), etag=self._etag)
        self._record = record
        written = self._store.fetch(self._key)
        # Only the owner may write the object, unless this process stood still and lost the lock meanwhile.
        if LockRecord.from_json(written.data, self._store.uri_of(self._key)).nonce != record.nonce:
            raise ObjectChanged(f"{self._store.uri_of(self._key)} was taken over")
        self._etag = written.etag

    def _is_still_ours(self) -> bool:
        """Adopt the etag of a renewal whose answer was lost; return False if the lock is lost."""
        try:
            body = self._store.fetch(self._key)
            record = LockRecord.from_json(body.data, self._store.uri_of(self._key))
        except (ObjectMissing, SchemaMismatch, CorruptObject):
            return False
        except ClvrError:
            return True
        if record.nonce != self._record.nonce:
            return False
        self._record, self._etag = record, body.etag
        return True


@contextmanager
def acquire(
    store: Store, name: str, purpose: str, *, seconds: float = LOCK_TTL_SECONDS, wait: float = 0.0
) -> Iterator[Lock]:
    """Hold a lock for the block. Competitors see its `purpose`, such as 'a load of alias vehicles'.

    seconds: how long the lock outlives this process on another machine, at most an hour.
    wait: how long to wait for another owner, in s; the log names it once.
    Raises Locked, with owner and purpose, if another process holds the lock and, with `wait`, holds it for
    that long; SchemaMismatch or CorruptObject if the object is no lock; BadSetting for other `seconds`.
    """
    if not 0 < seconds <= MAX_LOCK_SECONDS:
        raise BadSetting(f"a lock of {seconds:g} s is not between 0 and {MAX_LOCK_SECONDS:g} s")
    lock = _acquire_within(store, f"locks/{name}.json", purpose, seconds, wait)
    try:
        yield lock
    finally:
        lock.release()


def boot_time() -> float:
    """Return the seconds since the boot of this machine, those of its sleep included; nothing sets it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _acquire_within(store: Store, key: str, purpose: str, seconds: float, wait: float) -> Lock:
    deadline = boot_time() + wait
    is_announced = False
    while True:
        try:
            return _acquire(store, key, purpose, seconds, quiet=is_announced)
        except Locked as refused:
            left = deadline - boot_time()
            if not left > 0:
                raise
            if not is_announced:
                _logger.info("waiting up to %.3g min: %s", left / 60, refused.message)
                is_announced = True
            time.sleep(min(_POLL_SECONDS, left))


def _acquire(store: Store, key: str, purpose: str, seconds: float, *, quiet: bool) -> Lock:
    record = LockRecord(
        owner=f"{current_user()}, process {os.getpid()}",
        purpose=purpose,
        process=_process_identity(os.getpid()),
        since=utc_now(),
        expires=_expiry(seconds),
        nonce=secrets.token_hex(8),
        seconds=seconds,
    )
    written = boot_time()
    try:
        try:
            store.create(key, record.to_json())
        except ObjectExists:
            etag = _require_ended(store, key, quiet=quiet)
            written = boot_time()
            record = replace(record, expires=_expiry(seconds))
            store.replace(key, record.to_json(), etag=etag)
        body = store.fetch(key)
    except (ObjectChanged, ObjectMissing):
        raise _lost_race(purpose) from None
    if LockRecord.from_json(body.data, store.uri_of(key)).nonce != record.nonce:
        raise _lost_race(purpose)
    return Lock(store, key, record, body.etag, written)


def _require_ended(store: Store, key: str, *, quiet: bool) -> str:
    """Return the etag of a lock that has ended. Raises Locked if it is alive, ObjectMissing."""
    is_watched = False
    for _ in range(_ATTEMPTS):
        body = store.fetch(key)
        holder = LockRecord.from_json(body.data, store.uri_of(key))
        if holder.released or _is_dead(holder.process):
            return body.etag
        if is_watched:
            raise _refusal(holder)  # it was renewed, or taken by another, while this process watched it
        read = boot_time()
        state = _state_by_clocks(store, key, body.etag, holder)
        if state == "ended":
            return body.etag
        if state == "alive":
            raise _refusal(holder)
        if state == "unclear":
            if not quiet:
                _logger.info(
                    "the clocks disagree on the end of %s: watching it for %.3g s",
                    store.uri_of(key),
                    holder.seconds,
                )
            if not _changes_within(store, key, body.etag, read + holder.seconds):
                return body.etag
            is_watched = True
    raise _refusal(holder)


def _state_by_clocks(
    store: Store, key: str, etag: str, holder: LockRecord
) -> Literal["ended", "alive", "unclear", "changed"]:
    """Compare the owner's clock with ours, and the age of the object by the clock of the store."""
    info = store.head(key)
    if info is None or info.etag != etag:
        return "changed"
    seconds, now, modified = holder.seconds, time.time(), info.last_modified.timestamp()
    left = holder.expires - now
    # Three clocks that agree need no further request. Each of them moves on, so this refusal ends.
    if 0 <= left <= seconds and 0 <= now - modified <= seconds:
        return "alive"
    age = _store_time(store) - modified
    if left < 0 and age > seconds + _STORE_CLOCK_STEP and not _is_running(holder.process):
        return "ended"
    if 0 <= left <= seconds and -_STORE_CLOCK_STEP <= age <= seconds + _STORE_CLOCK_STEP:
        return "alive"
    return "unclear"


def _changes_within(store: Store, key: str, etag: str, deadline: float) -> bool:
    """Watch an object until a boot time; return whether its etag changes or the object goes away."""
    while (left := deadline - boot_time()) > 0:
        time.sleep(min(_POLL_SECONDS, left))
        info = store.head(key)
        if info is None or info.etag != etag:
            return True
    return False


def _store_time(store: Store) -> float:
    """Return the time by the clock of the store, s since the epoch: that of an object written now."""
    store.put(_CLOCK_KEY, b"written to read the clock of the store\n")
    info = store.head(_CLOCK_KEY)
    if info is None:
        raise ObjectMissing(f"{store.uri_of(_CLOCK_KEY)} was deleted", remedy="Try again.")
    return info.last_modified.timestamp()


def _refusal(holder: LockRecord) -> Locked:
    return Locked(
        f"{holder.purpose} is under way: {holder.owner}, since {holder.since}",
        remedy=f"Wait for it. If it died, its lock ends by itself within {holder.seconds:.3g} s.",
    )


def _lost_race(purpose: str) -> Locked:
    return Locked(f"another process started {purpose} at the same moment", remedy="Try again.")


def _expiry(seconds: float) -> float:
    """Return the wall clock's time in `seconds`, within what a record may hold even if the clock is odd."""
    return min(max(time.time() + seconds, 0.0), _LAST_EPOCH_SECOND)


def _process_identity(pid: int) -> str:
    """Return a name that no other process has, on any machine, at any time; '' if it cannot be read."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115  it is no path
        # The process name in parentheses may contain spaces; the 20th field after it is the start time.
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
    return f"{boot} {namespace} {pid} {started}"


def _is_dead(process: str) -> bool:
    """Return whether a process is known to be dead; only this machine and container can tell."""
    pid = _local_pid(process)
    return pid is not None and _process_identity(pid) != process


def _is_running(process: str) -> bool:
    """Return whether a process is known to exist."""
    pid = _local_pid(process)
    return pid is not None and _process_identity(pid) == process


def _local_pid(process: str) -> int | None:
    """Return the number of a process of this machine, boot and container; None for any other."""
    named, ours = _PROCESS.fullmatch(process), _PROCESS.fullmatch(_process_identity(os.getpid()))
    if named is None or ours is None or named[1] != ours[1]:
        return None
    return int(named[2])
