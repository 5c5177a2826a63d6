"""The head of a Ray cluster on the loopback: Ray's own program, ended by its pid and never by `ray stop`."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from infra.errors import ClvrError
from infra.servers.process import ServerProcess, answers, are_free, free_ports, program
from infra.servers.remembered import Remembered, end_all, session_of

_START_SECONDS = 90.0
_ATTEMPTS = 2  # Ray itself gives up after 30 s, which a busy machine may take
_LISTENERS = {
    "gcs": "--port",
    "dashboard": "--dashboard-port",
    "agent": "--dashboard-agent-listen-port",
    "agentGrpc": "--dashboard-agent-grpc-port",
    "metrics": "--metrics-export-port",
    "nodeManager": "--node-manager-port",
    "objectManager": "--object-manager-port",
    "runtimeEnv": "--runtime-env-agent-port",
    "client": "--ray-client-server-port",
}
# A socket's path has at most 107 bytes, and Ray puts up to 64 behind its folder.
_FOLDER_LIMIT = 40
_SHORT = Path("/tmp")  # noqa: S108  what we put there has a name of its own and mode 0700


class RayHeadFailed(ClvrError):
    """The head of the Ray cluster did not come up."""


class RayHead:
    """A Ray head of one node with a dashboard, which Ray Jobs need, behind a generated token."""

    def __init__(self, folder: Path, ports: dict[str, int]) -> None:
        self.folder = folder
        self.ports = ports
        # Ray lets everybody write into its folder: so it gets one below a folder that is ours alone.
        self.session = (folder if len(str(folder)) <= _FOLDER_LIMIT else _short_folder(folder)) / "s"
        self._process: ServerProcess | None = None

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        environment: Mapping[str, str],
        ports: dict[str, int] | None = None,
        cpus: int | None = None,
        object_store_bytes: int = 1 << 30,
        mark: str = "",
    ) -> Self:
        """Start it and wait until it answers, about 12 s.

        environment: what jobs shall find in theirs, such as the storage's credentials: workers inherit the
        head's. ports: those it had before; taken if they are still free. mark: see ServerProcess.
        Raises RayHeadFailed with the end of its log.
        """
        if ports is None or not are_free(ports.values()):
            ports = dict(zip(_LISTENERS, free_ports(len(_LISTENERS)), strict=True))
        head = cls(folder.resolve(), ports)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _own_folder(folder)
        _own_folder(head.session.parent)
        if head.session.parent != head.folder:
            _sweep()
            (head.session.parent / "of").write_text(str(head.folder))
        head._write_token()
        command = head._command(cpus, object_store_bytes)
        clients = _bare_environment() | dict(environment) | head.environment(address=False)
        for _ in range(_ATTEMPTS):
            process = head._process = ServerProcess(
                command, log=head.log, folder=folder, environment=clients, mark=mark
            )
            leader = Remembered.of(process.pid)
            if process.wait_until(head.answers, seconds=_START_SECONDS):
                return head
            words = process.last_words()
            process.kill()
            end_all(session_of(leader))
        raise RayHeadFailed(f"Ray did not start in {folder}: {words}", remedy=f"Read {head.log}.")

    @property
    def address(self) -> str:
        """What `ray.init` and --ray take, such as 127.0.0.1:20123."""
        return f"127.0.0.1:{self.ports['gcs']}"

    @property
    def dashboard(self) -> str:
        """The URL of the dashboard and of Ray Jobs."""
        return f"http://127.0.0.1:{self.ports['dashboard']}"

    @property
    def log(self) -> Path:
        """What the program says; Ray's many logs are in `session`."""
        return self.folder / "head.log"

    @property
    def token_file(self) -> Path:
        """The file that holds the token which every client must show."""
        return self.folder / "token"

    @property
    def pid(self) -> int:
        """Its process id, 0 if this object did not start it."""
        return self._process.pid if self._process else 0

    def answers(self) -> bool:
        """Whether the cluster and its node say that they are well. These questions need no token."""
        node = f"http://127.0.0.1:{self.ports['agent']}/api/local_raylet_healthz"
        cluster = f"{self.dashboard}/api/gcs_healthz"
        return answers(cluster, containing=b"success") and answers(node, containing=b"success")

    def environment(self, *, address: bool = True) -> dict[str, str]:
        """The variables for clients. The token itself stays in its file."""
        values = {
            # Without it Ray takes 127.0.0.1 for "any address" and listens on all of them.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        if address:
            values |= {"RAY_ADDRESS": self.address, "RAY_API_SERVER_ADDRESS": self.dashboard}
        return values

    def _command(self, cpus: int | None, object_store_bytes: int) -> list[str]:
        return [
            program("ray"),
            *("start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=true"),
            *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"),
            *(f"{flag}={self.ports[name]}" for name, flag in _LISTENERS.items()),
            f"--temp-dir={self.session}",
            f"--object-store-memory={object_store_bytes}",
            *([f"--num-cpus={cpus}"] if cpus else []),
        ]

    def _write_token(self) -> None:
        if not self.token_file.exists():
            self.token_file.touch(mode=0o600)
            self.token_file.write_text(secrets.token_hex(32))


def _bare_environment() -> dict[str, str]:
    # What our caller has set for other clusters and other storage must not reach this one's workers.
    foreign = ("AWS_", "CLVR_", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH", "RAY_JOB")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def _own_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise RayHeadFailed(f"{folder} belongs to somebody else", remedy="Choose another --folder.")


def _short_folder(folder: Path) -> Path:
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    return _SHORT / f"clvr-ray-{digest}"


def _sweep() -> None:
    """Remove the short folders of heads whose own folder is gone."""
    for owner in _SHORT.glob("clvr-ray-*/of"):
        with suppress(OSError):  # somebody else's, or just being removed
            if owner.stat().st_uid == os.geteuid() and not Path(owner.read_text()).exists():
                shutil.rmtree(owner.parent)
