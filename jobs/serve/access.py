"""Access control of the page: token and session, hosts and origins, size of requests, browser policies."""

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from math import ceil
from typing import Any
from urllib.parse import urlsplit

from infra.logging import logger
from jobs.serve.throttle import Throttle
from jobs.serve.users import Identity

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

COOKIE = "clvr_session"
LOGIN = "/api/login"
METRICS = "/metrics"
HEALTH_PATHS = frozenset({"/healthz", "/readyz"})
"""Paths that any client may ask: they say nothing but the state."""

_CHARSET = re.compile(r"charset\s*=\s*\"?([^\s;\"]*)", re.IGNORECASE)

HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Maximum size of a request's body, in bytes."""

    body: int = 32 << 20


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """The token, host names and cookie of a server.

    token: None permits requests without a token; `generated`: it is ours and not the operator's, so it may be
    shown. hosts: names that a request may address; None permits any.
    The cookie is a keyed digest of the token, and its key is of this process: no other server accepts it.
    """

    token: str | None = field(repr=False)
    hosts: frozenset[str] | None = None
    secure_cookie: bool = False
    generated: bool = False
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    identity: Identity = field(default_factory=Identity)

    @property
    def session(self) -> str:
        """The value of the cookie."""
        return hmac.new(self.key, _bytes_of(self.token or ""), hashlib.sha256).hexdigest()

    def is_token(self, sent: str) -> bool:
        """Whether a client sent the token."""
        return self.token is not None and hmac.compare_digest(_bytes_of(sent), _bytes_of(self.token))

    def has_session(self, headers: dict[str, str]) -> bool:
        """Whether a request needs no token, or has the cookie of a login."""
        if self.token is None:
            return True
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return morsel is not None and hmac.compare_digest(_bytes_of(morsel.value), _bytes_of(self.session))

    def is_allowed_host(self, headers: dict[str, str]) -> bool:
        """Whether the request addresses an allowed host; others are DNS rebinding."""
        if self.hosts is None:
            return True
        try:
            return (urlsplit(f"//{headers.get('host', '')}").hostname or "") in self.hosts
        except ValueError:
            return False

    def is_allowed_origin(self, headers: dict[str, str]) -> bool:
        """Whether the request is from our own page; others are cross-site request forgery."""
        origin = headers.get("origin")
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return False
        try:
            return origin is None or urlsplit(origin).netloc == headers.get("host")
        except ValueError:
            return False


def client_address(peer: str, headers: dict[str, str]) -> str:
    """Return the address of a client, to count wrong tokens: from a proxy on this machine, what it says."""
    forwarded = headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
    return forwarded if forwarded and is_loopback(peer) else peer


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _bytes_of(text: str) -> bytes:
    """Encode text that may hold half of a surrogate pair, as JSON and variables of the environment can."""
    return text.encode("utf-8", "surrogatepass")


def content_policy(image_origin: str = "") -> str:
    """Return what a browser may load for the page. image_origin: a server with images, such as map tiles."""
    images = f"'self' blob: {image_origin}".strip()
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src {images}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def with_access_control(
    app: App,
    policy: AccessPolicy,
    limits: Limits,
    public: frozenset[str] = frozenset(),
    image_origin: str = "",
) -> App:
    """Wrap an application so that every request is checked by a policy, and none ends in a traceback.

    public: paths without a token and a user, beside those of `HEALTH_PATHS`: those of the empty page.
    image_origin: a server that the browser may load images from.
    `scope["clvr.user"]` has the user of every other request.
    """
    throttle, public = Throttle(), public | HEALTH_PATHS
    fixed = HEADERS | {"content-security-policy": content_policy(image_origin)}

    async def serve(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # There is no WebSocket route. Lifespan messages are the server's own.
            if scope["type"] == "lifespan":
                await app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        send_with_headers = _with_headers(send, fixed)
        peer = str((scope.get("client") or ("",))[0])
        refusal: tuple[Any, ...] | None = _refusal(scope, headers, policy, limits)
        if not refusal and scope["path"] not in public:
            refusal = _token_refusal(scope["path"], headers, policy, throttle, client_address(peer, headers))
            # Users are believed by the address that the connection comes from, not by what it says.
            refusal = refusal or _enter_user(scope, headers, policy.identity, peer)
        if refusal:
            await _discard_body(receive, 4 * limits.body)
            await _respond(send_with_headers, *refusal)
        elif scope["path"] == LOGIN:
            await _login(receive, send_with_headers, policy, throttle, client_address(peer, headers))
        else:
            await _guarded(app, scope, _limited(receive, limits.body), send_with_headers)

    return serve


async def _guarded(app: App, scope: Message, receive: Receive, send: Send) -> None:
    """Run the application; an unexpected error is one line in the log, and 500 if nothing was sent yet."""
    started = False

    async def noted(message: Message) -> None:
        nonlocal started
        started = True
        await send(message)

    try:
        await app(scope, receive, noted)
    except Exception as error:
        logger.error(f"unexpected: {type(error).__name__} in {scope['method']} {scope['path']!r}: {error!r}")
        if not started:
            await _respond(send, 500, "an unexpected error; the server's log names it")


def _refusal(
    scope: Message, headers: dict[str, str], policy: AccessPolicy, limits: Limits
) -> tuple[int, str] | None:
    if not policy.is_allowed_host(headers):
        return 421, "this server does not serve that host name"
    if scope["method"] not in ("GET", "HEAD") and not policy.is_allowed_origin(headers):
        return 403, "this request is from another site"
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit() and len(length) <= 18) or int(length) > limits.body:
        return 413, f"the request is larger than {limits.body >> 20} MiB"
    charset = _CHARSET.search(headers.get("content-type", ""))
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        return 415, "text must be UTF-8"
    return None


