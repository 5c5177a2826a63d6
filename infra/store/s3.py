"""A bucket as object storage, and the three clients of its server.

obstore reads and writes objects, several times faster than boto3 for small ones; boto3 creates buckets and
copies objects on the server; pyarrow streams Parquet.
"""

import hashlib
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import BaseError, InvalidPathError, PreconditionError
from obstore.store import S3Store

from infra.errors import CorruptObject, StoreUnreachable
from infra.store.backend import (
    FOLDER_MARKER,
    UNADDRESSABLE,
    Backend,
    Level,
    Listed,
    ObjectBody,
    ObjectInfo,
    UnusableObject,
    object_info,
    unquoted_etag,
)
from infra.store.settings import StoreSettings, is_usable_key

if TYPE_CHECKING:
    import boto3
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CopySourceTypeDef
    from obstore import PutMode

_BODY_ATTEMPTS = 4
_BOUNDS_AT_ONCE = 16
_PLAIN = re.compile(r"[A-Za-z0-9/_.=-]*")
_LISTING_FAILURES = (BaseError, ValueError)
_MAYBE_MARKERS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")  # elsewhere a marker does no harm
_ROLE_ENDPOINT_SECONDS = 2
_UNKNOWN_ETAGS = 5
"""So many first objects whose etag is not their MD5 mean that no etag of the store is."""
_BEYOND_END = re.compile(r"\b416 |InvalidRange")
_MD5 = re.compile(r"[0-9a-fA-F]{32}")  # of an upload in several parts the etag is longer


def object_client(bucket: str, prefix: str, use: StoreSettings) -> S3Store:
    """Return obstore's client for one prefix of a bucket; keys are relative to it. No I/O.

    Without an access key boto3's chain supplies the credentials; raises NoCredentialsError if it has none.
    """
    options: dict[str, Any] = {"region": use.region}
    if use.endpoint is not None:
        options["endpoint"] = use.endpoint
    if use.request_payer:
        options["request_payer"] = True
    if use.unsigned:
        options["skip_signature"] = True
    elif use.access_key is not None:
        options |= {"access_key_id": use.access_key, "secret_access_key": use.secret_key}
        if use.session_token is not None:
            options["session_token"] = use.session_token
    else:
        from obstore.auth.boto3 import Boto3CredentialProvider

        options["credential_provider"] = Boto3CredentialProvider(session_with_credentials())
    return S3Store(
        bucket,
        prefix=prefix or None,
        client_options={
            "allow_http": use.allow_http,
            "connect_timeout": timedelta(seconds=use.connect_seconds),
            "read_timeout": timedelta(seconds=use.read_seconds),
            "timeout": timedelta(seconds=use.request_seconds),
        },
        retry_config={
            "max_retries": use.retries,
            "retry_timeout": timedelta(seconds=use.retry_seconds),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=10),
                "base": 2,
            },
        },
        **options,
    )


@cache
def session_with_credentials() -> "boto3.Session":
    """Return a session of boto3 with credentials of its chain: profile, web identity, role of the machine.

    Raises NoCredentialsError if the chain has none. It is asked once, and the role's endpoint with a short
    limit: without one, each request would wait for it, with retries.
    """
    import boto3
    import botocore.session
    from botocore.exceptions import NoCredentialsError

    core = botocore.session.Session()
    core.set_config_variable("metadata_service_timeout", _ROLE_ENDPOINT_SECONDS)
    core.set_config_variable("metadata_service_num_attempts", 1)
    session = boto3.Session(botocore_session=core)
    if session.get_credentials() is None:
        raise NoCredentialsError
    return session


