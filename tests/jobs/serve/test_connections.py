"""The server under idle, half-open and hostile connections, with a small application behind its limits."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import uvicorn

from infra.errors import Locked
from jobs.serve import connections
from jobs.serve.access import AccessPolicy, Limits, with_access_control
from jobs.serve.connections import ConnectionTable, LimitedProtocol, server_config
from jobs.serve.slots import Slots
from jobs.serve.throttle import FREE_ATTEMPTS, MAX_ADDRESSES, Throttle, network_of

TOKEN = "a-token-that-is-long-enough"
GET, POST = (word + b" /x HTTP/1.1\r\nHost: 127.0.0.1\r\n" for word in (b"GET", b"POST"))


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the length of the body; fail for /fail."""
    if scope["type"] != "http":
        return
    if scope["path"] == "/fail":
        raise RuntimeError("a fault of the application")
    if scope["path"] == "/large":  # more than the buffers of a connection hold
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(64 << 20), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    length = 0
    while (message := await receive())["type"] == "http.request":
        length += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})


class Server:
    """A server with the limits of `clvr serve`, in a thread."""

    def __init__(self, policy: AccessPolicy) -> None:
        app = with_access_control(echo, policy, Limits(1 << 20), frozenset({"/"}))
        self.config = server_config(app, host="127.0.0.1", port=0)
        self.server = uvicorn.Server(self.config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port: int = self.server.servers[0].sockets[0].getsockname()[1]

    @property
    def waiting(self) -> int:
        """The connections without a complete request."""
        protocol: type[LimitedProtocol] = self.config.http  # type: ignore[assignment]
        return len(protocol.waiting) + len(protocol.uploads)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send raw bytes; return the status, 0 without one, and everything that came."""
        with self.connect() as line:
            line.sendall(request)
            received = b""
            try:
                while data := line.recv(65536):
                    received += data
            except OSError:
                pass
        status = received.split(b" ", 2)[1] if received.startswith(b"HTTP/") else b"0"
        return int(status), received

    def get(self, path: str = "/x", host: str = "127.0.0.1", more: str = "") -> tuple[int, bytes]:
        return self.ask(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n".encode("latin-1")
        )

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server(AccessPolicy(None, frozenset({"127.0.0.1", "localhost"})))
    yield running
    running.stop()


@pytest.fixture
def locked() -> Iterator[Server]:
    running = Server(AccessPolicy(TOKEN))
    yield running
    running.stop()


def wait_until(condition: Any) -> None:
    """Wait for something that must come; pytest's own time limit ends a wait for nothing."""
    while not condition():
        time.sleep(0.02)


# ---- connections ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: 127.",
        POST + b"Content-Length: 1000000\r\n\r\nabc",
        POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
    ],
    ids=["silent", "half of the headers", "half of the body", "half of a chunk"],
)
def test_a_thousand_unfinished_requests_keep_nobody_out(server: Server, begun: bytes) -> None:
    connections.allow_open_files()
    with ExitStack() as stack:
        for _ in range(1000):
            line = stack.enter_context(server.connect())
            if begun:
                try:
                    line.sendall(begun)
                except OSError:  # closed in favour of a later one
                    continue
        for _ in range(5):
            assert server.get()[0] == 200
        assert server.waiting <= connections.MAX_WAITING + connections.MAX_UPLOADS
    wait_until(lambda: server.waiting == 0)


