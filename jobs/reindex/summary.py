"""The summary of a reindex run: work, duration, cost and the changes since the run before."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, NotRequired

from pydantic import SecretStr
from typing_extensions import TypedDict

from index.documents import UtcTime, package_version, utc_now
from jobs.reindex.state import ReindexRun


class AttemptSummary(TypedDict):
    """One process that worked on the run. ended: null if it was killed or still runs."""

    began: UtcTime
    ended: UtcTime | None
    how: str


class StepSummary(TypedDict):
    """One finished step, and what it did in words."""

    name: str
    began: UtcTime
    seconds: float
    said: str


class LoadSummary(TypedDict):
    """What the load did; null is what its kind does not have."""

    kind: str | None
    upserted: int | None
    removed: int | None
    rows: int | None
    target: str | None
    index: str | None


class LiveSummary(TypedDict):
    """The live generation after the run, its rows before, and the generation that it replaced."""

    generation: str | None
    rows: int | None
    rows_before: int | None
    replaced: str | None


class CostSummary(TypedDict):
    """Hours and money of embedding, planned and actual, and of all steps; null without a plan or a price."""

    nodes: int
    price_per_node_hour: float | None
    planned_hours: float | None
    planned_by: str | None
    planned_cost: float | None
    embedding_hours: float
    embedding_cost: float | None
    hours: float
    cost: float | None


class BeforeSummary(TypedDict):
    """The last finished run before this one."""

    night: str
    generation: str | None
    quarantine: dict[str, int]
    figures: dict[str, float | None]


class Summary(TypedDict):
    """The summary of a reindex run. Null is what it has not reached.

    error: type, message, remedy and exit_code of the last attempt. crops: counts of the archive and of the
    embedding. quarantine: crops by stage/cause. gate: as `clvr promote` prints it. drift: alerts of
    `clvr drift`, if they were asked for. watch: new crops of watched vehicles. Runs of older releases lack
    both.
    """

    night: str
    state: Literal["failed", "finished", "unfinished"]
    error: dict[str, Any] | None
    archive: str
    alias: str
    fingerprint: str
    version: str
    began: UtcTime
    ended: UtcTime
    attempts: list[AttemptSummary]
    kind: str | None
    run: str | None
    since_run: str | None
    crops: dict[str, int | None]
    quarantine: dict[str, int]
    bottleneck: str
    steps: list[StepSummary]
    load: LoadSummary
    gate: dict[str, Any] | None
    live: LiveSummary
    retired: list[str]
    kept: list[str]
    drift: NotRequired[dict[str, Any] | None]
    watch: NotRequired[dict[str, Any] | None]
    cost: CostSummary
    before: BeforeSummary | None


COMPARED = (
    "new",
    "changed",
    "vanished",
    "embedded",
    "quarantined",
    "live_rows",
    "recall_at_10",
    "latency_p50_ms",
    "seconds",
)
"""Figures that are compared with those of the run before."""

WEBHOOK_TIMEOUT_SECONDS = 10.0


def summarise(
    run: ReindexRun, before: Mapping[str, Any] | None, *, price: float | None, nodes: int
) -> Summary:
    """Combine the documents of a run, finished or not, into its summary.

    before: the summary of the last finished run. price: of a node hour. nodes: of the cluster now.
    """
    steps = {step.name: step for step in run.steps()}
    outcomes = {name: step.outcome for name, step in steps.items()}
    attempts = run.attempts()
    last = attempts[-1].outcome if attempts else None
    plan, embed, load = (outcomes.get(name, {}) for name in ("plan", "embed", "load"))
    promote, retention = outcomes.get("promote", {}), outcomes.get("retention", {})
    gate = (outcomes.get("gate") or {}).get("report")
    seconds = {name: step.seconds for name, step in steps.items()}
    failed = last is not None and "error" in last
    return {
        "night": run.reindex_id,
        "state": "failed" if failed else "finished" if "retention" in outcomes else "unfinished",
        "error": last if failed else None,
        "archive": run.inputs.archive,
        "alias": run.inputs.alias,
        "fingerprint": run.inputs.fingerprint,
        "version": package_version(),
        "began": run.created,
        "ended": utc_now(),
        "attempts": [
            {
                "began": attempt.started,
                "ended": attempt.outcome["at"] if attempt.outcome else None,
                "how": _outcome_text(attempt.outcome),
            }
            for attempt in attempts
        ],
        "kind": plan.get("kind"),
        "run": plan.get("run_id"),
        "since_run": plan.get("since_run"),
        "crops": {
            **plan.get("changes", {}),
            **{name: embed.get(name) for name in ("listed", "embedded", "quarantined", "duplicates")},
        },
        "quarantine": embed.get("causes", {}),
        "bottleneck": embed.get("bottleneck", ""),
        "steps": [
            {
                "name": step.name,
                "began": step.started,
                "seconds": step.seconds,
                "said": step.outcome.get("said", ""),
            }
            for step in steps.values()
        ],
        "load": {
            "kind": load.get("kind"),
            "upserted": load.get("upserted"),
            "removed": load.get("removed"),
            "rows": load.get("rows"),
            "target": load.get("target"),
            "index": load.get("index"),
        },
        "gate": gate,
        "live": {
            "generation": retention.get("live") or promote.get("live") or plan.get("live"),
            "rows": retention.get("live_rows", plan.get("live_rows")),
            "rows_before": plan.get("live_rows"),
            "replaced": promote.get("replaced"),
        },
        "retired": retention.get("dropped", []),
        "kept": retention.get("kept", []),
        "drift": retention.get("drift"),
        "watch": retention.get("watch"),
        "cost": _cost(plan.get("expected"), seconds, price, nodes),
        "before": _before(before) if before else None,
    }


def _outcome_text(outcome: Mapping[str, Any] | None) -> str:
    if outcome is None:
        return "killed, or still running"
    if "error" in outcome:
        return f"{outcome['error']} at {outcome['step']}: {outcome['message']}"
    return "finished"


def _cost(
    expected: Mapping[str, Any] | None, seconds: Mapping[str, float], price: float | None, nodes: int
) -> CostSummary:
    """Return hours and money of embedding, planned and actual, and of all steps."""
    total, embedding = sum(seconds.values()) / 3600, seconds.get("embed", 0.0) / 3600
    planned = expected["seconds"] / 3600 if expected else None

    def money(hours: float | None) -> float | None:
        return None if hours is None or price is None else round(hours * nodes * price, 4)

    return {
        "nodes": nodes,
        "price_per_node_hour": price,
        "planned_hours": planned,
        "planned_by": expected["by"] if expected else None,
        "planned_cost": money(planned),
        "embedding_hours": embedding,
        "embedding_cost": money(embedding),
        "hours": total,
        "cost": money(total),
    }


def _before(summary: Mapping[str, Any]) -> BeforeSummary:
    return {
        "night": summary["night"],
        "generation": summary["live"]["generation"],
        "quarantine": summary["quarantine"],
        "figures": figures(summary),
    }


def figures(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the figures of COMPARED; None for those that the run does not have."""
    crops, gate = summary["crops"], summary["gate"] or {}
    return {
        **{name: crops.get(name) for name in ("new", "changed", "vanished", "embedded", "quarantined")},
        "live_rows": summary["live"]["rows"],
        "recall_at_10": gate.get("recall_at_10"),
        "latency_p50_ms": gate.get("latency_p50_ms"),
        "seconds": round(3600 * summary["cost"]["hours"], 1),
    }


