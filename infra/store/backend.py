"""What a store asks of the storage behind it: see `LocalBackend` and `S3Backend`."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from obstore.store import LocalStore, S3Store

if TYPE_CHECKING:
    from obstore import ObjectMeta


UNADDRESSABLE = "key that cannot be addressed"
FOLDER_MARKER = "folder marker"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One listed object; `key` is relative to the store's root, `size` in bytes, `etag` without quotes."""

    key: str
    size: int
    etag: str
    last_modified: datetime


@dataclass(frozen=True, slots=True)
class ObjectBody:
    """The bytes of one whole object and the etag that they belong to."""

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class UnusableObject:
    """An object that is listed and that no `Store` can read, with the cause in a few words."""

    key: str
    cause: str


Listed = ObjectInfo | UnusableObject


@dataclass(frozen=True, slots=True)
class Level:
    """What is right below a prefix: `folders` as prefixes without a trailing slash, and objects.

    is_whole: False if there is more, see `Store.level`.
    """

    folders: list[str]
    objects: list[Listed]
    is_whole: bool = True


class Backend(Protocol):
    """The operations on which a local folder and a bucket differ. All keys are checked by the caller.

    Methods raise the errors of obstore, boto3 and the operating system, which `Store` translates.
    """

    max_keys_per_delete: int

    @property
    def client(self) -> LocalStore | S3Store:
        """obstore's client for the root. Raises BucketMissing for a missing local root."""

    @property
    def writable_client(self) -> LocalStore | S3Store:
        """The same client; a missing local root is created first."""

    def fetch(self, key: str) -> ObjectBody:
        """Read a whole object."""

    def fetch_range(self, key: str, start: int, end: int, etag: str) -> ObjectBody:
        """Read the bytes from `start` to `end` of the object of this etag. Raises PreconditionError."""

    def bounds(self, folder: str, count: int) -> list[str]:
        """Return texts that cut the keys of a flat folder into ranges, see `Store.bounds`."""

    def list(self, folder: str, after: str) -> Iterator[Listed]:
        """Yield every object below a folder ('' is the root), see `Store.list`."""

    def level(self, folder: str, max_objects: int | None) -> Level:
        """Return the folders and the objects right below a folder ('' is the root), see `Store.level`."""

    def replace(self, key: str, data: bytes, etag: str) -> None:
        """Write an object that still has this etag. Raises PreconditionError."""

    def check_root(self) -> None:
        """Raise an error if the root is missing or unreadable."""

    def create_root(self) -> None:
        """Create the bucket or the folder, if it does not exist."""

    def require_space(self, bytes_needed: int) -> None:
        """Raise DiskFull if fewer bytes are free, where that is known."""

    def arrow(self) -> tuple[Any, str]:
        """Return a pyarrow file system and the root's path on it."""

    def upload_of(self, key: str) -> bytes | Path:
        """Return an object in a form that another store can write."""

    def copy_on_server(self, source: "Backend", key: str, target_key: str) -> bool:
        """Copy an object of `source` without a download; False if the two share no server."""


def object_info(meta: "ObjectMeta") -> ObjectInfo:
    """Return our description of obstore's metadata of one object."""
    return ObjectInfo(meta["path"], meta["size"], unquoted_etag(meta["e_tag"]), meta["last_modified"])


def unquoted_etag(etag: str | None) -> str:
    """Return an etag without the quotes that HTTP puts around it; S3 Inventory writes it so too."""
    return (etag or "").strip('"')
