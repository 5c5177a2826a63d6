"""Every error a user can meet, and the exit code that the command line gives for it.

    ClvrError                      1   anything not named below
    ├── BadInput                   3   what was given is missing, empty, unreadable or contradictory
    │   ├── EmptyArchive               no crop under the given prefix
    │   ├── UnreadablePicture          bytes that are not a usable picture; `cause` says why
    │   ├── BadLabels                  a label file that cannot be trusted, with its line
    │   ├── BadSetting                 a flag, variable or YAML value out of range
    │   └── UnmatchedProbe             a probe whose vehicle is not in the gallery
    ├── StoreError                 4   object storage
    │   ├── StoreUnreachable           no answer, or answers that stay errors after all retries
    │   ├── StoreDenied                wrong credentials, or no permission
    │   ├── BucketMissing              the bucket (or the local root folder) does not exist
    │   ├── ObjectMissing              no such key
    │   ├── ObjectExists               a conditional create lost: the key is already there
    │   ├── ObjectChanged              the object is not the one the manifest listed
    │   └── DiskFull                   no space for what has to be written
    ├── IndexServerError           5   Milvus
    │   ├── IndexUnreachable           no server at the address, or it does not answer in time
    │   ├── IndexRefused               the server said no: version, privilege, index type, quota
    │   └── ImportFailed               a bulk import that failed, or whose outcome is unknown
    ├── Mismatch                   6   parts that do not belong together
    │   ├── FingerprintMismatch        embeddings of two different models
    │   ├── SchemaMismatch             a foreign or older file, collection or run
    │   └── BadCheckpoint              weights that are truncated, altered or of another architecture
    ├── AccountingError            7   the numbers do not add up
    │   ├── CountMismatch              listed, embedded, quarantined or indexed counts disagree
    │   ├── DuplicateCropId            one crop_id for two crops
    │   └── CorruptShard               a shard that is truncated, altered or holds values it must not
    ├── GateFailed                 8   a generation that must not be promoted
    ├── BudgetExceeded             9   more bad pictures than the failure budget allows
    ├── Locked                    10   somebody else is doing this right now
    ├── TrainingDiverged          11   the loss is not a number
    └── ClusterError              12   the Ray cluster
        ├── RayUnreachable             no cluster at the address, or it does not answer
        ├── RayDenied                  it asks for a token, or for another one
        └── JobMissing                 it knows no such job

Exit code 2 is a usage error (typer), 130 an interruption from the keyboard.
"""

from typing import ClassVar


class ClvrError(Exception):
    """What went wrong and where, in one line, and what to do about it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments are lost by the default pickling, and Ray carries errors between processes.
        return _rebuild, (type(self), self.message, self.remedy, self.__dict__)


def _rebuild(kind: type[ClvrError], message: str, remedy: str, state: dict[str, object]) -> ClvrError:
    error = kind.__new__(kind)
    ClvrError.__init__(error, message, remedy=remedy)
    error.__dict__.update(state)
    return error


class BadInput(ClvrError):
    """What was given is missing, empty, unreadable or contradictory."""

    exit_code = 3


class EmptyArchive(BadInput):
    """No crop under the given prefix."""


class UnreadablePicture(BadInput):
    """Bytes that are not a usable picture.

    `cause` is one short word for the quarantine: empty, truncated, not-a-picture, too-large, unsupported.
    """

    def __init__(self, message: str, *, cause: str, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.cause = cause


class BadLabels(BadInput):
    """A label file that cannot be trusted, with its line."""


class BadSetting(BadInput):
    """A flag, variable or YAML value out of range."""


class UnmatchedProbe(BadInput):
    """A probe whose vehicle is not in the gallery."""


class StoreError(ClvrError):
    """Object storage."""

    exit_code = 4


class StoreUnreachable(StoreError):
    """No answer, or answers that stay errors after all retries."""


class StoreDenied(StoreError):
    """Wrong credentials, or no permission."""


class BucketMissing(StoreError):
    """The bucket, or the local root folder, does not exist."""


class ObjectMissing(StoreError):
    """No such key."""


class ObjectExists(StoreError):
    """A conditional create lost: the key is already there."""


class ObjectChanged(StoreError):
    """The object is not the one that the manifest listed."""


class DiskFull(StoreError):
    """No space for what has to be written."""


class IndexServerError(ClvrError):
    """Milvus."""

    exit_code = 5


class IndexUnreachable(IndexServerError):
    """No server at the address, or it does not answer in time."""


class IndexRefused(IndexServerError):
    """The server said no: version, privilege, index type, quota."""


class ImportFailed(IndexServerError):
    """A bulk import that failed, or whose outcome is unknown."""


class Mismatch(ClvrError):
    """Parts that do not belong together."""

    exit_code = 6


class FingerprintMismatch(Mismatch):
    """Embeddings of two different models."""


class SchemaMismatch(Mismatch):
    """A foreign or older file, collection or run."""


class BadCheckpoint(Mismatch):
    """Weights that are truncated, altered or of another architecture."""


class AccountingError(ClvrError):
    """The numbers do not add up."""

    exit_code = 7


class CountMismatch(AccountingError):
    """Listed, embedded, quarantined or indexed counts disagree."""


class DuplicateCropId(AccountingError):
    """One crop_id for two crops."""


class CorruptShard(AccountingError):
    """A shard that is truncated, altered or holds values it must not."""


class GateFailed(ClvrError):
    """A generation that must not be promoted."""

    exit_code = 8


class BudgetExceeded(ClvrError):
    """More bad pictures than the failure budget allows."""

    exit_code = 9


class Locked(ClvrError):
    """Somebody else is doing this right now."""

    exit_code = 10


class TrainingDiverged(ClvrError):
    """The loss is not a number."""

    exit_code = 11


class ClusterError(ClvrError):
    """The Ray cluster."""

    exit_code = 12


class RayUnreachable(ClusterError):
    """No Ray cluster at the address, or it does not answer."""


class RayDenied(ClusterError):
    """The Ray cluster asks for a token, or for another one."""


class JobMissing(ClusterError):
    """The Ray cluster knows no such job."""
