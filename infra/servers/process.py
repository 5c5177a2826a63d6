"""Server processes: start one, find it again after its parent has ended, and end it."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import httpx2

from infra.errors import BadSetting

# Clear of Ray's worker ports (10002-19999) and, with the 10000 that SeaweedFS adds for gRPC, of Linux's
# ephemeral ports (32768 and up).
_PORTS = range(20_000, 22_768)
GRPC_OFFSET = 10_000
# This environment variable of a process names the stack that it belongs to.
OWNER_TAG_VARIABLE = "CLVR_STACK"


class ServerProcess:
    """A child process. The kernel kills it with the thread that started it, unless it has an `owner_tag`.

    A tagged process outlives its parent; its environment holds the tag, and its children inherit it.
    Standard output and error are appended to `log`. With `prepare` the command must first read one line:
    `prepare` is called with the process id, and the line is sent when it returns.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        folder: Path,
        environment: Mapping[str, str],
        prepare: Callable[[int], None] | None = None,
        owner_tag: str = "",
    ) -> None:
        self.log = log
        guard = None if owner_tag else shutil.which("setpriv")
        guarded = [guard, "--pdeathsig", "KILL", *command] if guard else list(command)
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                guarded,
                cwd=folder,
                env=dict(environment) | ({OWNER_TAG_VARIABLE: owner_tag} if owner_tag else {}),
                stdin=subprocess.DEVNULL if prepare is None else subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C must not reach servers, which end in a fixed order
            )
        if prepare is not None:
            self._release(prepare)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the process still runs."""
        return self._child.poll() is None

    def wait_until(self, ready: Callable[[], bool], *, seconds: float) -> bool:
        """Wait until `ready`; False if the process ends or the time runs out first."""
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            if ready():
                return True
            time.sleep(0.05)
        return False

    def kill(self) -> None:
        """End it with SIGKILL and wait until it is gone."""
        self._child.kill()
        self._child.wait()

    def log_tail(self, lines: int = 3) -> str:
        """Return the end of the log in one line, for error messages."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return " | ".join(text.strip().splitlines()[-lines:])[-600:]

    def _release(self, prepare: Callable[[int], None]) -> None:
        try:
            prepare(self._child.pid)
            if self._child.stdin is not None:
                self._child.stdin.write(b"go\n")
                self._child.stdin.close()
        except BaseException:
            self.kill()
            raise


@dataclass(frozen=True, slots=True)
class ProcessHandle:
    """Identifies one process of one boot; a later process with the same pid does not match.

    A later command finds and ends the process by it.
    """

    pid: int
    started: int  # clock ticks since boot
    boot: str

    @classmethod
    def of(cls, pid: int) -> "ProcessHandle":
        """Return the handle of a running process. Raises ProcessLookupError if there is none."""
        started = _started(pid)
        if started is None:
            raise ProcessLookupError(pid)
        return cls(pid, started, _boot())

    @property
    def running(self) -> bool:
        """Whether the process still runs. A zombie does not."""
        return self.boot == _boot() and _started(self.pid) == self.started

    @property
    def since(self) -> float:
        """Start time in seconds since 1970."""
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - uptime + self.started / os.sysconf("SC_CLK_TCK")

    def end(self, *, grace: float = 0.0) -> None:
        """Send SIGTERM and wait `grace` seconds, if any, then send SIGKILL. Does nothing if it has ended."""
        if grace and self._send(signal.SIGTERM) and self._wait_ended(grace):
            return
        self._send(signal.SIGKILL)
        self._wait_ended(10.0)

    def _send(self, number: signal.Signals) -> bool:
        # The descriptor refers to the process itself: its pid cannot be reused between check and signal.
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(self.pid)
            try:
                if self.running:
                    signal.pidfd_send_signal(handle, number)
                    return True
            finally:
                os.close(handle)
        return False

    def _wait_ended(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            _reap(self.pid)
            time.sleep(0.02)
        return not self.running


def processes_with_tag(owner_tag: str) -> list[ProcessHandle]:
    """Return the running processes that have a stack's tag, except the current one."""
    line = f"{OWNER_TAG_VARIABLE}={owner_tag}".encode()
    processes = []
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        with suppress(OSError):  # it ended meanwhile, or belongs to another user
            if pid != os.getpid() and line in (folder / "environ").read_bytes().split(b"\0"):
                processes.append(ProcessHandle.of(pid))
    return processes


def processes_in_session(leader: ProcessHandle) -> list[ProcessHandle]:
    """Return the running processes of the session that a process started, even if it has ended itself.

    Some programs overwrite their environment, and the tag with it, by their title; the session remains. The
    kernel does not reuse the number of a session that has members.
    """
    processes = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader.pid and int(fields[19]) >= leader.started and leader.boot == _boot():
                processes.append(ProcessHandle.of(int(folder.name)))
    return processes


def end_all(processes: Iterable[ProcessHandle]) -> None:
    """End processes by SIGKILL."""
    for process in processes:
        process.end()


def program(name: str) -> str:
    """Return the path of a program in this Python environment or in PATH. Raises BadSetting."""
    in_environment = Path(sys.executable).parent / name
    path = str(in_environment) if in_environment.exists() else shutil.which(name)
    if path is None:
        raise BadSetting(
            f"the program {name!r} is not installed", remedy="Run: pip install 'clvr-archive[stack]'"
        )
    return path


def free_ports(count: int) -> list[int]:
    """Return ports p of the loopback for which p and p + 10000 are free now."""
    chosen: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        if _is_free(port) and _is_free(port + GRPC_OFFSET):
            chosen.append(port)
            if len(chosen) == count:
                return chosen
    raise BadSetting(
        f"no {count} free ports in {_PORTS.start}-{_PORTS.stop - 1}",
        remedy="End servers that are no longer needed.",
    )


def answers(url: str, *, good: int = 200, containing: bytes = b"") -> bool:
    """Whether a GET returns this status and a body with these bytes within 2 s. Uses no proxy."""
    try:
        response = _client().get(url)
    except httpx2.HTTPError:
        return False
    return response.status_code == good and containing in response.content


def are_ports_free(ports: Iterable[int]) -> bool:
    """Whether no process listens on these ports p, or on p + 10000, of the loopback now."""
    pairs = [port + offset for port in ports for offset in (0, GRPC_OFFSET)]
    return all(_is_free(port, reuse=True) for port in pairs)


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _started(pid: int) -> int | None:
    try:
        # The program's name, in parentheses, may contain blanks and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@cache
def _client() -> httpx2.Client:
    # Servers are on this machine: ignore the environment's proxies. Without keep-alive no connection
    # outlives its server.
    return httpx2.Client(trust_env=False, timeout=2.0, limits=httpx2.Limits(max_keepalive_connections=0))


def _is_free(port: int, *, reuse: bool = False) -> bool:
    with socket.socket() as probe:
        if reuse:  # connections of the port's last server may linger for a minute
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
