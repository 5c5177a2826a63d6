"""Network faults: a transparent proxy in front of the real server misbehaves on demand."""

import socket
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import pytest

from infra.errors import StoreUnreachable
from infra.servers import SeaweedFs
from infra.store import ObjectBody, Store, open_store

_BODY = bytes(range(256)) * 80  # 20 KB, a crop's size


class FaultProxy:
    """Passes GETs on, one a connection; each takes the next of `faults`: 'cut', 'reset', '503' or 'hang'."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("http://").partition(":")
        self._target = host, int(port)
        self.faults: deque[str] = deque()
        self.requests = 0
        self._closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            request = _read_head(client)
            if not request:
                return
            self.requests += 1
            fault = self.faults.popleft() if self.faults else ""
            if fault == "hang":
                self._closed.wait(30)
            elif fault == "503":
                client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            elif fault == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            else:
                head, body = self._ask(request)
                client.sendall(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                client.sendall(body[: len(body) // 2] if fault == "cut" else body)

    def _ask(self, request: bytes) -> tuple[bytes, bytes]:
        with socket.create_connection(self._target) as server:
            server.sendall(request)
            head = _read_head(server)
            lines = head.decode("latin-1").lower().split("\r\n")
            length = next(int(line[15:]) for line in lines if line.startswith("content-length:"))
            body = b""
            while len(body) < length:
                body += server.recv(length - len(body))
            return head, body


def _read_head(connection: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        piece = connection.recv(1)
        if not piece:
            return b""
        head += piece
    return head


@pytest.fixture
def proxy(seaweedfs: SeaweedFs) -> Iterator[FaultProxy]:
    proxy = FaultProxy(seaweedfs.endpoint)
    yield proxy
    proxy.close()


@pytest.fixture
def store(seaweedfs: SeaweedFs, bucket: str, proxy: FaultProxy) -> Store:
    open_store(bucket, seaweedfs.settings).put("a", _BODY)
    # The address is signed, and the server believes the Host header that the client sent.
    patience = replace(seaweedfs.settings, endpoint=proxy.endpoint, retries=3, read_seconds=1.0)
    return open_store(bucket, patience)


@pytest.mark.parametrize("fault", ["", "cut", "reset", "503", "hang"])
def test_get_survives_one_fault(store: Store, proxy: FaultProxy, fault: str) -> None:
    proxy.faults.append(fault)
    assert store.get("a") == _BODY


def test_get_reads_truncated_bodies_again(store: Store, proxy: FaultProxy) -> None:
    proxy.faults.extend(["cut"] * 3)
    assert store.get("a") == _BODY


@pytest.mark.parametrize("fault", ["cut", "reset", "503"])
def test_get_reports_a_server_that_never_recovers_as_unreachable(
    store: Store, proxy: FaultProxy, fault: str
) -> None:
    proxy.faults.extend([fault] * 100)
    with pytest.raises(StoreUnreachable):
        store.get("a")
    assert 4 <= proxy.requests <= 32


def test_get_many_loses_no_object_in_a_storm_of_faults(store: Store, proxy: FaultProxy) -> None:
    proxy.faults.extend(["cut", "", "503", "", "reset", ""] * 20)
    patient = open_store(store.uri, replace(store.settings, retries=10))
    results = list(patient.get_many(["a"] * 200, in_flight=16))
    assert len(results) == 200
    assert [result for _, result in results if not isinstance(result, ObjectBody)] == []
    assert {result.data for _, result in results if isinstance(result, ObjectBody)} == {_BODY}
