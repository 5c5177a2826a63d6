"""`clvr serve`: the page, on this machine or, behind a token, for others."""

import logging
import signal
import time

import ray
import uvicorn

from index.search.travel_time import CameraMap
from infra.errors import BadSetting
from infra.logging import console
from infra.settings import Settings
from jobs.runtime.ray_cluster import connect
from jobs.search.searcher import Searcher
from jobs.serve.access import AccessPolicy, App
from jobs.serve.request import ServeRequest, cameras_of, guard_of, page_app, print_address


def serve_page(request: ServeRequest, settings: Settings) -> None:
    """Serve until interrupted. Raises what a Searcher raises, and BadSetting for a token that is none."""
    guard = guard_of(request)
    if request.replicas is not None:
        # Ray Serve is an extra: who serves from one process need not have it.

        serve_on_cluster(request, settings, guard, cameras_of(request))
        return
    with console.status("loading the model"):
        app = page_app(settings, guard, cameras_of(request), request.max_upload_mib)
    print_address(request, guard)
    uvicorn.run(
        app,
        host=request.host,
        port=request.port,
        log_level="warning",
        server_header=False,
        ssl_certfile=request.certificate,
        ssl_keyfile=request.key,
        limit_concurrency=200,
        timeout_keep_alive=30,
    )


try:
    from ray import serve
except ModuleNotFoundError as missing:
    raise BadSetting(
        f"Ray Serve needs {missing.name}", remedy="pip install 'clvr-archive[serve]'"
    ) from missing

NAME = "clvr"
REQUESTS_AT_ONCE = 16


def serve_on_cluster(
    request: ServeRequest, settings: Settings, guard: AccessPolicy, cameras: CameraMap | None
) -> None:
    """Serve until interrupted, then take the application down again.

    Each replica has one core, its own model and its own connection to Milvus. Raises BadSetting for a Milvus
    Lite file and for a certificate, RayUnreachable, and what a Searcher raises.
    """
    if not settings.milvus.startswith("http"):
        raise BadSetting(
            f"{settings.milvus} can be open in one process only", remedy="replicas need a Milvus server"
        )
    if request.certificate:
        raise BadSetting("Ray Serve speaks no TLS", remedy="put --certificate into the proxy before it")
    # Here a mistake is one line; in a replica it is a traceback after minutes of attempts.
    Searcher(settings).close()
    connect(settings)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        proxy_location="EveryNode",
        http_options={"host": request.host, "port": request.port, "keep_alive_timeout_s": 30},
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )
    with console.status(f"starting {request.replicas} replicas"):
        serve.run(_application(request, settings, guard, cameras), name=NAME, route_prefix="/")
    print_address(request, guard)
    # Ended in any way but by force, it leaves no application behind on the cluster.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    try:
        while ray.is_initialized():
            time.sleep(1)
    finally:
        serve.delete(NAME)


def _application(
    request: ServeRequest, settings: Settings, guard: AccessPolicy, cameras: CameraMap | None
) -> serve.Application:
    def build() -> App:
        # In the replica: a model and a connection cannot be sent there.
        return page_app(settings, guard, cameras, request.max_upload_mib, threads=1)

    page = serve.deployment(
        serve.ingress(build)(),
        name="page",
        num_replicas=request.replicas,
        max_ongoing_requests=REQUESTS_AT_ONCE,
        ray_actor_options={"num_cpus": 1},
    )
    return page.bind()
