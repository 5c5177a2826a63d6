"""The Grafana dashboard as code: `python -m infra.monitoring.dashboard` writes dashboard.json."""

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("dashboard.json")
_SOURCE = {"type": "prometheus", "uid": "${source}"}
_WIDTH, _HEIGHT, _ROW = 8, 8, 24
_ACTOR_TIME = 'rate(ray_clvr_stage_seconds_total{run=~"$run", stage=~"waiting|model|writing"}[5m])'

# Title, unit, and (PromQL, legend) of each curve. Grafana fills in `$run` and `$alias`.
PANELS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Crops embedded",
        "ops",
        (('sum by (run) (rate(ray_clvr_crops_embedded_total{run=~"$run"}[5m]))', "{{run}}"),),
    ),
    (
        "Quarantined share of crops, by cause",
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
        "Time of actors, by stage",
        "percentunit",
        (
            (
                f"sum by (stage) ({_ACTOR_TIME}) / on () group_left sum({_ACTOR_TIME})",
                "{{stage}}",
            ),
        ),
    ),
    (
        "Threads: fetch and decode",
        "s",
        (
            (
                'sum by (stage) (rate(ray_clvr_stage_seconds_total{run=~"$run", stage=~"fetch|decode"}[5m]))',
                "{{stage}} seconds per second",
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
        "Rows in excess or missing",
        "short",
        (('max by (alias) (ray_clvr_reconciliation_gap{alias=~"$alias"})', "{{alias}}"),),
    ),
    (
        "Training: images",
        "ops",
        (
            ("sum by (stage) (rate(ray_clvr_train_pictures_total[5m]))", "{{stage}}, mean"),
            ("sum by (stage) (ray_clvr_train_pictures_per_second)", "{{stage}}, last step"),
        ),
    ),
    (
        "Training: share of time waiting for images",
        "percentunit",
        (
            (
                "max by (stage, rank) (rate(ray_clvr_train_wait_seconds_total[5m]))",
                "{{stage}}, worker {{rank}}",
            ),
        ),
    ),
    ("Training: loss", "short", (("avg by (stage) (ray_clvr_train_loss)", "{{stage}}"),)),
    ("CPU by node", "percent", (("avg by (instance) (ray_node_cpu_utilization)", "{{instance}}"),)),
    ("GPU by node", "percent", (("avg by (instance) (ray_node_gpus_utilization)", "{{instance}}"),)),
    (
        "Memory by node",
        "percentunit",
        (("max by (instance) (ray_node_mem_used / ray_node_mem_total)", "{{instance}}"),),
    ),
)


def dashboard() -> dict[str, Any]:
    """Return the dashboard in the format that Grafana imports."""
    return {
        "title": "CLVR Archive",
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
