"""A connection to Milvus: a server, or a local file (Milvus Lite)."""

import fcntl
import logging
import re
import shutil
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from index.milvus.index_types import Capabilities, capabilities_of
from infra.errors import BadSetting, ClvrError, DiskFull, IndexRefused, IndexUnreachable, Locked

if TYPE_CHECKING:
    import httpx2

_UNREACHABLE = ("UNAVAILABLE", "DEADLINE_EXCEEDED")
_MIN_VERSION = (2, 3, 0)
_DISK_FULL_MESSAGES = ("No space left on device", "disk quota exceeded", "XMinioStorageFull")
_CONNECT_FAILED = 2  # pymilvus.client.types.Status, while it reconnects
_NOT_GRPC = "Received http2 header with status"  # a web server or a proxy answers instead of Milvus
_DENIED = ("UNAUTHENTICATED", "PERMISSION_DENIED")
# pymilvus pings every 10 s, and Milvus Lite closes a connection that pings it during an index build.
_NO_TIMEOUT_MS = 2**31 - 1
_START_REMEDY = "Start Milvus, or correct its address (--milvus, CLVR_MILVUS); `clvr doctor` checks both."


class Milvus:
    """An open connection. Every request goes through `call`, which bounds the wait and maps the errors."""

    def __init__(
        self,
        uri: str,
        client: Any,
        capabilities: Capabilities,
        timeout: float,
        *,
        token: str | None = None,
        database: str | None = None,
        ca_file: str | None = None,
    ) -> None:
        self.uri = uri
        self.capabilities = capabilities
        self.database = database
        self._client = client
        self._timeout = timeout
        self._token = token
        self._ca_file = ca_file

    def __repr__(self) -> str:
        return f"Milvus({self.uri!r}, version={self.capabilities.version!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def call(self, method: str, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        """Call a method of pymilvus' MilvusClient; `timeout`, in seconds, includes its retries.

        Raises IndexUnreachable if the server does not answer in time, DiskFull, IndexRefused for any other
        error.
        """
        try:
            return getattr(self._client, method)(*args, timeout=timeout or self._timeout, **kwargs)
        except Exception as error:
            raise _as_clvr_error(error, f"{method} at {self.uri}") from error

    def bulk_insert(self, collection: str, key: str) -> int:
        """Start the import of one Parquet file in the server's bucket and return the task's number."""
        return int(self._handler("do_bulk_insert", collection, "", [key]))

    def bulk_insert_state(self, task: int) -> Any:
        """Return pymilvus' BulkInsertState of an import: `state_name`, `row_count`, `failed_reason`."""
        return self._handler("get_bulk_insert_state", task)

    def bulk_inserts(self, collection: str) -> list[Any]:
        """Return pymilvus' BulkInsertState of each import into a collection that the server remembers."""
        return list(self._handler("list_bulk_insert_tasks", 0, collection))

    def require_space(self, bytes_needed: int) -> None:
        """Raise DiskFull if the disk of a local file has fewer bytes free. A server does not report it."""
        if not self.capabilities.lite:
            return
        free = shutil.disk_usage(Path(self.uri).parent).free
        if free < bytes_needed:
            raise DiskFull(
                f"{self.uri} needs about {bytes_needed:,} bytes more, and {free:,} are free",
                remedy="Free disk space (`clvr retire` drops old generations), or use another disk.",
            )

    def rest_client(self) -> "httpx2.Client":
        """Return an HTTP client for the REST interface of the same server, with the same token."""
        import httpx2

        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        if self.database:
            headers["DB-Name"] = self.database  # decides the permission of requests that name only a job
        return httpx2.Client(
            base_url=self.uri,
            headers=headers,
            verify=ssl.create_default_context(cafile=self._ca_file),
            timeout=self._timeout,
            trust_env=False,  # the gRPC connection uses no proxy either
        )

    def close(self) -> None:
        """Close the connection. Another process can open a local file only after this."""
        self._client.close()
        if self.capabilities.lite:
            from milvus_lite.server_manager import (  # type: ignore[import-untyped]
                server_manager_instance,
            )

            server_manager_instance.release_server(self.uri)

    def _handler(self, method: str, *args: Any) -> Any:
        # MilvusClient lacks these calls, and the ORM would open a second connection. The context carries the
        # name of the database; without it the calls use the default one.
        context = self._client._generate_call_context()
        try:
            handler = self._client._get_connection()
            return getattr(handler, method)(*args, timeout=self._timeout, context=context)
        except Exception as error:
            raise _as_clvr_error(error, f"{method} at {self.uri}") from error


