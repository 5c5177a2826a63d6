"""The local stack: SeaweedFS, Milvus and a Ray head that outlive the command that starts them.

Its data, logs and state are in one folder. `stack.json` records each process by pid and start time: a later
command finds the processes, starts the missing ones, and ends only those of this stack.
"""

import fcntl
import json
import os
import secrets
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from infra.errors import BadInput, Locked
from infra.servers.milvus import MilvusEndpoint, MilvusServer
from infra.servers.netns import NetworkNamespace
from infra.servers.process import ProcessHandle, end_all, processes_in_session, processes_with_tag
from infra.servers.ray_head import RayHead
from infra.servers.seaweedfs import SeaweedFs, remove_sockets

BUCKETS = ("archive", "clvr")
"""The first is for crops. The second holds runs and the data of Milvus, so bulk import needs no copy."""

PARTS = ("seaweedfs", "milvus", "ray")
Health = Literal["serving", "not answering", "ended", "not started"]
Log = Callable[[str], object]

_RAY_GRACE = 10.0


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """The status of one server of the stack: `since` is its start time, ISO 8601, UTC."""

    name: str
    health: Health
    address: str
    pid: int
    since: str
    log: str


@dataclass(slots=True)
class _State:
    """The contents of stack.json."""

    owner_tag: str
    processes: dict[str, ProcessHandle] = field(default_factory=dict)
    seaweedfs_ports: dict[str, int] | None = None
    milvus: MilvusEndpoint | None = None
    ray_ports: dict[str, int] | None = None


