"""A night on Ray nodes with a network each: one is cut off, one is slow, the storage is away for a while.

Each node has a network namespace, with an address and a link of its own. The storage has an address too,
which can be taken away.
"""

import io
import json
import os
import secrets
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.servers import SeaweedFs
from infra.settings import Settings
from infra.store import open_store
from jobs.generations.load import verify_generation

pytestmark = [pytest.mark.slow, pytest.mark.integration]

IP, UNSHARE = (shutil.which(name) or name for name in ("ip", "unshare"))
BRIDGE, SUBNET = "clvrlinks", "198.18.200"  # RFC 2544 reserves it for benchmarks
STORAGE, HEAD, CUT_OFF, SLOW = (f"{SUBNET}.{number}" for number in (2, 10, 11, 12))
STORAGE_AWAY_SECONDS = 60
CROPS = 1536

NIGHT = '''
"""A reindex run with a stub for the network. Arguments: archive, runs, Milvus, address of the cluster."""
import json, sys, time
import numpy as np
from clvr_model.embeddings import Embeddings
from infra.errors import ClvrError
from infra.settings import Settings
from jobs.embed.new_run import EmbedRequest
from jobs.reindex.job import reindex
from jobs.reindex.plan import ReindexRequest

class Stub:
    batch_size, feature_dim, image_size, fingerprint = 8, 1024, 299, "stub"
    def __call__(self, images):
        time.sleep(0.8)
        features = images[:, ::10, ::10].reshape(len(images), -1)[:, :1024].astype(np.float32) / 255
        return Embeddings(features, np.zeros(len(images), np.int32), np.ones(len(images), np.float32))

def main():
    archive, runs, milvus, ray = sys.argv[1:]
    request = ReindexRequest(
        embed=EmbedRequest(archive, model="stub", actors=4, rows_per_part=32), reindex_id="n"
    )
    try:
        done = reindex(request, Settings(runs=runs, milvus=milvus, ray=ray), open_embedder=Stub)
    except ClvrError as error:
        print(error.message, file=sys.stderr)
        sys.exit(error.exit_code)
    print(json.dumps(done.summary["crops"]))
'''


def ip(*arguments: str) -> None:
    subprocess.run([IP, *arguments], check=True, capture_output=True, text=True)


def has_namespaces() -> bool:
    if os.geteuid() or not (shutil.which(IP) and shutil.which(UNSHARE)):
        return False
    return not subprocess.run([UNSHARE, "--net", "true"], capture_output=True, check=False).returncode


def link_of(address: str) -> str:
    return f"clvr{address.rpartition('.')[2]}"


@contextmanager
def network() -> Iterator[None]:
    """Make a bridge with the storage's address, and a namespace with a link to it for each node."""
    with ExitStack() as stack:
        ip("link", "add", BRIDGE, "type", "bridge")
        stack.callback(ip, "link", "delete", BRIDGE)
        for number in (1, 2):
            ip("address", "add", f"{SUBNET}.{number}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for address in (HEAD, CUT_OFF, SLOW):
            name = link_of(address)
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
            ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", name, "master", BRIDGE, "up")
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")
        yield


@contextmanager
def relay(port: int) -> Iterator[None]:
    """Give the server at 127.0.0.1 the storage's address, at the same port."""

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", port)) as server:
                answers = threading.Thread(target=pump, args=(server, self.request), daemon=True)
                answers.start()
                pump(self.request, server)

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    with socketserver.ThreadingTCPServer((STORAGE, port), Relay) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


@contextmanager
def inside(address: str, command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """Run a command in the namespace of an address, and end it with all that it started."""
    with log.open("w") as file:
        process = subprocess.Popen(
            [IP, "netns", "exec", link_of(address), *command],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            pids = subprocess.run(
                [IP, "netns", "pids", link_of(address)], capture_output=True, text=True, check=True
            )
            for pid in pids.stdout.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)


@contextmanager
def ray_nodes(environment: dict[str, str], folder: Path) -> Iterator[str]:
    """Start a node in each namespace; yield the address of the cluster."""
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
    size = ["--num-cpus=2", f"--object-store-memory={100 << 20}", "--include-dashboard=false"]
    with ExitStack() as stack:
        for address in (HEAD, CUT_OFF, SLOW):
            role = [f"--address={HEAD}:6379"]
            if address == HEAD:
                role = ["--head", "--port=6379", f"--temp-dir={folder}"]
            options = [*role, f"--node-ip-address={address}"]
            command = [*ray, *options, *size]
            stack.enter_context(inside(address, command, environment, folder / f"{address}.log"))
            time.sleep(8)
        yield f"{HEAD}:6379"


def put_archive(server: SeaweedFs, uri: str) -> None:
    archive = open_store(uri, server.settings)

    def put(number: int) -> None:
        buffer = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 255, (24, 32, 3), np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG")
        archive.put(f"dt=2026-11-2{number % 3}/cam=00{number % 4}/{number:05d}.jpg", buffer.getvalue())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(CROPS)))


