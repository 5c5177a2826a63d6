"""The HTTP API of the search page: search by images and crops, and thumbnails of crops. Plain FastAPI.

A request contains bytes of images, ids of crops and values of filters. It cannot name a path or a URL: the
URI of a crop is read from the index, and must be in an archive of the generation's runs.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from clvr_model.card import read_card
from index.milvus.collection import row_count
from index.search.calibration import Calibration
from index.search.probe import merge_probes
from index.search.retrieval import Rules
from index.search.travel_time import CameraMap
from infra.errors import BadInput, BadSetting, ClvrError, Locked, UnreadableImage
from jobs.runtime.format import model_name
from jobs.search.search import RulesRequest, make_rules, match_to_json, resolve_attributes, verdict
from jobs.search.searcher import CROP, Searcher, crop_number
from jobs.serve.access import AccessPolicy, Limits, with_access_control
from jobs.serve.live import LiveView, View

ASSETS = Path(__file__).parent / "static"
MAX_IMAGES = 5
MAX_TOP = 1000


def _encodable(text: str) -> str:
    if not text.isprintable():  # half of a surrogate pair cannot be sent on; no name has control characters
        raise ValueError("it has characters that no name has")
    return text


Name = Annotated[str, Field(max_length=1000), AfterValidator(_encodable)]


class WebRules(BaseModel):
    """The rules that the page sends: a subset of those of `clvr search`, with vehicle models by id."""

    model_config = ConfigDict(extra="forbid")

    top: int = Field(50, ge=1, le=MAX_TOP)
    cameras: list[Name] = Field(default_factory=list, max_length=500)
    not_cameras: list[Name] = Field(default_factory=list, max_length=500)
    since: Name | None = Field(None, max_length=40)
    until: Name | None = Field(None, max_length=40)
    models: list[Annotated[int, Field(ge=-1, lt=2**63)]] = Field(default_factory=list, max_length=500)
    same_camera: bool = False
    every_crop: bool = False
    max_distance: float | None = Field(None, gt=0, allow_inf_nan=False)
    drop_impossible: bool = False
    rerank: bool = False
    colors: list[Name] = Field(default_factory=list, max_length=100)
    not_colors: list[Name] = Field(default_factory=list, max_length=100)
    min_color_confidence: float | None = Field(None, ge=0, le=1)
    body_types: list[Name] = Field(default_factory=list, max_length=100)
    not_body_types: list[Name] = Field(default_factory=list, max_length=100)
    min_body_type_confidence: float | None = Field(None, ge=0, le=1)

    def to_rules(self, cameras: CameraMap | None) -> Rules:
        """Convert to the rules of the index. Raises BadSetting."""
        fields = self.model_dump(exclude={"models"})
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        return make_rules(RulesRequest(**fields), cameras=cameras, model_ids=self.models)


class SearchService:
    """The work of the routes, on the generation that is live at the time of the request."""

    def __init__(self, searcher: Searcher, cameras: CameraMap | None) -> None:
        self.live = LiveView(searcher)
        self.cameras = cameras

    def about(self) -> dict[str, Any]:
        """Return the facts that the page shows before the first search."""
        return self.live.answer(self._about)

    def search(self, images: list[bytes], crops: list[int], request: WebRules) -> dict[str, Any]:
        """Search one probe made of all images and crops. Raises BadInput, BadSetting, errors of Milvus."""
        if not 1 <= len(images) + len(crops) <= MAX_IMAGES:
            raise BadInput(f"a search needs 1 to {MAX_IMAGES} images of one vehicle")
        rules = request.to_rules(self.cameras)
        cameras = (*request.cameras, *request.not_cameras)
        return self.live.answer(lambda view: _search(view, images, crops, rules, cameras))

    def thumbnail(self, crop_id: int) -> bytes:
        """Return the JPEG thumbnail of a crop. Raises BadInput for a crop outside the archive, StoreError."""
        return self.live.answer(lambda view: view.thumbnail(crop_id))

    def _about(self, view: View) -> dict[str, Any]:
        searcher = view.searcher
        span = searcher.time_range()
        return {
            "generation": view.name,
            "fingerprint": searcher.source.fingerprint,
            "crops": row_count(searcher.source.milvus, searcher.source.generation),
            "unit": "track" if searcher.source.members else "crop",
            "cameras": searcher.known_cameras(),
            "positions": self.cameras.positions if self.cameras else {},
            "models": searcher.model_names,
            "attributes": read_card(searcher.checkpoint_uri).attributes,
            "first": span[0] if span else None,
            "last": span[1] if span else None,
            **_threshold(searcher.calibration),
            "max_top": MAX_TOP,
            "max_pictures": MAX_IMAGES,
        }


def _search(
    view: View, images: list[bytes], crops: list[int], rules: Rules, cameras: tuple[str, ...]
) -> dict[str, Any]:
    searcher = view.searcher
    searcher.require_cameras(cameras)
    searcher.require_models(rules.filters.model_ids)
    rules = resolve_attributes(rules, lambda: read_card(searcher.checkpoint_uri))
    started = time.perf_counter()
    probes = [view.probe(data) for data in images]
    probes += [searcher.probe(f"{CROP}{crop}") for crop in crops]
    probe = probes[0] if len(probes) == 1 else merge_probes("several images", probes)
    embedded = time.perf_counter()
    (matches,) = searcher.search([probe], rules)
    finished = time.perf_counter()
    names = searcher.model_names
    view.remember_uris({match.hit.crop_id: match.hit.uri for match in matches})
    return {
        "generation": view.name,
        "verdict": verdict(matches, searcher.calibration),
        **_threshold(searcher.calibration),
        "sightings": [
            {"camera_id": sighting.camera_id, "captured_at": sighting.captured_at}
            for sighting in probe.sightings
        ],
        "answers": [match_to_json(match, model_name(names, match.hit.model_id)) for match in matches],
        "embed_ms": round(1000 * (embedded - started), 1),
        "search_ms": round(1000 * (finished - embedded), 1),
    }


def _threshold(calibration: Calibration | None) -> dict[str, float | None]:
    return {
        "threshold": calibration.threshold if calibration else None,
        "false_alarm_rate": calibration.false_alarm_rate if calibration else None,
    }


def make_app(
    searcher: Searcher,
    policy: AccessPolicy,
    *,
    cameras: CameraMap | None = None,
    limits: Limits | None = None,
) -> Any:
    """Make the application with its access control."""
    service = SearchService(searcher, cameras)
    app = FastAPI(title="CLVR Archive", docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(ClvrError)
    def refuse(request: Request, error: ClvrError) -> JSONResponse:
        status = 400 if isinstance(error, BadInput) else 503 if isinstance(error, Locked) else 502
        return JSONResponse({"error": error.message, "remedy": error.remedy}, status)

    @app.exception_handler(RequestValidationError)
    def refuse_form(request: Request, error: RequestValidationError) -> JSONResponse:
        # FastAPI's own answer repeats the input, which may be bytes that are no text.
        return JSONResponse({"error": "the fields of the form are not those of the page"}, 400)

    @app.get("/api/about")
    def about() -> dict[str, Any]:
        return service.about()

    @app.post("/api/search")
    def search(
        rules: Annotated[str, Form(max_length=100_000)] = "{}",
        picture: Annotated[list[UploadFile] | None, File()] = None,
        crop: Annotated[list[str] | None, Form()] = None,
    ) -> dict[str, Any]:
        images = [upload.file.read() for upload in picture or ()]
        return service.search(images, [crop_number(uri) for uri in crop or ()], _parse_rules(rules))

    @app.get("/api/crops/{crop_id}.jpg")
    def crop_thumbnail(crop_id: str) -> Response:
        try:
            data = service.thumbnail(crop_number(f"{CROP}{crop_id}"))
        except UnreadableImage as error:
            return JSONResponse({"error": error.message}, 404)
        # No cache of the browser or of a proxy may keep a crop that is erased later.
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    for path, file, media_type in (
        ("/", "index.html", "text/html"),
        ("/app.js", "app.js", "text/javascript"),
        ("/style.css", "style.css", "text/css"),
        ("/icon.svg", "icon.svg", "image/svg+xml"),
    ):
        app.add_api_route(path, _asset(ASSETS / file, media_type), methods=["GET"])
    return with_access_control(app, policy, limits or Limits())


def _asset(path: Path, media_type: str) -> Callable[[], FileResponse]:
    def serve() -> FileResponse:
        return FileResponse(path, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return serve


def _parse_rules(text: str) -> WebRules:
    try:
        return WebRules.model_validate(json.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        raise BadSetting(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise BadSetting("the rules are not JSON") from error
