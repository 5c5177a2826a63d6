"""Bulk import by Milvus' REST interface v2, for servers from 2.4 on.

Written from the documented interface (`/v2/vectordb/jobs/import/…` at milvus.io) and tested against a fake of
it: no such server could be had here, so this is untested on a real one.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import httpx2

from index.milvus.bulk_import import JobState
from index.milvus.client import Milvus
from infra.errors import ImportFailed, IndexRefused, IndexUnreachable

JOB_TIMEOUT = "7200s"
"""How long the server keeps a job that does not end, as a Go duration."""

_ROOT = "/v2/vectordb/jobs/import/"
_DENIED = (1800, 65535)  # wrong credentials; older servers say 'unexpected error' for them
_ATTEMPTS = 3


class RestImporter:
    """One request a file, so that the files spread over the server's data nodes.

    From 3.0 on jobs wait for a commit, so that either all files of a load become visible or none does. A
    request whose answer was lost is sent again only where an Idempotency-Key protects from a second job.
    """

    def __init__(self, milvus: Milvus) -> None:
        version = milvus.capabilities.version_tuple
        self._two_phases = version >= (3, 0, 0)
        self._keyed = (2, 6, 24) <= version < (3, 0, 0) or version >= (3, 0, 2)
        self._database = milvus.database
        self._client = milvus.rest_client()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def start(self, collection: str, key: str) -> str:
        """Create the job for one file of the server's bucket and return its id."""
        options = {"timeout": JOB_TIMEOUT}
        if self._two_phases:
            options["auto_commit"] = "false"
        body = {"collectionName": collection, "files": [[key]], "options": options}
        # The collection is new with every load, so the key is good for one job.
        headers = {"Idempotency-Key": f"{collection}/{key}"} if self._keyed else {}
        said = self._post("create", body, headers=headers, repeatable=self._keyed)
        try:
            return str(said["jobId"])
        except (KeyError, TypeError) as error:
            raise ImportFailed(f"{key}: the server began no job: {said!r}"[:300]) from error

    def state(self, job: str) -> JobState:
        """Return what the server says of a job."""
        said = self._post("get_progress", {"jobId": job})
        name = str(said.get("state", "Unknown"))
        reasons = [said.get("reason"), *(file.get("reason") for file in said.get("details") or [])]
        return JobState(
            name=name,
            done=name == ("Uncommitted" if self._two_phases else "Completed"),
            failed=name == "Failed",
            rows=int(said.get("importedRows") or said.get("totalRows") or 0),
            progress=int(said.get("progress") or 0),
            reason="; ".join(dict.fromkeys(filter(None, reasons))),
        )

    def states(self, collection: str) -> list[str]:
        """Return the state of each job of a collection that the server remembers."""
        said = self._post("list", {"collectionName": collection})
        return [str(record.get("state", "Unknown")) for record in said.get("records") or []]

    def commit(self, jobs: Sequence[str]) -> None:
        """Make the rows visible; the server repeats a commit without harm."""
        for job in jobs if self._two_phases else ():
            self._post("commit", {"jobId": job})

    def abort(self, jobs: Sequence[str]) -> None:
        """Give up jobs; what a job that is committed already brought goes with the collection."""
        for job in jobs if self._two_phases else ():
            try:
                self._post("abort", {"jobId": job})
            except (IndexRefused, IndexUnreachable):
                continue

    def _post(
        self,
        verb: str,
        body: dict[str, Any],
        *,
        headers: dict[str, str] | None = None,
        repeatable: bool = True,
    ) -> dict[str, Any]:
        where = f"{verb} of an import at {self._client.base_url}"
        for attempt in range(_ATTEMPTS if repeatable else 1):
            try:
                answer = self._client.post(
                    _ROOT + verb, json=body | self._database_field(), headers=headers or {}
                )
            except httpx2.TransportError as lost:
                last = f"{type(lost).__name__} at attempt {attempt + 1}"
                continue
            return _data(answer, where)
        raise IndexUnreachable(f"{where}: no answer ({last})", remedy="Look whether the server runs.")

    def _database_field(self) -> dict[str, str]:
        return {"dbName": self._database} if self._database else {}


def _data(answer: httpx2.Response, where: str) -> dict[str, Any]:
    """Return the data of an answer: the code in its body decides, the HTTP status is 200 for errors too."""
    if answer.status_code in (401, 403):
        raise IndexRefused(f"{where}: not permitted", remedy="Ask for a token with the privilege Import.")
    if answer.status_code == 404:
        raise IndexRefused(f"{where}: this server has no such interface", remedy="Choose stream_insert.")
    try:
        said = answer.json()
        code = int(said["code"])
    except (ValueError, KeyError, TypeError):
        raise IndexUnreachable(f"{where}: HTTP {answer.status_code}, and no answer of Milvus") from None
    if code in (0, 200):  # 200 on 2.3
        return dict(said.get("data") or {})
    message = str(said.get("message", "")).splitlines()
    remedy = "Ask for a token with the privilege Import." if code in _DENIED else ""
    raise IndexRefused(f"{where}: {message[0][:300] if message else ''} (code {code})", remedy=remedy)