def test_an_unfinished_request_is_closed_at_its_deadline(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(connections, "BODY_SECONDS", 0.3)
    for begun in (b"", b"GET / HT", POST + b"Content-Length: 9\r\n\r\na"):
        assert server.ask(begun)[0] == 0  # ends without an answer, instead of waiting for ever
    assert server.get()[0] == 200


def test_a_trickle_of_bytes_does_not_move_the_deadline(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    with server.connect() as line:
        line.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(OSError):
            while True:
                line.sendall(b"X-A: b\r\n")
                time.sleep(0.05)


def test_a_client_that_does_not_read_is_closed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "RESPONSE_SECONDS", 0.3)
    with server.connect() as line:
        line.sendall(b"GET /large HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        wait_until(
            lambda: not server.server.server_state.tasks and not server.server.server_state.connections
        )


def test_a_connection_serves_several_requests(server: Server) -> None:
    with server.connect() as line:
        for size in (0, 10, 200_000):
            head = f"POST /x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {size}\r\n\r\n"
            line.sendall(head.encode() + bytes(size))
            received = b""
            while str(size).encode() not in received.partition(b"\r\n\r\n")[2]:
                received += line.recv(65536)
            assert b" 200 " in received


def test_above_the_limit_the_address_with_most_connections_loses_its_oldest() -> None:
    class Held:
        closed = False

        def abort(self) -> None:
            self.closed = True

    table = ConnectionTable(max_waiting=4)
    lone, *many = [Held() for _ in range(6)]
    table.add(lone, "a")  # type: ignore[arg-type]
    for held in many:
        table.add(held, "b")  # type: ignore[arg-type]
    assert [held.closed for held in (lone, *many)] == [False, True, True, False, False, False]
    assert len(table) == 4


def test_more_requests_than_can_be_answered_get_503(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_ANSWERING", 2)
    with ExitStack() as stack:
        for _ in range(3):  # whose answers nobody reads
            line = stack.enter_context(server.connect())
            line.sendall(b"GET /large HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        wait_until(lambda: server.get()[0] == 503)
    wait_until(lambda: server.get()[0] == 200)


def test_more_decodes_than_can_wait_are_refused() -> None:
    slots = Slots(active=1, waiting=0)
    with slots.use(), pytest.raises(Locked), slots.use():
        pass
    with slots.use():
        pass


# ---- hostile requests -----------------------------------------------------------------------------------

HOSTILE = {
    "host [": b"GET /x HTTP/1.1\r\nHost: [\r\n\r\n",
    "host of 8 bits": b"GET /x HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n",
    "no host": b"GET /x HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "origin [": POST + b"Origin: http://[\r\nContent-Length: 0\r\n\r\n",
    "origin port": POST + b"Origin: http://a:b]\r\nContent-Length: 0\r\n\r\n",
    "bad percent": b"GET /%zz%ff%00%C0%80 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
    "bytes in the path": b"GET /\xff\xfe HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a long header": GET + b"X: " + b"a" * 200_000 + b"\r\n\r\n",
    "many headers": GET + b"" + b"A: b\r\n" * 50_000 + b"\r\n",
    "a long length": POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n",
    "no number": POST + b"Content-Length: \xb2\r\n\r\n",
    "a long chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 5000 + b"\r\n",
    "an odd charset": POST + b"Content-Type: text/x; charset=undefined\r\nContent-Length: 0\r\n\r\n",
    "an odd method": b"FROB /x HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a WebSocket": GET + b"Upgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n",
    "a broken cookie": GET + b'Cookie: clvr_session=\xff"\\777; =;;\r\nConnection: close\r\n\r\n',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_gets_an_answer_below_500(
    server: Server, locked: Server, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for target in (server, locked):
        # Some requests are answered and kept open: the client ends them.
        with target.connect() as line:
            line.sendall(HOSTILE[name])
            received = line.recv(65536)
        assert received.startswith(b"HTTP/1.1 "), received
        assert int(received[9:12]) < 500
        assert target.get()[0] in (200, 401)
    assert "Traceback" not in capfd.readouterr().err


def test_a_fault_of_the_application_is_500_and_one_line(
    server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    status, received = server.get("/fail")
    assert status == 500
    assert b"fault of" not in received
    written = capfd.readouterr()
    assert "Traceback" not in written.err + written.out


def login_request(token: str) -> bytes:
    body = json.dumps({"token": token}).encode()
    head = "POST /api/login HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    return head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def login(server: Server, token: str) -> int:
    return server.ask(login_request(token))[0]


@pytest.mark.parametrize("token", ["\ud800", "", "x" * 3000, "\0", "é"])
def test_any_wrong_token_is_refused(locked: Server, token: str) -> None:
    assert login(locked, token) == 401
    assert login(locked, TOKEN) == 200


def test_wrong_tokens_are_slowed_down_and_a_session_is_not(locked: Server) -> None:
    _, answer = locked.ask(login_request(TOKEN))
    cookie = answer.partition(b"set-cookie: ")[2].partition(b";")[0].decode()
    statuses = [login(locked, f"wrong {number}") for number in range(FREE_ATTEMPTS + 3)]
    assert statuses[:FREE_ATTEMPTS] == [401] * FREE_ATTEMPTS
    assert 429 in statuses[FREE_ATTEMPTS:]
    assert locked.get(more=f"Cookie: {cookie}\r\n")[0] == 200
    assert locked.get(more="Authorization: Bearer wrong\r\n")[0] == 429
    assert locked.get("/")[0] == 200


def test_the_wait_doubles_is_bounded_and_is_forgotten() -> None:
    now = [0.0]
    throttle = Throttle(lambda: now[0])
    waits = []
    for _ in range(FREE_ATTEMPTS + 8):
        throttle.failed("192.0.2.1")
        waits.append(throttle.wait("192.0.2.1"))
    assert waits == [0.0] * (FREE_ATTEMPTS - 1) + [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert throttle.wait("192.0.2.2") == 0
    now[0] += 10_000
    throttle.failed("192.0.2.1")
    assert throttle.wait("192.0.2.1") == 0
    for number in range(3 * MAX_ADDRESSES):
        throttle.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(throttle._failures) == MAX_ADDRESSES


def test_an_ipv6_client_is_its_network() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") != network_of("2001:db8:0:1::1")
    assert network_of("::ffff:192.0.2.1") == "192.0.2.1"
    assert network_of("fe80::1%eth0") == "fe80::"
    assert network_of("no address") == "no address"
