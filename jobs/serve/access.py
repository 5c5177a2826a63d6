"""What stands before the page's routes: who may ask, how much they may send, and what browsers may do."""

import hashlib
import hmac
import json
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

COOKIE = "clvr_session"
LOGIN = "/api/login"
OPEN = {"/", "/app.js", "/style.css", "/icon.svg", LOGIN}
"""What is served to anybody: the empty page, which asks for the token."""

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes of a request's body."""

    body: int = 32 << 20


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """token: what must be shown, or None on the loopback. hosts: names that the server answers to, or any.

    The cookie holds a digest of the token under a key of this process: it is worth nothing elsewhere.
    """

    token: str | None = field(repr=False)
    hosts: frozenset[str] | None = None
    secure_cookie: bool = False
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @property
    def session(self) -> str:
        """The value of the cookie."""
        return hmac.new(self.key, (self.token or "").encode(), hashlib.sha256).hexdigest()

    def knows(self, headers: dict[str, str]) -> bool:
        """Whether a request shows the token, or the cookie that it was changed for."""
        if self.token is None:
            return True
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(shown.encode(), self.token.encode()):
            return True
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return morsel is not None and hmac.compare_digest(morsel.value.encode(), self.session.encode())

    def right_host(self, headers: dict[str, str]) -> bool:
        """Whether the request names us: another site's name that points here would make a browser ours."""
        if self.hosts is None:
            return True
        return (urlsplit(f"//{headers.get('host', '')}").hostname or "") in self.hosts

    def right_origin(self, headers: dict[str, str]) -> bool:
        """Whether a request that changes something, or costs something, comes from our own page."""
        origin = headers.get("origin")
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return False
        return origin is None or urlsplit(origin).netloc == headers.get("host")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens at `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def with_access_control(app: App, guard: AccessPolicy, limits: Limits) -> App:
    """Put an application behind a guard."""

    async def serve(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # Nothing here speaks WebSocket; the server's own start and stop messages pass.
            if scope["type"] == "lifespan":
                await app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        sending = _with_headers(send)
        refused = _refusal(scope, headers, guard, limits)
        if refused:
            await _discard_body(receive, 4 * limits.body)
            await _answer(sending, *refused)
        elif scope["path"] == LOGIN:
            await _login(receive, sending, guard)
        else:
            await app(scope, _limited(receive, limits.body), sending)

    return serve


def _refusal(
    scope: Message, headers: dict[str, str], guard: AccessPolicy, limits: Limits
) -> tuple[int, str] | None:
    if not guard.right_host(headers):
        return 421, "this server does not answer to that name"
    if scope["method"] not in ("GET", "HEAD") and not guard.right_origin(headers):
        return 403, "this request comes from another site"
    if scope["path"] not in OPEN and not guard.knows(headers):
        return 401, "show the token"
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > limits.body:
        return 413, f"more than {limits.body >> 20} MiB"
    return None


def _limited(receive: Receive, most: int) -> Receive:
    """Count what arrives: a chunked body says no length beforehand. Beyond the limit the client has left."""
    arrived = 0

    async def counted() -> Message:
        nonlocal arrived
        message = await receive()
        arrived += len(message.get("body", b""))
        return message if arrived <= most else {"type": "http.disconnect"}

    return counted


async def _discard_body(receive: Receive, most: int) -> None:
    """Take what a refused client is still sending: many read the answer only after they have sent it all."""
    while most > 0:
        message = await receive()
        most -= len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return sending


async def _login(receive: Receive, send: Send, guard: AccessPolicy) -> None:
    body = b""
    while len(body) <= 4096:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    try:
        shown = str(json.loads(body)["token"])
    except (ValueError, KeyError, TypeError, RecursionError):
        shown = ""
    if not guard.knows({"authorization": f"Bearer {shown}"}):
        await _answer(send, 401, "this is not the token")
        return
    flags = "; Secure" if guard.secure_cookie else ""
    cookie = f"{COOKIE}={guard.session}; Path=/; HttpOnly; SameSite=Strict; Max-Age=43200{flags}"
    await _answer(send, 200, "", [(b"set-cookie", cookie.encode())])


async def _answer(
    send: Send, status: int, error: str, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    body = json.dumps({"error": error}).encode()
    kind = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*kind, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})
