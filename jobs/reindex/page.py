"""The page of a reindex run: one self-contained HTML document with its steps, figures and errors."""

from collections.abc import Callable
from typing import Any

from jobs.pages.html import render
from jobs.reindex.summary import COMPARED, Summary, elapsed, figures, headline
from jobs.runtime import format

TITLES = {
    "new": "New crops",
    "changed": "Changed crops",
    "vanished": "Vanished crops",
    "embedded": "Embedded",
    "quarantined": "Quarantined",
    "live_rows": "Rows of the live generation",
    "recall_at_10": "Recall@10 of the index",
    "latency_p50_ms": "Search, median of single probes",
    "seconds": "Time of all steps",
}
FORMATS: dict[str, Callable[[float | None], str]] = {
    "recall_at_10": format.ratio,
    "latency_p50_ms": format.latency,
    "seconds": format.duration,
}
FILTERS: dict[str, Callable[..., str]] = {
    "count": format.count,
    "ratio": format.ratio,
    "duration": format.duration,
    "timestamp": format.timestamp,
    "money": format.money,
}


def build_reindex_page(summary: Summary) -> str:
    """Return the page of a summary. Every value in it is escaped; it needs no network and runs no script."""
    return render(
        "reindex_page.html.j2",
        styles=("page.css.j2", "reindex_page.css.j2"),
        filters=FILTERS,
        run=summary,
        headline=headline(summary),
        rows=_comparison(summary),
        elapsed=elapsed(summary["began"], summary["ended"]),
        longest_step=max((step["seconds"] for step in summary["steps"]), default=0.0) or 1.0,
        most_frequent=max(summary["quarantine"].values(), default=0) or 1,
    )


def _comparison(summary: Summary) -> list[dict[str, Any]]:
    """Return the rows of the table that compares a run with the run before."""
    now = figures(summary)
    before = summary["before"]["figures"] if summary["before"] else {}
    return [
        {
            "name": TITLES[name],
            "now": FORMATS.get(name, format.count)(now[name]),
            "before": FORMATS.get(name, format.count)(before.get(name)),
            "change": _change(name, now[name], before.get(name)),
        }
        for name in COMPARED
    ]


def _change(name: str, now: float | None, before: float | None) -> str:
    if now is None or before is None:
        return format.NO_VALUE
    difference = now - before
    if not difference:
        return "same"
    return ("+" if difference > 0 else "-") + FORMATS.get(name, format.count)(abs(difference))
