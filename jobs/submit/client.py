"""The jobs of a Ray cluster: submit, list, follow and stop them through its dashboard; their logs."""

import asyncio
import json
import logging
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infra.errors import BadSetting, ClusterError, JobMissing, RayDenied, RayUnreachable
from infra.settings import Settings

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

STOPPED_EXIT_CODE = 130
"""Exit code of a stopped job, the same as of a command that is interrupted at a terminal."""

_FINAL_STATES = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
_MAX_RECONNECTS = 20
_EXIT_CODE = re.compile(r"exit code (\d+)")
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


@dataclass(frozen=True, slots=True)
class Job:
    """A submitted job. `exit_code` is None while it runs; times are in ms since the epoch."""

    job: str
    status: str
    entrypoint: str
    exit_code: int | None
    message: str
    started: int | None
    finished: int | None
    metadata: dict[str, str]
    runtime_env: dict[str, Any] = field(repr=False, default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """Whether the job succeeded, failed or was stopped."""
        return self.status in _FINAL_STATES


class JobCluster:
    """The client of a cluster's jobs. Every method raises RayUnreachable and RayDenied."""

    def __init__(self, settings: Settings) -> None:
        if settings.jobs_ca is not None and not settings.jobs_ca.exists():
            raise BadSetting(f"jobs_ca: there is no file {settings.jobs_ca}")
        address = settings.jobs_url or os.environ.get("RAY_API_SERVER_ADDRESS")
        if not address or not address.startswith(("http://", "https://")):
            raise BadSetting(
                f"jobs_url is {address or 'not set'}: no address that accepts jobs",
                remedy="Set CLVR_JOBS_URL, or give --jobs-url http(s)://HEAD:8265: the cluster's dashboard.",
            )
        self.address = address
        token = settings.jobs_token
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        with self._translated_errors(), _without_ray_addresses():
            from ray.job_submission import JobSubmissionClient

            for noisy in (
                "dashboard.modules.job.sdk",
                "dashboard.modules.dashboard_sdk",
                "_private.runtime_env",
            ):
                logging.getLogger(f"ray.{noisy}").setLevel(logging.WARNING)
            self._client: JobSubmissionClient = JobSubmissionClient(
                address, headers=headers, verify=str(settings.jobs_ca) if settings.jobs_ca else True
            )

    def submit(self, job: str, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> str:
        """Start a command as a job, and return the job's name."""
        with self._translated_errors(job):
            return str(
                self._client.submit_job(
                    entrypoint=entrypoint, submission_id=job, runtime_env=runtime_env, metadata=metadata
                )
            )

    def list(self) -> "list[Job]":
        """Return the submitted jobs, newest first."""
        with self._translated_errors():
            jobs = [_job_of(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(jobs, key=lambda job: job.started or 0, reverse=True)

    def find(self, job: str) -> Job:
        """Return one job. Raises JobMissing."""
        with self._translated_errors(job):
            return _job_of(self._client.get_job_info(job))

    def logs(self, job: str) -> str:
        """Return the log of a job so far. Raises JobMissing."""
        with self._translated_errors(job):
            return str(self._client.get_job_logs(job))

    def stop(self, job: str) -> bool:
        """Ask a job to stop; return False if it had already finished. Raises JobMissing."""
        with self._translated_errors(job):
            return bool(self._client.stop_job(job))

    def follow(self, job: str, on_text: Callable[[str], None]) -> Job:
        """Pass on the log of a job until the job finishes; a lost connection continues where it was.

        Raises JobMissing.
        """
        passed_on, reconnects = 0, 0
        while True:
            state = self.find(job)
            if state.is_finished:
                # The log may have grown between the last piece and the end of the job.
                if rest := self.logs(job)[passed_on:]:
                    on_text(rest)
                return state
            if state.status == "PENDING":
                time.sleep(0.2)
                continue
            try:
                position = 0  # each connection sends the log from its first line
                for text in self._tail(job):
                    new_text, reconnects = text[max(0, passed_on - position) :], 0
                    position += len(text)
                    if position > passed_on:
                        on_text(new_text)
                        passed_on = position
                time.sleep(0.2)  # the log ends a moment before the job is marked as finished
            except (OSError, RuntimeError):
                reconnects += 1
                if reconnects > _MAX_RECONNECTS:
                    raise RayUnreachable(
                        f"the connection to {self.address} was lost {reconnects} times in a row",
                        remedy=f"The job may still run: clvr jobs show {job}",
                    ) from None
                time.sleep(min(5.0, 0.5 * reconnects))

    def _tail(self, job: str) -> Iterator[str]:
        """Yield pieces of the log as they arrive."""
        loop = asyncio.new_event_loop()
        pieces: AsyncIterator[str] = self._client.tail_job_logs(job)
        try:
            while True:
                try:
                    yield loop.run_until_complete(anext(pieces))
                except StopAsyncIteration:
                    return
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    @contextmanager
    def _translated_errors(self, job: str = "") -> Iterator[None]:
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise RayDenied(
                f"the cluster at {self.address} does not accept the token, or needs one",
                remedy="Set CLVR_JOBS_TOKEN, or RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH as on its head.",
            ) from error
        except OSError as error:
            # Those of Ray's HTTP client name no file; an error of a local file does.
            if error.filename is not None:
                raise
            raise RayUnreachable(
                f"no Ray cluster responds at {self.address} ({type(error).__name__})",
                remedy="Check the address (that of the dashboard), the port, and jobs_ca if it is https.",
            ) from error
        except RuntimeError as error:
            text = str(error)
            # Ray's client raises "Request failed with status code 404: ..."; a job's id may contain digits.
            match = re.search(r"status code (\d+)", text)
            status = int(match[1]) if match else None
            if job and (status == 404 or "does not exist" in text):
                raise JobMissing(
                    f"the cluster at {self.address} has no job {job}", remedy="clvr jobs list names them."
                ) from error
            if status in (401, 403):
                raise RayDenied(f"the cluster at {self.address} denied access: {_shortened(text)}") from error
            raise ClusterError(
                f"the cluster at {self.address} reported an error: {_shortened(text)}"
            ) from error


def exit_code_of(job: Job) -> int:
    """Return the exit code that the job's command would have at a terminal."""
    if job.status == "SUCCEEDED":
        return 0
    if job.status == "STOPPED":
        return STOPPED_EXIT_CODE
    code = job.exit_code or 1
    return code if code > 0 else 128 - code  # a signal


def _job_of(details: "JobDetails") -> Job:
    code = details.driver_exit_code
    if code is None and (match := _EXIT_CODE.search(details.message or "")):
        code = int(match[1])
    return Job(
        job=str(details.submission_id),
        status=str(getattr(details.status, "value", details.status)),
        entrypoint=details.entrypoint,
        exit_code=code,
        message=(details.message or "").strip(),
        started=details.start_time,
        finished=details.end_time,
        metadata=dict(details.metadata or {}),
        runtime_env=dict(details.runtime_env or {}),
    )


def _shortened(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return " ".join((lines[0], *lines[-1:]) if len(lines) > 1 else lines)[:400]


_environment_lock = threading.Lock()


@contextmanager
def _without_ray_addresses() -> Iterator[None]:
    """Remove the variables that Ray's client prefers to the address that it is given."""
    with _environment_lock:
        removed = {name: os.environ.pop(name) for name in _ADDRESS_VARIABLES if name in os.environ}
        try:
            yield
        finally:
            os.environ.update(removed)


class LogPrinter:
    """Collects pieces of a log, and passes on its complete lines."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._incomplete = ""

    def __call__(self, piece: str) -> None:
        """Add the next piece."""
        *lines, self._incomplete = (self._incomplete + piece).split("\n")
        for line in lines:
            self._on_line(format_log_line(line))

    def end(self) -> None:
        """Pass on the last line if it has no line end."""
        if self._incomplete:
            self._on_line(format_log_line(self._incomplete))
        self._incomplete = ""


def format_log_line(line: str) -> str:
    """Return the message of a structured line; any other line unchanged."""
    if not line.startswith("{"):
        return line
    try:
        record = json.loads(line)
        text = f"{record['time'][11:19]} {record['message']}"
        if record.get("level") == "error":  # as the same command prints it at a terminal
            text = f"error: {record['message']}"
            text += f"\nremedy: {record['remedy']}" if record.get("remedy") else ""
        return text
    except (ValueError, KeyError, TypeError):
        return line
