"""The server's connections: time limits on each, and a number that hostile clients cannot use up.

uvicorn limits neither the time until a request is complete nor the connections of one client. Here a
connection without a complete request has a deadline. Above a number of them the one that waited longest is
closed in favour of the new one, first those of the address that has most. So a client that sends its request
is served.
"""

import asyncio
import resource
from collections import Counter
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from jobs.serve.throttle import network_of

HEAD_SECONDS = 10.0
"""From the connection, or from the first byte of a further request, to the end of the headers."""

BODY_SECONDS = 120.0
"""From the end of the headers to the end of the body: 32 MiB at 2.3 Mbit/s."""

RESPONSE_SECONDS = 300.0
"""From the complete request to the end of the response, at the speed at which the client reads."""

KEEP_ALIVE_SECONDS = 30
MAX_WAITING = 400
"""Connections without complete headers; above it the one that waited longest is closed."""

MAX_UPLOADS = 32
"""The same for connections whose body is not complete: each may need its size as a temporary file."""

MAX_ANSWERING = 64
"""Complete requests that are answered at the same time; others are answered 503."""

MAX_HEADER_BYTES = 32 * 1024
MAX_OPEN_FILES = 4096

BUSY = b'{"error": "the page answers many other requests now", "remedy": "repeat it in a few seconds"}'


class ConnectionTable:
    """The connections of one server that wait for the same, the one that waited longest first."""

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self._waiting: dict[LimitedProtocol, str] = {}
        self._by_address: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, connection: "LimitedProtocol", address: str) -> None:
        """Add a connection as the newest one; close another one if there are too many."""
        self.remove(connection)
        self._waiting[connection] = address
        self._by_address[address] += 1
        if len(self._waiting) > self.max_waiting:
            ((most, _),) = self._by_address.most_common(1)
            victim = next(held for held, owner in self._waiting.items() if owner == most)
            self.remove(victim)
            victim.abort()

    def remove(self, connection: "LimitedProtocol") -> None:
        """Remove a connection, if it waits."""
        address = self._waiting.pop(connection, None)
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]


class LimitedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol with a deadline for each part of a request. A subclass sets the tables."""

    waiting: ConnectionTable
    uploads: ConnectionTable
    answering: set["LimitedProtocol"]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._deadline: asyncio.TimerHandle | None = None
        self._part = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for a request."""
        super().connection_made(transport)
        self._address = network_of(self.client[0] if self.client else "")
        self._enter("head")

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass data on, and note how far the request is."""
        if self._part == "idle":
            self._enter("head")
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        """Wait for a further request; uvicorn closes the connection after `KEEP_ALIVE_SECONDS`."""
        answered = self.cycle
        super().on_response_complete()
        if self.cycle is answered and not self.transport.is_closing():
            self._enter("idle")
        else:
            self._follow()

    def abort(self) -> None:
        """Close the connection at once."""
        self._cancel_deadline()
        if self.transport is not None:
            self.transport.abort()

    def _follow(self) -> None:
        """Enter the part that the current request is in."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return
        self._enter("body" if cycle.more_body else "response")

    def _enter(self, part: str) -> None:
        if part == self._part:
            return
        self._part = part
        self._leave()
        if part == "body":
            self.uploads.add(self, self._address)
        elif part == "response":
            self.answering.add(self)
        else:
            self.waiting.add(self, self._address)
        seconds = {"head": HEAD_SECONDS, "body": BODY_SECONDS, "response": RESPONSE_SECONDS}.get(part)
        if seconds is not None:
            self._deadline = self.loop.call_later(seconds, self.abort)

    def _leave(self) -> None:
        """Leave the part of the request that the connection is in."""
        self.waiting.remove(self)
        self.uploads.remove(self)
        self.answering.discard(self)
        self._cancel_deadline()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def limit_answers(app: Any, answering: set[LimitedProtocol]) -> Any:
    """Wrap an ASGI application: while more than `MAX_ANSWERING` requests are answered, others get 503."""

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or len(answering) <= MAX_ANSWERING:
            await app(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json"), (b"retry-after", b"5"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": BUSY})

    return serve


class ServerLoop(asyncio.SelectorEventLoop):
    """An event loop whose servers do not wait long for a TLS handshake."""

    async def create_server(self, *arguments: Any, **options: Any) -> Any:
        """Create a server as usual, with a time limit for TLS handshakes."""
        if options.get("ssl") is not None:
            options.setdefault("ssl_handshake_timeout", HEAD_SECONDS)
        return await super().create_server(*arguments, **options)


def server_config(app: Any, **options: Any) -> uvicorn.Config:
    """Return the configuration of a server with all limits of this module. `options` are uvicorn's."""

    class Protocol(LimitedProtocol):
        waiting = ConnectionTable(MAX_WAITING)
        uploads = ConnectionTable(MAX_UPLOADS)
        answering: set[LimitedProtocol] = set()  # noqa: RUF012 (one set for the server)

    allow_open_files()
    return uvicorn.Config(
        limit_answers(app, Protocol.answering),
        http=Protocol,
        ws="none",
        loop="jobs.serve.connections:ServerLoop",
        log_level="error",
        access_log=False,
        server_header=False,
        # The address of a connection is that of its peer. `access.client_address` reads what a proxy says.
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        **options,
    )


def allow_open_files(count: int = MAX_OPEN_FILES) -> None:
    """Raise the soft limit of open files to `count`, as far as the hard limit permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
