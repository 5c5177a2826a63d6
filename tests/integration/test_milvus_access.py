"""Access to Milvus by token, TLS with a private authority, and database; no secret is shown."""

import os
import secrets
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from index.generations.load import LoadOptions, load_runs
from index.generations.reconcile import reconcile
from index.milvus import collection
from index.milvus.client import Milvus, connect
from infra.errors import IndexRefused, IndexUnreachable
from infra.servers import MilvusServer, SeaweedFs
from infra.store import open_store

pytestmark = pytest.mark.filterwarnings("ignore:Milvus at")
DATABASE = "cars"


@dataclass(frozen=True)
class Guarded:
    """A server that needs a token, as plain text and behind TLS."""

    server: MilvusServer
    tls: str
    ca: Path

    def connect(self, **named: str) -> Milvus:
        return connect(self.tls, self.server.token, ca_file=str(self.ca), **named)


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a self-signed certificate for 127.0.0.1, and its key."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        ["/usr/bin/env", "openssl", "req", "-x509", "-nodes", "-days", "1", "-subj", f"/CN={name}",
         "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return cert, key


def pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def serve_tls(listening: socket.socket, context: ssl.SSLContext, target: tuple[str, int]) -> None:
    """Terminate TLS and forward the plain bytes: gRPC without TLS is the same HTTP/2."""
    while True:
        try:
            plain, _ = listening.accept()
        except OSError:
            return
        try:
            secured = context.wrap_socket(plain, server_side=True)
        except OSError:
            plain.close()
            continue
        behind = socket.create_connection(target)
        for pair in ((secured, behind), (behind, secured)):
            threading.Thread(target=pump, args=pair, daemon=True).start()


@pytest.fixture(scope="module")
def guarded(server_folder: Path, seaweedfs: SeaweedFs) -> Iterator[Guarded]:
    name = f"guarded-{secrets.token_hex(4)}"
    cert, key = certificate(server_folder, name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.set_alpn_protocols(["h2"])
    with (
        MilvusServer.start(server_folder / name, storage=seaweedfs, bucket=name, isolate=False) as server,
        closing(socket.create_server(("127.0.0.1", 0))) as listening,
    ):
        host, _, port = server.uri.removeprefix("http://").partition(":")
        threading.Thread(target=serve_tls, args=(listening, context, (host, int(port))), daemon=True).start()
        with connect(server.uri, server.token) as milvus:
            milvus.call("create_database", DATABASE)
        yield Guarded(server, f"https://127.0.0.1:{listening.getsockname()[1]}", cert)
        # Before it is closed: a thread in `accept` holds the port.
        listening.shutdown(socket.SHUT_RDWR)


def test_a_wrong_token_and_a_missing_privilege_are_told_apart(
    guarded: Guarded, make_finished_run, tmp_path: Path
) -> None:
    for token in (None, "root:wrong-password"):
        with pytest.raises(IndexRefused, match="refuses the token") as refused:
            connect(guarded.server.uri, token)
        assert "wrong-password" not in str(refused.value)
    with connect(guarded.server.uri, guarded.server.token) as milvus:
        assert collection.list_generations(milvus) == []
        milvus.call("create_user", "guest", "only-looking")
    store = open_store(str(tmp_path))
    with (
        connect(guarded.server.uri, "guest:only-looking") as guest,
        pytest.raises(IndexRefused, match="not permitted") as refused,
    ):
        load_runs(guest, store, [make_finished_run(store, "r", range(20))], alias="clvr")
    assert "privilege" in refused.value.remedy


def test_tls_needs_the_right_certificate_authority(guarded: Guarded, tmp_path: Path) -> None:
    other, _ = certificate(tmp_path, "another")
    # The wrong ones first: pymilvus keeps a connection that once was good for the rest of the process.
    for ca in (None, str(other)):
        with pytest.raises(IndexUnreachable, match="does not answer as Milvus does"):
            connect(guarded.tls, guarded.server.token, ca_file=ca, timeout=3)
    with guarded.connect() as milvus:
        assert milvus.capabilities.version.startswith("v2.3.5")


@pytest.mark.timeout(280)
def test_a_generation_is_imported_and_verified_in_another_database(
    guarded: Guarded, seaweedfs: SeaweedFs, make_finished_run
) -> None:
    bucket = f"s3://{guarded.server.bucket}"
    store = open_store(f"{bucket}/clvr", seaweedfs.settings)
    run = make_finished_run(store, "r", range(60), rows_per_shard=30)
    with guarded.connect(database=DATABASE) as milvus:
        generation = load_runs(
            milvus,
            store,
            [run],
            alias="clvr",
            options=LoadOptions(target="grpc_v1", milvus_bucket=bucket, index_type="IVF_FLAT"),
        )
        assert not reconcile(milvus, store, generation, [run]).differences
    with guarded.connect() as default_database:
        assert collection.list_generations(default_database) == []


@pytest.mark.timeout(280)
def test_commands_use_token_tls_and_database_and_never_print_the_token(
    guarded: Guarded, make_finished_run, tmp_path: Path
) -> None:
    make_finished_run(open_store(str(tmp_path)), "run1", range(40))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLVR_")} | {
        "CLVR_RUNS": str(tmp_path),
        "CLVR_ALIAS": "mine",
        "CLVR_MILVUS": guarded.tls,
        "CLVR_MILVUS_CA": str(guarded.ca),
        "CLVR_MILVUS_DATABASE": DATABASE,
        "CLVR_MILVUS_TOKEN": guarded.server.token,
    }
    secret = guarded.server.token.partition(":")[2]

    def clvr(*words: str, **changed: str) -> tuple[int, str]:
        with subprocess.Popen(
            [sys.executable, "-m", "jobs", *words],
            env=environment | changed,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as command:
            command_line = Path(f"/proc/{command.pid}/cmdline").read_text()
            output, _ = command.communicate(timeout=200)
        assert secret not in output + command_line
        return command.returncode, output

    assert clvr("load", "run1")[0] == 0
    status, output = clvr("verify", "latest")
    assert (status, "matches" in output) == (0, True)
    assert secret not in "".join(path.read_text() for path in tmp_path.glob("generations/*.json"))
    status, output = clvr("generations", CLVR_MILVUS_TOKEN=f"root:x{secret}")
    assert status == 5
    assert "refuses the token" in output
