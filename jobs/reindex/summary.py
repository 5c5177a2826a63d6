"""The summary of a night: what it did, how long that took and what it cost, and what is other than before."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import SecretStr

from index.documents import package_version, utc_now
from jobs.reindex.state import ReindexRun

Document = dict[str, Any]

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
"""Figures that stand beside those of the night before."""


def summarise(night: ReindexRun, before: Document | None, *, price: float | None, nodes: int) -> Document:
    """Put a night's documents together, finished or not.

    before: the summary of the last finished night. price: of a node for an hour. nodes: of the cluster now.
    """
    steps = {step.name: step for step in night.steps()}
    came = {name: step.outcome for name, step in steps.items()}
    attempts = night.attempts()
    last = attempts[-1].ended if attempts else None
    plan, embed, load = (came.get(name, {}) for name in ("plan", "embed", "load"))
    promote, retention = came.get("promote", {}), came.get("retention", {})
    gate = (came.get("gate") or {}).get("report")
    seconds = {name: step.seconds for name, step in steps.items()}
    failed = last is not None and "error" in last
    summary: Document = {
        "night": night.night_id,
        "state": "failed" if failed else "finished" if "retention" in came else "unfinished",
        "error": last if failed else None,
        "archive": night.inputs.archive,
        "alias": night.inputs.alias,
        "fingerprint": night.inputs.fingerprint,
        "version": package_version(),
        "began": night.created,
        "ended": utc_now(),
        "attempts": [
            {"began": one.began, "ended": one.ended["at"] if one.ended else None, "how": _outcome(one.ended)}
            for one in attempts
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
                "began": step.began,
                "seconds": step.seconds,
                "said": step.outcome.get("said", ""),
            }
            for step in steps.values()
        ],
        "load": {name: load.get(name) for name in ("kind", "upserted", "removed", "rows", "target", "index")},
        "gate": gate,
        "live": {
            "generation": retention.get("live") or promote.get("live") or plan.get("live"),
            "rows": retention.get("live_rows", plan.get("live_rows")),
            "rows_before": plan.get("live_rows"),
            "replaced": promote.get("replaced"),
        },
        "retired": retention.get("dropped", []),
        "kept": retention.get("kept", []),
        "cost": _cost(plan.get("expected"), seconds, price, nodes),
    }
    summary["before"] = _figures(before) if before else None
    return summary


def headline(summary: Mapping[str, Any]) -> str:
    """One line for people, such as a chat shows it."""
    name = f"night {summary['night']}"
    if error := summary.get("error"):
        return f"{name} FAILED at {error['step']}: {error['message']}"
    crops, live = summary["crops"], summary["live"]
    embedded, quarantined = (crops.get(key) or 0 for key in ("embedded", "quarantined"))
    parts = [f"{embedded:,} embedded, {quarantined:,} quarantined, {crops.get('vanished') or 0:,} vanished"]
    if live["generation"]:
        parts.append(f"{live['generation']} is live with {live['rows']:,} rows")
    if summary["gate"]:
        parts.append(f"recall@10 {summary['gate']['recall_at_10']:.4f}")
    return f"{name} {summary['state']}: " + "; ".join(parts)


def figures(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of COMPARED; None for what a night has not."""
    crops, gate = summary["crops"], summary["gate"] or {}
    return {
        **{name: crops.get(name) for name in ("new", "changed", "vanished", "embedded", "quarantined")},
        "live_rows": summary["live"]["rows"],
        "recall_at_10": gate.get("recall_at_10"),
        "latency_p50_ms": gate.get("latency_p50_ms"),
        "seconds": round(3600 * summary["cost"]["hours"], 1),
    }


def elapsed(began: str, ended: str) -> float:
    """Seconds between two stamps."""
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds()


def _figures(before: Mapping[str, Any]) -> Document:
    return {
        "night": before["night"],
        "generation": before["live"]["generation"],
        "quarantine": before["quarantine"],
        "figures": figures(before),
    }


def _cost(
    expected: Mapping[str, Any] | None, seconds: Mapping[str, float], price: float | None, nodes: int
) -> Document:
    """Hours and money: of embedding against its plan, and of the steps of the whole night."""
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


def _outcome(ended: Mapping[str, Any] | None) -> str:
    if ended is None:
        return "killed, or still at work"
    if "error" in ended:
        return f"{ended['error']} at {ended['step']}: {ended['message']}"
    return "finished"


SECONDS = 10.0


def post(url: SecretStr, summary: dict[str, Any], page: str) -> str:
    """POST a summary as JSON, `text` being one line for people; return what came of it.

    Never raises: a night does not fail because nobody could be told. The URL is in no message.
    """
    import httpx2

    body = {"text": f"{headline(summary)}\n{page}", "page": page, "summary": summary}
    try:
        answer = httpx2.post(url.get_secret_value(), json=body, timeout=SECONDS, follow_redirects=False)
    except Exception as error:  # whatever it is, even a URL that is none
        return f"not delivered ({type(error).__name__})"
    return "delivered" if answer.is_success else f"not delivered (status {answer.status_code})"
