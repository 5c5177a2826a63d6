"""Bulk imports: each file is a job of the server, several run at a time, and a stalled job fails."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from index.milvus import waiting
from index.milvus.client import Milvus
from index.milvus.waiting import StallTimer
from infra.errors import ImportFailed, IndexUnreachable

MAX_CONCURRENT_IMPORTS = 8
"""Jobs that the server has at a time."""

MAX_CONCURRENT_GRPC_IMPORTS = 1
"""2.3 runs jobs one by one; a job that waits when the server dies stays 'Started' after its restart."""

JOB_STALL_SECONDS = 300.0
"""How long a job may show the same state and progress before it counts as stuck."""

_RETRY_REMEDY = "Load again: `clvr load` drops the incomplete generation first."


@dataclass(frozen=True, slots=True)
class ImportFile:
    """One Parquet file to import: its key in the server's bucket, and its number of rows."""

    key: str
    rows: int


@dataclass(frozen=True, slots=True)
class JobState:
    """The state of one job; `done`: all rows are imported. `progress` is in percent."""

    name: str
    done: bool
    failed: bool
    rows: int
    progress: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """The rows of finished jobs and the running jobs of one load.

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
        """Return the state of a job."""

    def commit(self, jobs: Sequence[str]) -> None:
        """Make the rows of finished jobs visible, if the server requires that."""

    def abort(self, jobs: Sequence[str]) -> None:
        """Cancel jobs that are not committed, if the server can."""


class GrpcImporter:
    """`do_bulk_insert` of Milvus 2.3, without commit and abort; the rows of a finished job are visible."""

    def __init__(self, milvus: Milvus) -> None:
        self._milvus = milvus

    def start(self, collection: str, key: str) -> str:
        """Start the import of one file and return the task's number."""
        return str(self._milvus.bulk_insert(collection, key))

    def state(self, job: str) -> JobState:
        """Return the state of a task."""
        task = self._milvus.bulk_insert_state(int(job))
        name = str(task.state_name)
        return JobState(
            name=name,
            done=name == "Completed",
            failed=name.startswith("Failed"),
            rows=int(task.row_count),
            progress=int(getattr(task, "progress", 0) or 0),
            reason=str(task.failed_reason or ""),
        )

    def commit(self, jobs: Sequence[str]) -> None:
        """Do nothing: 2.3 has no such step."""

    def abort(self, jobs: Sequence[str]) -> None:
        """Do nothing: the caller drops the generation."""


@dataclass(slots=True)
class _Job:
    file: ImportFile
    job_id: str
    state: JobState | None = None
    timer: StallTimer = field(default_factory=StallTimer)


def import_files(
    importer: Importer,
    collection: str,
    files: Iterator[ImportFile],
    on_progress: Callable[[ImportProgress], None] = lambda progress: None,
    max_concurrent: int = MAX_CONCURRENT_IMPORTS,
) -> int:
    """Import files, at most `max_concurrent` at a time, commit them at the end, and return the rows.

    files: consumed only when another job may start, so the caller can prepare files one by one.
    on_progress: called after each poll of the jobs.
    Raises ImportFailed for a job that failed, stalled, or imported another number of rows than its file has,
    and if the server is lost, because the outcome is then unknown.
    """
    running: list[_Job] = []
    finished: list[str] = []
    rows = 0
    try:
        while True:
            while len(running) < max_concurrent and (file := next(files, None)) is not None:
                running.append(_Job(file, importer.start(collection, file.key)))
            if not running:
                break
            for job in list(running):
                job.state = _poll(importer, job)
                if job.state.done:
                    running.remove(job)
                    finished.append(job.job_id)
                    rows += job.state.rows
            on_progress(_progress(rows, running))
            if running:
                time.sleep(waiting.POLL_SECONDS)
        importer.commit(finished)
    except IndexUnreachable as lost:
        raise ImportFailed(
            f"{collection}: Milvus was lost during the import, so its outcome is unknown: {lost.message}",
            remedy=_RETRY_REMEDY,
        ) from lost
    except BaseException:
        importer.abort([*finished, *(job.job_id for job in running)])
        raise
    return rows


def _poll(importer: Importer, job: _Job) -> JobState:
    """Return the state of a job. Raises ImportFailed if it failed, stalled or lost rows."""
    state = importer.state(job.job_id)
    if state.failed:
        raise ImportFailed(
            f"{job.file.key}: the server reports: {state.reason or state.name}",
            remedy="Repair the cause, then load again.",
        )
    if state.done and state.rows != job.file.rows:
        raise ImportFailed(f"{job.file.key}: {state.rows:,} of {job.file.rows:,} rows were imported")
    unchanged = job.timer.seconds_unchanged((state.name, state.progress))
    if not state.done and unchanged > JOB_STALL_SECONDS:
        raise ImportFailed(
            f"{job.file.key}: job {job.job_id} is stuck: {state.name} at {state.progress} % "
            f"for {unchanged:,.0f} s",
            remedy=f"It did not fail; look at the server's data nodes and its log. {_RETRY_REMEDY}",
        )
    return state


def _progress(rows_done: int, running: Sequence[_Job]) -> ImportProgress:
    states = [job.state for job in running if job.state]
    percent = sum(state.progress for state in states) / len(states) if states else 0.0
    return ImportProgress(rows_done, Counter(state.name.lower() for state in states), percent)