def finished_parts(server: SeaweedFs, runs: str) -> int:
    keys = [info.key for info in open_store(runs, server.settings).list("runs/n/parts")]
    return sum(key.endswith(".json") for key in keys)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: Ray's sockets lie in it."""
    path = Path(tempfile.mkdtemp(prefix="clvr-links-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def break_links(server: SeaweedFs, runs: str, ended: threading.Event, events: list[str]) -> None:
    """Cut a node off after some parts, and after some more take the storage away for a while."""
    started = time.monotonic()

    def event(text: str) -> None:
        events.append(f"{time.monotonic() - started:.0f} s: {text}")

    def wait_for_parts(number: int) -> None:
        while not ended.is_set() and finished_parts(server, runs) < number:
            time.sleep(0.2)

    wait_for_parts(8)
    ip("link", "set", link_of(CUT_OFF), "down")
    event(f"{CUT_OFF} is cut off")
    wait_for_parts(24)
    ip("address", "delete", f"{STORAGE}/24", "dev", BRIDGE)
    event("the storage is away")
    ended.wait(STORAGE_AWAY_SECONDS)
    ip("address", "add", f"{STORAGE}/24", "dev", BRIDGE)
    event("the storage is back")


@pytest.mark.timeout(900)
@pytest.mark.skipif(not has_namespaces(), reason="needs root and iproute2")
def test_a_night_survives_broken_links(
    seaweedfs: SeaweedFs, bucket: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, runs, milvus = f"{bucket}/archive", f"{bucket}/data", str(folder / "milvus.db")
    put_archive(seaweedfs, archive)
    (folder / "night.py").write_text(NIGHT)
    port = seaweedfs.named_ports["s3"]
    environment = os.environ | {
        "AWS_ENDPOINT_URL": f"http://{STORAGE}:{port}",
        "AWS_ACCESS_KEY_ID": str(seaweedfs.settings.access_key),
        "AWS_SECRET_ACCESS_KEY": str(seaweedfs.settings.secret_key),
        "AWS_ALLOW_HTTP": "true",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parents[2])]),
    }
    events: list[str] = []
    codes: list[int] = []
    ended = threading.Event()
    with network(), relay(port), ray_nodes(environment, folder) as address:
        limits = ["rate", "4mbit", "burst", "32kbit", "latency", "400ms"]
        ip("netns", "exec", link_of(SLOW), "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", *limits)
        breaker = threading.Thread(target=break_links, args=(seaweedfs, runs, ended, events))
        breaker.start()
        night = [sys.executable, "-c", "import night; night.main()", archive, runs, milvus, address]
        try:
            while len(codes) < 5 and 0 not in codes:
                done = subprocess.run(
                    [IP, "netns", "exec", link_of(HEAD), *night],
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                codes.append(done.returncode)
        finally:
            ended.set()
            breaker.join()
    print(f"exit codes {codes}; {', '.join(events)}")
    assert codes[-1] == 0, done.stderr[-3000:]
    assert len(events) == 3
    crops = json.loads(done.stdout.splitlines()[-1])
    assert (crops["listed"], crops["embedded"], crops["quarantined"]) == (CROPS, CROPS, 0)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ALLOW_HTTP"):
        monkeypatch.setenv(name, environment[name])
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    verified = verify_generation("live", Settings(runs=runs, milvus=milvus))
    assert verified.differences == ()
    assert (verified.indexed, verified.repeated, verified.missing_count) == (CROPS, 0, 0)
