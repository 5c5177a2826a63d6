"""The URI, the credentials and the time limits of an object store."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from infra.errors import BadInput, BadSetting, UnusableKey

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_TRUE = frozenset({"1", "true", "yes", "on"})
PUBLIC_BUCKETS_VARIABLE = "CLVR_PUBLIC_BUCKETS"
_UNSIGNED_VARIABLES = ("AWS_SKIP_SIGNATURE", "AWS_NO_SIGN_REQUEST")


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Address, credentials and limits of S3; local folders ignore them. The repr shows no secret.

    Without `access_key`, boto3's chain supplies the credentials: profile, web identity, instance role.
    """

    endpoint: str | None = None  # None: AWS
    region: str = "us-east-1"
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    unsigned: bool = False  # a public bucket: no credentials are sent, whatever there are
    request_payer: bool = False  # whoever reads the bucket pays
    allow_http: bool = False  # plain HTTP is opt-in: the network can read the images
    retries: int = 5  # of one request, with exponential backoff from 0.1 s
    retry_seconds: float = 120.0  # no retry starts later than this after the first attempt
    connect_seconds: float = 5.0
    read_seconds: float = 30.0  # without a byte received
    request_seconds: float = 600.0  # for a whole object

    def __post_init__(self) -> None:
        if self.endpoint is not None:
            parts = urlsplit(self.endpoint)
            if parts.scheme not in {"http", "https"} or not parts.netloc:
                raise BadSetting(
                    f"the S3 endpoint {self.endpoint!r} is not a URL",
                    remedy="Give scheme and host, such as http://127.0.0.1:8333.",
                )
            if parts.scheme == "http" and not self.allow_http:
                raise BadSetting(
                    f"the S3 endpoint {self.endpoint} is plain HTTP, which is not allowed",
                    remedy="Use https, or set AWS_ALLOW_HTTP=true on a trusted network.",
                )
        if (self.access_key is None) != (self.secret_key is None):
            raise BadSetting(
                "an S3 access key without its secret key, or the reverse",
                remedy="Set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or neither.",
            )

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None) -> "StoreSettings":
        """Read the `AWS_*` variables, which boto3, pyarrow, obstore and Ray read too.

        Raises BadSetting if they contradict each other.
        """
        env = os.environ if environment is None else environment
        return cls(
            endpoint=env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or None,
            region=env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1",
            access_key=env.get("AWS_ACCESS_KEY_ID") or None,
            secret_key=env.get("AWS_SECRET_ACCESS_KEY") or None,
            session_token=env.get("AWS_SESSION_TOKEN") or None,
            unsigned=any(env.get(name, "").lower() in _TRUE for name in _UNSIGNED_VARIABLES),
            request_payer=env.get("AWS_REQUEST_PAYER", "").lower() in _TRUE | {"requester"},
            allow_http=env.get("AWS_ALLOW_HTTP", "").lower() in _TRUE,
        )

    def for_bucket(self, bucket: str, environment: Mapping[str, str] | None = None) -> "StoreSettings":
        """Return the settings for one bucket: those named in CLVR_PUBLIC_BUCKETS are read unsigned."""
        env = os.environ if environment is None else environment
        public = {name.strip() for name in env.get(PUBLIC_BUCKETS_VARIABLE, "").split(",")}
        return replace(self, unsigned=True) if bucket in public else self

    def environment(self) -> dict[str, str]:
        """Return the variables that `from_env` reads as these settings, for child processes."""
        values = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": self.region,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_SESSION_TOKEN": self.session_token,
            "AWS_SKIP_SIGNATURE": "true" if self.unsigned else None,
            "AWS_REQUEST_PAYER": "true" if self.request_payer else None,
            "AWS_ALLOW_HTTP": "true" if self.allow_http else None,
        }
        return {name: value for name, value in values.items() if value is not None}


def canonical_uri(uri: str) -> str:
    """Return 's3://bucket/prefix' or '/abs/path', without a trailing slash.

    Resolves symbolic links of local paths, so one folder has one name. Raises BadInput.
    """
    scheme, separator, rest = uri.partition("://")
    if separator and scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        if not _BUCKET.fullmatch(bucket):
            raise BadInput(f"{uri!r} names no valid bucket", remedy="Write s3://bucket/prefix.")
        prefix = prefix.strip("/")
        return f"s3://{bucket}/{checked_key(prefix)}" if prefix else f"s3://{bucket}"
    if separator and scheme == "file":
        host, slash, path = rest.partition("/")
        if host not in {"", "localhost"} or not slash:
            raise BadInput(f"{uri!r} is not a local path", remedy="Write file:///absolute/path.")
        return str(Path("/" + unquote(path)).resolve())
    if separator:
        raise BadInput(
            f"{uri!r} has an unknown scheme: {scheme}", remedy="Use s3://bucket/prefix or a local path."
        )
    if not uri or "\0" in uri or not is_utf8(uri):
        raise BadInput(f"{uri!r} is not a local path", remedy="Use s3://bucket/prefix or a path in UTF-8.")
    return str(Path(uri).expanduser().resolve())


def split_uri(uri: str) -> tuple[str, str]:
    """Split an object's URI into its store's root and its key: 's3://b/a/c.jpg' -> ('s3://b/a', 'c.jpg').

    Raises BadInput if the URI has no key.
    """
    whole = canonical_uri(uri)
    root, _, key = whole.rpartition("/")
    if not key or root in {"s3:/", "s3:"}:
        raise BadInput(f"{uri!r} names no object", remedy="Write the bucket and the object's whole key.")
    return root or "/", key


UNUSABLE_KEY_PATTERN = r"\A/|\A\z|//|/\z|(\A|/)\.{1,2}(/|\z)|[\x00-\x1f]"
"""What no key may have on any kind of store: an empty, '.' or '..' part, or a control character."""

_UNUSABLE_KEY = re.compile(UNUSABLE_KEY_PATTERN.replace(r"\z", r"\Z"))


def is_utf8(text: str) -> bool:
    """Whether a text can be written in UTF-8: a file name that Python could not decode cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def is_usable_key(key: str) -> bool:
    """Whether a key stays below its root on every kind of store, and is valid in UTF-8."""
    return not _UNUSABLE_KEY.search(key) and (key.isascii() or is_utf8(key))


def checked_key(key: str) -> str:
    """Return the key if it stays below its root on every kind of store; raise UnusableKey if not."""
    if not is_usable_key(key):
        raise UnusableKey(
            f"{key!r} is not a usable object key",
            remedy="Keys are relative UTF-8, with no empty, '.' or '..' part and no control characters.",
        )
    return key
