"""A local folder as object storage."""

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import PreconditionError
from obstore.store import LocalStore

from infra.errors import DiskFull, StoreUnreachable
from infra.store.backend import (
    UNADDRESSABLE,
    Backend,
    Level,
    Listed,
    ObjectBody,
    ObjectInfo,
    UnusableObject,
    object_info,
)
from infra.store.errors import bucket_missing, store_error
from infra.store.settings import is_usable_key

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class LocalBackend:
    """The objects below one local folder, which is created with its first object."""

    max_keys_per_delete = 1  # a batch stops at the first key that is missing

    def __init__(self, root: str) -> None:
        self.root = root
        self.folder = Path(root)

    @cached_property
    def client(self) -> LocalStore:
        """obstore's client for the folder. Raises BucketMissing."""
        if not self.folder.is_dir():
            raise bucket_missing(self.root)
        return LocalStore(prefix=self.root)

    @property
    def writable_client(self) -> LocalStore:
        """obstore's client for the folder, which is created if it is missing."""
        if not self.folder.is_dir():
            self.create_root()
        return self.client

    def fetch(self, key: str) -> ObjectBody:
        """Read a whole file, in a third of the time that obstore takes for a small one."""
        self.client  # noqa: B018  # a missing root is another error than a missing object
        with open(self.folder / key, "rb", buffering=0, opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FileNotFoundError(f"{key} is not a regular file")
            data = file.read(status.st_size + 1)
        if len(data) != status.st_size:
            raise StoreUnreachable(f"{self.folder / key} changed during the read", remedy="Read it again.")
        return ObjectBody(data, _etag(status))

    def fetch_range(self, key: str, start: int, end: int, etag: str) -> ObjectBody:
        """Read a part of the file of this etag ('' for any). Raises PreconditionError."""
        self.client  # noqa: B018  # a missing root is another error than a missing object
        with open(self.folder / key, "rb", buffering=0, opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FileNotFoundError(f"{key} is not a regular file")
            if etag and _etag(status) != etag:
                raise PreconditionError
            return ObjectBody(os.pread(file.fileno(), max(0, end - start), start), _etag(status))

    def bounds(self, folder: str, count: int) -> list[str]:
        """Return nothing: a folder is not listed in an order."""
        return []

    def list(self, folder: str, after: str) -> Iterator[Listed]:
        """Yield every file below a folder, following links. Raises FileNotFoundError, PermissionError."""
        self.client  # noqa: B018  # a missing root is an error, a missing folder is empty
        if not (self.folder / folder).is_dir():
            return
        pending: list[tuple[str, tuple[str, ...]]] = [(folder, (os.path.realpath(self.folder / folder),))]
        while pending:
            current, ancestors = pending.pop()
            subfolders: list[str] = []
            with suppress(FileNotFoundError):  # deleted meanwhile
                yield from _scan(self.folder, current, subfolders)
            for name in subfolders:
                real = os.path.realpath(self.folder / name)
                if real in ancestors:
                    yield UnusableObject(name, "a link to a folder that contains it")
                else:
                    pending.append((name, (*ancestors, real)))

    def level(self, folder: str, max_objects: int | None) -> Level:
        """Return the folders and the files right below a folder; a missing one is empty."""
        self.client  # noqa: B018  # a missing root is an error
        folders: list[str] = []
        if not (self.folder / folder).is_dir():
            return Level([], [])
        files = _scan(self.folder, folder, folders)
        objects = list(files if max_objects is None else islice(files, max_objects + 1))
        return Level(sorted(folders), objects, max_objects is None or len(objects) <= max_objects)

    def replace(self, key: str, data: bytes, etag: str) -> None:
        """Write a file that still has this etag, under a lock on its folder. Raises PreconditionError."""
        # A lock on the folder itself needs no lock file, which a killed process would leave behind.
        folder = os.open((self.folder / key).parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            if object_info(obstore.head(self.client, key)).etag != etag:
                raise PreconditionError
            obstore.put(self.client, key, data)
        finally:
            os.close(folder)

    def check_root(self) -> None:
        """Raise BucketMissing for a missing folder and StoreDenied for an unreadable one."""
        if not self.folder.is_dir():
            raise bucket_missing(self.root)
        if not os.access(self.folder, os.R_OK | os.X_OK):
            raise store_error(PermissionError("not readable"), self.root)

    def create_root(self) -> None:
        """Create the folder and its parents, if they are missing."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def require_space(self, bytes_needed: int) -> None:
        """Raise DiskFull if the folder's disk has fewer bytes free."""
        folder = self.folder
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if free < bytes_needed:
            raise DiskFull(
                f"{self.root} needs {bytes_needed:,} bytes, and {free:,} are free",
                remedy="Free some space, or choose another disk.",
            )

    def arrow(self) -> tuple[Any, str]:
        """Return pyarrow's local file system and the folder's path."""
        import pyarrow.fs

        return pyarrow.fs.LocalFileSystem(), self.root

    def upload_of(self, key: str) -> Path:
        """Return the path of an object. Raises FileNotFoundError."""
        self.client  # noqa: B018  # a missing root is another error than a missing object
        path = self.folder / key
        if not path.is_file():
            raise FileNotFoundError(path)
        return path

    def copy_on_server(self, source: Backend, key: str, target_key: str) -> bool:
        """Return False: a local folder has no server."""
        return False


def _etag(status: os.stat_result) -> str:
    """Return the etag in the form that obstore gives to local files."""
    return f"{status.st_ino:x}-{status.st_mtime_ns // 1000:x}-{status.st_size:x}"


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe without a writer would block


def _scan(root: Path, folder: str, folders: list[str]) -> Iterator[Listed]:
    """Yield the files right below a folder, by their keys, and add its folders. Raises PermissionError."""
    with os.scandir(root / folder) as entries:
        for entry in entries:
            key = f"{folder}/{entry.name}" if folder else entry.name
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue  # deleted meanwhile, or a link to nothing
            except OSError as failure:
                cause = "a circular link" if failure.errno == errno.ELOOP else str(failure.strerror)
                yield UnusableObject(key, cause)
                continue
            is_folder = stat.S_ISDIR(status.st_mode)
            if not is_usable_key(key):
                yield UnusableObject(f"{key}/" if is_folder else key, UNADDRESSABLE)
            elif is_folder:
                folders.append(key)
            elif stat.S_ISREG(status.st_mode) and not _is_partial(entry.name):
                yield ObjectInfo(key, status.st_size, _etag(status), _modified(status))


def _modified(status: os.stat_result) -> datetime:
    try:
        return _EPOCH + timedelta(microseconds=status.st_mtime_ns // 1000)
    except OverflowError:  # a file system may hold any number
        return _EPOCH


def _is_partial(name: str) -> bool:
    """Whether obstore is writing this file: it appends '#' and a number until the file is whole."""
    _, separator, number = name.rpartition("#")
    return bool(separator) and number.isdigit()
