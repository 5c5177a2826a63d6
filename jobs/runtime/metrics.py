"""Every Prometheus series that this project exports, through Ray's metrics port of each node.

Where no Ray is connected, as in a `clvr load` by itself, nothing is counted.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import ray
from ray.util import metrics

if TYPE_CHECKING:
    from index.generations.gate import GateReport
    from index.runs.timings import Timings


@dataclass(frozen=True, slots=True)
class Series:
    """One metric by our name; `exported` is what Prometheus sees of it."""

    name: str
    kind: Literal["counter", "gauge"]
    says: str
    tags: tuple[str, ...]

    @property
    def exported(self) -> str:
        """The name after Ray put its own to both ends."""
        return f"ray_{self.name}_total" if self.kind == "counter" else f"ray_{self.name}"


CROPS_EMBEDDED = Series("clvr_crops_embedded", "counter", "Crops with an embedding.", ("run",))
CROPS_QUARANTINED = Series(
    "clvr_crops_quarantined", "counter", "Crops that could not be embedded.", ("run", "cause")
)
BYTES_FETCHED = Series("clvr_bytes_fetched", "counter", "Bytes of pictures that came.", ("run",))
STAGE_SECONDS = Series(
    "clvr_stage_seconds",
    "counter",
    "Seconds of actors by stage: waiting, model and writing add up to their time; fetch, decode run beside.",
    ("run", "stage"),
)
MODEL_BUSY = Series("clvr_model_busy_ratio", "gauge", "Share of the part's time in the model.", ("run",))
PHASE_SECONDS = Series("clvr_phase_seconds", "gauge", "Wall seconds of a phase of a job.", ("run", "phase"))
LOAD_ROWS = Series("clvr_load_rows", "gauge", "Rows of a load: done and wanted.", ("alias", "what"))
IMPORT_JOBS = Series("clvr_import_jobs", "gauge", "Bulk imports under way by state.", ("alias", "state"))
GATE_PASSED = Series("clvr_gate_passed", "gauge", "1 if the last gate let the generation pass.", ("alias",))
GATE_RECALL = Series("clvr_gate_recall", "gauge", "Recall against exact search at the gate.", ("alias", "k"))
GATE_LATENCY = Series(
    "clvr_gate_latency_ms", "gauge", "Latency of probes at the gate.", ("alias", "quantile")
)
RECONCILIATION_GAP = Series(
    "clvr_reconciliation_gap", "gauge", "Rows that a generation has too many or too few.", ("alias",)
)

ALL = (
    CROPS_EMBEDDED,
    CROPS_QUARANTINED,
    BYTES_FETCHED,
    STAGE_SECONDS,
    MODEL_BUSY,
    PHASE_SECONDS,
    LOAD_ROWS,
    IMPORT_JOBS,
    GATE_PASSED,
    GATE_RECALL,
    GATE_LATENCY,
    RECONCILIATION_GAP,
)
_seen_states: dict[str, set[str]] = {}
_PHASES = ("planning", "embedding", "compacting", "finishing")


def count(series: Series, more: float, **tags: str) -> None:
    """Add to a counter; nothing where there is nothing to add."""
    if more > 0 and ray.is_initialized():
        _made(series).inc(more, tags=tags)


def show(series: Series, value: float, **tags: str) -> None:
    """Set a gauge."""
    if ray.is_initialized():
        _made(series).set(value, tags=tags)


def show_phases(run: str, timings: "Timings") -> None:
    """Show how long the phases of an embedding took."""
    for phase in _PHASES:
        show(PHASE_SECONDS, getattr(timings, f"{phase}_seconds"), run=run, phase=phase)


def show_load(alias: str, *, done: int, total: int, states: Mapping[str, int]) -> None:
    """Show how far a load is, and how many imports stand in which state."""
    show(LOAD_ROWS, done, alias=alias, what="done")
    show(LOAD_ROWS, total, alias=alias, what="wanted")
    seen = _seen_states.setdefault(alias, set())
    seen |= states.keys()
    for state in seen:  # those that are over have to be told to be none
        show(IMPORT_JOBS, states.get(state, 0), alias=alias, state=state)


def import_states(note: str) -> Counter[str]:
    """Count the imports that a load's note names (the first three under way), by state."""
    return Counter(re.findall(r"job \S+ (\w+) \d+ %", note))


def show_gate(alias: str, report: "GateReport") -> None:
    """Show the figures of a gate."""
    show(GATE_PASSED, float(report.passed), alias=alias)
    show(GATE_RECALL, report.recall_at_1, alias=alias, k="1")
    show(GATE_RECALL, report.recall_at_10, alias=alias, k="10")
    show(GATE_LATENCY, report.latency_p50_ms, alias=alias, quantile="0.5")
    show(GATE_LATENCY, report.latency_p95_ms, alias=alias, quantile="0.95")
    show_gap(alias, expected=report.rows_expected, indexed=report.rows_indexed)


def show_gap(alias: str, *, expected: int, indexed: int) -> None:
    """Show by how many rows a generation differs from its runs."""
    show(RECONCILIATION_GAP, abs(indexed - expected), alias=alias)


@cache
def _made(series: Series) -> Any:
    kind = metrics.Counter if series.kind == "counter" else metrics.Gauge
    return kind(series.name, series.says, tag_keys=series.tags)
