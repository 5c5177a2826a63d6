"""The work of the case routes: judgements with the facts of their crops, journeys and companions."""

from index.search.companions import find_companions
from index.search.journey import journey_of
from index.search.probe import Sighting
from infra.errors import BadInput, ClvrError
from jobs.cases.audit import Outcome, Purpose
from jobs.cases.casebook import CROP, CropFacts
from jobs.cases.commands import audited_export
from jobs.cases.documents import CaseDocument, JudgementEntry
from jobs.cases.export import file_name
from jobs.cases.signing import read_signing_key
from jobs.search.searcher import crop_number
from jobs.serve.live import View
from jobs.serve.schemas import (
    CompanionFacts,
    CompanionsResponse,
    JourneyResponse,
    Leg,
    NewJudgement,
    StopFacts,
)
from jobs.serve.service import SearchService
from jobs.serve.users import User


class CaseService:
    """What users do with cases in the page, on the casebook and the searches of a `SearchService`."""

    def __init__(self, searches: SearchService) -> None:
        self.searches = searches
        self.casebook = searches.casebook
        self.audit = searches.audit
        self.signing_key = read_signing_key(searches.settings.signing_key)

    def judge(self, case_id: int, sent: NewJudgement, user: User) -> JudgementEntry:
        """Record a judgement, with the facts of the crop now and of the search that showed it."""
        crop_id = crop_number(sent.crop)
        shown = self.audit.shown_entry(sent.search_id, crop_id) if sent.search_id else None

        def facts(view: View) -> CropFacts:
            hit = view.searcher.crop(crop_id)
            return CropFacts(
                crop_id=crop_id,
                uri=hit.uri,
                camera_id=hit.camera_id,
                track_id=hit.track_id,
                captured_at=hit.captured_at,
                generation=view.name,
                fingerprint=view.searcher.source.fingerprint,
                search_id=sent.search_id if shown else "",
                rank=shown.rank if shown else None,
                distance=shown.distance if shown else None,
                likelihood=shown.likelihood if shown else None,
            )

        return self.casebook.judge(
            case_id, sent.verdict, sent.note, user.name, self.searches.live.answer(facts)
        )

    def journey(self, case_id: int) -> JourneyResponse:
        """Return the confirmed crops of a case, and its archived probes, in order of time."""
        cameras = self.searches.cameras
        journey = journey_of(self._sightings(self.casebook.read(case_id)), cameras)
        positions = cameras.positions if cameras else {}
        return JourneyResponse(
            stops=[
                StopFacts(
                    camera_id=stop.camera_id,
                    track_id=stop.track_id,
                    first=stop.first,
                    last=stop.last,
                    crops=[f"{CROP}{crop_id}" for crop_id in stop.crop_ids],
                    position=positions.get(stop.camera_id),
                    video=self.searches.video.of(stop.camera_id, stop.track_id, stop.first),
                )
                for stop in journey.stops
            ],
            legs=[
                Leg(km=leg.km, seconds=leg.seconds, kmh=leg.kmh, possible=leg.possible)
                for leg in journey.legs
            ],
            untimed=[f"{CROP}{crop_id}" for crop_id in journey.untimed],
            impossible=journey.impossible,
            max_speed_kmh=cameras.max_speed_kmh if cameras else None,
        )

    def companions(
        self, case_id: int, user: User, *, window_seconds: float, max_distance: float | None
    ) -> CompanionsResponse:
        """Return the vehicles near the stops of a case's journey; it is audited as a search is.

        max_distance: by default the calibrated threshold. Raises BadInput without either, and for fewer than
        two stops.
        """
        document = self.casebook.read(case_id)
        stops = journey_of(self._sightings(document)).stops
        if len([stop for stop in stops if stop.camera_id]) < 2:
            raise BadInput(
                "companions need two confirmed stops with a camera and a time", remedy="Confirm more matches."
            )
        own = {crop_id for stop in stops for crop_id in stop.crop_ids}
        purpose = Purpose(user=user.name, case_number=document.case.number)
        parameters = {"window_seconds": window_seconds, "max_distance": max_distance}
        search_id = self.audit.begin("companions", purpose, sorted(f"{CROP}{one}" for one in own), parameters)

        def find(view: View) -> tuple[CompanionsResponse, Outcome]:
            calibration = view.searcher.calibration
            limit = max_distance or (calibration.threshold if calibration else None)
            if limit is None:
                raise BadInput(
                    "without a calibration, companions need a largest distance",
                    remedy="Give one, or run `clvr calibrate`.",
                )
            found = find_companions(
                view.searcher.source,
                stops,
                window_seconds=window_seconds,
                max_distance=limit,
                exclude=own,
            )
            crops = [crop for companion in found for crop in companion.crops]
            view.remember_uris({crop.crop_id: crop.uri for crop in crops})
            response = CompanionsResponse(
                companions=[
                    CompanionFacts(
                        stops=list(companion.stops),
                        crops=[self.searches.facts_of(crop) for crop in companion.crops],
                        distance=companion.distance,
                        seconds=companion.seconds,
                    )
                    for companion in found
                ],
                window_seconds=window_seconds,
                max_distance=limit,
                stops=len(stops),
            )
            outcome = Outcome(
                generation=view.name,
                fingerprint=view.searcher.source.fingerprint,
                transform=view.searcher.source.generation.transform,
                verdict="companions",
                threshold=limit,
                shown=[
                    (crop.crop_id, companion.distance, None)
                    for companion in found
                    for crop in companion.crops
                ],
            )
            return response, outcome

        try:
            response, outcome = self.searches.live.answer(find)
        except ClvrError as error:
            self.audit.fail(search_id, error.message)
            raise
        self.audit.finish(search_id, outcome)
        return response

    def export(self, case_id: int, user: User) -> tuple[str, bytes]:
        """Return the name and the bytes of the export of a case; it is audited."""

        def read_crop(crop_id: int, uri: str) -> bytes:
            view = self.searches.live.current()
            view.searcher.require_kept(f"crop {crop_id}", crop_id)
            return view.fetch(uri or view.searcher.crop(crop_id).uri, crop_id)

        evidence, data = audited_export(
            self.casebook, case_id, user.name, self.signing_key, read_crop, self.searches.cameras
        )
        return file_name(evidence.document.case.number), data

    def _sightings(self, document: CaseDocument) -> list[Sighting]:
        """Return the sightings of the confirmed crops, and of probes that are archived crops."""
        found = [
            Sighting(entry.camera_id, entry.track_id, entry.captured_at, entry.crop_id)
            for entry in document.judged("confirmed")
        ]
        judged = {entry.crop for entry in document.judgements}
        ids = [
            crop_number(probe.spec)
            for probe in document.probes
            if probe.spec.startswith(CROP) and probe.spec not in judged
        ]
        if ids:
            found += self.searches.live.answer(
                lambda view: list(view.searcher.source.sightings(ids).values())
            )
        return found