class Stack:
    """The stack of one folder. A second concurrent command on one folder raises Locked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    @property
    def env_file(self) -> Path:
        """Shell lines that point every command at this stack. They hold secrets: mode 600."""
        return self.folder / "env"

    def up(
        self, parts: tuple[str, ...] = PARTS, *, cpus: int | None = None, log: Log = lambda line: None
    ) -> list[ServerStatus]:
        """Start the servers that do not run, wait until they serve, and write the environment file.

        Raises Locked during another command on this folder, BadSetting if a program is not installed, and
        StoreUnreachable, IndexUnreachable or RayHeadFailed if a server does not start; the others keep
        running.
        """
        with self._exclusive():
            state = self._read() or _State(secrets.token_hex(8))
            self._save(state)  # the tag first: if this command is killed, `down` finds its processes
            try:
                if "seaweedfs" in parts or "milvus" in parts:
                    storage = self._seaweedfs(state, log)
                    if "milvus" in parts:
                        self._milvus(state, storage, log)
                if "ray" in parts:
                    self._ray(state, cpus, log)
            finally:
                self._write_env(state)
        return self.status()

    def status(self) -> list[ServerStatus]:
        """Return the status of each server."""
        state = self._read() or _State("")
        return [self._server_status(state, name) for name in PARTS]

    def down(self, *, purge: bool = False, log: Log = lambda line: None) -> int:
        """End every process of this stack and no other; return their number. Data remain.

        purge: remove the folder too. Raises BadInput for a folder without a stack.
        """
        with self._exclusive():
            state = self._read()
            if state is None:
                raise BadInput(f"there is no stack in {self.folder}", remedy="Start one: clvr stack up")
            members = self._members(state)
            if head := state.processes.get("ray"):
                log("ending Ray")
                head.end(grace=_RAY_GRACE)
            for name in ("milvus", "gateway", "seaweedfs"):
                if process := state.processes.get(name):
                    log(f"ending {name}")
                    process.end()
            end_all(members | self._members(state))  # their children, and those a killed `up` did not record
            self._clean(state)
            if purge:
                shutil.rmtree(self.folder)
        return len(members)

    def environment(self) -> dict[str, str]:
        """Return the variables for clients of the servers that have been started, with their secrets."""
        return self._environment(self._read() or _State(""))

    def _seaweedfs(self, state: _State, log: Log) -> SeaweedFs:
        folder = self.folder / "seaweedfs"
        if self._runs(state, "seaweedfs") and state.seaweedfs_ports is not None:
            storage = SeaweedFs.attach(folder, state.seaweedfs_ports, owner_tag=state.owner_tag)
            if storage.answers():
                log(f"SeaweedFS runs at {storage.endpoint}")
                return storage
        log("starting SeaweedFS")
        # Milvus and its gateway depend on this server, so they start again after it.
        for name in ("milvus", "gateway", "seaweedfs"):
            if process := state.processes.pop(name, None):
                process.end()
        keys = _known_keys(folder)
        storage = SeaweedFs.start(
            folder,
            access_key=keys[0],
            secret_key=keys[1],
            ports=state.seaweedfs_ports,
            owner_tag=state.owner_tag,
        )
        state.seaweedfs_ports = storage.named_ports
        self._record_process(state, "seaweedfs", storage.pids[0])
        for bucket in BUCKETS:
            storage.create_bucket(bucket)
        log(f"SeaweedFS serves at {storage.endpoint}")
        return storage

    def _milvus(self, state: _State, storage: SeaweedFs, log: Log) -> None:
        endpoint = state.milvus
        gateway_runs = endpoint is None or not endpoint.gateway_port or self._runs(state, "gateway")
        if endpoint and self._runs(state, "milvus") and gateway_runs and endpoint.answers():
            log(f"Milvus runs at {endpoint.uri}")
            return
        log("starting Milvus")
        for name in ("milvus", "gateway"):
            if process := state.processes.pop(name, None):
                process.end()
        if endpoint is not None:  # a new gateway gets a new port
            endpoint = MilvusEndpoint(endpoint.ports, endpoint.network)
        server = MilvusServer.start(
            self.folder / "milvus",
            storage=storage,
            bucket=BUCKETS[1],
            endpoint=endpoint,
            owner_tag=state.owner_tag,
        )
        state.milvus = server.endpoint
        self._record_process(state, "milvus", server.pid)
        if server.network is not None:
            self._record_process(state, "gateway", storage.pids[-1])
        log(f"Milvus serves at {server.uri}")

    def _ray(self, state: _State, cpus: int | None, log: Log) -> None:
        folder = self.folder / "ray"
        if state.ray_ports and self._runs(state, "ray"):
            head = RayHead(folder, state.ray_ports)
            if head.answers():
                log(f"Ray runs at {head.address}")
                return
        log("starting Ray")
        if process := state.processes.pop("ray", None):
            process.end(grace=_RAY_GRACE)
        head = RayHead.start(
            folder,
            environment=self._environment(state),
            ports=state.ray_ports,
            cpus=cpus,
            owner_tag=state.owner_tag,
        )
        state.ray_ports = head.ports
        self._record_process(state, "ray", head.pid)
        log(f"Ray serves at {head.address}, its dashboard at {head.dashboard}")

    def _server_status(self, state: _State, name: str) -> ServerStatus:
        process, answers, address, log = state.processes.get(name), False, "", ""
        if name == "seaweedfs" and state.seaweedfs_ports:
            storage = SeaweedFs.attach(self.folder / name, state.seaweedfs_ports, owner_tag=state.owner_tag)
            answers, address, log = storage.answers(), storage.endpoint, str(storage.folder / "seaweedfs.log")
        elif name == "milvus" and state.milvus:
            answers, address = state.milvus.answers(), state.milvus.uri
            log = str(self.folder / name / "milvus.log")
        elif name == "ray" and state.ray_ports:
            head = RayHead(self.folder / name, state.ray_ports)
            answers, address, log = head.answers(), head.address, str(head.log)
        if process is None:
            return ServerStatus(name, "not started", "", 0, "", log)
        if not process.running:
            return ServerStatus(name, "ended", address, process.pid, "", log)
        since = datetime.fromtimestamp(process.since, UTC).isoformat(timespec="seconds")
        return ServerStatus(name, "serving" if answers else "not answering", address, process.pid, since, log)

    def _environment(self, state: _State) -> dict[str, str]:
        values: dict[str, str] = {}
        if state.seaweedfs_ports:
            storage = SeaweedFs.attach(
                self.folder / "seaweedfs", state.seaweedfs_ports, owner_tag=state.owner_tag
            )
            values |= storage.environment | {"CLVR_RUNS": f"s3://{BUCKETS[1]}/runs"}
        if state.milvus:
            values |= {"CLVR_MILVUS": state.milvus.uri, "CLVR_MILVUS_BUCKET": f"s3://{BUCKETS[1]}"}
            if token := state.milvus.token(self.folder / "milvus"):
                values["CLVR_MILVUS_TOKEN"] = token
        if state.ray_ports:
            values |= RayHead(self.folder / "ray", state.ray_ports).environment()
        return values

    def _write_env(self, state: _State) -> None:
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in self._environment(state).items()]
        _write_private(self.env_file, "".join(lines))

    def _members(self, state: _State) -> set[ProcessHandle]:
        members = set(processes_with_tag(state.owner_tag))
        for leader in state.processes.values():
            members.update(processes_in_session(leader))
        return members

    def _runs(self, state: _State, name: str) -> bool:
        return name in state.processes and state.processes[name].running

    def _record_process(self, state: _State, name: str, pid: int) -> None:
        state.processes[name] = ProcessHandle.of(pid)
        self._save(state)

    def _save(self, state: _State) -> None:
        _write_private(self.folder / "stack.json", json.dumps(_document_of(state), indent=2))

    def _read(self) -> _State | None:
        try:
            content = json.loads((self.folder / "stack.json").read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise BadInput(
                f"{self.folder / 'stack.json'} cannot be read: {error}",
                remedy="Remove the file; processes of the stack, if any, must be ended by hand.",
            ) from error
        return _state_of(content)

    def _clean(self, state: _State) -> None:
        state.processes.clear()
        if state.seaweedfs_ports:
            remove_sockets(state.seaweedfs_ports.values())
        if state.milvus and state.milvus.gateway_port:
            remove_sockets([state.milvus.gateway_port])
        if state.ray_ports:
            session = RayHead(self.folder / "ray", state.ray_ports).session
            shutil.rmtree(session, ignore_errors=True)  # sockets and the logs of old sessions
            if session.parent != self.folder / "ray":
                shutil.rmtree(session.parent, ignore_errors=True)
        self.env_file.unlink(missing_ok=True)
        self._save(state)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        # O_CLOEXEC: servers that inherit the descriptor would keep the lock while they run.
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Locked(
                    f"another `clvr stack` is at work in {self.folder}",
                    remedy="Wait until it ends: one command at a time.",
                ) from None
            yield
        finally:
            os.close(handle)


def _known_keys(folder: Path) -> tuple[str | None, str | None]:
    from infra.servers.seaweedfs import read_keys

    with suppress(FileNotFoundError):
        return read_keys(folder)[0]
    return None, None


def _document_of(state: _State) -> dict[str, Any]:
    document = asdict(state)
    return {"mark": document.pop("owner_tag"), **document}


def _state_of(content: dict[str, Any]) -> _State:
    endpoint = content["milvus"]
    return _State(
        content["mark"],
        {name: ProcessHandle(**process) for name, process in content["processes"].items()},
        content["seaweedfs_ports"],
        MilvusEndpoint(
            endpoint["ports"],
            NetworkNamespace(**endpoint["network"]) if endpoint["network"] else None,
            endpoint["gateway_port"],
        )
        if endpoint
        else None,
        content["ray_ports"],
    )


def _write_private(path: Path, text: str) -> None:
    work = path.with_name(f".{path.name}.{os.getpid()}")
    work.unlink(missing_ok=True)
    with os.fdopen(os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    work.replace(path)
