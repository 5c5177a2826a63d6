"""What `clvr serve` needs to start: its request, the access policy and the address it prints."""

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

TOKEN = "CLVR_SERVE_TOKEN"  # noqa: S105 (the name of the variable)
SHORTEST_TOKEN = 16
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class ServeRequest:
    """What `clvr serve` was asked for. replicas: how many on the Ray cluster; None serves from here."""

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


def page_app(
    settings: Settings,
    guard: AccessPolicy,
    cameras: CameraMap | None,
    max_upload_mib: int,
    *,
    threads: int = 0,
) -> App:
    """The page behind its guard, with the model loaded: the first visitor should not wait for it."""
    searcher = Searcher(settings, threads=threads)
    _ = searcher.embedder
    app: App = make_app(searcher, guard, cameras=cameras, limits=Limits(max_upload_mib << 20))
    return app


def cameras_of(request: ServeRequest) -> CameraMap | None:
    """Positions of the cameras, where a file says them. Raises BadInput for a file that is none."""
    if not request.camera_file:
        return None
    return read_cameras(request.camera_file, max_speed_kmh=request.max_speed)


def print_address(request: ServeRequest, guard: AccessPolicy) -> None:
    """Say where the page is."""
    scheme = "https" if request.certificate else "http"
    shown = f"[{request.host}]" if ":" in request.host else request.host
    address = f"{scheme}://{shown}:{request.port}/"
    # Behind '#', so that no server's log keeps it.
    logger.info(f"The page: {address}{'#token=' + guard.token if guard.token else ''}")
    if guard.token and scheme == "http":
        logger.warning("without --certificate the token crosses the network in the clear")


def guard_of(request: ServeRequest) -> AccessPolicy:
    """The guard of an address: a token wherever others can reach it, unless --no-token says otherwise.

    The token is `$CLVR_SERVE_TOKEN`, or made here. Raises BadSetting for one that can be guessed.
    """
    local = is_loopback(request.host)
    given = os.environ.get(TOKEN)
    if given is not None and len(given) < SHORTEST_TOKEN:
        raise BadSetting(
            f"{TOKEN} is shorter than {SHORTEST_TOKEN} characters", remedy="openssl rand -hex 16"
        )
    wanted = (not local or request.require_token or given is not None) and not request.no_token
    token = (given or secrets.token_urlsafe(24)) if wanted else None
    return AccessPolicy(token, LOOPBACK | {request.host} if local else None, request.certificate is not None)
