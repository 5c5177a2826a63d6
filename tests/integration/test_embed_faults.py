"""Faults of object storage under the real job: a proxy before SeaweedFS injects them.

Only GETs of images fail. The archive is behind the proxy, and the runs are local.
"""

import io
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from clvr_model.embeddings import Embeddings
from infra.errors import BudgetExceeded, StoreDenied, StoreUnreachable
from infra.servers import SeaweedFs
from infra.settings import load_settings
from infra.store import open_store

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.integration

CROPS = 120


class FaultyProxy:
    """A TCP proxy with one request per connection.

    `fault(n, path)` returns the fault of the n-th GET of an image: '503', 'reset', 'hang', 'cut', '403', or
    '' for none.
    """

    def __init__(self, target: str, fault: Callable[[int, str], str]) -> None:
        host, _, port = target.removeprefix("http://").partition(":")
        self.target, self.fault = (host, int(port)), fault
        self.lock, self.gets, self.faults = threading.Lock(), 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                self._answer(client)
            except OSError:
                return

    def _answer(self, client: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = client.recv(1)
            if not piece:
                return
            head += piece
        fault = ""
        path = head.split(b" ", 2)[1].decode()
        if head.startswith(b"GET") and ".jpg" in path:
            with self.lock:
                self.gets += 1
                fault = self.fault(self.gets, path)
                self.faults += bool(fault)
        if fault == "hang":
            time.sleep(20)
        elif fault == "503":
            client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        elif fault == "403":
            body = b"<Error><Code>ExpiredToken</Code></Error>"
            client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n" % len(body))
            client.sendall(b"Connection: close\r\n\r\n" + body)
        elif fault == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        else:
            answer = self._ask(head)
            client.sendall(answer[: len(answer) - 200] if fault == "cut" else answer)

    def _ask(self, head: bytes) -> bytes:
        head = re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", head)
        with socket.create_connection(self.target) as server:
            server.sendall(head[:-2] + b"Connection: close\r\n\r\n")
            answer = b""
            while piece := server.recv(65536):
                answer += piece
        return answer

    def close(self) -> None:
        self.listener.close()


@pytest.fixture
def crops(bucket: str, seaweedfs: SeaweedFs) -> str:
    store = open_store(f"{bucket}/crops", seaweedfs.settings)
    for number in range(CROPS):
        Image.fromarray(np.full((24, 32, 3), number, np.uint8)).save(buffer := io.BytesIO(), "JPEG")
        store.put(f"dt=2026-11-22/cam=001/{number:04d}.jpg", buffer.getvalue())
    return store.uri


@pytest.fixture(scope="module")
def connected(ray_cluster: "Cluster") -> Iterator[str]:
    import ray

    yield ray_cluster.address
    ray.shutdown()


@pytest.fixture
def embed_in(
    crops: str, seaweedfs: SeaweedFs, connected: str, tmp_path: Path
) -> Iterator[Callable[..., Any]]:
    """Embed through a proxy with the given faults; returns the summary and the proxy."""
    from jobs.embed import job as job

    proxies: list[FaultyProxy] = []

    def run(
        fault: Callable[[int, str], str], *, rate: float = 0.01, **retries: Any
    ) -> tuple[Any, FaultyProxy]:
        proxy = FaultyProxy(seaweedfs.endpoint, fault)
        proxies.append(proxy)
        settings = replace(seaweedfs.settings, endpoint=proxy.endpoint, **retries)
        request = job.EmbedRequest(
            crops, model="stub", actors=1, rows_per_part=30, max_quarantine_rate=rate, run_id="r"
        )
        given = load_settings({"runs": str(tmp_path / "runs"), "ray": connected})
        through = open_store(crops, settings)
        return job.embed(request, given, open_embedder=stub(), archive=through), proxy

    yield run
    for proxy in proxies:
        proxy.close()


def stub() -> Callable[[], Any]:
    class Stub:  # inside a function, so that it travels to workers by value
        batch_size, feature_dim, image_size, fingerprint = 8, 1024, 299, "stub"

        def __call__(self, images: Any) -> Any:
            count = len(images)
            return Embeddings(
                np.zeros((count, 1024), np.float32), np.zeros(count, np.int32), np.ones(count, np.float32)
            )

    return Stub


@pytest.mark.parametrize(
    "fault", ["503", *(pytest.param(f, marks=pytest.mark.slow) for f in ("reset", "cut", "hang"))]
)
def test_transient_faults_lose_no_crop(embed_in: Callable[..., Any], fault: str) -> None:
    every = 20 if fault == "hang" else 3
    summary, proxy = embed_in(lambda n, _: fault if n % every == 0 else "", read_seconds=2.0)
    assert (summary.embedded, summary.quarantined) == (CROPS, 0)
    assert proxy.faults >= CROPS // every
    print(f"{fault}: {proxy.faults} faults in {proxy.gets} GETs, {summary.embedded} of {CROPS} embedded")


def test_a_lasting_outage_stops_the_run_and_the_same_call_continues_it(
    embed_in: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(StoreUnreachable, match=r"no good answer about s3://.*503"):
        embed_in(lambda n, _: "503" if n > 70 else "", retries=2, retry_seconds=3.0)
    done = list((tmp_path / "runs").glob("runs/r/parts/part-*.json"))
    assert 1 <= len(done) <= 3
    summary, proxy = embed_in(lambda n, _: "")
    assert (summary.embedded, summary.quarantined) == (CROPS, 0)
    assert proxy.gets == CROPS - 30 * len(done)


def test_expired_credentials_stop_the_run_instead_of_filling_the_quarantine(
    embed_in: Callable[..., Any],
) -> None:
    with pytest.raises(StoreDenied, match="ExpiredToken") as stopped:
        embed_in(lambda n, path: "403", rate=1.0)
    assert "AWS_ACCESS_KEY_ID" in stopped.value.remedy
    summary, _ = embed_in(lambda n, _: "")
    assert (summary.embedded, summary.quarantined) == (CROPS, 0)


def test_a_changed_crop_is_quarantined_as_changed(
    embed_in: Callable[..., Any], crops: str, seaweedfs: SeaweedFs
) -> None:
    store = open_store(crops, seaweedfs.settings)
    key = "dt=2026-11-22/cam=001/0100.jpg"

    def change(n: int, path: str) -> str:
        if n == 1:
            store.put(key, store.get("dt=2026-11-22/cam=001/0000.jpg"))
        return ""

    summary, _ = embed_in(change)
    assert summary.causes == {"fetch/changed": 1}
    assert summary.embedded == CROPS - 1


def test_a_run_with_too_many_unusable_images_stops_early(
    embed_in: Callable[..., Any], crops: str, seaweedfs: SeaweedFs
) -> None:
    store = open_store(crops, seaweedfs.settings)
    for number in range(400):
        store.put(f"dt=2026-11-23/cam=001/{number:04d}.jpg", b"not a picture")
    with pytest.raises(BudgetExceeded, match="decode/not-a-picture") as stopped:
        embed_in(lambda n, _: "")
    assert "more than the 1.0%" in stopped.value.message
