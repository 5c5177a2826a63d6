"""The work of the search routes, on the generation that is live at the time of the request.

A request contains bytes of images, ids of crops and values of filters. It cannot name a path or a URL: the
URI of a crop is read from the index, and must be in an archive of the generation's runs.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from index.milvus.collection import row_count
from index.milvus.search import Hit
from index.search.feedback import Feedback, retrieve_with
from index.search.probe import Probe, Sighting, merge_probes
from index.search.retrieval import Match, Rules
from index.search.travel_time import CameraMap
from infra.errors import BadInput, ClvrError
from jobs.cases.audit import AuditTrail, Outcome, Purpose
from jobs.cases.casebook import CROP, UPLOAD, Casebook
from jobs.cases.database import CaseDatabase
from jobs.cases.documents import CaseDocument, Verdict
from jobs.runtime.format import model_name
from jobs.search.search import match_to_json, resolve_attributes, verdict
from jobs.search.searcher import Searcher, crop_number
from jobs.serve.images import Box, Viewable, viewable, viewable_size
from jobs.serve.links import MapTiles, VideoLink
from jobs.serve.live import LiveView, View
from jobs.serve.metrics import PageMetrics
from jobs.serve.schemas import (
    MAX_IMAGES,
    MAX_TOP,
    About,
    Answer,
    CropResponse,
    FeedbackFacts,
    Leg,
    ProbeFacts,
    SearchResponse,
    TilesInfo,
    UploadResponse,
    UserInfo,
    WebRules,
)
from jobs.serve.slots import decode_slots
from jobs.serve.users import User

MAX_TRACK_SHOWN = 60
MAX_JUDGED = 200
"""Judged crops of a case that a search uses, at most: the latest ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRequest:
    """What a search is made with: probes by spec, and a case whose judged crops join them."""

    specs: Sequence[str] = ()
    feedback_case: int | None = None