def elapsed(start: str, end: str) -> float:
    """Return the seconds between two ISO 8601 timestamps."""
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def headline(summary: Mapping[str, Any]) -> str:
    """Return the summary as one line, for a chat."""
    title = f"reindex run {summary['night']}"
    if error := summary.get("error"):
        return f"{title} FAILED at {error['step']}: {error['message']}"
    crops, live = summary["crops"], summary["live"]
    embedded, quarantined = (crops.get(key) or 0 for key in ("embedded", "quarantined"))
    parts = [f"{embedded:,} embedded, {quarantined:,} quarantined, {crops.get('vanished') or 0:,} vanished"]
    if live["generation"]:
        parts.append(f"{live['generation']} is live with {live['rows']:,} rows")
    if summary["gate"]:
        parts.append(f"recall@10 {summary['gate']['recall_at_10']:.4f}")
    if (summary.get("watch") or {}).get("new"):
        parts.append(f"{summary['watch']['new']:,} new crops of watched vehicles")
    if summary.get("drift"):
        parts.append(f"{len(summary['drift']['alerts'])} alerts of drift")
    return f"{title} {summary['state']}: " + "; ".join(parts)


def post_summary(url: SecretStr, summary: Summary, page: str) -> str:
    """POST a summary as JSON, with its headline as `text`; return the outcome as text.

    Raises nothing: an unreachable webhook does not fail the run. No message contains the URL, a secret.
    """
    import httpx2

    body = {"text": f"{headline(summary)}\n{page}", "page": page, "summary": summary}
    try:
        response = httpx2.post(
            url.get_secret_value(), json=body, timeout=WEBHOOK_TIMEOUT_SECONDS, follow_redirects=False
        )
    except Exception as error:  # any error, also of an invalid URL
        return f"not delivered ({type(error).__name__})"
    return "delivered" if response.is_success else f"not delivered (status {response.status_code})"
