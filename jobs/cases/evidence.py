"""The evidence of a case: its document with images, their hashes and the journey, for pages and exports."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from clvr_model.image_headers import read_header
from index.documents import utc_now
from index.search.journey import Journey, journey_of
from index.search.probe import Sighting
from index.search.travel_time import CameraMap
from infra.errors import ClvrError, UnreadableImage
from jobs.cases.audit import AuditTrail
from jobs.cases.casebook import CROP, UPLOAD, Casebook, probe_crop
from jobs.cases.documents import CaseDocument, JudgementEntry, ShownEntry
from jobs.pages.thumbnail import thumbnail

ReadCrop = Callable[[int, str], bytes]
"""Returns the bytes of a crop in the archive by its number and URI. Raises ClvrError."""

_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp"}


@dataclass(frozen=True, slots=True)
class EvidenceImage:
    """An image: its bytes as they are in the archive or were sent, or why they are not there.

    name: of the file in an export. jpeg: a small image, encoded by us.
    """

    spec: str
    name: str
    data: bytes = b""
    sha256: str = ""
    jpeg: bytes = b""
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that an export says of a case. history: every judgement; shown: what each search showed."""

    document: CaseDocument
    history: Sequence[JudgementEntry]
    shown: Sequence[ShownEntry]
    journey: Journey
    images: dict[str, EvidenceImage]
    at: str
    by: str

    @property
    def models(self) -> list[str]:
        """The fingerprints of all models that searched or whose answers were judged."""
        judged, searched = self.history, self.document.searches
        names = {entry.fingerprint for entry in judged} | {entry.fingerprint for entry in searched}
        return sorted(filter(None, names))

    @property
    def generations(self) -> list[str]:
        """The generations that were searched."""
        judged, searched = self.history, self.document.searches
        names = {entry.generation for entry in judged} | {entry.generation for entry in searched}
        return sorted(filter(None, names))


def collect_evidence(
    casebook: Casebook, case_id: int, user: str, read_crop: ReadCrop, cameras: CameraMap | None = None
) -> Evidence:
    """Read a case and the images of its probes and judged crops. Raises BadInput for an unknown case.

    An image that cannot be read is missing, with the reason; erased ones are not in the case.
    """
    document, trail = casebook.read(case_id), AuditTrail(casebook)
    images = {
        entry.crop: _image(entry.crop, partial(read_crop, entry.crop_id, entry.uri))
        for entry in document.judgements
    }
    for spec in [probe.spec for probe in document.probes if probe.spec not in images]:
        crop_id = probe_crop(spec)
        if crop_id is None:
            images[spec] = _image(spec, partial(_upload, casebook, spec))
        else:
            images[spec] = _image(spec, partial(read_crop, crop_id, ""))
    sightings = [
        Sighting(entry.camera_id, entry.track_id, entry.captured_at, entry.crop_id)
        for entry in document.judged("confirmed")
    ]
    return Evidence(
        document=document,
        history=casebook.history(case_id),
        shown=[entry for search in document.searches for entry in trail.shown(search.id)],
        journey=journey_of(sightings, cameras),
        images=images,
        at=utc_now(),
        by=user,
    )


def _upload(casebook: Casebook, spec: str) -> bytes:
    return casebook.upload(spec.removeprefix(UPLOAD).partition("@")[0])[1]


def _image(spec: str, read: Callable[[], bytes]) -> EvidenceImage:
    name = spec.replace(UPLOAD, "upload-").replace(CROP, "crop-").partition("@")[0]
    try:
        data = read()
    except ClvrError as error:
        return EvidenceImage(spec, "", missing=error.message)
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        suffix = _SUFFIXES[read_header(data).format]
        return EvidenceImage(spec, f"images/{name}{suffix}", data, sha256, thumbnail(data))
    except (UnreadableImage, KeyError) as error:
        return EvidenceImage(spec, f"images/{name}.bin", data, sha256, missing=str(error))
