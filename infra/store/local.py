"""A local folder as object storage."""

import fcntl
import os
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import PreconditionError
from obstore.store import LocalStore

from infra.errors import DiskFull, StoreUnreachable
from infra.store.backend import Backend, ObjectBody, object_info
from infra.store.errors import bucket_missing, store_error


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
        with (self.folder / key).open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            data = file.read(status.st_size + 1)
        if len(data) != status.st_size:
            raise StoreUnreachable(f"{self.folder / key} changed during the read", remedy="Read it again.")
        # The form that obstore gives to etags of local files.
        etag = f"{status.st_ino:x}-{status.st_mtime_ns // 1000:x}-{status.st_size:x}"
        return ObjectBody(data, etag)

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
