"""The page of a reindex run: one self-contained HTML document with its steps, figures and errors."""

from collections.abc import Callable, Mapping, Sequence
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


WORSE_IF_HIGHER = {"quarantined", "latency_p50_ms", "seconds"}
WORSE_IF_LOWER = {"live_rows", "recall_at_10"}
MIN_CHANGE = 0.2
"""The share by which a figure must change to be worse; recall may not fall at all."""

MAX_TREND = 14
"""Runs of a trend, this one included."""

TREND_WIDTH, TREND_HEIGHT = 120.0, 24.0


def build_reindex_page(summary: Summary, history: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the page of a summary. Every value in it is escaped; it needs no network and runs no script.

    history: the summaries of earlier runs, oldest first, for the trends. It shows no image of a crop, so that
    an erasure has nothing to look for in it.
    """
    return render(
        "reindex_page.html.j2",
        styles=("page.css.j2", "reindex_page.css.j2"),
        filters=FILTERS,
        run=summary,
        headline=headline(summary),
        rows=_comparison(summary, history),
        nights=len(history) + 1,
        elapsed=elapsed(summary["began"], summary["ended"]),
        longest_step=max((step["seconds"] for step in summary["steps"]), default=0.0) or 1.0,
        most_frequent=max(summary["quarantine"].values(), default=0) or 1,
    )


def _comparison(summary: Summary, history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the table that compares a run with the run before, each with its trend."""
    now = figures(summary)
    earlier = [figures(one) for one in history]
    before = summary["before"]["figures"] if summary["before"] else {}
    return [
        {
            "name": TITLES[name],
            "now": FORMATS.get(name, format.count)(now[name]),
            "before": FORMATS.get(name, format.count)(before.get(name)),
            "change": _change(name, now[name], before.get(name)),
            "is_worse": _is_worse(name, now[name], before.get(name)),
            "trend": _trend([*(one[name] for one in earlier), now[name]]),
        }
        for name in COMPARED
    ]


def _is_worse(name: str, now: float | None, before: float | None) -> bool:
    """Whether a figure is so much worse than before that somebody should look."""
    if now is None or before is None:
        return False
    if name == "recall_at_10":
        return now < before
    if name in WORSE_IF_HIGHER:
        return now > (1 + MIN_CHANGE) * before
    return name in WORSE_IF_LOWER and now < (1 - MIN_CHANGE) * before


def _trend(values: Sequence[float | None]) -> str:
    """Return the points of a spark line from 0 to the largest value; "" for fewer than two values."""
    known = [(place, value) for place, value in enumerate(values) if value is not None]
    if len(known) < 2:
        return ""
    largest = max(value for _, value in known) or 1.0
    step = (TREND_WIDTH - 4) / (len(values) - 1)
    return " ".join(
        f"{2 + place * step:.1f},{TREND_HEIGHT - 2 - value / largest * (TREND_HEIGHT - 4):.1f}"
        for place, value in known
    )


def _change(name: str, now: float | None, before: float | None) -> str:
    if now is None or before is None:
        return format.NO_VALUE
    difference = now - before
    if not difference:
        return "same"
    return ("+" if difference > 0 else "-") + FORMATS.get(name, format.count)(abs(difference))
