"""Whether the server lives, whether it can answer, and its metrics."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from infra.errors import ClvrError, IndexRefused
from jobs.serve.schemas import Health
from jobs.serve.service import SearchService


def health_routes(service: SearchService) -> APIRouter:
    """Make the routes."""
    router = APIRouter(tags=["service"])

    @router.get("/healthz", summary="The server runs")
    def healthz() -> Health:
        return Health(status="ok")

    @router.get(
        "/readyz", summary="The index and the database of cases answer", responses={503: {"model": Health}}
    )
    def readyz() -> JSONResponse:
        checks = {}
        for name, check in (("index", _check_index), ("cases", lambda one: one.casebook.database.ping())):
            try:
                check(service)
                checks[name] = "ok"
            except ClvrError as error:
                checks[name] = type(error).__name__  # the message may name servers
        ready = all(state == "ok" for state in checks.values())
        health = Health(status="ok" if ready else "not ready", checks=checks)
        return JSONResponse(health.model_dump(), 200 if ready else 503)

    @router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    def metrics(request: Request) -> Response:
        return Response(service.metrics.text(service.live.current().name), media_type=CONTENT_TYPE_LATEST)

    return router


def _check_index(service: SearchService) -> None:
    view = service.live.current()
    if not view.searcher.source.milvus.call("has_collection", view.name):
        raise IndexRefused(f"{view.name} is gone")