def admin_client(use: StoreSettings) -> "S3Client":
    """Return boto3's client, for buckets and for copies on the server."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    has_keys = use.unsigned or use.access_key is not None
    session = boto3.Session() if has_keys else session_with_credentials()
    return session.client(
        "s3",
        endpoint_url=use.endpoint,
        region_name=use.region,
        aws_access_key_id=use.access_key,
        aws_secret_access_key=use.secret_key,
        aws_session_token=use.session_token,
        config=Config(
            signature_version=UNSIGNED if use.unsigned else "s3v4",
            connect_timeout=use.connect_seconds,
            read_timeout=use.read_seconds,
            retries={"total_max_attempts": use.retries + 1, "mode": "standard"},
            # A private endpoint seldom resolves bucket.host.
            s3={"addressing_style": "path"} if use.endpoint else {},
        ),
    )


def arrow_file_system(use: StoreSettings) -> Any:
    """Return pyarrow's S3FileSystem; its paths are 'bucket/key'."""
    import pyarrow.fs

    return pyarrow.fs.S3FileSystem(
        access_key=use.access_key,
        secret_key=use.secret_key,
        session_token=use.session_token,
        anonymous=use.unsigned,
        region=use.region,
        endpoint_override=use.endpoint,
        connect_timeout=use.connect_seconds,
        request_timeout=use.read_seconds,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=use.retries + 1),
    )


class _EtagKind:
    """Whether the etags of a store are the MD5 of the bodies, as its first objects show."""

    def __init__(self) -> None:
        self.matches = 0
        self.misses = 0

    def accepts(self, body: ObjectBody) -> bool:
        """Return whether a body has the MD5 in its etag, or whether the etag is known to be no MD5."""
        if not _MD5.fullmatch(body.etag) or (self.misses >= _UNKNOWN_ETAGS and not self.matches):
            return True
        is_same = hashlib.md5(body.data, usedforsecurity=False).hexdigest() == body.etag.lower()
        self.matches += is_same
        return is_same


