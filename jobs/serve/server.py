"""`clvr serve`: the search page, from this process or from replicas on a Ray cluster."""

import logging
import signal
import time
from contextlib import suppress
from typing import Any

import uvicorn

from index.search.travel_time import CameraMap
from infra.console import console
from infra.errors import BadSetting
from infra.settings import Settings
from jobs.search.searcher import Searcher
from jobs.serve.access import AccessPolicy, App
from jobs.serve.connections import server_config
from jobs.serve.request import (
    ServeRequest,
    has_access_log,
    make_policy,
    page_app,
    print_address,
    read_camera_positions,
)


def serve_page(request: ServeRequest, settings: Settings) -> None:
    """Serve until interrupted. Raises the errors of Searcher, and BadSetting for an invalid token."""
    policy = make_policy(request, settings)
    if request.replicas is not None:
        serve_on_cluster(request, settings, policy, read_camera_positions(request))
        return
    with console.status("loading the model"):
        app = page_app(
            settings,
            policy,
            read_camera_positions(request),
            request.max_upload_mib,
            access_log=has_access_log(request, policy),
        )
    print_address(request, policy)
    config = server_config(
        app,
        host=request.host,
        port=request.port,
        ssl_certfile=request.certificate,
        ssl_keyfile=request.key,
    )
    with suppress(KeyboardInterrupt):  # the usual end of the command
        uvicorn.Server(config).run()


APPLICATION = "clvr"
MAX_ONGOING_REQUESTS = 16


def serve_on_cluster(
    request: ServeRequest, settings: Settings, policy: AccessPolicy, cameras: CameraMap | None
) -> None:
    """Serve from replicas until interrupted, then delete the application.

    Each replica has one core, its own model and its own connection to Milvus. Raises BadSetting for a Milvus
    Lite file, for a certificate and if Ray Serve is not installed; RayUnreachable; the errors of Searcher.
    """
    serve = _ray_serve()
    # Imported late: a page from this process needs no Ray.
    import ray

    from jobs.runtime.ray_cluster import connect

    if not settings.milvus.startswith("http"):
        raise BadSetting(
            f"only one process can open {settings.milvus}", remedy="use a Milvus server with --replicas"
        )
    if request.certificate:
        raise BadSetting("Ray Serve does not support TLS", remedy="configure the certificate in a proxy")
    # Fail early: in a replica the same error is a traceback after minutes of restarts.
    Searcher(settings).close()
    connect(settings)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        proxy_location="EveryNode",
        http_options={"host": request.host, "port": request.port, "keep_alive_timeout_s": 30},
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )
    with console.status(f"starting {request.replicas} replicas"):
        serve.run(_application(request, settings, policy, cameras), name=APPLICATION, route_prefix="/")
    print_address(request, policy)
    # Delete the application on every exit but SIGKILL.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        while ray.is_initialized():
            time.sleep(1)
    finally:
        serve.delete(APPLICATION)


def _application(
    request: ServeRequest, settings: Settings, policy: AccessPolicy, cameras: CameraMap | None
) -> Any:
    serve = _ray_serve()

    def build() -> App:
        # Called in the replica, because a model and a connection cannot be pickled.
        return page_app(settings, policy, cameras, request.max_upload_mib, threads=1)

    page = serve.deployment(
        serve.ingress(build)(),
        name="page",
        num_replicas=request.replicas,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        ray_actor_options={"num_cpus": 1},
    )
    return page.bind()


def _ray_serve() -> Any:
    """Import Ray Serve, an optional dependency. Raises BadSetting if it is not installed."""
    try:
        from ray import serve
    except ModuleNotFoundError as missing:
        raise BadSetting(
            f"Ray Serve needs {missing.name}", remedy="pip install 'clvr-archive[replicas]'"
        ) from missing
    return serve
