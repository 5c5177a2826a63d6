"""The page of a sweep: how many were found, and the strips of the likeliest, of some not found and failed."""

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
from jobs.pages.search_page import AnswerPage, ProbeStrip, build_answer_page
from jobs.pages.thumbnail import thumbnail_of
from jobs.search.search import shown_answers
from jobs.search.searcher import CROP, crop_number
from jobs.sweep.state import Sweep, SweepSummary

RANKS = 6
REPORT = "report.html"
ORDER = ("found", "ranked", "not found", "nothing", "failed")
UNFOUND_SHARE = 4  # a quarter of the strips shows probes that were not found


@dataclass(frozen=True, slots=True)
class ReportContext:
    """What a report needs besides the sweep: where crops are looked up, and what numbers mean."""

    crops: ScanSource
    model_names: dict[int, str]
    threshold: float | None


def write_sweep_report(
    sweep: Sweep, summary: SweepSummary, album: ReportContext, rules: Rules, strips: int
) -> None:
    """Write report.html, with that many strips at most, into the sweep's folder."""
    outcomes = pa.concat_tables(sweep.outcomes())
    chosen = _chosen(outcomes, strips)
    info = sweep.info
    ended = summary.finished[:16].replace("T", " ")
    page = AnswerPage(
        title="A sweep of the archive",
        lead=f"{summary.probes:,} probes, {summary.answers:,} answers, finished {ended} UTC.",
        strips=list(_strips(sweep, chosen, album, rules)),
        facts={
            "generation": info.generation,
            "model": info.fingerprint,
            "audit entry": info.audit,
            "asked": ", ".join(f"{name} {value}" for name, value in info.request.items() if value),
            "results": sweep.store.uri_of("results"),
        },
        counts={name: summary.verdicts[name] for name in ORDER if summary.verdicts.get(name)},
        positions=rules.cameras.positions if rules.cameras else {},
        left_out=summary.probes - len(chosen),
    )
    sweep.store.put(REPORT, build_answer_page(page).encode())


def _chosen(outcomes: pa.Table, strips: int) -> list[dict[str, Any]]:
    """The nearest of those that were found, then some that were not, in the order of the list."""
    good = outcomes.filter(pc.is_in(outcomes["verdict"], value_set=pa.array(["found", "ranked"])))
    rest = outcomes.filter(pc.invert(pc.is_in(outcomes["verdict"], value_set=pa.array(["found", "ranked"]))))
    spare = min(rest.num_rows, max(strips // UNFOUND_SHARE, strips - good.num_rows))
    best = good.sort_by("best_distance").slice(0, strips - spare)
    return [*best.to_pylist(), *rest.slice(0, spare).to_pylist()]


def _strips(
    sweep: Sweep, chosen: list[dict[str, Any]], album: ReportContext, rules: Rules
) -> Iterator[ProbeStrip]:
    rows = _answers(sweep, {outcome["probe_id"] for outcome in chosen})
    own = [crop_number(o["uri"]) for o in chosen if o["uri"].startswith(CROP) and o["verdict"] != "failed"]
    facts = album.crops.crops([*own, *(row["crop_id"] for found in rows.values() for row in found)])
    for outcome in chosen:
        answers = [
            Match(row["rank"], _hit(row, facts), likelihood=row["likelihood"])
            for row in rows.get(outcome["probe_id"], ())
            if row["crop_id"] in facts
        ]
        uri = outcome["uri"]
        itself = facts.get(crop_number(uri)) if uri.startswith(CROP) and own else None
        if itself and rules.cameras:
            start = Sighting(itself.camera_id, itself.track_id, itself.captured_at)
            answers = [
                replace(
                    each,
                    travel=rules.cameras.travel(
                        start, Sighting(each.hit.camera_id, each.hit.track_id, each.hit.captured_at)
                    ),
                )
                for each in answers
            ]
        yield ProbeStrip(
            name=outcome["probe_id"],
            verdict=outcome["verdict"],
            note=f"{outcome['cause']}: {outcome['detail']}" if outcome["cause"] else "",
            pictures=[] if outcome["cause"] else [_thumbnail(itself.uri if itself else uri)],
            facts=[f"camera {itself.camera_id}"] if itself else [],
            answers=shown_answers(answers, album.model_names, album.threshold),
        )


def _answers(sweep: Sweep, probe_ids: set[str]) -> dict[str, list[dict[str, Any]]]:
    wanted = pa.array(sorted(probe_ids), pa.string())
    found: dict[str, list[dict[str, Any]]] = {}
    for part in range(sweep.info.parts):
        table = sweep.results(part)
        near = table.filter(
            pc.and_(pc.is_in(table["probe_id"], value_set=wanted), pc.less_equal(table["rank"], RANKS))
        )
        for row in near.to_pylist():
            found.setdefault(row["probe_id"], []).append(row)
    return found


def _hit(row: dict[str, Any], facts: dict[int, Hit]) -> Hit:
    return replace(facts[row["crop_id"]], rank=row["rank"], distance=row["distance"])


def _thumbnail(uri: str) -> bytes:
    return thumbnail_of(*open_uri(uri))
