"""Submitted jobs as text and as JSON, and the log of a job that is followed to its end."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import TypedDict

from index.documents import UtcTime
from jobs.runtime.format import iso_timestamp, text_table
from jobs.submit.client import Job, JobCluster, LogPrinter, exit_code_of, format_log_line


class JobFields(TypedDict):
    """A job; null is what it does not have. verb: its command. clvr: the release that submitted it."""

    job: str
    status: str
    exit_code: int | None
    command: str
    message: str
    started: UtcTime | None
    ended: UtcTime | None
    verb: str | None
    by: str | None
    clvr: str | None
    retry_of: str | None


class LogText(TypedDict):
    """The log of a job as one string."""

    job: str
    logs: str


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A job that the command does not wait for."""

    job: str


@dataclass(frozen=True, slots=True)
class StopRequest:
    """A job that was asked to stop. Not `stopping`: it had already ended."""

    job: str
    stopping: bool


@dataclass(frozen=True, slots=True)
class JobReport:
    """One job for people and for machines, without its runtime environment."""

    job: Job

    def to_json(self) -> JobFields:
        """Return the fields of the job; those that it does not have are None."""
        job = self.job
        return {
            "job": job.job,
            "status": job.status,
            "exit_code": exit_code_of(job) if job.is_finished else None,
            "command": job.entrypoint,
            "message": job.message,
            "started": iso_timestamp(job.started),
            "ended": iso_timestamp(job.finished),
            "verb": job.metadata.get("verb"),
            "by": job.metadata.get("by"),
            "clvr": job.metadata.get("clvr"),
            "retry_of": job.metadata.get("retry_of"),
        }

    def to_text(self) -> str:
        """Return the fields that the job has, one per line."""
        fields = {name: value for name, value in self.to_json().items() if value is not None}
        return "\n".join(f"{name:10} {value}" for name, value in fields.items())

    def to_row(self) -> tuple[str, ...]:
        """Return the columns of `JobTable` for this job."""
        job, fields = self.job, self.to_json()
        took = f"{(job.finished - job.started) / 1000:,.0f} s" if job.started and job.finished else ""
        code = "" if fields["exit_code"] is None else str(fields["exit_code"])
        return (job.job, job.status.lower(), code, fields["started"] or "", took, fields["by"] or "")


@dataclass(frozen=True, slots=True)
class JobTable:
    """The jobs of a cluster, in the order given."""

    jobs: Sequence[Job]

    def to_json(self) -> list[JobFields]:
        """Return the fields of every job."""
        return [JobReport(job).to_json() for job in self.jobs]

    def to_text(self) -> str:
        """Return a table with one line per job."""
        titles = ("job", "status", "code", "started", "took", "by")
        return text_table(titles, [JobReport(job).to_row() for job in self.jobs])


@dataclass(frozen=True, slots=True)
class FinishedJob:
    """A job after it ended, with the exit code of its command."""

    job: Job

    @property
    def exit_code(self) -> int:
        """The exit code that the command would have at a terminal."""
        return exit_code_of(self.job)

    def to_json(self) -> JobFields:
        """Return the fields of the job."""
        return JobReport(self.job).to_json()

    def to_text(self) -> str:
        """Return the status and the exit code on one line."""
        return f"job {self.job.job}: {self.job.status.lower()}, exit code {self.exit_code}"


@dataclass(frozen=True, slots=True)
class JobLog:
    """The log of a job up to now."""

    job: str
    log: str

    def to_json(self) -> LogText:
        """Return the job's name and its log as one string."""
        return {"job": self.job, "logs": self.log}

    def to_text(self) -> str:
        """Return the log; structured lines are shown as their messages."""
        return "\n".join(map(format_log_line, self.log.splitlines()))


def follow_to_end(cluster: JobCluster, job: str) -> FinishedJob:
    """Print the log of a job on stderr until the job ends. Raises JobMissing, RayUnreachable, RayDenied."""
    printer = LogPrinter(lambda line: print(line, file=sys.stderr, flush=True))
    finished = cluster.follow(job, printer)
    printer.end()
    return FinishedJob(finished)
