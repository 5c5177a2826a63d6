"""The watch list: tonight's new crops are searched for the confirmed vehicle of every watched case."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from index.documents import utc_now
from index.milvus.collection import Generation
from index.runs.run import Run
from index.runs.tombstones import TombstoneWatch
from index.schema import UNKNOWN_TIME
from index.search.calibration import calibration_of
from index.search.milvus_source import MilvusSource
from index.search.probe import Probe, Sighting, merge_probes
from index.search.retrieval import Match, Rules, retrieve
from index.search.scan_source import ScanSource
from index.transforms.stored import read_transform
from infra.settings import Settings
from infra.store import Store
from jobs.cases.casebook import CROP, Casebook
from jobs.cases.database import open_cases
from jobs.cases.documents import CaseDocument, WatchHitEntry
from jobs.runtime.resolve import open_milvus
from jobs.search.searcher import open_source

MAX_HITS = 100
"""Passes of one vehicle that a night reports, at most: the nearest ones."""

MAX_CONFIRMED = 200

Report = dict[str, Any]


def search_watched(settings: Settings, store: Store, live: Generation, run_id: str) -> Report | None:
    """Search the crops of a run for all watched vehicles, exactly, within the calibrated threshold.

    A vehicle is the mean of its confirmed crops in the live generation; crops that were judged, and their
    tracks, are no hits. Hits are kept once, so the search may be repeated. Returns the counts for the
    summary of a night, None if nothing is watched. Raises CaseDatabaseError, errors of Milvus and the store.
    """
    database = open_cases(settings)
    if database is None:
        return None
    try:
        book = Casebook(database, TombstoneWatch([store]))
        watched = book.watched()
        if not watched:
            return None
        return _search(book, watched, settings, store, live, run_id)
    finally:
        database.close()


def _search(
    book: Casebook,
    watched: Sequence[CaseDocument],
    settings: Settings,
    store: Store,
    live: Generation,
    run_id: str,
) -> Report:
    report: Report = {"watched": len(watched), "new": 0, "cases": []}
    calibration = calibration_of(store, live.fingerprint, live.transform)
    if calibration is None:
        return report | {"error": "nothing was searched: without a calibration there is no threshold"}
    transform = read_transform(store, live.fingerprint, live.transform)
    source = open_source(open_milvus(settings), live, settings)
    pairs = [
        (document, probe) for document in watched if (probe := _probe(source, document, live)) is not None
    ]
    if not pairs:
        return report | {"error": "no confirmed crop of a watched vehicle is in the live generation"}
    rules = Rules(top=MAX_HITS, same_camera=True, max_distance=calibration.threshold)
    scan = ScanSource([Run.open(store, run_id)], transform=transform)
    found = retrieve(scan, [probe for _, probe in pairs], rules, calibration)
    for (document, _), matches in zip(pairs, found, strict=True):
        new = book.add_watch_hits([_hit(document, match, run_id) for match in matches])
        report["new"] += new
        if matches:
            report["cases"].append(
                {"case": document.case.number, "new": new, "nearest": round(matches[0].hit.distance, 4)}
            )
    return report | {"threshold": calibration.threshold, "false_alarm_rate": calibration.false_alarm_rate}


def _probe(source: MilvusSource, document: CaseDocument, live: Generation) -> Probe | None:
    """Return the mean of the confirmed crops; the judged crops and their tracks are no matches of it."""
    confirmed = [entry.crop_id for entry in document.judged("confirmed")[-MAX_CONFIRMED:]]
    vectors, sightings = source.vectors(confirmed), source.sightings(confirmed)
    probes = [
        Probe(f"{CROP}{crop_id}", vectors[crop_id], (sightings[crop_id],), live.transform)
        for crop_id in confirmed
        if crop_id in vectors and crop_id in sightings
    ]
    if not probes:
        return None
    others = [
        Sighting(entry.camera_id, entry.track_id, UNKNOWN_TIME, entry.crop_id)
        for entry in document.judgements
        if entry.verdict != "confirmed"
    ]
    mean = merge_probes(f"case {document.case.number}", probes)
    return replace(mean, sightings=(*mean.sightings, *others))


def _hit(document: CaseDocument, match: Match, run_id: str) -> WatchHitEntry:
    hit = match.hit
    return WatchHitEntry(
        crop=f"{CROP}{hit.crop_id}",
        run_id=run_id,
        at=utc_now(),
        uri=hit.uri,
        camera_id=hit.camera_id,
        track_id=hit.track_id,
        captured_at=hit.captured_at,
        distance=hit.distance,
        likelihood=match.likelihood,
        judged=False,
        case_id=document.case.id,
        case_number=document.case.number,
    )
