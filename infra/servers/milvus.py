"""A real Milvus 2.3.5 server on this machine, from the PyPI package `milvus` (Linux, x86_64).

Its binary is started directly, for the package's own wrapper ignores wrong-typed settings and cannot end it
reliably. It listens on every interface and knows no other way, so it gets a network namespace of its own
where root and iproute2 are at hand; elsewhere it demands a generated password, and says so.
"""

import importlib.util
import lzma
import os
import secrets
import shutil
import time
import warnings
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from infra.errors import BadSetting, IndexUnreachable
from infra.servers.network import PrivateNetwork
from infra.servers.process import ServerProcess, answers, are_free, free_ports
from infra.servers.seaweedfs import SeaweedFs

VERSION = "2.3.5"

_START_SECONDS = 90.0
_LISTENERS = ("proxy", "rootCoord", "queryCoord", "queryNode", "indexNode", "dataCoord", "dataNode")
_FACTORY_TOKEN = "root:Milvus"  # noqa: S105  the same on every Milvus; we change it at once


@dataclass(frozen=True, slots=True)
class MilvusPlace:
    """Where a server listens: its ports, its network if it has one, and the storage's gateway into that."""

    ports: dict[str, int]
    network: PrivateNetwork | None
    gateway_port: int = 0

    @classmethod
    def choose(cls, *, isolate: bool = True) -> "MilvusPlace":
        """Choose ports and, where it can be had, a network that nobody uses."""
        names = (*_LISTENERS, "proxyInternal", "indexCoord", "etcd", "etcdPeer", "metrics")
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        return cls(ports, PrivateNetwork.choose() if isolate else None)

    def is_free(self) -> bool:
        """Whether nobody has taken this place in the meantime."""
        return self.network.is_free() if self.network else are_free(self.ports.values())

    @property
    def host(self) -> str:
        """The server's address."""
        return self.network.inside if self.network else "127.0.0.1"

    @property
    def uri(self) -> str:
        """The URL for clients, such as http://198.18.3.2:20123."""
        return f"http://{self.host}:{self.ports['proxy']}"

    def token(self, folder: Path) -> str:
        """The token for clients; the first call makes up the password of a server without its own network."""
        return "" if self.network else f"root:{_password(folder)}"

    def answers(self) -> bool:
        """Whether a server here says that it is well."""
        return answers(f"http://{self.host}:{self.ports['metrics']}/healthz")


