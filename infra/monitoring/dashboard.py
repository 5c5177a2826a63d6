"""The Grafana dashboard as code: `python -m infra.monitoring.dashboard` writes dashboard.json beside it."""

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("dashboard.json")
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_WIDTH, _HEIGHT, _ROW = 8, 8, 24
_ACTOR_TIME = 'rate(ray_clvr_stage_seconds_total{run=~"$run", stage=~"waiting|model|writing"}[5m])'

# Title, unit, and (PromQL, legend) of each curve. `$run` and `$alias` are chosen in Grafana.
PANELS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Crops embedded",
        "ops",
        (('sum by (run) (rate(ray_clvr_crops_embedded_total{run=~"$run"}[5m]))', "{{run}}"),),
    ),
    (
        "Quarantine by cause, of all crops",
        "percentunit",
        (
            (
                'sum by (cause) (increase(ray_clvr_crops_quarantined_total{run=~"$run"}[1h]))'
                ' / on () group_left sum(increase(ray_clvr_crops_embedded_total{run=~"$run"}[1h]))',
                "{{cause}}",
            ),
        ),
    ),
    ("Fetched", "Bps", (('sum by (run) (rate(ray_clvr_bytes_fetched_total{run=~"$run"}[5m]))', "{{run}}"),)),
    (
        "Where the actors' time goes",
        "percentunit",
        (
            (
                f"sum by (stage) ({_ACTOR_TIME}) / on () group_left sum({_ACTOR_TIME})",
                "{{stage}}",
            ),
        ),
    ),
    (
        "Threads beside the model: fetch and decode",
        "s",
        (
            (
                'sum by (stage) (rate(ray_clvr_stage_seconds_total{run=~"$run", stage=~"fetch|decode"}[5m]))',
                "{{stage}} seconds a second",
            ),
        ),
    ),
    ("Model busy", "percentunit", (('avg by (run) (ray_clvr_model_busy_ratio{run=~"$run"})', "{{run}}"),)),
    ("Phases of the last job", "s", (('max by (phase) (ray_clvr_phase_seconds{run=~"$run"})', "{{phase}}"),)),
    ("Load", "short", (('max by (what) (ray_clvr_load_rows{alias=~"$alias"})', "{{what}}"),)),
    ("Imports by state", "short", (('max by (state) (ray_clvr_import_jobs{alias=~"$alias"})', "{{state}}"),)),
    (
        "Recall at the gate",
        "percentunit",
        (('min by (k) (ray_clvr_gate_recall{alias=~"$alias"})', "@{{k}}"),),
    ),
    (
        "Latency at the gate",
        "ms",
        (('max by (quantile) (ray_clvr_gate_latency_ms{alias=~"$alias"})', "p{{quantile}}"),),
    ),
    (
        "Rows too many or too few",
        "short",
        (('max by (alias) (ray_clvr_reconciliation_gap{alias=~"$alias"})', "{{alias}}"),),
    ),
    ("CPU by node", "percent", (("avg by (instance) (ray_node_cpu_utilization)", "{{instance}}"),)),
    ("GPU by node", "percent", (("avg by (instance) (ray_node_gpus_utilization)", "{{instance}}"),)),
    (
        "Memory by node",
        "percentunit",
        (("max by (instance) (ray_node_mem_used / ray_node_mem_total)", "{{instance}}"),),
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    return {
        "title": "CLVR Archive: the night",
        "uid": "clvr-night",
        "tags": ["clvr"],
        "timezone": "utc",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-12h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
                _variable("run", "label_values(ray_clvr_crops_embedded_total, run)"),
                _variable("alias", "label_values(ray_clvr_gate_passed, alias)"),
            ]
        },
        "panels": [_panel(number, *panel) for number, panel in enumerate(PANELS)],
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": query,
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _panel(number: int, title: str, unit: str, curves: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": _SOURCE,
        "gridPos": {
            "h": _HEIGHT,
            "w": _WIDTH,
            "x": number * _WIDTH % _ROW,
            "y": number * _WIDTH // _ROW * _HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(65 + place), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
            for place, (query, legend) in enumerate(curves)
        ],
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=1) + "\n")