class S3Backend:
    """The objects below one prefix of a bucket."""

    max_keys_per_delete = 1000  # the limit of one S3 request

    def __init__(self, root: str, settings: StoreSettings) -> None:
        self.root = root
        self.settings = settings
        self.bucket, _, self.prefix = root.removeprefix("s3://").partition("/")
        self._etags = _EtagKind()

    @cached_property
    def client(self) -> S3Store:
        """obstore's client for the prefix."""
        return object_client(self.bucket, self.prefix, self.settings)

    @property
    def writable_client(self) -> S3Store:
        """The same client: a prefix needs no creation."""
        return self.client

    def fetch(self, key: str) -> ObjectBody:
        """Read a whole object; a body that is cut short, or not of the MD5 in its etag, is read again.

        Raises CorruptObject if the object itself is altered: the same bytes come twice, though other etags of
        this store are MD5. Etags of objects that KMS or a customer's key encrypts are not.
        """
        earlier: set[bytes] = set()
        for attempt in range(_BODY_ATTEMPTS):
            body, size = self._read(key)
            if len(body.data) == size:
                if self._etags.accepts(body):
                    return body
                if body.data in earlier:
                    if self._etags.matches and not self._is_encrypted(key):
                        raise CorruptObject(
                            f"{self.root}/{key} was altered: its MD5 is not that of its etag {body.etag}",
                            remedy="Write the object again from its source.",
                        )
                    self._etags.misses += 1
                    return body
                earlier.add(body.data)
            if attempt:
                time.sleep(0.1 * 2**attempt)
        problem = "other bytes" if earlier else f"{len(body.data)} of {size} bytes"
        raise StoreUnreachable(
            f"{self.root}/{key} arrived with {problem} in {_BODY_ATTEMPTS} attempts",
            remedy="Check the server and the network between.",
        )

    def fetch_range(self, key: str, start: int, end: int, etag: str) -> ObjectBody:
        """Read a part of the object of this etag ('' for any), again if it is cut short.

        Raises PreconditionError.
        """
        options: Any = {"range": (start, end)} | ({"if_match": f'"{etag}"'} if etag else {})
        for attempt in range(_BODY_ATTEMPTS):
            try:
                response = obstore.get(self.client, key, options=options)
            except BaseError as failure:
                if _BEYOND_END.search(str(failure)):
                    return ObjectBody(b"", etag)
                raise
            found = unquoted_etag(response.meta["e_tag"])
            if etag and found != etag:  # by a server that does not know the condition
                raise PreconditionError
            data, whole = response.bytes().to_bytes(), min(end, response.meta["size"]) - start
            if len(data) == whole:
                return ObjectBody(data, found)
            if attempt:
                time.sleep(0.1 * 2**attempt)
        raise StoreUnreachable(
            f"{self.root}/{key} arrived with {len(data)} of {whole} bytes in {_BODY_ATTEMPTS} attempts",
            remedy="Check the server and the network between.",
        )

    def bounds(self, folder: str, count: int) -> list[str]:
        """Return beginnings of the keys of a flat folder, all of one length, that some key has.

        They grow by one character at a time, by one request for each, until there are `count` of them.
        """
        starts = [f"{folder}/" if folder else ""]
        with ThreadPoolExecutor(_BOUNDS_AT_ONCE, thread_name_prefix="bounds") as pool:
            while len(starts) < count:
                longer = [text for texts in pool.map(self._longer, starts) for text in texts]
                if not longer:
                    break
                starts = longer
        # obstore writes other characters differently when they are in the bound of a listing.
        return [text for text in starts[1:] if _PLAIN.fullmatch(text)]

    def _longer(self, start: str) -> list[str]:
        """Return the texts, one character longer than another, that keys begin with."""
        longer: list[str] = []
        after = start
        while True:
            bound = {"StartAfter": self._full_key(after)} if after else {}
            page = next(self._pages("", Prefix=self._full_key(start), MaxKeys=1, **bound))
            entries = page.get("Contents", ())
            if not entries:
                return longer
            text = self._relative(entries[0]["Key"])[: len(start) + 1]
            if text in longer:  # a key with the greatest character
                return longer
            longer.append(text)
            after = longer[-1] + chr(sys.maxunicode)

    def list(self, folder: str, after: str) -> Iterator[Listed]:
        """Yield every object below a folder.

        obstore lists several times faster than boto3, but gives up at the first key that it cannot address;
        boto3 goes on from there, because S3 lists keys in their order.
        """
        if not folder and not self.prefix and self._has_leading_slashes:
            yield from self._list_slowly(folder, after)
            return
        last = after
        try:
            for page in obstore.list(self.client, folder or None, offset=after or None, chunk_size=1000):
                for meta in page:
                    yield self._without_marker(object_info(meta))
                last = max(last, max((meta["path"] for meta in page), default=""))
        except _LISTING_FAILURES as failure:
            if not _is_about_a_key(failure):
                raise
            yield from self._list_slowly(folder, last)

    def level(self, folder: str, max_objects: int | None) -> Level:
        """Return the folders and the objects right below a folder."""
        folders: list[str] = []
        objects: list[Listed] = []
        for page in self._pages(folder, Delimiter="/"):
            objects += [self._listed(entry) for entry in page.get("Contents", ())]
            for entry in page.get("CommonPrefixes", ()):
                key = self._relative(entry["Prefix"])
                if is_usable_key(key.removesuffix("/")):
                    folders.append(key.removesuffix("/"))
                else:
                    objects.append(UnusableObject(key, UNADDRESSABLE))
            if max_objects is not None and len(objects) > max_objects:
                return Level(sorted(folders), objects, is_whole=False)
        return Level(sorted(folders), objects)

    def _list_slowly(self, folder: str, start_after: str) -> Iterator[Listed]:
        options = {"StartAfter": self._full_key(start_after)} if start_after else {}
        for page in self._pages(folder, **options):
            for entry in page.get("Contents", ()):
                yield self._listed(entry)

    def _pages(self, folder: str, **options: Any) -> Iterator[Any]:
        prefix = self._full_key(f"{folder}/") if folder else self._full_key("")
        if self.settings.request_payer:
            options["RequestPayer"] = "requester"
        pages = self._admin_client.get_paginator("list_objects_v2")
        yield from pages.paginate(**({"Bucket": self.bucket, "Prefix": prefix} | options))

    def _listed(self, entry: Any) -> Listed:
        key = self._relative(entry["Key"])
        if key.endswith("/") and is_usable_key(key[:-1]) and not entry["Size"]:
            return UnusableObject(key, FOLDER_MARKER)
        if not is_usable_key(key):
            return UnusableObject(key, UNADDRESSABLE)
        return ObjectInfo(key, entry["Size"], unquoted_etag(entry.get("ETag")), entry["LastModified"])

    def _without_marker(self, info: ObjectInfo) -> Listed:
        """Return the object, unless it is the marker of a folder, of which obstore drops the last slash."""
        if info.size or not info.key.lower().endswith(_MAYBE_MARKERS):
            return info
        try:
            obstore.head(self.client, info.key)
        except FileNotFoundError:
            return UnusableObject(f"{info.key}/", FOLDER_MARKER)
        return info

    @cached_property
    def _has_leading_slashes(self) -> bool:
        """Whether the bucket has keys that begin with a slash: obstore would drop it from their names."""
        page = next(self._pages("", Prefix="/", MaxKeys=1))
        return bool(page.get("Contents"))

    def _relative(self, full_key: str) -> str:
        return full_key.removeprefix(f"{self.prefix}/" if self.prefix else "")

    def replace(self, key: str, data: bytes, etag: str) -> None:
        """Write an object that still has this etag. Raises PreconditionError."""
        mode: PutMode = {"e_tag": f'"{etag}"'}
        obstore.put(self.client, key, data, mode=mode, use_multipart=False)

    def check_root(self) -> None:
        """Raise an error if the bucket cannot be listed."""
        next(iter(obstore.list(self.client, chunk_size=1)), None)

    def create_root(self) -> None:
        """Create the bucket; one that we own already is fine."""
        admin, region = self._admin_client, self.settings.region
        try:
            if region == "us-east-1":  # S3 rejects a request that names this region
                admin.create_bucket(Bucket=self.bucket)
            else:
                location: Any = {"LocationConstraint": region}
                admin.create_bucket(Bucket=self.bucket, CreateBucketConfiguration=location)
        except admin.exceptions.BucketAlreadyOwnedByYou:
            return

    def require_space(self, bytes_needed: int) -> None:
        """Do nothing: S3 reports no free space."""

    def arrow(self) -> tuple[Any, str]:
        """Return pyarrow's S3 file system and the path 'bucket/prefix'."""
        return arrow_file_system(self.settings), self.root.removeprefix("s3://")

    def upload_of(self, key: str) -> bytes:
        """Return the bytes of an object."""
        return self.fetch(key).data

    def copy_on_server(self, source: Backend, key: str, target_key: str) -> bool:
        """Copy an object of another bucket or prefix of this server; False if it is on another server."""
        if not isinstance(source, S3Backend) or source.settings.endpoint != self.settings.endpoint:
            return False
        # boto3 splits a copy that exceeds the limit of one request.
        copy_source: CopySourceTypeDef = {"Bucket": source.bucket, "Key": source._full_key(key)}
        self._admin_client.copy(copy_source, self.bucket, self._full_key(target_key))
        return True

    def _read(self, key: str) -> tuple[ObjectBody, int]:
        """Return what arrived of an object, and its size in bytes."""
        response = obstore.get(self.client, key)
        body = ObjectBody(response.bytes().to_bytes(), unquoted_etag(response.meta["e_tag"]))
        return body, response.meta["size"]

    def _is_encrypted(self, key: str) -> bool:
        """Return whether the etag of an object cannot be an MD5, because of how it is encrypted."""
        head = self._admin_client.head_object(Bucket=self.bucket, Key=self._full_key(key))
        by_kms = head.get("ServerSideEncryption", "").startswith("aws:kms")
        return by_kms or "SSECustomerAlgorithm" in head

    @cached_property
    def _admin_client(self) -> "S3Client":
        return admin_client(self.settings)

    def _full_key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key


def _is_about_a_key(failure: Exception) -> bool:
    """Whether a listing failed because obstore cannot hold a listed key, not because of the server."""
    return isinstance(failure, InvalidPathError) or "arse path" in str(failure)
