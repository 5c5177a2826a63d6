"""Searches of `clvr search` in the audit, as those of the page are."""

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from index.archive.reader import read_uri
from index.documents import user_name
from index.search.track_probe import TRACK
from infra.errors import BadInput, CaseDatabaseError, ClvrError
from infra.logging import logger
from infra.settings import Settings
from jobs.cases.audit import AuditTrail, Outcome, Purpose
from jobs.cases.casebook import CROP, open_casebook
from jobs.search.search import SearchRequest, SearchResult, search_archive


def search_recorded(request: SearchRequest, settings: Settings, case_number: str = "") -> SearchResult:
    """Search as `search_archive` does, between the beginning and the end of an audit record.

    A record that cannot begin is a warning, or stops the search if the settings require a case number. One
    that has begun is completed before anything is shown.
    Raises what `search_archive` raises, BadInput without a case number, CaseDatabaseError.
    """
    if settings.case_required and not case_number.strip():
        raise BadInput("a search needs a case number", remedy="Give --case-number.")
    purpose = Purpose(user=user_name(), case_number=case_number)
    probes = [_probe_name(image) for image in request.images]
    parameters = _parameters(request)
    try:
        trail = _open_trail(settings)
        search_id = trail.begin("search", purpose, probes, parameters)
    except CaseDatabaseError as error:
        if settings.case_required:
            raise
        logger.warning(f"the audit has no record of this search: {error.message} ({error.remedy})")
        return search_archive(request, settings)
    try:
        return search_archive(
            request, settings, before_showing=lambda result: trail.finish(search_id, _outcome(result))
        )
    except Exception as error:
        with suppress(CaseDatabaseError):
            trail.fail(search_id, error.message if isinstance(error, ClvrError) else repr(error))
        raise


def _open_trail(settings: Settings) -> AuditTrail:
    # With runs in S3, a database in the working directory would be one for each place of work.
    if not (settings.has_cases() or settings.has_local_runs()):
        raise CaseDatabaseError("there is no database of cases", remedy="Set CLVR_CASES.")
    return AuditTrail(open_casebook(settings))


def _is_archived(image: str) -> bool:
    return image.startswith((CROP, TRACK))


def _probe_name(image: str) -> str:
    return image if _is_archived(image) or "://" in image else str(Path(image).absolute())


def _parameters(request: SearchRequest) -> dict[str, Any]:
    """Return what differs from the defaults, and the SHA-256 of each image that is no crop of the archive."""
    digests = {
        _probe_name(image): hashlib.sha256(read_uri(image)).hexdigest()
        for image in request.images
        if not _is_archived(image)
    }
    return request.options() | ({"sha256": digests} if digests else {})


def _outcome(result: SearchResult) -> Outcome:
    return Outcome(
        generation=result.generation,
        fingerprint=result.fingerprint,
        transform=result.probe.transform,
        verdict=result.verdict,
        threshold=result.calibration.threshold if result.calibration else None,
        shown=[(match.hit.crop_id, match.hit.distance, match.likelihood) for match in result.matches],
    )
