"""Dashboard and alerts: every query parses, and names only series that the code exports."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from infra.monitoring import dashboard
from jobs.runtime import metrics

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "infra" / "monitoring"
# Series of Ray, those of GPUs only on nodes with a GPU, and of kube-state-metrics.
OTHER_SERIES = {
    "ray_node_cpu_utilization",
    "ray_node_gpus_utilization",
    "ray_node_mem_total",
    "ray_node_mem_used",
    "kube_cronjob_status_last_successful_time",
    "kube_job_status_failed",
}
SERIES = {series.exported: series for series in metrics.ALL}


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def queries() -> Iterator[str]:
    for panel in dashboard.dashboard()["panels"]:
        for target in panel["targets"]:
            yield re.sub(r"\$(run|alias)", ".*", target["expr"])
    for rule in alerts():
        yield rule["expr"]


def selectors(node: Any) -> Iterator[Any]:
    """Every vector selector below a node of the parsed query."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "args", "param"):
        below = getattr(node, name, None)
        for one in below if isinstance(below, list) else [below]:
            if one is not None:
                yield from selectors(one)


@pytest.mark.parametrize("query", list(queries()))
def test_queries_name_only_exported_series_and_labels(query: str) -> None:
    named = list(selectors(promql_parser.parse(query)))
    assert {one.name for one in named} == set(re.findall(r"\b(?:ray|kube)_\w+", query))
    for selector in named:
        assert selector.name in SERIES.keys() | OTHER_SERIES
        if selector.name in SERIES:
            labels = {matcher.name for matcher in selector.matchers.matchers}
            assert labels <= set(SERIES[selector.name].tags)


def test_queries_group_only_by_exported_labels() -> None:
    known = {tag for series in metrics.ALL for tag in series.tags} | {"instance"}
    for query in queries():
        for labels in re.findall(r"(?:by|on) \(([^)]*)\)", query):
            assert set(filter(None, re.split(r",\s*", labels))) <= known


def test_every_series_has_a_panel_or_an_alert() -> None:
    assert SERIES.keys() <= set(re.findall(r"\bray_clvr_\w+", " ".join(queries())))


def test_the_dashboard_file_is_up_to_date() -> None:
    assert json.loads(dashboard.FILE.read_text()) == dashboard.dashboard()


def test_panels_do_not_overlap_and_have_a_unit() -> None:
    panels = dashboard.dashboard()["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in panels)


def test_alerts_have_a_summary_and_a_description() -> None:
    rules = alerts()
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]


def test_commands_that_alerts_name_exist() -> None:
    from jobs.cli.app import COMMANDS

    named = re.findall(r"`clvr (\w+)", (MONITORING / "alerts.yaml").read_text())
    assert named
    assert set(named) <= set(COMMANDS) | {"jobs"}


def test_promtool_accepts_the_rules_if_it_is_installed() -> None:
    """Debian's package `prometheus` has promtool."""
    promtool = shutil.which("promtool")
    if promtool is not None:
        for command in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]):
            done = subprocess.run([promtool, *command], cwd=MONITORING, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    tested = yaml.safe_load((MONITORING / "alerts_test.yaml").read_text())
    names = {case["alertname"] for test in tested["tests"] for case in test["alert_rule_test"]}
    assert names <= {rule["alert"] for rule in alerts()}


def test_every_series_that_the_code_makes_is_in_the_table() -> None:
    makers = [path for path in (ROOT / "jobs").rglob("*.py") if "ray.util" in path.read_text()]
    named = {name for path in makers for name in re.findall(r'"(clvr_\w+)"', path.read_text())}
    assert named == {series.name for series in metrics.ALL}
    importers = [
        path.name for path in makers if re.search(r"ray\.util(\.| import )metrics", path.read_text())
    ]
    assert importers == ["metrics.py"]


def test_metrics_do_nothing_without_ray() -> None:
    import ray

    assert not ray.is_initialized()
    metrics.show_gap("vehicles", expected=5, indexed=3)
    metrics.show_load("vehicles", done=1, total=2, states={"started": 1})