class SearchService:
    """Searches, images and facts, for the routes. database: of cases; None opens that of the settings."""

    def __init__(
        self,
        searcher: Searcher,
        cameras: CameraMap | None,
        *,
        database: CaseDatabase | None = None,
        metrics: PageMetrics | None = None,
        max_upload_bytes: int = 32 << 20,
    ) -> None:
        self.settings = searcher.settings
        self.live = LiveView(searcher)
        self.cameras = cameras
        self.metrics = metrics or PageMetrics()
        self.video = VideoLink(self.settings.video_url)
        self.tiles = MapTiles(self.settings.map_tiles)
        self.max_upload_bytes = max_upload_bytes
        database = database or CaseDatabase(self.settings.case_database())
        self.casebook = Casebook(database, searcher.source.tombstones)
        self.audit = AuditTrail(self.casebook)
        self.expire_uploads()

    def about(self, user: User) -> About:
        """Return the facts that the page shows before the first search."""
        return self.live.answer(lambda view: self._about(view, user))

    def search(
        self,
        images: Sequence[bytes],
        crops: Sequence[int],
        request: WebRules,
        *,
        purpose: Purpose,
        probes: ProbeRequest | None = None,
    ) -> SearchResponse:
        """Search one probe made of all images and crops. Its audit record is written before it begins.

        Raises BadInput, BadSetting, CaseDatabaseError, errors of Milvus.
        """
        probes = probes or ProbeRequest()
        specs = [f"{CROP}{crop}" for crop in crops] + list(probes.specs)
        specs += [self.add_upload(data, purpose.user).spec for data in images]
        specs = list(dict.fromkeys(specs))
        case = self.casebook.read(probes.feedback_case) if probes.feedback_case is not None else None
        if case and not purpose.case_number:
            purpose = replace(purpose, case_number=case.case.number)
        if not (case or specs) or len(specs) > MAX_IMAGES:
            raise BadInput(f"a search needs 1 to {MAX_IMAGES} images of one vehicle")
        if self.settings.case_required and not purpose.case_number.strip():
            raise BadInput("a search needs a case number", remedy="Choose a case, or give its number.")
        rules = request.to_rules(self.cameras)
        parameters: dict[str, Any] = request.model_dump(exclude_defaults=True)
        if case:
            parameters["feedback"] = {
                "case": case.case.number,
                "confirmed": [entry.crop for entry in case.judged("confirmed")[-MAX_JUDGED:]],
                "rejected": [entry.crop for entry in case.judged("rejected")[-MAX_JUDGED:]],
            }
        self.casebook.use_uploads([parse_upload(spec)[0] for spec in specs if spec.startswith(UPLOAD)])
        search_id = self.audit.begin("search", purpose, specs, parameters)
        try:
            response, outcome = self.live.answer(
                lambda view: self._search(view, specs, case, rules, request, search_id)
            )
        except Exception as error:
            self.metrics.searches.labels("failed").inc()
            self.audit.fail(search_id, error.message if isinstance(error, ClvrError) else repr(error))
            raise
        self.audit.finish(search_id, outcome)
        self.metrics.searches.labels(response.verdict).inc()
        self.metrics.stage_seconds.labels("embed").observe(response.embed_ms / 1000)
        self.metrics.stage_seconds.labels("index").observe(response.search_ms / 1000)
        return response

    def thumbnail(self, crop_id: int) -> bytes:
        """Return the JPEG thumbnail of a crop. Raises BadInput for a crop outside the archive, StoreError."""
        return self.live.answer(lambda view: view.thumbnail(crop_id))

    def original(self, crop_id: int) -> Viewable:
        """Return a crop in its own size. Raises BadInput for a crop outside the archive, StoreError."""
        return self.live.answer(lambda view: view.original(crop_id))[1]

    def crop(self, crop_id: int) -> CropResponse:
        """Return the facts of a crop and its track. Raises BadInput for a crop outside the archive."""
        return self.live.answer(lambda view: self._crop(view, crop_id))

    def add_upload(self, data: bytes, user: str) -> UploadResponse:
        """Keep an image that a user sent. Raises BadInput for what is no image, or was erased."""
        with decode_slots.use():
            width, height = viewable_size(data)
        facts = self.casebook.add_upload(data, width, height, user)
        return UploadResponse(
            spec=f"{UPLOAD}{facts.sha256}",
            sha256=facts.sha256,
            size=facts.size,
            width=facts.width,
            height=facts.height,
        )

    def upload_image(self, sha256: str, box: Box | None, side: int) -> bytes:
        """Return an upload, or a box of it, as our JPEG of that side. Raises BadInput if it is not kept."""
        _, data = self.casebook.upload(sha256)
        with decode_slots.use():
            return viewable(data, box=box, side=side).jpeg

    def expire_uploads(self) -> int:
        """Delete the uploads that are too old or too many; return how many."""
        return self.casebook.expire_uploads(self.settings.upload_days, self.settings.upload_mib << 20)

    def probe_of(self, view: View, spec: str) -> Probe:
        """Return the probe of `crop:ID` or `upload:SHA256@box`. Raises BadInput."""
        if not spec.startswith(UPLOAD):
            return view.searcher.probe(f"{CROP}{crop_number(spec)}")
        sha256, box = parse_upload(spec)
        return view.probe(self.casebook.upload(sha256)[1], box)

    def facts_of(self, hit: Hit) -> ProbeFacts:
        """Return a crop as the page shows it in a strip."""
        return ProbeFacts(
            spec=f"{CROP}{hit.crop_id}",
            image=f"/api/crops/{hit.crop_id}.jpg",
            camera_id=hit.camera_id,
            track_id=hit.track_id,
            captured_at=hit.captured_at,
            video=self.video.of(hit.camera_id, hit.track_id, hit.captured_at),
        )

    def _about(self, view: View, user: User) -> About:
        searcher = view.searcher
        span = searcher.time_range()
        calibration = searcher.calibration
        return About(
            generation=view.name,
            fingerprint=searcher.source.fingerprint,
            crops=row_count(searcher.source.milvus, searcher.source.generation),
            unit="track" if searcher.source.members else "crop",
            cameras=searcher.known_cameras(),
            positions=dict(self.cameras.positions) if self.cameras else {},
            models=searcher.model_names,
            attributes={name: list(values) for name, values in searcher.card.attributes.items()},
            first=span[0] if span else None,
            last=span[1] if span else None,
            threshold=calibration.threshold if calibration else None,
            false_alarm_rate=calibration.false_alarm_rate if calibration else None,
            max_top=MAX_TOP,
            max_pictures=MAX_IMAGES,
            max_upload_bytes=self.max_upload_bytes,
            max_speed_kmh=self.cameras.max_speed_kmh if self.cameras else None,
            case_required=self.settings.case_required,
            has_video=self.settings.video_url is not None,
            tiles=TilesInfo(url=self.tiles.template, attribution=self.settings.map_attribution)
            if self.tiles.template
            else None,
            user=UserInfo(name=user.name, roles=sorted(user.roles)),
        )

    def _search(
        self,
        view: View,
        specs: Sequence[str],
        case: CaseDocument | None,
        rules: Rules,
        request: WebRules,
        search_id: str,
    ) -> tuple[SearchResponse, Outcome]:
        searcher = view.searcher
        searcher.require_cameras((*request.cameras, *request.not_cameras))
        searcher.require_models(rules.filters.model_ids)
        rules = resolve_attributes(rules, lambda: searcher.card)
        started = time.perf_counter()
        probes = [self.probe_of(view, spec) for spec in specs]
        feedback = _feedback(view, probes, case) if case else None
        embedded = time.perf_counter()
        if feedback:
            matches = retrieve_with(searcher.source, feedback[0], rules, searcher.calibration)
        else:
            probe = probes[0] if len(probes) == 1 else merge_probes("several images", probes)
            (matches,) = searcher.search([probe], rules)
        finished = time.perf_counter()
        view.remember_uris({match.hit.crop_id: match.hit.uri for match in matches})
        calibration = searcher.calibration
        response = SearchResponse(
            search_id=search_id,
            generation=view.name,
            fingerprint=searcher.source.fingerprint,
            transform=searcher.source.generation.transform,
            verdict=verdict(matches, calibration),
            threshold=calibration.threshold if calibration else None,
            false_alarm_rate=calibration.false_alarm_rate if calibration else None,
            probes=[self._probe_facts(spec, probe) for spec, probe in zip(specs, probes, strict=True)],
            feedback=feedback[1] if feedback else None,
            answers=[self._answer(match, searcher.model_names) for match in matches],
            embed_ms=round(1000 * (embedded - started), 1),
            search_ms=round(1000 * (finished - embedded), 1),
        )
        outcome = Outcome(
            generation=response.generation,
            fingerprint=response.fingerprint,
            transform=response.transform,
            verdict=response.verdict,
            threshold=response.threshold,
            shown=[(match.hit.crop_id, match.hit.distance, match.likelihood) for match in matches],
        )
        return response, outcome

    def _answer(self, match: Match, names: dict[int, str]) -> Answer:
        fields = match_to_json(match, model_name(names, match.hit.model_id))
        travel = match.travel
        hit = match.hit
        fields["journey"] = (
            Leg(
                km=travel.km,
                seconds=travel.seconds,
                kmh=travel.kmh if math.isfinite(travel.kmh) else None,
                possible=travel.possible,
            )
            if travel
            else None
        )
        return Answer(**fields, video=self.video.of(hit.camera_id, hit.track_id, hit.captured_at))

    def _probe_facts(self, spec: str, probe: Probe) -> ProbeFacts:
        if spec.startswith(UPLOAD):
            return ProbeFacts(spec=spec, image=upload_url(spec))
        sighting = probe.sightings[0] if probe.sightings else Sighting()
        return ProbeFacts(
            spec=spec,
            image=f"/api/crops/{crop_number(spec)}.jpg",
            camera_id=sighting.camera_id,
            track_id=sighting.track_id,
            captured_at=sighting.captured_at,
            video=self.video.of(sighting.camera_id, sighting.track_id, sighting.captured_at),
        )

    def _crop(self, view: View, crop_id: int) -> CropResponse:
        searcher = view.searcher
        hit = searcher.crop(crop_id)
        others: list[Hit] = []
        if hit.track_id:
            ids = searcher.source.track_crops(hit.camera_id, hit.track_id)
            others = sorted(
                searcher.source.crops(ids).values(), key=lambda one: (one.captured_at, one.crop_id)
            )
            view.remember_uris({other.crop_id: other.uri for other in others})
        return CropResponse(
            crop=f"{CROP}{crop_id}",
            uri=hit.uri,
            camera_id=hit.camera_id,
            track_id=hit.track_id,
            captured_at=hit.captured_at,
            vehicle_model=model_name(searcher.model_names, hit.model_id),
            model_confidence=hit.model_confidence,
            video=self.video.of(hit.camera_id, hit.track_id, hit.captured_at),
            track=[self.facts_of(other) for other in others[:MAX_TRACK_SHOWN]],
        )


