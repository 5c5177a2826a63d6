"""The report of a sweep: counts by verdict, and strips of some probes with their nearest matches."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from index.archive.reader import open_uri
from index.milvus.search import Hit
from index.search.probe import Sighting
from index.search.retrieval import Match, Rules
from index.search.scan_source import ScanSource
from jobs.pages.search_page import ProbeStrip, SearchPage, build_search_page
from jobs.pages.thumbnail import thumbnail_of
from jobs.search.page import page_matches, sighting_facts
from jobs.search.searcher import CROP, crop_number
from jobs.sweep.audit import AuditRecord
from jobs.sweep.state import Sweep, SweepSummary

RANKS = 6
REPORT = "report.html"
ORDER = ("found", "ranked", "not found", "nothing", "failed")
NOT_FOUND_SHARE = 4  # one in so many strips shows a probe that was not found


@dataclass(frozen=True, slots=True)
class ReportContext:
    """The source of the crops, the names of the vehicle models, the threshold, and who asked, and why."""

    crops: ScanSource
    model_names: dict[int, str]
    threshold: float | None
    record: AuditRecord


def write_sweep_report(
    sweep: Sweep, summary: SweepSummary, context: ReportContext, rules: Rules, strips: int
) -> None:
    """Write report.html with at most `strips` strips into the folder of the sweep."""
    outcomes = pa.concat_tables(sweep.outcomes())
    chosen = _choose_probes(outcomes, strips)
    info = sweep.info
    finished = summary.finished[:16].replace("T", " ")
    page = SearchPage(
        title="Sweep of the archive",
        kind="sweep",
        purpose={
            "case": context.record.case_number,
            "by": context.record.user,
            "on": f"{context.record.when[:16].replace('T', ' ')} UTC",
        },
        summary=f"{summary.probes:,} probes, {summary.answers:,} matches, finished {finished} UTC.",
        strips=list(_strips(sweep, chosen, context, rules)),
        facts={
            "generation": info.generation,
            **({"searched": searched} if (searched := summary.searched()) else {}),
            "model": info.fingerprint,
            "audit record": info.audit,
            "request": ", ".join(f"{name} {value}" for name, value in info.request.items() if value),
            "results": sweep.store.uri_of("results"),
        },
        counts={name: summary.verdicts[name] for name in ORDER if summary.verdicts.get(name)},
        positions=rules.cameras.positions if rules.cameras else {},
        not_shown=summary.probes - len(chosen),
    )
    sweep.store.put(REPORT, build_search_page(page).encode())


def _choose_probes(outcomes: pa.Table, strips: int) -> list[dict[str, Any]]:
    """Choose the probes with the nearest matches, then some that were not found, in the order of the list."""
    has_match = pc.is_in(outcomes["verdict"], value_set=pa.array(["found", "ranked"]))
    matched, others = outcomes.filter(has_match), outcomes.filter(pc.invert(has_match))
    num_others = min(others.num_rows, max(strips // NOT_FOUND_SHARE, strips - matched.num_rows))
    nearest = matched.sort_by("best_distance").slice(0, strips - num_others)
    return [*nearest.to_pylist(), *others.slice(0, num_others).to_pylist()]


def _strips(
    sweep: Sweep, chosen: list[dict[str, Any]], context: ReportContext, rules: Rules
) -> Iterator[ProbeStrip]:
    rows = _nearest_results(sweep, {outcome["probe_id"] for outcome in chosen})
    probe_ids = [
        crop_number(o["uri"]) for o in chosen if o["uri"].startswith(CROP) and o["verdict"] != "failed"
    ]
    crops = context.crops.crops([*probe_ids, *(row["crop_id"] for part in rows.values() for row in part)])
    for outcome in chosen:
        matches = [
            Match(row["rank"], _hit(row, crops), likelihood=row["likelihood"])
            for row in rows.get(outcome["probe_id"], ())
            if row["crop_id"] in crops
        ]
        uri = outcome["uri"]
        archived = uri.startswith(CROP) and outcome["verdict"] != "failed"
        probe = crops.get(crop_number(uri)) if archived else None
        if probe and rules.cameras:
            start = Sighting(probe.camera_id, probe.track_id, probe.captured_at)
            matches = [
                replace(
                    match,
                    travel=rules.cameras.travel(
                        start, Sighting(match.hit.camera_id, match.hit.track_id, match.hit.captured_at)
                    ),
                )
                for match in matches
            ]
        yield ProbeStrip(
            name=outcome["probe_id"],
            verdict=outcome["verdict"],
            note=f"{outcome['cause']}: {outcome['detail']}" if outcome["cause"] else "",
            images=[] if outcome["cause"] else [_thumbnail(probe.uri if probe else uri)],
            facts=sighting_facts([Sighting(probe.camera_id, "", probe.captured_at)]) if probe else [],
            matches=page_matches(matches, context.model_names, context.threshold),
        )


def _nearest_results(sweep: Sweep, probe_ids: set[str]) -> dict[str, list[dict[str, Any]]]:
    """Read the first ranks of these probes, by probe."""
    value_set = pa.array(sorted(probe_ids), pa.string())
    by_probe: dict[str, list[dict[str, Any]]] = {}
    for part in range(sweep.info.parts):
        table = sweep.results(part)
        nearest = table.filter(
            pc.and_(pc.is_in(table["probe_id"], value_set=value_set), pc.less_equal(table["rank"], RANKS))
        )
        for row in nearest.to_pylist():
            by_probe.setdefault(row["probe_id"], []).append(row)
    return by_probe


def _hit(row: dict[str, Any], crops: dict[int, Hit]) -> Hit:
    return replace(crops[row["crop_id"]], rank=row["rank"], distance=row["distance"])


def _thumbnail(uri: str) -> bytes:
    return thumbnail_of(*open_uri(uri))
