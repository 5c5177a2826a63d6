"""The local stack: SeaweedFS, Milvus and a Ray head that outlive the command which starts them.

All of it lives in one folder. `stack.json` there remembers each process by pid and start time, so that a
later command finds them, starts only what is missing, and ends nothing that is not its own.
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
from infra.servers.milvus import MilvusPlace, MilvusServer
from infra.servers.network import PrivateNetwork
from infra.servers.ray_head import RayHead
from infra.servers.remembered import Remembered, end_all, marked, session_of
from infra.servers.seaweedfs import SeaweedFs, remove_sockets

BUCKETS = ("archive", "clvr")
"""Crops are put into the first. The second holds runs and what Milvus keeps: so bulk import needs no copy."""

PARTS = ("seaweedfs", "milvus", "ray")
Health = Literal["serving", "not answering", "ended", "not started"]
Say = Callable[[str], object]

_RAY_GRACE = 10.0


@dataclass(frozen=True, slots=True)
class Standing:
    """One server of the stack: `since` is when it began, ISO 8601, UTC."""

    name: str
    health: Health
    address: str
    pid: int
    since: str
    log: str


@dataclass(slots=True)
class _State:
    """What stack.json says."""

    mark: str
    processes: dict[str, Remembered] = field(default_factory=dict)
    seaweedfs_ports: dict[str, int] | None = None
    milvus: MilvusPlace | None = None
    ray_ports: dict[str, int] | None = None


class Stack:
    """The stack of one folder. Two commands at once on one folder: the second is refused."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    @property
    def env_file(self) -> Path:
        """Shell lines that point every verb at this stack. It holds secrets, so only its owner reads it."""
        return self.folder / "env"

    def up(
        self, parts: tuple[str, ...] = PARTS, *, cpus: int | None = None, say: Say = lambda line: None
    ) -> list[Standing]:
        """Start what is not running, wait until it serves, and write the environment file.

        Raises Locked if another command is at work here, BadSetting if a program is not installed,
        StoreUnreachable, IndexUnreachable, RayHeadFailed if a server does not come up; what did stays up.
        """
        with self._alone():
            state = self._read() or _State(secrets.token_hex(8))
            self._save(state)  # the mark first: whatever kills us, `down` finds what we started
            try:
                if "seaweedfs" in parts or "milvus" in parts:
                    storage = self._seaweedfs(state, say)
                    if "milvus" in parts:
                        self._milvus(state, storage, say)
                if "ray" in parts:
                    self._ray(state, cpus, say)
            finally:
                self._write_env(state)
        return self.status()

    def status(self) -> list[Standing]:
        """Say of each server whether it runs and answers."""
        state = self._read() or _State("")
        return [self._standing(state, name) for name in PARTS]

    def down(self, *, purge: bool = False, say: Say = lambda line: None) -> int:
        """End every process of this stack, and none else; return how many there were. Data stays.

        purge: remove the folder too. Raises BadInput if the folder holds no stack.
        """
        with self._alone():
            state = self._read()
            if state is None:
                raise BadInput(f"there is no stack in {self.folder}", remedy="start one: clvr stack up")
            found = self._members(state)
            if head := state.processes.get("ray"):
                say("ending Ray")
                head.end(grace=_RAY_GRACE)
            for name in ("milvus", "gateway", "seaweedfs"):
                if process := state.processes.get(name):
                    say(f"ending {name}")
                    process.end()
            end_all(found | self._members(state))  # what they left, and what a killed `up` had not noted yet
            self._clean(state)
            if purge:
                shutil.rmtree(self.folder)
        return len(found)

    def environment(self) -> dict[str, str]:
        """Return the variables for clients of what has been started here, secrets among them."""
        return self._environment(self._read() or _State(""))

    def _seaweedfs(self, state: _State, say: Say) -> SeaweedFs:
        folder = self.folder / "seaweedfs"
        if self._runs(state, "seaweedfs") and state.seaweedfs_ports is not None:
            storage = SeaweedFs.found(folder, state.seaweedfs_ports, mark=state.mark)
            if storage.answers():
                say(f"SeaweedFS runs at {storage.endpoint}")
                return storage
        say("starting SeaweedFS")
        # Milvus and its gateway rest on this server: they are no use without it, and start again after it.
        for name in ("milvus", "gateway", "seaweedfs"):
            if process := state.processes.pop(name, None):
                process.end()
        keys = _known_keys(folder)
        storage = SeaweedFs.start(
            folder, access_key=keys[0], secret_key=keys[1], ports=state.seaweedfs_ports, mark=state.mark
        )
        state.seaweedfs_ports = storage.named_ports
        self._remember(state, "seaweedfs", storage.pids[0])
        for bucket in BUCKETS:
            storage.create_bucket(bucket)
        say(f"SeaweedFS serves at {storage.endpoint}")
        return storage

    def _milvus(self, state: _State, storage: SeaweedFs, say: Say) -> None:
        place = state.milvus
        gateway_lives = place is None or not place.gateway_port or self._runs(state, "gateway")
        if place and self._runs(state, "milvus") and gateway_lives and place.answers():
            say(f"Milvus runs at {place.uri}")
            return
        say("starting Milvus")
        for name in ("milvus", "gateway"):
            if process := state.processes.pop(name, None):
                process.end()
        if place is not None:  # a new gateway gets a new port
            place = MilvusPlace(place.ports, place.network)
        server = MilvusServer.start(
            self.folder / "milvus", storage=storage, bucket=BUCKETS[1], place=place, mark=state.mark
        )
        state.milvus = server.place
        self._remember(state, "milvus", server.pid)
        if server.network is not None:
            self._remember(state, "gateway", storage.pids[-1])
        say(f"Milvus serves at {server.uri}")

    def _ray(self, state: _State, cpus: int | None, say: Say) -> None:
        folder = self.folder / "ray"
        if state.ray_ports and self._runs(state, "ray"):
            head = RayHead(folder, state.ray_ports)
            if head.answers():
                say(f"Ray runs at {head.address}")
                return
        say("starting Ray")
        if process := state.processes.pop("ray", None):
            process.end(grace=_RAY_GRACE)
        head = RayHead.start(
            folder, environment=self._environment(state), ports=state.ray_ports, cpus=cpus, mark=state.mark
        )
        state.ray_ports = head.ports
        self._remember(state, "ray", head.pid)
        say(f"Ray serves at {head.address}, its dashboard at {head.dashboard}")

    def _standing(self, state: _State, name: str) -> Standing:
        process, answers, address, log = state.processes.get(name), False, "", ""
        if name == "seaweedfs" and state.seaweedfs_ports:
            storage = SeaweedFs.found(self.folder / name, state.seaweedfs_ports, mark=state.mark)
            answers, address, log = storage.answers(), storage.endpoint, str(storage.folder / "seaweedfs.log")
        elif name == "milvus" and state.milvus:
            answers, address = state.milvus.answers(), state.milvus.uri
            log = str(self.folder / name / "milvus.log")
        elif name == "ray" and state.ray_ports:
            head = RayHead(self.folder / name, state.ray_ports)
            answers, address, log = head.answers(), head.address, str(head.log)
        if process is None:
            return Standing(name, "not started", "", 0, "", log)
        if not process.running:
            return Standing(name, "ended", address, process.pid, "", log)
        since = datetime.fromtimestamp(process.since, UTC).isoformat(timespec="seconds")
        return Standing(name, "serving" if answers else "not answering", address, process.pid, since, log)

    def _environment(self, state: _State) -> dict[str, str]:
        values: dict[str, str] = {}
        if state.seaweedfs_ports:
            storage = SeaweedFs.found(self.folder / "seaweedfs", state.seaweedfs_ports, mark=state.mark)
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

    def _members(self, state: _State) -> set[Remembered]:
        members = set(marked(state.mark))
        for leader in state.processes.values():
            members.update(session_of(leader))
        return members

    def _runs(self, state: _State, name: str) -> bool:
        return name in state.processes and state.processes[name].running

    def _remember(self, state: _State, name: str, pid: int) -> None:
        state.processes[name] = Remembered.of(pid)
        self._save(state)

    def _save(self, state: _State) -> None:
        _write_private(self.folder / "stack.json", json.dumps(asdict(state), indent=2))

    def _read(self) -> _State | None:
        try:
            content = json.loads((self.folder / "stack.json").read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise BadInput(f"{self.folder / 'stack.json'} cannot be read: {error}") from error
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
    def _alone(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        # Beside the folder's own contents, and not inherited by servers: they would hold the lock for ever.
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Locked(f"another `clvr stack` is at work in {self.folder}") from None
            yield
        finally:
            os.close(handle)


def _known_keys(folder: Path) -> tuple[str | None, str | None]:
    from infra.servers.seaweedfs import read_keys

    with suppress(FileNotFoundError):
        return read_keys(folder)[0]
    return None, None


def _state_of(content: dict[str, Any]) -> _State:
    place = content["milvus"]
    return _State(
        content["mark"],
        {name: Remembered(**process) for name, process in content["processes"].items()},
        content["seaweedfs_ports"],
        MilvusPlace(
            place["ports"],
            PrivateNetwork(**place["network"]) if place["network"] else None,
            place["gateway_port"],
        )
        if place
        else None,
        content["ray_ports"],
    )


def _write_private(path: Path, text: str) -> None:
    work = path.with_name(f".{path.name}.{os.getpid()}")
    work.unlink(missing_ok=True)
    with os.fdopen(os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    work.replace(path)
