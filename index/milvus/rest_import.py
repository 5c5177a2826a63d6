"""Bulk import by the REST interface v2 of Milvus 2.4 and later.

Follows the documented interface (`/v2/vectordb/jobs/import/…` at milvus.io) and is tested against a fake
server only, not yet against a real one.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import httpx2

from index.milvus.bulk_import import JobState
from index.milvus.client import Milvus
from infra.errors import ImportFailed, IndexRefused, IndexUnreachable

JOB_TIMEOUT = "7200s"
"""How long the server keeps a job that does not finish, as a Go duration."""

_ROOT = "/v2/vectordb/jobs/import/"
_DENIED = (1800, 65535)  # wrong credentials; older servers report 'unexpected error' instead
_ATTEMPTS = 3
_PRIVILEGE_REMEDY = "Ask for a token with the privilege Import."


class RestImporter:
    """Imports each file by its own request, so the files spread over the server's data nodes.

    From 3.0 on jobs wait for a commit: either all files of a load become visible or none. A request whose
    response was lost is sent again only if an Idempotency-Key prevents a second job.
    """

    def __init__(self, milvus: Milvus) -> None:
        version = milvus.capabilities.version_tuple
        self._needs_commit = version >= (3, 0, 0)
        self._has_idempotency_key = (2, 6, 24) <= version < (3, 0, 0) or version >= (3, 0, 2)
        self._database = milvus.database
        self._client = milvus.rest_client()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def start(self, collection: str, key: str) -> str:
        """Create the job for one file of the server's bucket and return its id."""
        options = {"timeout": JOB_TIMEOUT}
        if self._needs_commit:
            options["auto_commit"] = "false"
        body = {"collectionName": collection, "files": [[key]], "options": options}
        # Each load creates a new collection, so the key names one job.
        headers = {"Idempotency-Key": f"{collection}/{key}"} if self._has_idempotency_key else {}
        data = self._post("create", body, headers=headers, repeatable=self._has_idempotency_key)
        try:
            return str(data["jobId"])
        except (KeyError, TypeError) as error:
            raise ImportFailed(f"{key}: the server started no job: {data!r}"[:300]) from error

    def state(self, job: str) -> JobState:
        """Return the state of a job."""
        data = self._post("get_progress", {"jobId": job})
        name = str(data.get("state", "Unknown"))
        reasons = [data.get("reason"), *(file.get("reason") for file in data.get("details") or [])]
        return JobState(
            name=name,
            done=name == ("Uncommitted" if self._needs_commit else "Completed"),
            failed=name == "Failed",
            rows=int(data.get("importedRows") or data.get("totalRows") or 0),
            progress=int(data.get("progress") or 0),
            reason="; ".join(dict.fromkeys(filter(None, reasons))),
        )

    def states(self, collection: str) -> list[str]:
        """Return the states of all jobs of a collection that the server remembers."""
        data = self._post("list", {"collectionName": collection})
        return [str(record.get("state", "Unknown")) for record in data.get("records") or []]

    def commit(self, jobs: Sequence[str]) -> None:
        """Make the rows visible; a commit may be repeated."""
        for job in jobs if self._needs_commit else ():
            self._post("commit", {"jobId": job})

    def abort(self, jobs: Sequence[str]) -> None:
        """Cancel jobs; rows of committed jobs remain until the collection is dropped."""
        for job in jobs if self._needs_commit else ():
            try:
                self._post("abort", {"jobId": job})
            except (IndexRefused, IndexUnreachable):
                continue

    def _post(
        self,
        action: str,
        body: dict[str, Any],
        *,
        headers: dict[str, str] | None = None,
        repeatable: bool = True,
    ) -> dict[str, Any]:
        where = f"{action} of an import at {self._client.base_url}"
        for attempt in range(_ATTEMPTS if repeatable else 1):
            try:
                response = self._client.post(
                    _ROOT + action, json=body | self._database_field(), headers=headers or {}
                )
            except httpx2.TransportError as lost:
                last_error = f"{type(lost).__name__} at attempt {attempt + 1}"
                continue
            return _data(response, where)
        raise IndexUnreachable(
            f"{where}: no answer ({last_error})", remedy="Check that the server runs: `clvr doctor`."
        )

    def _database_field(self) -> dict[str, str]:
        return {"dbName": self._database} if self._database else {}


def _data(response: httpx2.Response, where: str) -> dict[str, Any]:
    """Return the data of a response. The code in its body decides: the HTTP status of most errors is 200."""
    if response.status_code in (401, 403):
        raise IndexRefused(f"{where}: not permitted", remedy=_PRIVILEGE_REMEDY)
    if response.status_code == 404:
        raise IndexRefused(
            f"{where}: this server has no such interface", remedy="Load with --target stream_insert."
        )
    try:
        body = response.json()
        code = int(body["code"])
    except (ValueError, KeyError, TypeError):
        raise IndexUnreachable(
            f"{where}: HTTP {response.status_code}, and the response is not that of Milvus"
        ) from None
    if code in (0, 200):  # 200 on 2.3
        return dict(body.get("data") or {})
    message = str(body.get("message", "")).splitlines()
    remedy = _PRIVILEGE_REMEDY if code in _DENIED else ""
    raise IndexRefused(f"{where}: {message[0][:300] if message else ''} (code {code})", remedy=remedy)
