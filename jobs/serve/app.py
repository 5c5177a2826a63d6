"""The application: the routes of the HTTP API, the files of the page, and errors as JSON. Plain FastAPI."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse

from index.search.travel_time import CameraMap
from infra.errors import BadInput, ClvrError, Locked
from jobs.cases.database import CaseDatabase
from jobs.search.searcher import Searcher
from jobs.serve.access import AccessPolicy, Limits, with_access_control
from jobs.serve.case_routes import case_routes
from jobs.serve.case_service import CaseService
from jobs.serve.dependencies import Forbidden
from jobs.serve.health import health_routes
from jobs.serve.metrics import PageMetrics, with_metrics
from jobs.serve.rate_limit import RateLimit
from jobs.serve.search_routes import search_routes
from jobs.serve.service import SearchService

ASSETS = Path(__file__).parent / "static"
API_VERSION = "1.0"
OPENAPI_PATH = "/api/openapi.json"
_MEDIA_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

DESCRIPTION = """Search an archive of vehicle crops, and work on cases. Every search is recorded
before it begins.

A route that needs a role says so with status 403. An error is `{"error": …, "remedy": …}`."""


def asset_paths() -> dict[str, Path]:
    """Return the files of the page by their paths: `/` is index.html."""
    files = {
        f"/{file.relative_to(ASSETS).as_posix()}": file
        for file in sorted(ASSETS.rglob("*"))
        if file.suffix in _MEDIA_TYPES
    }
    files["/"] = files.pop("/index.html")
    return files


def make_api(service: SearchService) -> FastAPI:
    """Make the application without access control."""
    app = FastAPI(
        title="CLVR Archive",
        version=API_VERSION,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=OPENAPI_PATH,
    )

    @app.exception_handler(ClvrError)
    def refuse(request: Request, error: ClvrError) -> JSONResponse:
        return JSONResponse({"error": error.message, "remedy": error.remedy}, _status_of(error))

    @app.exception_handler(RequestValidationError)
    def refuse_form(request: Request, error: RequestValidationError) -> JSONResponse:
        # FastAPI's own answer repeats the input, which may be bytes that are no text.
        return JSONResponse({"error": "the fields of the form are not those of the page"}, 400)

    app.include_router(search_routes(service, RateLimit(service.settings.searches_per_minute)))
    app.include_router(case_routes(CaseService(service)))
    app.include_router(health_routes(service))
    for path, file in asset_paths().items():
        app.add_api_route(path, _asset(file), methods=["GET"], include_in_schema=False)
    return app


def make_app(
    searcher: Searcher,
    policy: AccessPolicy,
    *,
    cameras: CameraMap | None = None,
    limits: Limits | None = None,
    database: CaseDatabase | None = None,
    access_log: bool = False,
) -> Any:
    """Make the application with its access control, metrics and access log."""
    limits, metrics = limits or Limits(), PageMetrics()
    service = SearchService(
        searcher, cameras, database=database, metrics=metrics, max_upload_bytes=limits.body
    )
    public = frozenset(asset_paths())
    app = with_access_control(make_api(service), policy, limits, public, service.tiles.origin)
    return with_metrics(app, metrics, access_log=access_log)


def _status_of(error: ClvrError) -> int:
    if isinstance(error, BadInput):
        return 400
    if isinstance(error, Forbidden):
        return 403
    return 503 if isinstance(error, Locked) else 502


def _asset(path: Path) -> Callable[[], FileResponse]:
    def serve() -> FileResponse:
        media_type = _MEDIA_TYPES[path.suffix]
        return FileResponse(path, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return serve
