"""The page of a night: one self-contained HTML document, for whoever looks in the morning."""

from collections.abc import Callable
from typing import Any

from jobs.pages.html import render
from jobs.reindex.summary import COMPARED, elapsed, figures, headline

NONE = "\N{EN DASH}"

NAMES = {
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


def night_page(summary: dict[str, Any]) -> str:
    """Return the page of a summary. Everything in it is escaped; it needs no network and runs no script."""
    longest = max((step["seconds"] for step in summary["steps"]), default=0.0)
    most = max(summary["quarantine"].values(), default=0)
    return render(
        "reindex_page.html.j2",
        styles=("page.css.j2", "reindex_page.css.j2"),
        filters=FILTERS,
        night=summary,
        headline=headline(summary),
        rows=_compared(summary),
        wall=elapsed(summary["began"], summary["ended"]),
        longest=longest or 1.0,
        most=most or 1,
    )


def _compared(summary: dict[str, Any]) -> list[dict[str, Any]]:
    now, before = figures(summary), (summary["before"] or {}).get("figures", {})
    rows = []
    for name in COMPARED:
        one, other = now[name], before.get(name)
        change = one - other if one is not None and other is not None else None
        show = FORMATS.get(name, _figure)
        said = (
            NONE
            if change is None
            else "same"
            if not change
            else f"{'+' if change > 0 else '-'}{show(abs(change))}"
        )
        rows.append({"name": NAMES[name], "now": show(one), "before": show(other), "change": said})
    return rows


def _figure(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _ms(value: float | None) -> str:
    return NONE if value is None else f"{value:,.1f} ms"


def _span(seconds: float | None) -> str:
    """A length of time as people say it."""
    if seconds is None:
        return NONE
    if seconds < 120:
        return f"{seconds:,.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:,.1f} min" if minutes < 120 else f"{hours:,.1f} h"


def _moment(stamp: str | None) -> str:
    return f"{stamp[:10]} {stamp[11:19]} UTC" if stamp else NONE


def _money(value: float | None) -> str:
    return NONE if value is None else f"{value:,.4f}" if value < 0.1 else f"{value:,.2f}"


FORMATS = {"recall_at_10": _share, "latency_p50_ms": _ms, "seconds": _span}
FILTERS: dict[str, Callable[..., str]] = {
    "figure": _figure,
    "share": _share,
    "span": _span,
    "moment": _moment,
    "money": _money,
}
