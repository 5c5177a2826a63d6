"""Translation of the errors of obstore, boto3 and the operating system into `infra.errors`."""

import errno
import re

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from infra.errors import (
    BadInput,
    BucketMissing,
    CredentialsRejected,
    DiskFull,
    FileMissing,
    FolderMissing,
    ObjectArchived,
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    StoreDenied,
    StoreError,
    StoreUnreachable,
    UnusableKey,
)

# obstore raises ValueError for a key that it cannot parse, and FileNotFoundError for 404.
STORE_FAILURES = (BaseError, OSError, ValueError, NotImplementedError, BotoCoreError, ClientError)

_DENIED = re.compile(
    r"(status(?: code)?:? |\()(401|403)\b|AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch"
    r"|ExpiredToken|InvalidToken|credentials|os error 13\b"
)
_REJECTED = frozenset(
    {
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
"""Codes of S3 that concern the credentials and not one object."""

# A key may hold any word and an address any number, so neither is searched for the cause.
_ADDRESS = re.compile(r"(https?|s3|file)://\S+")
_DENIED_REMEDY = "Check the access key, the secret key and their permissions (AWS_ACCESS_KEY_ID and so on)."
_MISSING_REMEDY = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket set "
    "AWS_SKIP_SIGNATURE=true, or name it in CLVR_PUBLIC_BUCKETS."
)
_NO_CREDENTIALS = "Received None from session.get_credentials"
_NO_SUCH_FILE = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR)
_ARCHIVED = re.compile(r"<Code>InvalidObjectState</Code>|\(InvalidObjectState\) when calling")
_REDIRECT = "Received redirect without LOCATION"


def store_error(failure: Exception, where: str) -> StoreError | BadInput:
    """Return the ClvrError for a failure at `where`, the URI of an object or of a root."""
    text = str(failure)
    # Only the first line, and no XML: dozens of lines of Rust's debug output follow it.
    code = re.search(r"<Code>(\w+)</Code>", text)
    brief = text.partition("\n")[0].partition(": <?xml")[0][:300] + (f" ({code[1]})" if code else "")
    if isinstance(failure, AlreadyExistsError):
        return ObjectExists(f"{where} exists already", remedy="Another process wrote it: read it again.")
    if isinstance(failure, PreconditionError):
        return ObjectChanged(f"{where} changed meanwhile", remedy="Read it again and repeat the change.")
    if "os error 28" in text or "No space left on device" in text:
        return DiskFull(f"no space left on the disk for {where}", remedy="Free some space and run it again.")
    if isinstance(failure, ValueError) and "arse path" in text:
        return UnusableKey(f"{where} is not a usable key: {brief}", remedy="Rename the object.")
    if re.search(r"os error (20|21)\b", text):
        return StoreError(
            f"{where} is both a file and a folder",
            remedy="Rename one of the two keys, or use a bucket.",
        )
    translate = _s3_error if where.startswith("s3://") else _local_error
    return translate(failure, text, brief, where)


def _local_error(failure: Exception, text: str, brief: str, where: str) -> StoreError:
    if isinstance(failure, IsADirectoryError):
        return FileMissing(f"no file {where}: it is a folder", remedy="Name a file.")
    if (
        isinstance(failure, (FileNotFoundError, NotADirectoryError))
        or getattr(failure, "errno", 0) in _NO_SUCH_FILE
    ):
        return FileMissing(f"no file {where}", remedy="Check the path: it may have been deleted.")
    if isinstance(failure, (PermissionError, PermissionDeniedError)) or "os error 13" in text:
        return StoreDenied(
            f"this user may not use {getattr(failure, 'filename', None) or where}",
            remedy="Check the permissions of the file and of the folders above it.",
        )
    return StoreUnreachable(f"{where} cannot be used: {brief}", remedy="Check the path and its disk.")


def _s3_error(failure: Exception, text: str, brief: str, where: str) -> StoreError:
    # A HEAD has no body, so boto3 reports the status as the code.
    if isinstance(failure, FileNotFoundError) or "NoSuchBucket" in text or "(404) when calling" in text:
        if "NoSuchBucket" in text:
            return bucket_missing(where)
        return ObjectMissing(f"no object {where}", remedy="List the prefix: it may have been deleted.")
    if isinstance(failure, NoCredentialsError) or "NoCredentialsError" in text or _NO_CREDENTIALS in text:
        return StoreDenied(f"no credentials for {where}", remedy=_MISSING_REMEDY)
    if isinstance(failure, CredentialRetrievalError | ProfileNotFound | PartialCredentialsError):
        return StoreDenied(f"no usable credentials for {where}: {brief}", remedy=_MISSING_REMEDY)
    if _ARCHIVED.search(text):
        return ObjectArchived(
            f"{where} is in cold storage",
            remedy="Restore it (aws s3api restore-object), then retry the quarantined crops.",
        )
    code = re.search(r"<Code>(\w+)</Code>", text)
    if code is not None and code[1] in _REJECTED:
        return CredentialsRejected(f"access to {where} is denied: {brief}", remedy=_DENIED_REMEDY)
    if isinstance(failure, (PermissionDeniedError, UnauthenticatedError, PermissionError)):
        return StoreDenied(f"access to {where} is denied: {brief}", remedy=_DENIED_REMEDY)
    if _DENIED.search(_ADDRESS.sub("", brief)):
        return StoreDenied(f"access to {where} is denied: {brief}", remedy=_DENIED_REMEDY)
    if _REDIRECT in text:
        return StoreUnreachable(
            f"{where} is in another region", remedy="Set AWS_REGION to the bucket's region."
        )
    return StoreUnreachable(
        f"no good answer about {where}: {brief}",
        remedy="Check that the server runs and that the endpoint is right (AWS_ENDPOINT_URL).",
    )


def bucket_missing(root: str) -> BucketMissing:
    """Return the error for a store whose bucket or local folder does not exist."""
    if root.startswith("s3://"):
        bucket = root.removeprefix("s3://").partition("/")[0]
        return BucketMissing(
            f"the bucket s3://{bucket} does not exist",
            remedy="Create it, or correct the name or the endpoint.",
        )
    return FolderMissing(f"the folder {root} does not exist", remedy="Create it, or correct the path.")
