"""A real Milvus 2.3.5 server on this machine, from the PyPI package `milvus` (Linux, x86_64).

The binary is started directly: the package's wrapper ignores settings of a wrong type and cannot end the
server reliably. Milvus listens on every interface and has no setting for that. With root and iproute2 it
therefore runs in a network namespace; elsewhere a generated password protects it, with a warning.
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
from infra.servers.netns import NetworkNamespace
from infra.servers.process import ServerProcess, answers, are_ports_free, free_ports
from infra.servers.seaweedfs import SeaweedFs

VERSION = "2.3.5"

_START_SECONDS = 90.0
_LISTENERS = ("proxy", "rootCoord", "queryCoord", "queryNode", "indexNode", "dataCoord", "dataNode")
_DEFAULT_TOKEN = "root:Milvus"  # noqa: S105  the default of every Milvus; changed at the first start


@dataclass(frozen=True, slots=True)
class MilvusEndpoint:
    """Where a server listens.

    `network`: its namespace, None if it listens on the host. `gateway_port`: of the storage in the namespace.
    """

    ports: dict[str, int]
    network: NetworkNamespace | None
    gateway_port: int = 0

    @classmethod
    def choose(cls, *, isolate: bool = True) -> "MilvusEndpoint":
        """Choose unused ports and, if possible, an unused network namespace."""
        names = (*_LISTENERS, "proxyInternal", "indexCoord", "etcd", "etcdPeer", "metrics")
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        return cls(ports, NetworkNamespace.choose() if isolate else None)

    def is_free(self) -> bool:
        """Whether these ports or this namespace are still unused."""
        return self.network.is_free() if self.network else are_ports_free(self.ports.values())

    @property
    def host(self) -> str:
        """The server's address."""
        return self.network.inside if self.network else "127.0.0.1"

    @property
    def uri(self) -> str:
        """The URL for clients, such as http://198.18.3.2:20123."""
        return f"http://{self.host}:{self.ports['proxy']}"

    def token(self, folder: Path) -> str:
        """The token for clients, "" in a namespace; the first call generates the password."""
        return "" if self.network else f"root:{_password(folder)}"

    def answers(self) -> bool:
        """Whether a healthy server answers at this endpoint."""
        return answers(f"http://{self.host}:{self.ports['metrics']}/healthz")


class MilvusServer:
    """A standalone Milvus with its metadata in `folder` and its data in a bucket of `storage`.

    MilvusClient takes `uri` and `token`. With storage, bulk import reads keys of `bucket`. Without storage
    the data are in the folder too.
    """

    def __init__(
        self,
        folder: Path,
        storage: SeaweedFs | None,
        bucket: str,
        endpoint: MilvusEndpoint,
        *,
        owner_tag: str = "",
    ) -> None:
        self.folder = folder
        self.storage = storage
        self.bucket = bucket if storage else ""
        self.network = endpoint.network
        self.host = endpoint.host
        self._gateway_port = endpoint.gateway_port
        self._ports = endpoint.ports
        self._owner_tag = owner_tag
        self.token = endpoint.token(folder)
        self._process: ServerProcess | None = None

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        storage: SeaweedFs | None = None,
        bucket: str = "milvus",
        isolate: bool = True,
        endpoint: MilvusEndpoint | None = None,
        owner_tag: str = "",
    ) -> Self:
        """Start a server and wait until it serves, about 3 s; the first start on a machine takes 6 s more.

        isolate: False uses the generated password even where a namespace is possible.
        endpoint: that of an earlier start; used again if it is free. owner_tag: see ServerProcess.

        Raises BadSetting if the package is not installed, IndexUnreachable if the server does not come up.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if endpoint is None or not endpoint.is_free():
            endpoint = MilvusEndpoint.choose(isolate=isolate)
        server = cls(folder.resolve(), storage, bucket, endpoint, owner_tag=owner_tag)
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
        return self.endpoint.uri

    @property
    def endpoint(self) -> MilvusEndpoint:
        """Where it listens; `start` takes it again."""
        return MilvusEndpoint(self._ports, self.network, self._gateway_port)

    @property
    def pid(self) -> int:
        """The process id, 0 if the server does not run."""
        return self._process.pid if self._process else 0

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.folder / "milvus.log"

    def restart(self) -> None:
        """Start again after `kill` with the same data and address. Collections may not load for 40 s."""
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
            owner_tag=self._owner_tag,
        )
        is_up = self.endpoint.answers
        if not self._process.wait_until(lambda: is_up() and self._serves(), seconds=_START_SECONDS):
            log_tail = self._process.log_tail()
            self.stop()
            raise IndexUnreachable(
                f"Milvus did not start in {self.folder}: {log_tail}", remedy=f"Read {self.log}."
            )

        if self.network is None:
            warnings.warn(
                f"Milvus at {self.uri} listens on all interfaces, protected by a generated password only: "
                "a network namespace needs root and iproute2",
                stacklevel=2,
            )

    def kill(self) -> None:
        """End the server with SIGKILL, like a crash. `restart` starts it again."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def stop(self) -> None:
        """End the server by SIGKILL: SIGTERM can hang with remote storage. The folder remains."""
        self.kill()

    def _connect(self, pid: int) -> None:
        assert self.network is not None  # noqa: S101
        try:
            self.network.connect(pid)
        except OSError as error:
            raise IndexUnreachable(
                f"no network for Milvus: {error}", remedy="Start it with isolate=False."
            ) from error
        if self.storage is not None and not self._gateway_port:
            # The namespace cannot reach the host's loopback, so SeaweedFS needs a gateway at this end.
            self._gateway_port = self.storage.start_gateway(self.network.host)
            self._write_settings()

    def _serves(self) -> bool:
        import grpc  # type: ignore[import-untyped]
        from pymilvus import MilvusClient, MilvusException

        password = self.token.partition(":")[2]
        try:
            if password and not self._password_set.exists():
                with closing(MilvusClient(self.uri, token=_DEFAULT_TOKEN, timeout=5)) as client:
                    client.update_password("root", _DEFAULT_TOKEN.partition(":")[2], password)
                self._password_set.touch()
            with closing(MilvusClient(self.uri, token=self.token, timeout=5)) as client:
                client.list_collections()
        except (MilvusException, grpc.RpcError):  # a wrong password raises RpcError
            time.sleep(0.2)
            return False
        return True

    @property
    def _password_set(self) -> Path:
        return self.folder / "password-is-set"

    def _write_settings(self) -> None:
        configs = self.folder / "configs"
        configs.mkdir(exist_ok=True)
        (configs / "milvus.yaml").touch(mode=0o600)  # it contains the storage's keys
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
        # By default the embedded etcd takes 2379 and 2380, which allows one Milvus on a machine.
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
    spec = importlib.util.find_spec("milvus")
    if spec is None or spec.origin is None:
        raise BadSetting(
            "the package 'milvus' is not installed", remedy="Run: pip install 'clvr-archive[stack]'"
        )
    return Path(spec.origin).parent / "data"


def _unpacked() -> Path:
    """Return the folder of the unpacked binary and its libraries; unpack them once for each machine."""
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
