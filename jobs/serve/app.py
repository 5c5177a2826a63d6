"""The page's server: search by a picture or a crop, and the crops of what was found. Plain FastAPI, no Ray.

What a user sends is bytes of a picture, ids of crops, and values of filters. No path or URL of theirs is ever
opened: a crop's object is looked up in the index, and must lie in an archive of the generation's runs.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cachetools import LRUCache, cachedmethod
from fastapi import FastAPI, File, Form, Request, Response, UploadFile
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from index.archive.reader import ArchiveReader
from index.filters import Filters
from index.milvus.collection import row_count
from index.search.probe import Probe, merge_probes
from index.search.retrieval import RERANK_HEAD, Rules
from index.search.travel_time import CameraMap
from infra.errors import BadInput, BadSetting, ClvrError, Locked, UnreadablePicture
from infra.store import open_store
from jobs.pages.thumbnail import thumbnail
from jobs.runtime.resolve import epoch_ms
from jobs.search.search import answer_document, verdict
from jobs.search.searcher import CROP, Searcher, crop_number
from jobs.serve.access import AccessPolicy, Limits, with_access_control

ASSETS = Path(__file__).parent / "static"
MAX_PICTURES = 5
MAX_TOP = 1000
THUMBNAILS, URIS, FEATURES = 2000, 50_000, 256


class WebRules(BaseModel):
    """The filters that the page sends; the same as of `clvr search`."""

    model_config = ConfigDict(extra="forbid")

    top: int = Field(50, ge=1, le=MAX_TOP)
    cameras: list[str] = Field(default_factory=list, max_length=500)
    not_cameras: list[str] = Field(default_factory=list, max_length=500)
    since: str | None = Field(None, max_length=40)
    until: str | None = Field(None, max_length=40)
    models: list[int] = Field(default_factory=list, max_length=500)
    same_camera: bool = False
    every_crop: bool = False
    max_distance: float | None = Field(None, gt=0)
    drop_impossible: bool = False
    rerank: bool = False

    def rules(self, cameras: CameraMap | None) -> Rules:
        """As the index knows them. Raises BadSetting."""
        start, end = epoch_ms("from", self.since), epoch_ms("to", self.until)
        if start is not None and end is not None and start >= end:
            raise BadSetting(f"nothing lies between {self.since} and {self.until}")
        return Rules(
            top=self.top,
            filters=Filters(
                cameras=tuple(self.cameras),
                not_cameras=tuple(self.not_cameras),
                captured_from=start,
                captured_to=end,
                model_ids=tuple(self.models),
            ),
            same_camera=self.same_camera,
            group_by_track=not self.every_crop,
            max_distance=self.max_distance,
            cameras=cameras,
            drop_impossible=self.drop_impossible,
            rerank_depth=max(RERANK_HEAD, self.top) if self.rerank else 0,
        )


class SearchService:
    """What the routes do: one searcher, and what need not be done twice."""

    def __init__(self, searcher: Searcher, cameras: CameraMap | None) -> None:
        self.searcher = searcher
        self.cameras = cameras
        self._thumbnails: LRUCache[int, bytes] = LRUCache(THUMBNAILS)
        self._uris: LRUCache[int, str] = LRUCache(URIS)
        self._features: LRUCache[str, Probe] = LRUCache(FEATURES)
        self._caches = threading.Lock()
        # OpenVINO answers one request at a time anyway, and waiting here keeps the queue visible.
        self._model = threading.Lock()

    def about(self) -> dict[str, Any]:
        """What the page shows before the first search."""
        searcher = self.searcher
        calibration = searcher.calibration
        span = searcher.time_range()
        return {
            "generation": searcher.source.name,
            "fingerprint": searcher.source.fingerprint,
            "crops": row_count(searcher.source.milvus, searcher.source.generation),
            "cameras": searcher.known_cameras(),
            "positions": self.cameras.positions if self.cameras else {},
            "models": searcher.model_names,
            "first": span[0] if span else None,
            "last": span[1] if span else None,
            "threshold": calibration.threshold if calibration else None,
            "false_alarm_rate": calibration.false_alarm_rate if calibration else None,
            "max_top": MAX_TOP,
            "max_pictures": MAX_PICTURES,
        }

    def search(self, pictures: list[bytes], crops: list[int], asked: WebRules) -> dict[str, Any]:
        """Answer one probe of all the pictures and crops. Raises BadInput, BadSetting, and Milvus' errors."""
        if not 1 <= len(pictures) + len(crops) <= MAX_PICTURES:
            raise BadInput(f"a search takes 1 to {MAX_PICTURES} pictures of one vehicle")
        rules = asked.rules(self.cameras)
        self.searcher.require_cameras((*asked.cameras, *asked.not_cameras))
        started = time.perf_counter()
        probes = [self._probe(data) for data in pictures]
        probes += [self.searcher.probe(f"{CROP}{crop}") for crop in crops]
        probe = probes[0] if len(probes) == 1 else merge_probes("several pictures", probes)
        embedded = time.perf_counter()
        (answers,) = self.searcher.answer([probe], rules)
        ended = time.perf_counter()
        names = self.searcher.model_names
        with self._caches:
            self._uris.update((each.hit.crop_id, each.hit.uri) for each in answers)
        return {
            "verdict": verdict(answers, self.searcher.calibration),
            "sightings": [
                {"camera_id": seen.camera_id, "captured_at": seen.captured_at} for seen in probe.sightings
            ],
            "answers": [
                answer_document(each, names.get(each.hit.model_id, f"model {each.hit.model_id}"))
                for each in answers
            ],
            "embed_ms": round(1000 * (embedded - started), 1),
            "search_ms": round(1000 * (ended - embedded), 1),
        }

    @cachedmethod(lambda self: self._thumbnails, lambda self, crop_id: crop_id, lambda self: self._caches)
    def thumbnail(self, crop_id: int) -> bytes:
        """Return a crop's thumbnail, JPEG. Raises BadInput for a crop outside the archive, StoreError."""
        uri = self._uri(crop_id)
        for archive in self.searcher.archives:
            reader = ArchiveReader(open_store(archive))
            if reader.holds(uri):
                return thumbnail(reader.fetch(uri).data)
        raise BadInput(f"crop {crop_id} is outside the archive")

    @cachedmethod(lambda self: self._uris, lambda self, crop_id: crop_id, lambda self: self._caches)
    def _uri(self, crop_id: int) -> str:
        return self.searcher.crop(crop_id).uri

    @cachedmethod(
        lambda self: self._features,
        lambda self, data: hashlib.sha256(data).hexdigest(),
        lambda self: self._caches,
    )
    def _probe(self, data: bytes) -> Probe:
        with self._model:
            return self.searcher.probe_of(data, "the picture")


