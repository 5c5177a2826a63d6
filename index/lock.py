"""Locks in object storage: one owner at a time, and each lock ends by itself.

A lock is taken and renewed by conditional writes only, so one of several competitors wins. It ends when its
owner releases it, when it expires, or as soon as a competitor can see that the owner's process is dead.
"""

import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field

from index.documents import JsonDocument, current_user, utc_now
from infra.errors import ClvrError, Locked, ObjectChanged, ObjectExists, ObjectMissing
from infra.store import Store

LOCK_TTL_SECONDS = 60.0
"""How long a lock outlives an owner on another machine. The clocks of two hosts must differ by less."""

ROWS = "rows"
"""Lock of all operations that add or remove rows of generations: loads, erasures, retirement."""


def alias_lock(alias: str) -> str:
    """Return the name of the lock of all operations that move this alias."""
    return f"alias-{alias}"


@dataclass(frozen=True, slots=True)
class LockRecord(JsonDocument):
    """The owner of a lock. `process` identifies a process of a machine and boot; `expires` in s, epoch."""

    NOUN = "lock"
    REMEDY = "Delete it if nothing is running."

    owner: str
    purpose: Annotated[str, Field(alias="doing")]
    process: str
    since: str
    expires: float
    nonce: str
    released: bool = False


class Lock:
    """A lock that this process holds; a thread renews it in the background."""

    def __init__(self, store: Store, key: str, record: LockRecord, etag: str, seconds: float) -> None:
        self._store = store
        self._key = key
        self._record = record
        self._etag = etag
        self._seconds = seconds
        self._lost = threading.Event()
        self._stopped = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name=f"lock {key}", daemon=True)
        self._renewer.start()

    def require(self) -> None:
        """Raise Locked if this process lost the lock, because storage was unreachable for too long."""
        if self._lost.is_set() or time.time() > self._record.expires:
            raise Locked(
                f"the lock on {self._record.purpose} ran out while object storage was unreachable",
                remedy="Run the same command again; it finds and clears incomplete work.",
            )

    def release(self) -> None:
        """Release the lock. If storage is unreachable, it ends by expiry."""
        self._stopped.set()
        self._renewer.join()
        if not self._lost.is_set():
            with suppress(ClvrError):
                self._write(replace(self._record, released=True))

    def _renew(self) -> None:
        while not self._stopped.wait(self._seconds / 4):
            try:
                self._write(replace(self._record, expires=time.time() + self._seconds))
            except (ObjectChanged, ObjectMissing):
                self._lost.set()
                return
            except ClvrError:
                continue  # storage is unreachable; `require` fails if that lasts too long

    def _write(self, record: LockRecord) -> None:
        self._store.replace(self._key, record.to_json(), etag=self._etag)
        self._record = record
        # Only the owner may write the object, so its etag is that of the write above.
        self._etag = self._store.fetch(self._key).etag


@contextmanager
def acquire(store: Store, name: str, purpose: str, *, seconds: float = LOCK_TTL_SECONDS) -> Iterator[Lock]:
    """Hold a lock for the block. Competitors see its `purpose`, such as 'a load of alias vehicles'.

    Raises Locked at once, with owner and purpose, if another process holds it.
    """
    lock = _acquire(store, f"locks/{name}.json", purpose, seconds)
    try:
        yield lock
    finally:
        lock.release()


def _acquire(store: Store, key: str, purpose: str, seconds: float) -> Lock:
    now = time.time()
    record = LockRecord(
        owner=f"{current_user()}, process {os.getpid()}",
        purpose=purpose,
        process=_process_identity(os.getpid()),
        since=utc_now(),
        expires=now + seconds,
        nonce=secrets.token_hex(8),
    )
    try:
        try:
            store.create(key, record.to_json())
        except ObjectExists:
            body = store.fetch(key)
            holder = LockRecord.from_json(body.data, store.uri_of(key))
            if not (holder.released or holder.expires < now or _is_dead(holder.process)):
                raise _refusal(holder) from None
            store.replace(key, record.to_json(), etag=body.etag)
        body = store.fetch(key)
    except (ObjectChanged, ObjectMissing):
        raise _lost_race(purpose) from None
    if LockRecord.from_json(body.data, store.uri_of(key)).nonce != record.nonce:
        raise _lost_race(purpose)
    return Lock(store, key, record, body.etag, seconds)


def _refusal(holder: LockRecord) -> Locked:
    until = datetime.fromtimestamp(holder.expires, UTC).isoformat(timespec="seconds")
    return Locked(
        f"{holder.purpose} is under way: {holder.owner}, since {holder.since}",
        remedy=f"Wait for it. If it died, its lock ends by itself at {until}.",
    )


def _lost_race(purpose: str) -> Locked:
    return Locked(f"another process started {purpose} at the same moment", remedy="Try again.")


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
    fields, current = process.split(), _process_identity(os.getpid()).split()
    if len(fields) != 4 or len(current) != 4 or fields[:2] != current[:2]:
        return False
    return _process_identity(int(fields[2])) != process