class MilvusServer:
    """A standalone Milvus whose metadata lives in `folder` and whose data lives in a bucket of `storage`.

    `uri` and `token` are what MilvusClient wants. With storage, bulk import reads keys of `bucket`.
    Without storage everything lives in the folder.
    """

    def __init__(
        self,
        folder: Path,
        storage: SeaweedFs | None,
        bucket: str,
        place: MilvusPlace,
        *,
        mark: str = "",
    ) -> None:
        self.folder = folder
        self.storage = storage
        self.bucket = bucket if storage else ""
        self.network = place.network
        self.host = place.host
        self._gateway_port = place.gateway_port
        self._ports = place.ports
        self._mark = mark
        self.token = place.token(folder)
        self._process: ServerProcess | None = None

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        storage: SeaweedFs | None = None,
        bucket: str = "milvus",
        isolate: bool = True,
        place: MilvusPlace | None = None,
        mark: str = "",
    ) -> Self:
        """Start it and wait until it serves, about 3 s; the first start on a machine unpacks it, 6 s more.

        `isolate=False` asks for the generated password even where a network of its own could be had.
        place: where it was before; taken again if it is free. mark: see ServerProcess.

        Raises BadSetting if the package is not installed, IndexUnreachable if the server does not come up.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if place is None or not place.is_free():
            place = MilvusPlace.choose(isolate=isolate)
        server = cls(folder.resolve(), storage, bucket, place, mark=mark)
        if storage is not None:
            storage.create_bucket(bucket)
        server.restart()
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def uri(self) -> str:
        """The URL for clients, such as http://198.18.3.2:20123."""
        return self.place.uri

    @property
    def place(self) -> MilvusPlace:
        """Where it listens, to be found again there."""
        return MilvusPlace(self._ports, self.network, self._gateway_port)

    @property
    def pid(self) -> int:
        """Its process id, 0 if it does not run."""
        return self._process.pid if self._process else 0

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.folder / "milvus.log"

    def restart(self) -> None:
        """Start it again after `kill`, with the same data, at the same address. Loading may fail for 40 s."""
        self.stop()
        self._write_settings()
        programs = _unpacked()
        command = [str(programs / "milvus"), "run", "standalone"]
        self._process = ServerProcess(
            self.network.wrap(command) if self.network else command,
            log=self.log,
            folder=self.folder,
            environment={
                "PATH": os.environ.get("PATH", ""),
                "HOME": str(self.folder),
                "LD_LIBRARY_PATH": str(programs),
                "DEPLOY_MODE": "STANDALONE",
                "METRICS_PORT": str(self._ports["metrics"]),
                "MILVUS_RUN_DIR": str(self.folder / "run"),
                "MILVUSCONF": str(self.folder / "configs"),
            },
            prepare=self._connect if self.network else None,
            mark=self._mark,
        )
        ready = self.place.answers
        if not self._process.wait_until(lambda: ready() and self._serves(), seconds=_START_SECONDS):
            words = self._process.last_words()
            self.stop()
            raise IndexUnreachable(
                f"Milvus did not start in {self.folder}: {words}", remedy=f"Read {self.log}."
            )

        if self.network is None:
            warnings.warn(
                f"Milvus at {self.uri} listens on all interfaces, protected by a generated password only: "
                "no root or no iproute2 here to give it a network of its own",
                stacklevel=2,
            )

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would. `restart` brings it back."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def stop(self) -> None:
        """End it: by SIGKILL too, for SIGTERM can hang when storage is remote. The folder stays."""
        self.kill()

    def _connect(self, pid: int) -> None:
        assert self.network is not None  # noqa: S101
        try:
            self.network.connect(pid)
        except OSError as refused:
            raise IndexUnreachable(
                f"no network for Milvus: {refused}", remedy="Start it with isolate=False."
            ) from refused
        if self.storage is not None and not self._gateway_port:
            # The namespace cannot see our loopback: SeaweedFS must answer at our end of the pair as well.
            self._gateway_port = self.storage.serve_also_at(self.network.host)
            self._write_settings()

    def _serves(self) -> bool:
        import grpc  # type: ignore[import-untyped]
        from pymilvus import MilvusClient, MilvusException

        password = self.token.partition(":")[2]
        try:
            if password and not self._password_set.exists():
                with closing(MilvusClient(self.uri, token=_FACTORY_TOKEN, timeout=5)) as client:
                    client.update_password("root", _FACTORY_TOKEN.partition(":")[2], password)
                self._password_set.touch()
            with closing(MilvusClient(self.uri, token=self.token, timeout=5)) as client:
                client.list_collections()
        except (MilvusException, grpc.RpcError):  # a refused password comes as the latter
            time.sleep(0.2)
            return False
        return True

    @property
    def _password_set(self) -> Path:
        return self.folder / "password-is-set"

    def _write_settings(self) -> None:
        configs = self.folder / "configs"
        configs.mkdir(exist_ok=True)
        (configs / "milvus.yaml").touch(mode=0o600)  # it holds the storage's keys
        (configs / "milvus.yaml").write_text(yaml.safe_dump(self._settings()))
        (configs / "etcd.yaml").write_text(yaml.safe_dump(self._etcd()))
        shutil.copy(_package() / "glog.conf", configs / "glog.conf")

    def _settings(self) -> dict[str, Any]:
        ports, data = self._ports, self.folder / "data"
        settings: dict[str, Any] = {name: {"port": ports[name]} for name in _LISTENERS}
        settings["proxy"]["internalPort"] = ports["proxyInternal"]
        settings["indexCoord"] = {"bindIndexNodeMode": {"address": f"localhost:{ports['indexCoord']}"}}
        settings |= {
            "etcd": {
                "endpoints": f"localhost:{ports['etcd']}",
                "use": {"embed": True},
                "config": {"path": str(self.folder / "configs" / "etcd.yaml")},
                "data": {"dir": str(data / "etcd")},
                "log": {"level": "warn", "path": str(self.folder / "etcd.log")},
            },
            "metastore": {"type": "etcd"},
            "mq": {"type": "rocksmq"},
            "rocksmq": {"path": str(data / "rocksmq"), "lrucacheratio": 0.06},
            "localStorage": {"path": str(data)},
            "log": {"level": "info", "file": {"rootPath": ""}},
            "common": {
                "storageType": "remote" if self.storage else "local",
                "security": {"authorizationEnabled": bool(self.token)},
            },
        }
        if self.storage is not None:
            settings["minio"] = self._minio(self.storage)
        return settings

    def _etcd(self) -> dict[str, Any]:
        # Left to itself the embedded etcd takes 2379 and 2380: then only one Milvus fits on a machine.
        client, peer = (f"http://127.0.0.1:{self._ports[name]}" for name in ("etcd", "etcdPeer"))
        return {
            "name": "default",
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
        }

    def _minio(self, storage: SeaweedFs) -> dict[str, Any]:
        if self.network is not None:
            address, port = self.network.host, self._gateway_port
        else:
            address, port = "127.0.0.1", int(storage.endpoint.rpartition(":")[2])
        return {
            "address": address,
            "port": port,
            "accessKeyID": storage.settings.access_key,
            "secretAccessKey": storage.settings.secret_key,
            "bucketName": self.bucket,
            "rootPath": "milvus",
            "useSSL": False,
            "cloudProvider": "aws",
            "region": storage.settings.region,
        }


def _password(folder: Path) -> str:
    path = folder / "password"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(24))
    return path.read_text()


def _package() -> Path:
    found = importlib.util.find_spec("milvus")
    if found is None or found.origin is None:
        raise BadSetting("the package 'milvus' is not installed", remedy="pip install 'clvr-archive[stack]'")
    return Path(found.origin).parent / "data"


def _unpacked() -> Path:
    """Return the folder with the unpacked binary and its libraries; unpack them once per machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clvr-archive"
    ready = cache / f"milvus-{VERSION}"
    if ready.is_dir():
        return ready
    work = cache / f".milvus-{os.getpid()}-{secrets.token_hex(4)}"
    work.mkdir(parents=True)
    for packed in sorted((_package() / "bin").glob("*.lzma")):
        target = work / packed.stem
        with lzma.open(packed) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        target.chmod(0o755)
    try:
        work.rename(ready)
    except OSError:  # another process was first
        shutil.rmtree(work)
    return ready
