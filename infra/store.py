"""One interface to objects, over S3 and over a local folder.

Bulk reads and writes go through obstore, which is several times faster than boto3 on small objects;
boto3 is used for control only (buckets, presigned URLs).
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import PreconditionError
from obstore.store import LocalStore, S3Store

from infra.errors import BucketMissing, ClvrError, DiskFull, ObjectMissing, StoreUnreachable
from infra.store_errors import STORE_FAILURES, bucket_missing, store_error
from infra.store_s3 import arrow_files, control_client, open_s3
from infra.store_settings import StoreSettings, canonical_uri, checked_key, split_uri

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from obstore import ObjectMeta, PutMode

__all__ = ["Fetched", "ObjectInfo", "Store", "StoreSettings", "open_store", "split_uri"]

_BODY_ATTEMPTS = 4

Prefixes = list[str]  # named here: inside the class, `list` is the method


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One listed object; `key` is relative to the store's root, `size` in bytes, `etag` without quotes."""

    key: str
    size: int
    etag: str
    last_modified: datetime


@dataclass(frozen=True, slots=True)
class Fetched:
    """One whole object and the etag that it had."""

    data: bytes
    etag: str


def open_store(uri: str, settings: StoreSettings | None = None) -> "Store":
    """Open a store at 's3://bucket/prefix' or at a local path. No I/O but resolving a local path.

    Without settings the `AWS_*` variables hold. Raises BadInput for an unusable URI and BadSetting for
    contradictory variables.
    """
    root = canonical_uri(uri)
    if settings is None:
        settings = StoreSettings.from_env() if root.startswith("s3://") else StoreSettings()
    return Store(root, settings)


@contextmanager
def root_may_be_new(store: "Store") -> Iterator[None]:
    """Pass over a missing local root: it comes into being with its first object. A bucket does not."""
    try:
        yield
    except BucketMissing:
        if not store.local:
            raise


