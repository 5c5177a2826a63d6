"""Purge of a sweep: its lists, outcomes and matches are written again without erased crops."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index.generations.receipt import Place
from index.generations.traces import REDACTED, rows_of_erased
from index.parquet import open_parquet
from index.runs.tombstones import ErasedCrops
from index.search.calibration import Calibration
from infra.store import Store, ignore_missing_root
from jobs.search.search import verdict_of_distances
from jobs.sweep.report import REPORT
from jobs.sweep.state import PROBE_SCHEMA, RESULT_SCHEMA, Sweep, anonymous_list


def purge_sweep(folder: Store, erased: ErasedCrops, calibration: Calibration | None) -> Place | None:
    """Remove erased crops from a sweep, as matches and as probes; None if there is no sweep.

    The report is deleted if anything was found: the same `clvr sweep` writes it again. Without its done.json
    the sweep counts as unfinished while it is rewritten, so a purge that was cut off is simply repeated.
    Raises CountMismatch if the sweep does not add up, CorruptObject.
    """
    left = _left_behind(folder, erased)
    folder.delete(*left)
    sweep = Sweep.open(folder)
    if sweep is None:
        return Place("sweep", folder.uri, len(left), len(left), "files deleted") if left else None
    found = count_erased(sweep, erased)
    if not found:
        return Place("sweep", folder.uri, len(left), len(left))
    summary = sweep.summary
    folder.delete("done.json", REPORT)
    written = [part for part in range(sweep.info.parts) if part not in set(sweep.pending())]
    parts = {part: _without_erased(sweep, part, erased, calibration) for part in written}
    sweep = sweep.replace_list(anonymous_list(sweep.all_probes(), erased))
    for part, (results, outcomes) in parts.items():
        sweep.write_part(part, results, outcomes)
    if summary is not None:
        sweep.finish(summary.runs, summary.rows)
    return Place("sweep", folder.uri, found, found, f"rewritten; {REPORT} deleted")


def count_in_sweep(folder: Store, erased: ErasedCrops) -> int | None:
    """Count the erased crops in a folder of a sweep, also of one that was cut off; None if it is empty."""
    left, sweep = _left_behind(folder, erased), Sweep.open(folder)
    if sweep is None:
        return len(left) or None
    return len(left) + count_erased(sweep, erased)


def _left_behind(folder: Store, erased: ErasedCrops) -> list[str]:
    """Return the keys of files with erased crops that a command or a purge left when it was cut off."""
    sweep, keys = Sweep.open(folder), list[str]()
    with ignore_missing_root(folder):
        keys = sweep.unfinished_files() if sweep else [info.key for info in folder.list("list")]
    return [key for key in keys if _holds_erased(folder, key, erased)]


def _holds_erased(folder: Store, key: str, erased: ErasedCrops) -> bool:
    with open_parquet(folder, key) as file:
        return bool(_count(file.read(), erased))


def count_erased(sweep: Sweep, erased: ErasedCrops) -> int:
    """Count the probes and the matches that are erased crops."""
    found = sum(_count(sweep.probes(part), erased) for part in range(sweep.info.parts))
    for part in set(range(sweep.info.parts)) - set(sweep.pending()):
        found += _count(sweep.results(part), erased) + _count(sweep.outcomes_of(part), erased)
    return found


def _count(table: pa.Table, erased: ErasedCrops) -> int:
    return int(pc.sum(rows_of_erased(table, erased), min_count=0).as_py())


def _without_erased(
    sweep: Sweep, part: int, erased: ErasedCrops, calibration: Calibration | None
) -> tuple[pa.Table, pa.Table]:
    """Return the matches and the outcomes of a part as if the erased crops had never been there."""
    listed, outcomes = sweep.probes(part), list(sweep.outcomes_of(part).to_pylist())
    # After a purge that was cut off, the list may be anonymous before the outcomes are.
    gone = np.asarray(
        pc.or_(rows_of_erased(listed, erased), pc.equal(listed["uri"], REDACTED).combine_chunks())
    )
    results = sweep.results(part)
    results = results.filter(pc.invert(rows_of_erased(results, erased)))
    by_probe: dict[str, list[dict[str, Any]]] = {}
    for row in results.to_pylist():
        by_probe.setdefault(row["probe_id"], []).append(row)
    kept: list[dict[str, Any]] = []
    first = part * sweep.info.rows_per_part
    for number, outcome in enumerate(outcomes):
        matches = sorted(by_probe.get(outcome["probe_id"], []), key=lambda row: row["rank"])
        if gone[number]:
            outcomes[number] = {
                "probe_id": f"{REDACTED}-{first + number}",
                "uri": REDACTED,
                "verdict": "failed",
                "answers": 0,
                "cause": "erased",
                "detail": "the crop was erased",
            }
            continue
        kept += [{**row, "rank": rank} for rank, row in enumerate(matches, start=1)]
        if len(matches) != outcome["answers"]:
            best = matches[0] if matches else {}
            outcomes[number] = outcome | {
                "answers": len(matches),
                "verdict": verdict_of_distances([row["distance"] for row in matches], calibration),
                "best_distance": best.get("distance"),
                "best_likelihood": best.get("likelihood"),
            }
    return (
        pa.Table.from_pylist(kept, schema=RESULT_SCHEMA),
        pa.Table.from_pylist(outcomes, schema=PROBE_SCHEMA),
    )
