"""The routes of searches, uploads and images."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Query, Request, Response, UploadFile
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from infra.errors import BadInput, BadSetting, UnreadableImage
from jobs.cases.audit import Purpose
from jobs.search.searcher import CROP, crop_number
from jobs.serve.dependencies import require_role, user_of
from jobs.serve.images import MAX_SIDE, SMALL_SIDE, Box
from jobs.serve.rate_limit import RateLimit
from jobs.serve.schemas import (
    FAILURES,
    About,
    CropResponse,
    SearchResponse,
    UploadResponse,
    WebRules,
)
from jobs.serve.service import ProbeRequest, SearchService, parse_upload

# No cache of the browser or of a proxy may keep a crop that is erased later.
NO_STORE = {"Cache-Control": "no-store"}


def search_routes(service: SearchService, limit: RateLimit) -> APIRouter:
    """Make the routes."""
    router = APIRouter(prefix="/api", tags=["search"], responses=FAILURES)

    @router.get("/about", summary="The archive, the user, and what this server can do")
    def about(request: Request) -> About:
        return service.about(user_of(request))

    @router.post("/search", summary="Search one vehicle", response_model=SearchResponse)
    def search(
        request: Request,
        rules: Annotated[str, Form(max_length=100_000, description="JSON of WebRules")] = "{}",
        probe: Annotated[
            list[str] | None, Form(description="crop:ID, or upload:SHA256 with @x,y,width,height for a box")
        ] = None,
        picture: Annotated[list[UploadFile] | None, File()] = None,
        crop: Annotated[list[str] | None, Form(description="crop:ID, as in `probe`")] = None,
        case_number: Annotated[str, Form(max_length=1000)] = "",
        reason: Annotated[str, Form(max_length=1000)] = "",
        feedback_case: Annotated[
            int | None, Form(description="Id of a case: search with the confirmed, away from the rejected")
        ] = None,
    ) -> SearchResponse | JSONResponse:
        user = require_role(request, "search")
        if wait := limit.wait(user.name):
            return _too_many(wait)
        images = [upload.file.read() for upload in picture or ()]
        return service.search(
            images,
            [crop_number(uri) for uri in crop or ()],
            parse_rules(rules),
            purpose=Purpose(user=user.name, case_number=case_number, reason=reason),
            probes=ProbeRequest(specs=[_spec(text) for text in probe or ()], feedback_case=feedback_case),
        )

    @router.post("/uploads", summary="Keep an image, to search with it by its link")
    def upload(request: Request, picture: Annotated[UploadFile, File()]) -> UploadResponse:
        user = require_role(request, "search")
        service.expire_uploads()
        return service.add_upload(picture.file.read(), user.name)

    @router.get("/uploads/{sha256}.jpg", summary="An upload, or a box of it", response_class=Response)
    def uploaded(
        request: Request,
        sha256: str,
        box: Annotated[str | None, Query(max_length=80)] = None,
        small: Annotated[bool, Query(description="As it is beside its answers")] = False,
    ) -> Response:
        require_role(request, "search")
        digest, _ = parse_upload(sha256)
        try:
            side = SMALL_SIDE if small else MAX_SIDE
            jpeg = service.upload_image(digest, Box.parse(box) if box else None, side)
        except BadInput as error:
            return JSONResponse({"error": error.message, "remedy": error.remedy}, 404)
        return Response(jpeg, media_type="image/jpeg", headers=NO_STORE)

    @router.get("/crops/{crop_id}.jpg", summary="A small image of a crop", response_class=Response)
    def thumbnail(request: Request, crop_id: str) -> Response:
        require_role(request, "search")
        try:
            jpeg = service.thumbnail(crop_number(f"{CROP}{crop_id}"))
        except UnreadableImage as error:
            return JSONResponse({"error": error.message, "remedy": error.remedy}, 404)
        return Response(jpeg, media_type="image/jpeg", headers=NO_STORE)

    @router.get(
        "/crops/{crop_id}/original.jpg",
        summary="A crop in its own size, up to 4,096 pixels, encoded again",
        response_class=Response,
    )
    def original(request: Request, crop_id: str) -> Response:
        require_role(request, "search")
        image = service.original(crop_number(f"{CROP}{crop_id}"))
        return Response(image.jpeg, media_type="image/jpeg", headers=NO_STORE)

    @router.get("/crops/{crop_id}", summary="The facts of a crop, and its track")
    def crop_facts(request: Request, crop_id: str) -> CropResponse:
        require_role(request, "search")
        return service.crop(crop_number(f"{CROP}{crop_id}"))

    return router


def parse_rules(text: str) -> WebRules:
    """Parse the rules of a search. Raises BadSetting that names the field."""
    try:
        return WebRules.model_validate(json.loads(text))
    except ValidationError as error:
        first: Any = error.errors()[0]
        raise BadSetting(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise BadSetting("the rules are not JSON") from error


def _spec(text: str) -> str:
    """Check a probe, and write it in one way. Raises BadInput."""
    if text.startswith("upload:"):
        parse_upload(text)
        return text
    return f"{CROP}{crop_number(text)}"


def _too_many(wait: float) -> JSONResponse:
    seconds = max(1, round(wait))
    return JSONResponse(
        {"error": "too many searches", "remedy": f"Repeat it in {seconds} s."},
        429,
        headers={"Retry-After": str(seconds)},
    )