def parse_upload(spec: str) -> tuple[str, Box | None]:
    """Return SHA-256 and box of `upload:SHA256@x,y,width,height`. Raises BadInput."""
    sha256, separator, box = spec.removeprefix(UPLOAD).partition("@")
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise BadInput(f"{spec[:60]!r} is no upload", remedy="Choose the file again.")
    return sha256, Box.parse(box) if separator else None


def upload_url(spec: str) -> str:
    """Return the URL of the image of an upload, or of the box of it."""
    sha256, _, box = spec.removeprefix(UPLOAD).partition("@")
    return f"/api/uploads/{sha256}.jpg" + (f"?box={quote(box, safe=',')}" if box else "")


def judged_probes(searcher: Searcher, crop_ids: Sequence[int]) -> list[Probe]:
    """Return the probes of those crops that are in the generation."""
    source = searcher.source
    vectors, sightings = source.vectors(crop_ids), source.sightings(crop_ids)
    transform = source.generation.transform
    return [
        Probe(f"{CROP}{crop_id}", vectors[crop_id], (sightings[crop_id],), transform)
        for crop_id in crop_ids
        if crop_id in vectors and crop_id in sightings
    ]


def _feedback(view: View, probes: Sequence[Probe], case: CaseDocument) -> tuple[Feedback, FeedbackFacts]:
    def judged(verdict: Verdict) -> list[Probe]:
        crops = [entry.crop_id for entry in case.judged(verdict)[-MAX_JUDGED:]]
        return judged_probes(view.searcher, crops)

    confirmed, rejected = judged("confirmed"), judged("rejected")
    if not confirmed and not probes:
        raise BadInput(
            f"case {case.case.number} has no confirmed crop in this generation",
            remedy="Confirm a match, or search with a probe.",
        )
    feedback = Feedback.of(f"case {case.case.number}", [*probes, *confirmed], rejected)
    return feedback, FeedbackFacts(confirmed=len(confirmed), rejected=len(rejected))
