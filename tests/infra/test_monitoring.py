"""Dashboard and alerts: every query parses, and every series that they name is one that the code exports."""

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

MONITORING = Path(__file__).parents[2] / "infra" / "monitoring"
# Ray's own (seen on its metrics port; the GPU's only where there is one) and those of kube-state-metrics.
FOREIGN = {
    "ray_node_cpu_utilization",
    "ray_node_gpus_utilization",
    "ray_node_mem_total",
    "ray_node_mem_used",
    "kube_cronjob_status_last_successful_time",
    "kube_job_status_failed",
}
OURS = {series.exported: series for series in metrics.ALL}


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
def test_a_query_parses_and_names_only_series_and_labels_that_are_exported(query: str) -> None:
    named = list(selectors(promql_parser.parse(query)))
    assert {one.name for one in named} == set(re.findall(r"\b(?:ray|kube)_\w+", query))
    for selector in named:
        assert selector.name in OURS.keys() | FOREIGN
        if selector.name in OURS:
            asked = {matcher.name for matcher in selector.matchers.matchers}
            assert asked <= set(OURS[selector.name].tags)


def test_labels_that_queries_group_by_are_tags_of_their_series() -> None:
    known = {tag for series in metrics.ALL for tag in series.tags} | {"instance"}
    for query in queries():
        for labels in re.findall(r"(?:by|on) \(([^)]*)\)", query):
            assert set(filter(None, re.split(r",\s*", labels))) <= known


def test_every_series_is_looked_at_somewhere() -> None:
    assert OURS.keys() <= set(re.findall(r"\bray_clvr_\w+", " ".join(queries())))


def test_the_dashboard_file_is_what_the_code_makes() -> None:
    assert json.loads(dashboard.FILE.read_text()) == dashboard.dashboard()


def test_panels_do_not_overlap_and_have_a_unit() -> None:
    panels = dashboard.dashboard()["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in panels)


def test_alerts_say_what_is_wrong_and_what_to_do() -> None:
    found = alerts()
    assert len({rule["alert"] for rule in found}) == len(found)
    for rule in found:
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]


def test_commands_that_alerts_name_exist() -> None:
    from jobs.cli.app import VERBS

    named = re.findall(r"`clvr (\w+)", (MONITORING / "alerts.yaml").read_text())
    assert named
    assert set(named) <= set(VERBS) | {"jobs"}


def test_promtool_agrees_where_it_is_installed() -> None:
    """Debian's `prometheus` has it. Without it the parser above stands alone."""
    promtool = shutil.which("promtool")
    if promtool is not None:
        for command in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]):
            done = subprocess.run([promtool, *command], cwd=MONITORING, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    tested = yaml.safe_load((MONITORING / "alerts_test.yaml").read_text())
    names = {case["alertname"] for test in tested["tests"] for case in test["alert_rule_test"]}
    assert names <= {rule["alert"] for rule in alerts()}


def test_the_imports_of_a_load_are_counted_by_state() -> None:
    note = "job 12 started 40 %, job 13 started 5 %, job 14 pending 0 %"
    assert metrics.import_states(note) == {"started": 2, "pending": 1}
    assert metrics.import_states("building the index") == {}


def test_without_ray_nothing_is_counted_and_nothing_fails() -> None:
    import ray

    assert not ray.is_initialized()
    metrics.show_gap("vehicles", expected=5, indexed=3)
    metrics.show_load("vehicles", done=1, total=2, states={"started": 1})
