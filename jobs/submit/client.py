"""The Ray Jobs of a cluster: asked, followed and stopped over its dashboard's address."""

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

STOPPED = 130
"""Exit code of a job that was stopped: like one that was interrupted at a terminal."""

_ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
_LOSSES = 20
_EXIT_CODE = re.compile(r"exit code (\d+)")
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


@dataclass(frozen=True, slots=True)
class Job:
    """One submitted job. `exit_code` is its command's, None while it is under way; times in ms, epoch."""

    job: str
    status: str
    entrypoint: str
    exit_code: int | None
    message: str
    started: int | None
    ended: int | None
    metadata: dict[str, str]
    runtime_env: dict[str, Any] = field(repr=False, default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether it has ended, however."""
        return self.status in _ENDED


class JobCluster:
    """A cluster that takes jobs. Every method raises RayUnreachable and RayDenied."""

    def __init__(self, settings: Settings) -> None:
        if settings.jobs_ca is not None and not settings.jobs_ca.exists():
            raise BadSetting(f"jobs_ca: there is no file {settings.jobs_ca}")
        address = settings.jobs_url or os.environ.get("RAY_API_SERVER_ADDRESS")
        if not address or not address.startswith(("http://", "https://")):
            raise BadSetting(
                f"jobs_url is {address or 'not set'}: no address that takes jobs",
                remedy="Set CLVR_JOBS_URL, or give --jobs-url http(s)://HEAD:8265: the cluster's dashboard.",
            )
        self.address = address
        token = settings.jobs_token
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        with self._translated(), _without_ray_addresses():
            from ray.job_submission import JobSubmissionClient

            for talkative in (
                "dashboard.modules.job.sdk",
                "dashboard.modules.dashboard_sdk",
                "_private.runtime_env",
            ):
                logging.getLogger(f"ray.{talkative}").setLevel(logging.WARNING)
            self._client: JobSubmissionClient = JobSubmissionClient(
                address, headers=headers, verify=str(settings.jobs_ca) if settings.jobs_ca else True
            )

    def submit(self, job: str, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> str:
        """Start a command as a job of this name, and return the name."""
        with self._translated(job):
            return str(
                self._client.submit_job(
                    entrypoint=entrypoint, submission_id=job, runtime_env=runtime_env, metadata=metadata
                )
            )

    def list(self) -> "list[Job]":
        """Return the jobs that were submitted, the newest first."""
        with self._translated():
            found = [_job(one) for one in self._client.list_jobs() if one.submission_id]
        return sorted(found, key=lambda one: one.started or 0, reverse=True)

    def find(self, job: str) -> Job:
        """Return one job. Raises JobMissing."""
        with self._translated(job):
            return _job(self._client.get_job_info(job))

    def logs(self, job: str) -> str:
        """Return what a job has said so far. Raises JobMissing."""
        with self._translated(job):
            return str(self._client.get_job_logs(job))

    def stop(self, job: str) -> bool:
        """Ask a job to end; False if it had ended before. Raises JobMissing."""
        with self._translated(job):
            return bool(self._client.stop_job(job))

    def follow(self, job: str, say: Callable[[str], None]) -> Job:
        """Pass on what a job says until it ends; a lost connection is taken up again where it was.

        Raises JobMissing.
        """
        said, lost = 0, 0
        while True:
            found = self.find(job)
            if found.over:
                # What came between the last piece and the end.
                if rest := self.logs(job)[said:]:
                    say(rest)
                return found
            if found.status == "PENDING":
                time.sleep(0.2)
                continue
            try:
                at = 0  # a log is always told from its first line
                for text in self._tail(job):
                    fresh, lost = text[max(0, said - at) :], 0
                    at += len(text)
                    if at > said:
                        say(fresh)
                        said = at
                time.sleep(0.2)  # the log ends a moment before the job is marked as ended
            except (OSError, RuntimeError):
                lost += 1
                if lost > _LOSSES:
                    raise RayUnreachable(
                        f"the connection to {self.address} is lost again and again",
                        remedy=f"The job may go on: clvr jobs show {job}",
                    ) from None
                time.sleep(min(5.0, 0.5 * lost))

    def _tail(self, job: str) -> Iterator[str]:
        """Yield pieces of the log as they come."""
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
    def _translated(self, job: str = "") -> Iterator[None]:
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise RayDenied(
                f"the cluster at {self.address} does not take our token, or we showed none",
                remedy="Set CLVR_JOBS_TOKEN, or RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH as on its head.",
            ) from error
        except OSError as error:
            # Those of Ray's HTTP client name no file; an error of a local file does.
            if error.filename is not None:
                raise
            raise RayUnreachable(
                f"no Ray cluster answers at {self.address} ({type(error).__name__})",
                remedy="Look at the address (the dashboard's), at the port, and at jobs_ca if it is https.",
            ) from error
        except RuntimeError as error:
            text = str(error)
            # Ray's client says "Request failed with status code 404: ..."; a job's id may hold any digits.
            said = re.search(r"status code (\d+)", text)
            status = int(said[1]) if said else None
            if job and (status == 404 or "does not exist" in text):
                raise JobMissing(
                    f"the cluster at {self.address} knows no job {job}", remedy="clvr jobs list names them."
                ) from error
            if status in (401, 403):
                raise RayDenied(f"the cluster at {self.address} refused us: {_short(text)}") from error
            raise ClusterError(f"the cluster at {self.address} refused: {_short(text)}") from error


def exit_code_of(found: Job) -> int:
    """What a terminal would have got from the job's command."""
    if found.status == "SUCCEEDED":
        return 0
    if found.status == "STOPPED":
        return STOPPED
    code = found.exit_code or 1
    return code if code > 0 else 128 - code  # ended by a signal


def _job(details: "JobDetails") -> Job:
    code = details.driver_exit_code
    if code is None and (said := _EXIT_CODE.search(details.message or "")):
        code = int(said[1])
    return Job(
        job=str(details.submission_id),
        status=str(getattr(details.status, "value", details.status)),
        entrypoint=details.entrypoint,
        exit_code=code,
        message=(details.message or "").strip(),
        started=details.start_time,
        ended=details.end_time,
        metadata=dict(details.metadata or {}),
        runtime_env=dict(details.runtime_env or {}),
    )


def _short(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return " ".join((lines[0], *lines[-1:]) if len(lines) > 1 else lines)[:400]


_environment = threading.Lock()


@contextmanager
def _without_ray_addresses() -> Iterator[None]:
    """Ray's client lets these variables win over the address that it is given."""
    with _environment:
        kept = {name: os.environ.pop(name) for name in _ADDRESS_VARIABLES if name in os.environ}
        try:
            yield
        finally:
            os.environ.update(kept)


class LogPrinter:
    """Takes pieces of a log as they come, and says its lines when they are whole."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._rest = ""

    def __call__(self, piece: str) -> None:
        """Take the next piece."""
        *lines, self._rest = (self._rest + piece).split("\n")
        for line in lines:
            self._say(format_log_lines(line))

    def end(self) -> None:
        """Say a last line that nothing ended."""
        if self._rest:
            self._say(format_log_lines(self._rest))
        self._rest = ""


def format_log_lines(line: str) -> str:
    """Return the message of a structured line; any other line as it is."""
    if not line.startswith("{"):
        return line
    try:
        said = json.loads(line)
        text = f"{said['time'][11:19]} {said['message']}"
        if said.get("level") == "error":  # in the words of the same verb at a terminal
            text = f"error: {said['message']}"
            text += f"\nremedy: {said['remedy']}" if said.get("remedy") else ""
        return text
    except (ValueError, KeyError, TypeError):
        return line
