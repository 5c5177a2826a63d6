"""Bulk imports: a file is one job of the server's; several run at once; each ends or is said to be stuck."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from index.milvus.client import Milvus
from infra.errors import ImportFailed, IndexUnreachable

MAX_CONCURRENT_IMPORTS = 8
"""Jobs in the server's hands at a time."""

GRPC_AT_ONCE = 1
"""2.3 runs one after the other anyway; one that waits when the server dies is 'Started' for ever after."""

ABANDONED_SECONDS = 60.0
"""How long an abandoned import may show the same state before nobody waits for it any more."""

STUCK_SECONDS = 300.0
"""How long a job may show the same state and progress before it counts as stuck."""

_POLL = 0.5
_RETRY_REMEDY = "Load again: what is half there is dropped first."


@dataclass(frozen=True, slots=True)
class ImportFile:
    """One Parquet file for the server: its key in the server's bucket, and the rows that it must bring."""

    key: str
    rows: int


@dataclass(frozen=True, slots=True)
class JobState:
    """What the server says of one job; `done` jobs hold their rows ready, `progress` is in percent."""

    name: str
    done: bool
    failed: bool
    rows: int
    progress: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """How far the imports of one load are: the rows of finished jobs, and the running jobs.

    `jobs` counts the running ones by state, in lower case; `percent` is their mean progress.
    """

    rows_done: int
    jobs: Counter[str]
    percent: float = 0.0


class Importer(Protocol):
    """One of the server's interfaces for imports."""

    def start(self, collection: str, key: str) -> str:
        """Start the import of one file and return the job's id."""

    def state(self, job: str) -> JobState:
        """Return what the server says of a job."""

    def commit(self, jobs: Sequence[str]) -> None:
        """Make the rows of finished jobs visible, where the server waits for that."""

    def abort(self, jobs: Sequence[str]) -> None:
        """Give up jobs that are not committed, where the server can."""


class GrpcImporter:
    """`do_bulk_insert` of Milvus 2.3: no commit, no abort; finished rows are visible by themselves."""

    def __init__(self, milvus: Milvus) -> None:
        self._milvus = milvus

    def start(self, collection: str, key: str) -> str:
        """Start the import of one file and return the task's number."""
        return str(self._milvus.bulk_insert(collection, key))

    def state(self, job: str) -> JobState:
        """Return what the server says of a task."""
        said = self._milvus.bulk_insert_state(int(job))
        name = str(said.state_name)
        return JobState(
            name=name,
            done=name == "Completed",
            failed=name.startswith("Failed"),
            rows=int(said.row_count),
            progress=int(getattr(said, "progress", 0) or 0),
            reason=str(said.failed_reason or ""),
        )

    def commit(self, jobs: Sequence[str]) -> None:
        """Do nothing: there is no such step."""

    def abort(self, jobs: Sequence[str]) -> None:
        """Do nothing: the generation is dropped."""


def wait_for_orphaned_jobs(milvus: Milvus, collection: str) -> None:
    """Wait until a server of 2.3 is done with imports that nobody waits for, or has stood still for long.

    A collection that is dropped under a running import leaves the data node "busy", and then no import of
    anybody begins (seen on 2.3.5, for as long as we looked: four and a half minutes).
    """
    seen: object = None
    since = time.monotonic()
    while True:
        states = [
            (one.task_id, one.state_name, one.infos.get("progress_percent"))
            for one in milvus.bulk_inserts(collection)
        ]
        if all(name == "Completed" or name.startswith("Failed") for _, name, _ in states):
            return
        if states != seen:
            seen, since = states, time.monotonic()
        if time.monotonic() - since > ABANDONED_SECONDS:
            return
        time.sleep(_POLL)


@dataclass(slots=True)
class _Running:
    file: ImportFile
    job: str
    last: JobState | None = None
    since: float = 0.0


def import_files(
    importer: Importer,
    collection: str,
    files: Iterator[ImportFile],
    on_progress: Callable[[ImportProgress], None] = lambda progress: None,
    at_once: int = MAX_CONCURRENT_IMPORTS,
) -> int:
    """Import files, at most `at_once` at a time, commit them all in the end, and return the rows.

    files: taken only when there is room for one more, so that files can be made ready one by one.
    on_progress: called after each poll of the jobs.
    Raises ImportFailed: with the server's reason for a job that failed, as stuck for one that stands still,
    for another number of rows than the file has, and if the server is lost, for then the outcome is unknown.
    """
    running: list[_Running] = []
    finished: list[str] = []
    rows = 0
    try:
        while True:
            while len(running) < at_once and (file := next(files, None)) is not None:
                running.append(_Running(file, importer.start(collection, file.key), since=time.monotonic()))
            if not running:
                break
            for one in list(running):
                state = _poll(importer, one)
                if state.done:
                    running.remove(one)
                    finished.append(one.job)
                    rows += state.rows
            on_progress(_progress(rows, running))
            if running:
                time.sleep(_POLL)
        importer.commit(finished)
    except IndexUnreachable as lost:
        raise ImportFailed(
            f"{collection}: Milvus was lost during the import, so its outcome is unknown: {lost.message}",
            remedy=_RETRY_REMEDY,
        ) from lost
    except BaseException:
        importer.abort([*finished, *(one.job for one in running)])
        raise
    return rows


def _poll(importer: Importer, one: _Running) -> JobState:
    state = importer.state(one.job)
    if state.failed:
        raise ImportFailed(
            f"{one.file.key}: the server says: {state.reason or state.name}",
            remedy="Repair the cause, then load again.",
        )
    if state.done and state.rows != one.file.rows:
        raise ImportFailed(f"{one.file.key}: {state.rows:,} of {one.file.rows:,} rows were imported")
    if one.last is None or (state.name, state.progress) != (one.last.name, one.last.progress):
        one.since = time.monotonic()
    one.last = state
    still = time.monotonic() - one.since
    if not state.done and still > STUCK_SECONDS:
        raise ImportFailed(
            f"{one.file.key}: job {one.job} is stuck: {state.name} at {state.progress} % for {still:,.0f} s",
            remedy=f"It did not fail; look at the server's data nodes and its log. {_RETRY_REMEDY}",
        )
    return state


def _progress(rows_done: int, running: Sequence[_Running]) -> ImportProgress:
    states = [one.last for one in running if one.last]
    percent = sum(state.progress for state in states) / len(states) if states else 0.0
    return ImportProgress(rows_done, Counter(state.name.lower() for state in states), percent)
