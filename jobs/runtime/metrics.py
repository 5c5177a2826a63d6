"""Every Prometheus series of this project, exported by Ray on the metrics port of each node.

Without a connection to Ray, as in a local `clvr load`, nothing is counted. Ray is not imported for that: a
process that is connected to Ray has it, and `clvr promote` needs no Ray.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from index.generations.gate import GateReport
    from index.runs.timings import Timings


@dataclass(frozen=True, slots=True)
class Series:
    """One metric; `exported` is its name in Prometheus."""

    name: str
    kind: Literal["counter", "gauge"]
    description: str
    tags: tuple[str, ...]

    @property
    def exported(self) -> str:
        """The name with the prefix and the suffix that Ray adds."""
        return f"ray_{self.name}_total" if self.kind == "counter" else f"ray_{self.name}"


CROPS_EMBEDDED = Series("clvr_crops_embedded", "counter", "Crops with an embedding.", ("run",))
CROPS_QUARANTINED = Series(
    "clvr_crops_quarantined", "counter", "Crops that could not be embedded.", ("run", "cause")
)
BYTES_FETCHED = Series("clvr_bytes_fetched", "counter", "Bytes of images fetched.", ("run",))
STAGE_SECONDS = Series(
    "clvr_stage_seconds",
    "counter",
    "Seconds of actors by stage. Waiting, model and writing add up to their time; fetch and decode overlap.",
    ("run", "stage"),
)
MODEL_BUSY = Series("clvr_model_busy_ratio", "gauge", "Share of the part's time in the model.", ("run",))
PHASE_SECONDS = Series("clvr_phase_seconds", "gauge", "Wall seconds of a phase of a job.", ("run", "phase"))
LOAD_ROWS = Series("clvr_load_rows", "gauge", "Rows of a load: done and expected.", ("alias", "what"))
IMPORT_JOBS = Series("clvr_import_jobs", "gauge", "Running bulk imports by state.", ("alias", "state"))
GATE_PASSED = Series("clvr_gate_passed", "gauge", "1 if the last generation passed the gate.", ("alias",))
GATE_RECALL = Series("clvr_gate_recall", "gauge", "Recall against exact search at the gate.", ("alias", "k"))
GATE_LATENCY = Series(
    "clvr_gate_latency_ms", "gauge", "Latency of probes at the gate.", ("alias", "quantile")
)
RECONCILIATION_GAP = Series(
    "clvr_reconciliation_gap", "gauge", "Rows that a generation has in excess or lacks.", ("alias",)
)
TRAIN_IMAGES = Series("clvr_train_pictures", "counter", "Images that a worker trained on.", ("stage", "rank"))
TRAIN_WAIT_SECONDS = Series(
    "clvr_train_wait_seconds", "counter", "Seconds that steps waited for images.", ("stage", "rank")
)
TRAIN_RATE = Series(
    "clvr_train_pictures_per_second", "gauge", "Images per second of one worker.", ("stage", "rank")
)
TRAIN_LOSS = Series("clvr_train_loss", "gauge", "Mean loss of the epoch so far.", ("stage", "rank"))

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
    TRAIN_IMAGES,
    TRAIN_WAIT_SECONDS,
    TRAIN_RATE,
    TRAIN_LOSS,
)
_seen_states: dict[str, set[str]] = {}
_PHASES = ("planning", "embedding", "compacting", "finishing")


def count(series: Series, more: float, **tags: str) -> None:
    """Add to a counter. Ray rejects an increment of 0."""
    if more > 0 and _is_connected():
        _metric(series).inc(more, tags=tags)


def set_gauge(series: Series, value: float, **tags: str) -> None:
    """Set a gauge."""
    if _is_connected():
        _metric(series).set(value, tags=tags)


def show_phases(run: str, timings: "Timings") -> None:
    """Export the durations of the phases of an embedding."""
    for phase in _PHASES:
        set_gauge(PHASE_SECONDS, getattr(timings, f"{phase}_seconds"), run=run, phase=phase)


def show_load(alias: str, *, done: int, total: int, states: Mapping[str, int]) -> None:
    """Export the progress of a load and its running imports by state."""
    set_gauge(LOAD_ROWS, done, alias=alias, what="done")
    set_gauge(LOAD_ROWS, total, alias=alias, what="wanted")
    seen = _seen_states.setdefault(alias, set())
    seen |= states.keys()
    for state in seen:  # reset states that no longer occur to 0
        set_gauge(IMPORT_JOBS, states.get(state, 0), alias=alias, state=state)


def show_gate(alias: str, report: "GateReport") -> None:
    """Export the figures of a gate."""
    set_gauge(GATE_PASSED, float(report.passed), alias=alias)
    set_gauge(GATE_RECALL, report.recall_at_1, alias=alias, k="1")
    set_gauge(GATE_RECALL, report.recall_at_10, alias=alias, k="10")
    set_gauge(GATE_LATENCY, report.latency_p50_ms, alias=alias, quantile="0.5")
    set_gauge(GATE_LATENCY, report.latency_p95_ms, alias=alias, quantile="0.95")
    show_gap(alias, expected=report.rows_expected, indexed=report.rows_indexed)


def show_gap(alias: str, *, expected: int, indexed: int) -> None:
    """Export the number of rows by which a generation differs from its runs."""
    set_gauge(RECONCILIATION_GAP, abs(indexed - expected), alias=alias)


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@cache
def _metric(series: Series) -> Any:
    from ray.util import metrics

    kind = metrics.Counter if series.kind == "counter" else metrics.Gauge
    return kind(series.name, series.description, tag_keys=series.tags)
