"""One interface to objects, over S3 and over a local folder."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import obstore
from obstore.exceptions import PreconditionError

from infra.errors import BucketMissing, ClvrError, ObjectMissing, StoreUnreachable
from infra.store.backend import Backend, Level, ObjectBody, ObjectInfo, UnusableObject, object_info
from infra.store.errors import STORE_FAILURES, store_error
from infra.store.local import LocalBackend
from infra.store.s3 import S3Backend
from infra.store.settings import StoreSettings, canonical_uri, checked_key

Prefixes = list[str]  # an alias, because `list` is a method inside the class


def open_store(uri: str, settings: StoreSettings | None = None) -> "Store":
    """Open a store at 's3://bucket/prefix' or at a local path. Only a local path is resolved, by I/O.

    settings: None reads the `AWS_*` variables and `CLVR_PUBLIC_BUCKETS`. Raises BadInput for an unusable URI
    and BadSetting for contradictory variables.
    """
    root = canonical_uri(uri)
    if settings is None:
        bucket = root.removeprefix("s3://").partition("/")[0]
        is_local = not root.startswith("s3://")
        settings = StoreSettings() if is_local else StoreSettings.from_env().for_bucket(bucket)
    return Store(root, settings)


@contextmanager
def ignore_missing_root(store: "Store") -> Iterator[None]:
    """Ignore a missing local root, which is created with its first object. A bucket must exist."""
    try:
        yield
    except BucketMissing:
        if not store.local:
            raise


class Store:
    """The objects below one root. Safe to share between threads; pickles as its URI and settings.

    Every method may raise StoreUnreachable, StoreDenied and BucketMissing, and BadInput for a key that
    would leave the root; a method's docstring lists its other errors.
    """

    def __init__(self, uri: str, settings: StoreSettings) -> None:
        self.uri = uri
        self.settings = settings
        self.local = not uri.startswith("s3://")
        self._backend: Backend = LocalBackend(uri) if self.local else S3Backend(uri, settings)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.uri, self.settings)

    def uri_of(self, key: str) -> str:
        """Return the whole URI of a key."""
        return f"{self.uri.rstrip('/')}/{key}"

    def get(self, key: str) -> bytes:
        """Return a whole object. Raises ObjectMissing."""
        return self.fetch(key).data

    def fetch(self, key: str) -> ObjectBody:
        """Return a whole object with its etag. Raises ObjectMissing."""
        with self._as_clvr_error(key):
            return self._backend.fetch(checked_key(key))

    def fetch_range(self, key: str, start: int, end: int, *, etag: str) -> bytes:
        """Return the bytes from `start` up to `end` (exclusive) of an object that still has this etag.

        etag: '' for any. An object that ends before gives fewer. Raises ObjectMissing, ObjectChanged.
        """
        with self._as_clvr_error(key):
            return self._backend.fetch_range(checked_key(key), start, end, etag).data

    def get_many(
        self, keys: Sequence[str], *, in_flight: int = 64
    ) -> Iterator[tuple[int, ObjectBody | ClvrError]]:
        """Yield (position in `keys`, object or error), in the order of arrival.

        At most `in_flight` requests and unread objects exist at any time, which bounds the memory for a
        slow caller.
        """
        arrived: SimpleQueue[tuple[int, ObjectBody | ClvrError]] = SimpleQueue()

        def load(position: int) -> None:
            try:
                arrived.put((position, self.fetch(keys[position])))
            except ClvrError as error:
                arrived.put((position, error))
            except BaseException as error:  # without an answer the caller would wait without end
                arrived.put((position, StoreUnreachable(f"reading {keys[position]} failed: {error!r}")))

        pool = ThreadPoolExecutor(max(1, min(in_flight, len(keys))), thread_name_prefix="get-many")
        try:
            waiting = iter(range(len(keys)))
            for position in islice(waiting, in_flight):
                pool.submit(load, position)
            for _ in range(len(keys)):
                yield arrived.get()
                following = next(waiting, None)
                if following is not None:
                    pool.submit(load, following)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def put(self, key: str, data: bytes | Path) -> None:
        """Write an object; readers see the old one or the whole new one. Raises DiskFull."""
        with self._as_clvr_error(key):
            obstore.put(self._backend.writable_client, checked_key(key), data)

    def create(self, key: str, data: bytes) -> None:
        """Write an object that must not exist yet. Raises ObjectExists for all but one concurrent writer."""
        with self._as_clvr_error(key):
            # One request: a multipart upload cannot carry the condition.
            obstore.put(
                self._backend.writable_client, checked_key(key), data, mode="create", use_multipart=False
            )

    def replace(self, key: str, data: bytes, *, etag: str) -> None:
        """Write an object if it still has this etag. Raises ObjectChanged if not, or if it is gone."""
        checked_key(key)
        try:
            with self._as_clvr_error(key):
                self._backend.replace(key, data, etag)
        except ObjectMissing as gone:
            raise store_error(PreconditionError(), self.uri_of(key)) from gone

    def head(self, key: str) -> ObjectInfo | None:
        """Return the description of an object, or None if there is no such object."""
        try:
            with self._as_clvr_error(key):
                return object_info(obstore.head(self._backend.client, checked_key(key)))
        except ObjectMissing:
            # The answer to a HEAD has no body, so a missing bucket looks like a missing object.
            self._root_checked  # noqa: B018
            return None

    def list(
        self,
        prefix: str = "",
        *,
        unusable: Callable[[UnusableObject], object] = lambda found: None,
        after: str = "",
    ) -> Iterator[ObjectInfo]:
        """Yield every object below a prefix, which is whole folders: 'dt=1' does not match 'dt=10/a'.

        Streams by pages of 1000, in no particular order. unusable: called with each object that is listed but
        cannot be read: one whose key cannot be addressed, a folder marker, a circular link. after: begin
        after this text, see `bounds`; a prefix without folders is then listed in the order of keys.
        """
        with self._as_clvr_error(prefix):
            for found in self._backend.list(_checked_prefix(prefix), after):
                if isinstance(found, ObjectInfo):
                    yield found
                else:
                    unusable(found)

    def level(self, prefix: str = "", *, max_objects: int | None = None) -> Level:
        """Return the folders and the objects right below a prefix; folders sorted, as prefixes.

        max_objects: stop when more objects were listed, since a flat folder may have any number; what was
        listed until then is returned.
        """
        with self._as_clvr_error(prefix):
            return self._backend.level(_checked_prefix(prefix), max_objects)

    def bounds(self, prefix: str, count: int) -> Prefixes:
        """Return up to about `count` texts, ascending, that cut the keys of a flat prefix into ranges.

        Beginnings of keys of like length, so ranges are about equal where names are numbers or hashes. None
        for a local folder, which is not listed in an order.
        """
        with self._as_clvr_error(prefix):
            return self._backend.bounds(_checked_prefix(prefix), count)

    def folders(self, prefix: str = "") -> Prefixes:
        """Return the folders right below a prefix, sorted, as prefixes: 'dt=2026-11-22/cam=004'."""
        return self.level(prefix).folders

    def delete(self, *keys: str) -> None:
        """Delete objects; missing ones are ignored."""
        for key in keys:
            checked_key(key)
        size = self._backend.max_keys_per_delete
        for start in range(0, len(keys), size):
            batch = keys[start : start + size]
            with suppress(ObjectMissing), self._as_clvr_error(batch[0]):
                obstore.delete(self._backend.client, batch)

    def arrow(self) -> tuple[Any, str]:
        """Return a pyarrow file system and the root's path on it, for streaming Parquet.

        On S3 a file appears when it is closed. Locally it appears at once: write to another name and rename.
        """
        return self._backend.arrow()

    def ensure(self) -> None:
        """Check that the root, a bucket or a local folder, exists and is readable."""
        with self._as_clvr_error(""):
            self._backend.check_root()

    def require_space(self, bytes_needed: int) -> None:
        """Raise DiskFull if a local root's disk has fewer bytes free. S3 reports no free space."""
        self._backend.require_space(bytes_needed)

    def create_bucket(self) -> None:
        """Create the root: the bucket, or the local folder. An existing one that we own is fine."""
        with self._as_clvr_error(""):
            self._backend.create_root()

    def copy_from(self, source: "Store", key: str, to: str) -> None:
        """Copy an object of another store; a copy between buckets of one server stays on the server."""
        checked_key(key)
        checked_key(to)
        with self._as_clvr_error(to), source._as_clvr_error(key):
            if not self._backend.copy_on_server(source._backend, key, to):
                self.put(to, source._backend.upload_of(key))

    @cached_property
    def _root_checked(self) -> bool:
        self.ensure()
        return True

    @contextmanager
    def _as_clvr_error(self, key: str) -> Iterator[None]:
        try:
            yield
        except STORE_FAILURES as failure:
            raise store_error(failure, self.uri_of(key) if key else self.uri) from failure


def _checked_prefix(prefix: str) -> str:
    prefix = prefix.rstrip("/")
    return checked_key(prefix) if prefix else ""
