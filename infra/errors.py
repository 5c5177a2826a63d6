"""All errors that reach a user, and the exit code of each.

    ClvrError                      1   anything not named below
    ├── BadInput                   3   an input is missing, empty, unreadable or contradictory
    │   ├── EmptyArchive               no crop under the given prefix
    │   ├── UnreadableImage          bytes that are not a usable image; `cause` names the reason
    │   ├── BadLabels                  a label file that cannot be trusted, with its line
    │   ├── UnusableKey                a key that no store can address
    │   ├── BadSetting                 a flag, variable or YAML value out of range
    │   └── UnmatchedProbe             a probe whose vehicle is not in the gallery
    ├── StoreError                 4   object storage
    │   ├── StoreUnreachable           no answer, or only errors after all retries
    │   ├── StoreDenied                wrong credentials, or no permission
    │   │   └── CredentialsRejected        the credentials themselves: wrong or expired
    │   ├── ObjectArchived             an object in cold storage, which must be restored first
    │   ├── BucketMissing              the bucket (or the local root folder) does not exist
    │   │   └── FolderMissing      3       a local folder that does not exist
    │   ├── ObjectMissing              no such key
    │   │   └── FileMissing        3       a local file that does not exist
    │   ├── ObjectExists               the key of a conditional create exists already
    │   ├── ObjectChanged              the object differs from the one that was read or listed
    │   └── DiskFull                   not enough space to write
    ├── IndexServerError           5   Milvus
    │   ├── IndexUnreachable           no server at the address, or it does not answer in time
    │   ├── IndexRefused               rejected by the server: version, privilege, index type, quota
    │   └── ImportFailed               a bulk import failed, or its outcome is unknown
    ├── CaseDatabaseError          4   the database of cases is unreachable, busy or damaged
    ├── Mismatch                   6   inputs that do not belong together
    │   ├── FingerprintMismatch        embeddings of two different models
    │   ├── TransformMismatch          vectors of two different feature transforms
    │   ├── SchemaMismatch             a foreign or older file, collection or run
    │   └── BadCheckpoint              weights that are truncated, altered or of another architecture
    │       └── CheckpointMissing  3       a folder without a checkpoint
    ├── AccountingError            7   counts that do not agree
    │   ├── CountMismatch              listed, embedded, quarantined or indexed counts disagree
    │   ├── DuplicateCropId            one crop_id for two crops
    │   └── CorruptObject              an object that is truncated, altered or holds values it must not
    ├── GateFailed                 8   a generation did not pass the gate
    ├── BudgetExceeded             9   more unusable images than --max-quarantine-rate allows
    ├── Locked                    10   another process is doing this now
    ├── TrainingDiverged          11   the loss is not a number
    └── ClusterError              12   the Ray cluster
        ├── RayUnreachable             no cluster at the address, or it does not answer
        ├── RayDenied                  its token is missing or wrong
        ├── WorkerLost                 a process or a node of the cluster ended during the work
        └── JobMissing                 no such job

Exit code 2 is a usage error (typer), 130 an interruption from the keyboard, 141 a stdout that its reader
closed.
"""

from typing import ClassVar


class ClvrError(Exception):
    """An error for the user: its message says what happened and where, its remedy what to do."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        # Ray pickles errors between processes, and the default loses keyword-only arguments.
        return _rebuild, (type(self), self.message, self.remedy, self.__dict__)


def _rebuild(kind: type[ClvrError], message: str, remedy: str, state: dict[str, object]) -> ClvrError:
    error = kind.__new__(kind)
    ClvrError.__init__(error, message, remedy=remedy)
    error.__dict__.update(state)
    return error


class BadInput(ClvrError):
    """An input is missing, empty, unreadable or contradictory."""

    exit_code = 3


class EmptyArchive(BadInput):
    """No crop under the given prefix."""


class UnreadableImage(BadInput):
    """Bytes that are not a usable image.

    `cause` is the cause in the quarantine: empty, truncated, not-a-picture, too-large or unsupported.
    """

    def __init__(self, message: str, *, cause: str, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.cause = cause


class BadLabels(BadInput):
    """A label file that cannot be trusted, with its line."""


class UnusableKey(BadInput):
    """A key that no store can address: empty parts, '..', control characters, or not UTF-8."""


class BadSetting(BadInput):
    """A flag, variable or YAML value out of range."""


class UnmatchedProbe(BadInput):
    """A probe whose vehicle is not in the gallery."""


class StoreError(ClvrError):
    """Object storage."""

    exit_code = 4


class StoreUnreachable(StoreError):
    """No answer, or only errors after all retries."""


class StoreDenied(StoreError):
    """Wrong credentials, or no permission."""


class CredentialsRejected(StoreDenied):
    """The credentials themselves are wrong or expired, so no object can be read by them."""


class ObjectArchived(StoreError):
    """An object in cold storage, such as S3 Glacier: it must be restored before it can be read."""


class BucketMissing(StoreError):
    """The bucket, or the local root folder, does not exist."""


class FolderMissing(BucketMissing):
    """A local folder does not exist: an input is missing, and no object storage is at fault."""

    exit_code = BadInput.exit_code


class ObjectMissing(StoreError):
    """No such key."""


class FileMissing(ObjectMissing):
    """A local file does not exist."""

    exit_code = BadInput.exit_code


class ObjectExists(StoreError):
    """The key of a conditional create exists already."""


class ObjectChanged(StoreError):
    """The object differs from the one that was read or listed."""


class DiskFull(StoreError):
    """Not enough space to write."""


class CaseDatabaseError(ClvrError):
    """The database of cases is unreachable, busy or damaged."""

    exit_code = 4


class IndexServerError(ClvrError):
    """Milvus."""

    exit_code = 5


class IndexUnreachable(IndexServerError):
    """No server at the address, or it does not answer in time."""


class IndexRefused(IndexServerError):
    """The server rejected the request: version, privilege, index type, quota."""


class ImportFailed(IndexServerError):
    """A bulk import failed, or its outcome is unknown."""


class Mismatch(ClvrError):
    """Inputs that do not belong together."""

    exit_code = 6


class FingerprintMismatch(Mismatch):
    """Embeddings of two different models."""


class TransformMismatch(Mismatch):
    """Vectors of two different feature transforms."""


class SchemaMismatch(Mismatch):
    """A foreign or older file, collection or run."""


class BadCheckpoint(Mismatch):
    """Weights that are truncated, altered or of another architecture."""


class CheckpointMissing(BadCheckpoint):
    """A folder without a checkpoint."""

    exit_code = BadInput.exit_code


class AccountingError(ClvrError):
    """Counts do not agree."""

    exit_code = 7


class CountMismatch(AccountingError):
    """Listed, embedded, quarantined or indexed counts disagree."""


class DuplicateCropId(AccountingError):
    """One crop_id for two crops."""


class CorruptObject(AccountingError):
    """An object that is truncated, altered, or holds values that it must not."""


class GateFailed(ClvrError):
    """A generation did not pass the gate."""

    exit_code = 8


class BudgetExceeded(ClvrError):
    """More unusable images than --max-quarantine-rate allows."""

    exit_code = 9


class Locked(ClvrError):
    """Another process is doing this now."""

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
    """The Ray cluster needs a token, which is missing or wrong."""


class WorkerLost(ClusterError):
    """A process or a node of the Ray cluster ended during the work."""


class JobMissing(ClusterError):
    """The Ray cluster has no such job."""