def connect(
    uri: str,
    token: str | None = None,
    database: str | None = None,
    ca_file: str | None = None,
    timeout: float = 10.0,
) -> Milvus:
    """Connect to `http(s)://host:port`, or open a local path that ends in '.db' (Milvus Lite).

    timeout: seconds for connecting (at most 5) and for each short call.
    Raises IndexUnreachable within a few seconds if nothing answers, IndexRefused for a wrong token or an old
    server, Locked for a file that another process has open, BadSetting for an invalid address.
    """
    from pymilvus import MilvusClient

    _silence_tracebacks()
    kwargs: dict[str, Any] = {"timeout": min(timeout, 5.0)}
    if token:
        kwargs["token"] = token
    if database:
        kwargs["db_name"] = database
    lite = not re.match(r"[a-z]+://", uri)
    if lite:
        uri = _validate_lite_path(uri)
        kwargs["grpc_options"] = {"grpc.keepalive_time_ms": _NO_TIMEOUT_MS}
    else:
        _probe_address(uri, kwargs["timeout"])
        if ca_file:
            kwargs["server_pem_path"] = ca_file
    # A process that had the file open may close it between the failure and the look at its lock.
    for is_last in (False, True) if lite else (True,):
        try:
            client = MilvusClient(uri=uri, **kwargs)
            version = str(client.get_server_version(timeout=kwargs["timeout"]))
            break
        except Exception as error:
            reason = _not_connected(error, uri, lite=lite)
            if is_last or not isinstance(reason, IndexUnreachable):
                raise reason from None  # the cause may contain the token
    capabilities = capabilities_of(version, lite=lite)
    if not lite and capabilities.version_tuple < _MIN_VERSION:
        client.close()
        raise too_old(version, uri)
    return Milvus(uri, client, capabilities, timeout, token=token, database=database, ca_file=ca_file)


def too_old(version: str, uri: str) -> IndexRefused:
    """Return the error for a server that is older than 2.3."""
    return IndexRefused(
        f"Milvus {version} at {_without_credentials(uri)} is too old: at least 2.3 is required",
        remedy="Upgrade the server.",
    )


def _validate_lite_path(uri: str) -> str:
    path = Path(uri).absolute()
    if path.suffix != ".db":
        raise BadSetting(
            f"{uri} is neither http(s)://host:port nor a path that ends in '.db'",
            remedy="Use a path such as ./clvr.db for a local index.",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    return str(path)


def _probe_address(uri: str, timeout: float) -> None:
    # pymilvus reports a closed port and a wrong token by the same error.
    address = urlsplit(uri)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise BadSetting(f"{_without_credentials(uri)} is not http(s)://host:port", remedy=_START_REMEDY)
    if address.username or address.password:
        raise BadSetting(
            f"the address of Milvus at {address.hostname} contains credentials",
            remedy="Set the token by CLVR_MILVUS_TOKEN: addresses appear in logs.",
        )
    port = address.port or (443 if address.scheme == "https" else 19530)
    try:
        socket.create_connection((address.hostname, port), timeout=timeout).close()
    except OSError as error:
        raise IndexUnreachable(
            f"no Milvus at {address.hostname}:{port}: {error.strerror or error}", remedy=_START_REMEDY
        ) from error


def _without_credentials(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)


def _not_connected(error: Exception, uri: str, *, lite: bool) -> ClvrError:
    if lite and _is_locked(Path(uri)):
        return Locked(
            f"{uri} is open in another process",
            remedy="End the other process, or run a Milvus server: a local index serves one process.",
        )
    if lite:
        return IndexUnreachable(
            f"{uri} cannot be opened as a local index",
            remedy="Use a new file: Milvus Lite 3 cannot read the files of older versions.",
        )
    status = _status_of(error)
    if status in _DENIED:
        return IndexRefused(
            f"Milvus at {uri} refuses the token",
            remedy="Set CLVR_MILVUS_TOKEN to 'user:password' or to an API key.",
        )
    reason = status.lower().replace("_", " ") or "no reason given"
    return IndexUnreachable(f"{uri} does not answer as Milvus does ({reason})", remedy=_START_REMEDY)


def _is_locked(path: Path) -> bool:
    try:
        with (path / "LOCK").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _as_clvr_error(error: Exception, where: str) -> ClvrError:
    if isinstance(error, ClvrError):
        return error
    text = str(getattr(error, "message", "") or error).splitlines()
    status = _status_of(error)
    if status in _DENIED:
        return IndexRefused(f"{where}: not permitted", remedy="Ask for a token with this privilege.")
    if any(words in str(error) for words in _DISK_FULL_MESSAGES):
        return DiskFull(f"{where}: the disk of Milvus is full", remedy="Free disk space, then try again.")
    lost = (
        status in _UNREACHABLE or _NOT_GRPC in str(error) or getattr(error, "code", None) == _CONNECT_FAILED
    )
    if lost or isinstance(error, (ConnectionError, TimeoutError)):
        return IndexUnreachable(f"{where}: Milvus does not answer", remedy=_START_REMEDY)
    return IndexRefused(f"{where}: {text[0][:300] if text else type(error).__name__}")


def _status_of(error: BaseException | None) -> str:
    # pymilvus wraps the gRPC error, sometimes twice, and sometimes leaves its status in `code`.
    visited: set[int] = set()
    while error is not None and id(error) not in visited:
        visited.add(id(error))
        code: Any = getattr(error, "code", None)
        if callable(code):
            code = code()
        if type(code).__name__ == "StatusCode":
            return str(code.name)
        error = error.__cause__ or error.__context__
    return ""


def _silence_tracebacks() -> None:
    # Both log a traceback for each error that they also raise.
    for name in ("pymilvus", "milvus_lite"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