def make_app(
    searcher: Searcher, guard: AccessPolicy, *, cameras: CameraMap | None = None, limits: Limits | None = None
) -> Any:
    """The application, behind its guard."""
    desk = SearchService(searcher, cameras)
    app = FastAPI(title="CLVR Archive", docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(ClvrError)
    def refuse(request: Request, error: ClvrError) -> JSONResponse:
        status = 400 if isinstance(error, BadInput) else 503 if isinstance(error, Locked) else 502
        return JSONResponse({"error": error.message, "remedy": error.remedy}, status)

    @app.get("/api/about")
    def about() -> dict[str, Any]:
        return desk.about()

    @app.post("/api/search")
    def search(
        rules: Annotated[str, Form(max_length=100_000)] = "{}",
        picture: Annotated[list[UploadFile] | None, File()] = None,
        crop: Annotated[list[str] | None, Form()] = None,
    ) -> dict[str, Any]:
        pictures = [each.file.read() for each in picture or ()]
        return desk.search(pictures, [crop_number(each) for each in crop or ()], _rules(rules))

    @app.get("/api/crops/{crop_id}.jpg")
    def crop_picture(crop_id: str) -> Response:
        try:
            data = desk.thumbnail(crop_number(f"{CROP}{crop_id}"))
        except UnreadablePicture as error:
            return JSONResponse({"error": error.message}, 404)
        # A crop's id names one object for ever; only this browser may keep it.
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    for path, file, kind in (
        ("/", "index.html", "text/html"),
        ("/app.js", "app.js", "text/javascript"),
        ("/style.css", "style.css", "text/css"),
        ("/icon.svg", "icon.svg", "image/svg+xml"),
    ):
        app.add_api_route(path, _asset(ASSETS / file, kind), methods=["GET"])
    return with_access_control(app, guard, limits or Limits())


def _asset(path: Path, kind: str) -> Callable[[], FileResponse]:
    def serve() -> FileResponse:
        return FileResponse(path, media_type=kind, headers={"Cache-Control": "no-cache"})

    return serve


def _rules(text: str) -> WebRules:
    try:
        return WebRules.model_validate(json.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        raise BadSetting(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise BadSetting("the filters are not JSON") from error
