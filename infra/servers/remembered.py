"""A process that outlives the one that started it: remembered by pid and start time, found again, ended."""

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from infra.servers.process import MARK


@dataclass(frozen=True, slots=True)
class Remembered:
    """One process since one boot of this machine; a later process with the same pid is not it."""

    pid: int
    started: int  # clock ticks since boot
    boot: str

    @classmethod
    def of(cls, pid: int) -> "Remembered":
        """Return what tells a running process from all others. Raises ProcessLookupError if it is gone."""
        started = _started(pid)
        if started is None:
            raise ProcessLookupError(pid)
        return cls(pid, started, _boot())

    @property
    def running(self) -> bool:
        """Whether it still runs. One that has ended and waits for its parent's look does not."""
        return self.boot == _boot() and _started(self.pid) == self.started

    @property
    def since(self) -> float:
        """When it began, in seconds since 1970."""
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - uptime + self.started / os.sysconf("SC_CLK_TCK")

    def end(self, *, grace: float = 0.0) -> None:
        """End it: politely for `grace` seconds, then by SIGKILL. Nothing happens if it is gone."""
        if grace and self._send(signal.SIGTERM) and self._gone(grace):
            return
        self._send(signal.SIGKILL)
        self._gone(10.0)

    def _send(self, what: signal.Signals) -> bool:
        # The descriptor holds on to the process, so no other one can get the pid between look and signal.
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(self.pid)
            try:
                if self.running:
                    signal.pidfd_send_signal(handle, what)
                    return True
            finally:
                os.close(handle)
        return False

    def _gone(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.running and time.monotonic() < deadline:
            _reap(self.pid)
            time.sleep(0.02)
        return not self.running


def marked(mark: str) -> list[Remembered]:
    """Return the running processes that carry a stack's mark, ours excepted."""
    line = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        with suppress(OSError):  # gone meanwhile, or somebody else's
            if pid != os.getpid() and line in (folder / "environ").read_bytes().split(b"\0"):
                found.append(Remembered.of(pid))
    return found


def session_of(leader: Remembered) -> list[Remembered]:
    """Return the running processes of the session that a process led, whether or not it still runs itself.

    Some programs write their title over their environment, and the mark with it; a session cannot be left
    unseen. The kernel gives its number to nobody else as long as it has a member.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader.pid and int(fields[19]) >= leader.started and leader.boot == _boot():
                found.append(Remembered.of(int(folder.name)))
    return found


def end_all(processes: Iterable[Remembered]) -> None:
    """End processes by SIGKILL."""
    for process in processes:
        process.end()


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _started(pid: int) -> int | None:
    try:
        # The program's name, in parentheses, may hold blanks and parentheses itself.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
