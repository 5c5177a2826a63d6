"""A lock on one kind of work, kept in object storage: one owner at a time, and never for ever.

Taken and renewed by conditional writes only, so of many who try one wins. It ends with its owner: by release,
by expiry, or at once where the next one can see that the owner's process is dead.
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

from index.documents import JsonDocument, current_user, utc_now
from infra.errors import ClvrError, Locked, ObjectChanged, ObjectExists, ObjectMissing
from infra.store import Store

LOCK_TTL_SECONDS = 60.0
"""How long a lock outlives an owner that cannot be asked. Clocks of different hosts may differ by less."""

ROWS = "rows"
"""Held by everything that adds or removes rows of generations: loads, erasures, retirement."""


def alias_lock(alias: str) -> str:
    """Return the name of the lock that is held by everything that moves this alias."""
    return f"alias-{alias}"


@dataclass(frozen=True, slots=True)
class LockRecord(JsonDocument):
    """Who holds a lock: `process` names one process of one machine since its boot; `expires` in s, epoch."""

    NOUN = "lock"
    REMEDY = "Delete it if nothing is running."

    owner: str
    doing: str
    process: str
    since: str
    expires: float
    nonce: str
    released: bool = False


class Lock:
    """A lock in our hands, renewed in the background."""

    def __init__(self, store: Store, key: str, holder: LockRecord, etag: str, seconds: float) -> None:
        self._store = store
        self._key = key
        self._holder = holder
        self._etag = etag
        self._seconds = seconds
        self._lost = threading.Event()
        self._done = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name=f"lock {key}", daemon=True)
        self._renewer.start()

    def require(self) -> None:
        """Raise Locked if the lock is not ours any more: storage was away for longer than it lasts."""
        if self._lost.is_set() or time.time() > self._holder.expires:
            raise Locked(
                f"the lock on {self._holder.doing} ran out while object storage was away",
                remedy="Run the same command again: what is half done is found and cleared.",
            )

    def release(self) -> None:
        """Give it back. What cannot be told to object storage ends by expiry."""
        self._done.set()
        self._renewer.join()
        if not self._lost.is_set():
            with suppress(ClvrError):
                self._write(replace(self._holder, released=True))

    def _renew(self) -> None:
        while not self._done.wait(self._seconds / 4):
            try:
                self._write(replace(self._holder, expires=time.time() + self._seconds))
            except (ObjectChanged, ObjectMissing):
                self._lost.set()
                return
            except ClvrError:
                continue  # storage is away: `require` notices when it was too long

    def _write(self, holder: LockRecord) -> None:
        self._store.replace(self._key, holder.to_json(), etag=self._etag)
        self._holder = holder
        # Nobody else may write it while it is ours, so what stands there now is what we wrote.
        self._etag = self._store.fetch(self._key).etag


@contextmanager
def acquire(store: Store, name: str, doing: str, *, seconds: float = LOCK_TTL_SECONDS) -> Iterator[Lock]:
    """Hold a lock for the block. `doing` is said to others, such as 'a load of alias vehicles'.

    Raises Locked at once, with who holds it and what for, if somebody else does.
    """
    lock = _taken(store, f"locks/{name}.json", doing, seconds)
    try:
        yield lock
    finally:
        lock.release()


def _taken(store: Store, key: str, doing: str, seconds: float) -> Lock:
    now = time.time()
    mine = LockRecord(
        owner=f"{current_user()}, process {os.getpid()}",
        doing=doing,
        process=_process_identity(os.getpid()),
        since=utc_now(),
        expires=now + seconds,
        nonce=secrets.token_hex(8),
    )
    try:
        try:
            store.create(key, mine.to_json())
        except ObjectExists:
            found = store.fetch(key)
            other = LockRecord.from_json(found.data, store.uri_of(key))
            if not (other.released or other.expires < now or _is_dead(other.process)):
                raise _refusal(other) from None
            store.replace(key, mine.to_json(), etag=found.etag)
        found = store.fetch(key)
    except (ObjectChanged, ObjectMissing):
        raise Locked(f"somebody else began {doing} at the same moment", remedy="Try again.") from None
    if LockRecord.from_json(found.data, store.uri_of(key)).nonce != mine.nonce:
        raise Locked(f"somebody else began {doing} at the same moment", remedy="Try again.")
    return Lock(store, key, mine, found.etag, seconds)


def _refusal(other: LockRecord) -> Locked:
    until = datetime.fromtimestamp(other.expires, UTC).isoformat(timespec="seconds")
    return Locked(
        f"{other.doing} is under way: {other.owner}, since {other.since}",
        remedy=f"Wait for it. If it died, its lock ends by itself at {until}.",
    )


def _process_identity(pid: int) -> str:
    """Name a process such that no other one, on any machine, at any time, has the name; '' if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115  it is no path
        # The name in parentheses may hold spaces; the 20th field behind it is the start time.
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
    return f"{boot} {space} {pid} {started}"


def _is_dead(process: str) -> bool:
    """Whether a process of this machine and container is surely gone."""
    parts, ours = process.split(), _process_identity(os.getpid()).split()
    if len(parts) != 4 or len(ours) != 4 or parts[:2] != ours[:2]:
        return False
    return _process_identity(int(parts[2])) != process
