"""The head of a Ray cluster on the loopback, started by `ray start` and ended by its pid.

`ray stop` is never used: it ends every Ray on the machine.
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from infra.errors import ClvrError
from infra.servers.process import (
    ProcessHandle,
    ServerProcess,
    answers,
    are_ports_free,
    end_all,
    free_ports,
    processes_in_session,
    program,
)

_START_SECONDS = 90.0
_ATTEMPTS = 2  # Ray gives up after 30 s, which a busy machine may need
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
# A socket's path has at most 107 bytes, and Ray appends up to 64 to its folder.
_FOLDER_LIMIT = 40
_SHORT = Path("/tmp")  # noqa: S108  the folders have unique names and mode 0700


class RayHeadFailed(ClvrError):
    """The head of the Ray cluster did not start."""


class RayHead:
    """A Ray head of one node with a dashboard, which Ray Jobs need; a generated token protects it."""

    def __init__(self, folder: Path, ports: dict[str, int]) -> None:
        self.folder = folder
        self.ports = ports
        # Every user may write into Ray's folder, so it is below a folder that only its owner may enter.
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
        owner_tag: str = "",
    ) -> Self:
        """Start a head and wait until it answers, about 12 s.

        environment: variables for jobs, such as the storage's credentials; workers inherit the head's
        environment. ports: those of an earlier start; used again if they are free. owner_tag: see
        ServerProcess.
        Raises RayHeadFailed with the end of its log.
        """
        if ports is None or not are_ports_free(ports.values()):
            ports = dict(zip(_LISTENERS, free_ports(len(_LISTENERS)), strict=True))
        head = cls(folder.resolve(), ports)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _make_private_folder(folder)
        _make_private_folder(head.session.parent)
        if head.session.parent != head.folder:
            _remove_stale_sessions()
            (head.session.parent / "of").write_text(str(head.folder))
        head._write_token()
        command = head._command(cpus, object_store_bytes)
        clients = _without_other_clusters() | dict(environment) | head.environment(address=False)
        for _ in range(_ATTEMPTS):
            process = head._process = ServerProcess(
                command, log=head.log, folder=folder, environment=clients, owner_tag=owner_tag
            )
            leader = ProcessHandle.of(process.pid)
            if process.wait_until(head.answers, seconds=_START_SECONDS):
                return head
            log_tail = process.log_tail()
            process.kill()
            end_all(processes_in_session(leader))
        raise RayHeadFailed(f"Ray did not start in {folder}: {log_tail}", remedy=f"Read {head.log}.")

    @property
    def address(self) -> str:
        """The address for `ray.init` and --ray, such as 127.0.0.1:20123."""
        return f"127.0.0.1:{self.ports['gcs']}"

    @property
    def dashboard(self) -> str:
        """The URL of the dashboard and of Ray Jobs."""
        return f"http://127.0.0.1:{self.ports['dashboard']}"

    @property
    def log(self) -> Path:
        """The output of `ray start`; Ray's other logs are in `session`."""
        return self.folder / "head.log"

    @property
    def token_file(self) -> Path:
        """The file with the token that every client must send."""
        return self.folder / "token"

    @property
    def pid(self) -> int:
        """The process id, 0 if this object did not start the process."""
        return self._process.pid if self._process else 0

    def answers(self) -> bool:
        """Whether the cluster and its node report that they are healthy. No token is needed."""
        node = f"http://127.0.0.1:{self.ports['agent']}/api/local_raylet_healthz"
        cluster = f"{self.dashboard}/api/gcs_healthz"
        return answers(cluster, containing=b"success") and answers(node, containing=b"success")

    def environment(self, *, address: bool = True) -> dict[str, str]:
        """The variables for clients. The token remains in its file."""
        values = {
            # Without it Ray treats 127.0.0.1 as "any address" and listens on all interfaces.
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


def _without_other_clusters() -> dict[str, str]:
    # Variables for other clusters and other storage must not reach this cluster's workers.
    foreign = ("AWS_", "CLVR_", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH", "RAY_JOB")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def _make_private_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise RayHeadFailed(f"{folder} belongs to another user", remedy="Choose another --folder.")


def _short_folder(folder: Path) -> Path:
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    return _SHORT / f"clvr-ray-{digest}"


def _remove_stale_sessions() -> None:
    """Remove the short folders of heads whose own folder is gone."""
    for owner in _SHORT.glob("clvr-ray-*/of"):
        with suppress(OSError):  # owned by another user, or removed concurrently
            if owner.stat().st_uid == os.geteuid() and not Path(owner.read_text()).exists():
                shutil.rmtree(owner.parent)
