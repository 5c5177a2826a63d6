"""The request of `clvr serve`, its access policy, and the address that it prints."""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from index.search.travel_time import MAX_SPEED_KMH, CameraMap, read_cameras
from infra.errors import BadSetting
from infra.logging import logger
from infra.settings import Settings
from jobs.search.searcher import Searcher
from jobs.serve.access import AccessPolicy, App, Limits, is_loopback
from jobs.serve.app import make_app
from jobs.serve.users import Identity

TOKEN_VARIABLE = "CLVR_SERVE_TOKEN"  # noqa: S105 (the name of the variable)
MIN_TOKEN_LENGTH = 16
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class ServeRequest:
    """A request of `clvr serve`. replicas: number on the Ray cluster; None serves from this process."""

    host: str = "127.0.0.1"
    port: int = 8080
    require_token: bool = False
    no_token: bool = False
    camera_file: str | None = None
    max_speed: float = MAX_SPEED_KMH
    max_upload_mib: int = 32
    certificate: Path | None = None
    key: Path | None = None
    replicas: int | None = None
    access_log: bool | None = None
    """None: unless it listens on the loopback for one person."""


def page_app(
    settings: Settings,
    policy: AccessPolicy,
    cameras: CameraMap | None,
    max_upload_mib: int,
    *,
    threads: int = 0,
    access_log: bool = False,
) -> App:
    """Make the application with its model loaded, so that the first search need not wait for it."""
    searcher = Searcher(settings, threads=threads)
    _ = searcher.embedder
    limits = Limits(max_upload_mib << 20)
    app: App = make_app(searcher, policy, cameras=cameras, limits=limits, access_log=access_log)
    return app


def read_camera_positions(request: ServeRequest) -> CameraMap | None:
    """Read the positions of the cameras, if a file is given. Raises BadInput for an invalid file."""
    if not request.camera_file:
        return None
    return read_cameras(request.camera_file, max_speed_kmh=request.max_speed)


def print_address(request: ServeRequest, policy: AccessPolicy) -> None:
    """Print the address of the page, with the token only if this process generated it."""
    scheme = "https" if request.certificate else "http"
    host = f"[{request.host}]" if ":" in request.host else request.host
    address = f"{scheme}://{host}:{request.port}/"
    # In the fragment, which browsers do not send: no server logs the token.
    if policy.token and policy.generated:
        address += f"#token={policy.token}"
    elif policy.token:
        address += f" (its token is that of {TOKEN_VARIABLE})"
    logger.info(f"The page: {address}")
    if policy.token and scheme == "http":
        logger.warning("without --certificate the token is sent unencrypted")


def has_access_log(request: ServeRequest, policy: AccessPolicy) -> bool:
    """Whether each request is logged."""
    if request.access_log is not None:
        return request.access_log
    return policy.identity.from_proxy or not is_loopback(request.host)


def make_policy(request: ServeRequest, settings: Settings | None = None) -> AccessPolicy:
    """Make the access policy: a token is required except on the loopback or with --no-token.

    The token is `$CLVR_SERVE_TOKEN`, or a random one. Where a proxy names the users, it signed them in, and
    there is no token. Raises BadSetting for a short token, for a token beside such a proxy, and for a proxy
    with --replicas.
    """
    local = is_loopback(request.host)
    token = os.environ.get(TOKEN_VARIABLE)
    identity = Identity.of(settings) if settings else Identity()
    if identity.from_proxy:
        if token is not None or request.require_token:
            raise BadSetting(
                "user_header and a token are two ways to sign in",
                remedy=f"Leave out --token and {TOKEN_VARIABLE}, or the setting user_header.",
            )
        if request.replicas is not None:
            raise BadSetting(
                "replicas cannot see which address a user's name came from",
                remedy="Serve without --replicas, or leave out the setting user_header.",
            )
        return AccessPolicy(None, identity=identity)
    if token is not None and len(token) < MIN_TOKEN_LENGTH:
        raise BadSetting(
            f"{TOKEN_VARIABLE} is shorter than {MIN_TOKEN_LENGTH} characters", remedy="openssl rand -hex 16"
        )
    required = (not local or request.require_token or token is not None) and not request.no_token
    return AccessPolicy(
        (token or secrets.token_urlsafe(24)) if required else None,
        LOOPBACK | {request.host} if local else None,
        request.certificate is not None,
        generated=required and token is None,
    )