def _enter_user(
    scope: Message, headers: dict[str, str], identity: Identity, address: str
) -> tuple[int, str] | None:
    """Put the user into the scope of a request, or refuse it. A proxy itself may read the metrics."""
    if scope["path"] == METRICS and identity.from_proxy and identity.is_proxy(address):
        return None
    user = identity.user_of(headers, address)
    if isinstance(user, str):
        return (401 if identity.is_proxy(address) else 403), user
    scope["clvr.user"] = user
    return None


def _token_refusal(
    path: str, headers: dict[str, str], policy: AccessPolicy, throttle: Throttle, address: str
) -> tuple[int, str, list[tuple[bytes, bytes]]] | None:
    """Refuse a request without the token. A cookie cannot be guessed, so only tokens are slowed down."""
    if path != LOGIN and policy.has_session(headers):
        return None
    scheme, _, sent = headers.get("authorization", "").partition(" ")
    if path != LOGIN and scheme.lower() != "bearer":
        return 401, "a token is required", []
    if wait := throttle.wait(address):
        seconds = str(ceil(wait)).encode()
        return 429, "too many wrong tokens: wait before the next one", [(b"retry-after", seconds)]
    if path == LOGIN:
        return None
    if policy.is_token(sent):
        throttle.succeeded(address)
        return None
    throttle.failed(address)
    return 401, "a token is required", []


def _limited(receive: Receive, limit: int) -> Receive:
    """Count the received bytes, because a chunked body has no length; disconnect above the limit."""
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        return message if received <= limit else {"type": "http.disconnect"}

    return counted


async def _discard_body(receive: Receive, limit: int) -> None:
    """Read the body of a refused request: many clients read the response only after they sent the body."""
    while limit > 0:
        message = await receive()
        limit -= len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return


def _with_headers(send: Send, fixed: dict[str, str]) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            added = [(name.encode(), value.encode()) for name, value in fixed.items()]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return send_with_headers


async def _login(
    receive: Receive, send: Send, policy: AccessPolicy, throttle: Throttle, address: str
) -> None:
    body = b""
    while len(body) <= 4096:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    # Requests that came at the same time have waited for their bodies.
    if throttle.wait(address):
        await _respond(send, 429, "too many wrong tokens: wait before the next one")
        return
    try:
        token = str(json.loads(body)["token"])
    except (ValueError, KeyError, TypeError, RecursionError):
        token = ""
    if policy.token is not None and not policy.is_token(token):
        throttle.failed(address)
        await _respond(send, 401, "the token is wrong")
        return
    throttle.succeeded(address)
    flags = "; Secure" if policy.secure_cookie else ""
    cookie = f"{COOKIE}={policy.session}; Path=/; HttpOnly; SameSite=Strict; Max-Age=43200{flags}"
    await _respond(send, 200, "", [(b"set-cookie", cookie.encode())])


async def _respond(
    send: Send, status: int, error: str, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    body = json.dumps({"error": error}).encode()
    content_headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send(
        {"type": "http.response.start", "status": status, "headers": [*content_headers, *(headers or [])]}
    )
    await send({"type": "http.response.body", "body": body})