class Store:
    """The objects below one root. Safe to share between threads; pickles as its URI and settings.

    Every method may raise StoreUnreachable, StoreDenied and BucketMissing, and BadInput for a key that
    would leave the root; what else it raises is said there.
    """

    def __init__(self, uri: str, settings: StoreSettings) -> None:
        self.uri = uri
        self.settings = settings
        self.local = not uri.startswith("s3://")

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

    def fetch(self, key: str) -> Fetched:
        """Return a whole object with its etag. Raises ObjectMissing."""
        with self._translated(key):
            return self._fetch(checked_key(key))

    def get_many(
        self, keys: Sequence[str], *, in_flight: int = 64
    ) -> Iterator[tuple[int, Fetched | ClvrError]]:
        """Yield (position in `keys`, object or error), in the order of arrival.

        At most `in_flight` requests and unread objects exist at any time, so memory stays bounded however
        slowly the caller takes them.
        """
        arrived: SimpleQueue[tuple[int, Fetched | ClvrError]] = SimpleQueue()

        def load(position: int) -> None:
            try:
                arrived.put((position, self.fetch(keys[position])))
            except ClvrError as error:
                arrived.put((position, error))
            except BaseException as error:  # a lost answer would leave the caller waiting for ever
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
        with self._translated(key):
            obstore.put(self._writable, checked_key(key), data)

    def create(self, key: str, data: bytes) -> None:
        """Write an object that must not exist yet. Of many racers one wins; the others get ObjectExists."""
        with self._translated(key):
            # One request: a multipart upload cannot carry the condition.
            obstore.put(self._writable, checked_key(key), data, mode="create", use_multipart=False)

    def replace(self, key: str, data: bytes, *, etag: str) -> None:
        """Write an object if it still has this etag. Raises ObjectChanged if not, or if it is gone."""
        checked_key(key)
        try:
            with self._translated(key):
                if self.local:
                    self._replace_locally(key, data, etag)
                else:
                    mode: PutMode = {"e_tag": f'"{etag}"'}
                    obstore.put(self._objects, key, data, mode=mode, use_multipart=False)
        except ObjectMissing as gone:
            raise store_error(PreconditionError(), self.uri_of(key)) from gone

    def head(self, key: str) -> ObjectInfo | None:
        """Return what is known of an object, or None if there is none."""
        try:
            with self._translated(key):
                return _info(obstore.head(self._objects, checked_key(key)))
        except ObjectMissing:
            # The answer to a HEAD has no body, so a missing bucket looks like a missing object.
            self._ensured  # noqa: B018
            return None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield every object below a prefix, which is whole folders: 'dt=1' does not match 'dt=10/a'.

        Streams by pages of 1000; no order is promised.
        """
        folder = _checked_prefix(prefix)
        with self._translated(prefix):
            for page in obstore.list(self._objects, folder, chunk_size=1000):
                for meta in page:
                    yield _info(meta)

    def folders(self, prefix: str = "") -> Prefixes:
        """Return the folders right below a prefix, sorted, as prefixes: 'dt=2026-11-22/cam=004'."""
        with self._translated(prefix):
            found = obstore.list_with_delimiter(self._objects, _checked_prefix(prefix))
        return sorted(name.rstrip("/") for name in found["common_prefixes"])

    def delete(self, *keys: str) -> None:
        """Delete objects; those that are not there are fine."""
        for key in keys:
            checked_key(key)
        # One at a time locally: a batch stops at the first key that is missing.
        for batch in ([key] for key in keys) if self.local else [list(keys)] if keys else []:
            try:
                with self._translated(batch[0]):
                    obstore.delete(self._objects, batch)
            except ObjectMissing:
                continue

    def arrow(self) -> tuple[Any, str]:
        """Return a pyarrow file system and the root's path on it, for streaming Parquet.

        On S3 a file appears when it is closed. Locally it appears at once: write to another name and rename.
        """
        import pyarrow.fs

        if self.local:
            return pyarrow.fs.LocalFileSystem(), self.uri
        return arrow_files(self.settings), self.uri.removeprefix("s3://")

    def ensure(self) -> None:
        """Check that the root is there and may be read: a bucket, or a local folder."""
        if self.local:
            if not Path(self.uri).is_dir():
                raise bucket_missing(self.uri)
            if not os.access(self.uri, os.R_OK | os.X_OK):
                raise store_error(PermissionError("not readable"), self.uri)
            return
        with self._translated(""):
            next(iter(obstore.list(self._objects, chunk_size=1)), None)

    def require_space(self, bytes_needed: int) -> None:
        """Raise DiskFull if a local root's disk has fewer bytes free. S3 has no such figure."""
        if not self.local:
            return
        folder = Path(self.uri)
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if free < bytes_needed:
            raise DiskFull(
                f"{self.uri} needs {bytes_needed:,} bytes, and {free:,} are free",
                remedy="Free some space, or choose another disk.",
            )

    def create_bucket(self) -> None:
        """Create the root: the bucket, or the local folder. One that is there and ours is fine."""
        with self._translated(""):
            if self.local:
                Path(self.uri).mkdir(parents=True, exist_ok=True)
                return
            control, region = self._control, self.settings.region
            try:
                if region == "us-east-1":  # the one region that must not be named
                    control.create_bucket(Bucket=self._bucket)
                else:
                    where: Any = {"LocationConstraint": region}
                    control.create_bucket(Bucket=self._bucket, CreateBucketConfiguration=where)
            except control.exceptions.BucketAlreadyOwnedByYou:
                return

    def copy_from(self, source: "Store", key: str, to: str) -> None:
        """Copy an object of another store; between buckets of one server the bytes stay there."""
        with self._translated(to), source._translated(key):
            if source.local:
                self.put(to, Path(source.uri_of(checked_key(key))))
            elif self.local or source.settings.endpoint != self.settings.endpoint:
                self.put(to, source.get(key))
            else:
                # boto3 copies what is larger than one request allows in parts.
                self._control.copy(
                    {"Bucket": source._bucket, "Key": source._whole(key)}, self._bucket, self._whole(to)
                )

    def presigned_url(self, key: str, seconds: int) -> str:
        """Return a URL by which a browser may read one object for some seconds, without credentials."""
        checked_key(key)
        if self.local:
            return Path(self.uri_of(key)).as_uri()
        target = {"Bucket": self._bucket, "Key": f"{self._prefix}/{key}" if self._prefix else key}
        with self._translated(key):
            return self._control.generate_presigned_url("get_object", Params=target, ExpiresIn=seconds)

    @property
    def _bucket(self) -> str:
        return self.uri.removeprefix("s3://").partition("/")[0]

    @property
    def _prefix(self) -> str:
        return self.uri.removeprefix("s3://").partition("/")[2]

    def _whole(self, key: str) -> str:
        return f"{self._prefix}/{checked_key(key)}" if self._prefix else checked_key(key)

    @cached_property
    def _objects(self) -> LocalStore | S3Store:
        if self.local:
            if not Path(self.uri).is_dir():
                raise bucket_missing(self.uri)
            return LocalStore(prefix=self.uri)
        return open_s3(self._bucket, self._prefix, self.settings)

    @property
    def _writable(self) -> LocalStore | S3Store:
        # A prefix on S3 comes into being with its first object, and so does a local root.
        if self.local and not Path(self.uri).is_dir():
            Path(self.uri).mkdir(parents=True, exist_ok=True)
        return self._objects

    @cached_property
    def _ensured(self) -> bool:
        self.ensure()
        return True

    @cached_property
    def _control(self) -> "S3Client":
        return control_client(self.settings)

    def _fetch(self, key: str) -> Fetched:
        if self.local:
            return self._fetch_locally(key)
        for attempt in range(_BODY_ATTEMPTS):
            answer = obstore.get(self._objects, key)
            data = answer.bytes().to_bytes()
            if len(data) == answer.meta["size"]:
                return Fetched(data, _bare(answer.meta["e_tag"]))
            time.sleep(0.1 * 2**attempt)
        raise StoreUnreachable(
            f"{self.uri_of(key)} came with {len(data)} of {answer.meta['size']} bytes, again and again",
            remedy="Look at the server and at the network between.",
        )

    def _fetch_locally(self, key: str) -> Fetched:
        # A third of obstore's time for a small file; the etag is written the way obstore writes it.
        self._objects  # noqa: B018  # a missing root is another error than a missing object
        with Path(self.uri, key).open("rb", buffering=0) as file:
            known = os.fstat(file.fileno())
            data = file.read(known.st_size + 1)
        if len(data) != known.st_size:
            raise StoreUnreachable(f"{self.uri_of(key)} changed while it was read", remedy="Read it again.")
        etag = f"{known.st_ino:x}-{known.st_mtime_ns // 1000:x}-{known.st_size:x}"
        return Fetched(data, etag)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except STORE_FAILURES as failure:
            raise store_error(failure, self.uri_of(key) if key else self.uri) from failure

    def _replace_locally(self, key: str, data: bytes, etag: str) -> None:
        # The folder itself is locked: no lock file that a killed process would leave behind.
        folder = os.open(Path(self.uri_of(key)).parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            if _info(obstore.head(self._objects, key)).etag != etag:
                raise PreconditionError
            obstore.put(self._objects, key, data)
        finally:
            os.close(folder)


def _checked_prefix(prefix: str) -> str | None:
    prefix = prefix.rstrip("/")
    return checked_key(prefix) if prefix else None


def _bare(etag: str | None) -> str:
    # S3 Inventory writes etags without the quotes that HTTP puts around them.
    return (etag or "").strip('"')


def _info(meta: "ObjectMeta") -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], _bare(meta["e_tag"]), meta["last_modified"])
