"""The state of reindex runs: one id per request and day, steps written once, a summary of the outcome."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.errors import BadSetting, GateFailed, Mismatch
from infra.store import Store, open_store
from jobs.reindex.page import build_reindex_page
from jobs.reindex.state import (
    ReindexInputs,
    ReindexRun,
    Step,
    current_reindex_id,
    list_reindex_runs,
    previous_summaries,
)
from jobs.reindex.summary import headline, summarise

INPUTS = ReindexInputs(archive="s3://archive", fingerprint="f", alias="vehicles", milvus="m")
OUTCOMES: dict[str, dict[str, Any]] = {
    "plan": {
        "said": "incremental", "kind": "incremental", "run_id": "n", "since_run": "m", "live": "g1",
        "live_rows": 90, "changes": {"new": 10, "changed": 0, "vanished": 1, "unchanged": 80},
        "expected": {"seconds": 7200.0, "actors": 4, "nodes": 2, "by": "run m"},
    },
    "embed": {
        "said": "embedded", "listed": 10, "embedded": 9, "quarantined": 1, "duplicates": 0,
        "causes": {"decode/<script>": 1}, "bottleneck": "the model",
    },
    "load": {"said": "loaded", "kind": "increment", "generation": "g1", "rows": 98},
    "gate": {"said": "passed", "report": None},
    "promote": {"said": "stays", "live": "g1"},
    "retention": {"said": "kept", "dropped": [], "kept": ["g1"], "live": "g1", "live_rows": 98},
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def recorded_run(store: Store, name: str, *, until: str = "retention") -> ReindexRun:
    run = ReindexRun.start(store, name, INPUTS)
    for step, outcome in OUTCOMES.items():
        run.record(Step(step, run.created, 1800.0, outcome))
        if step == until:
            return run
    return run


def test_unfinished_run_of_the_same_inputs_keeps_its_id_after_midnight(store: Store) -> None:
    now = datetime.now(UTC)
    first = current_reindex_id(store, INPUTS, now=now)
    assert first == f"{now:%Y-%m-%d}-{INPUTS.digest()}"
    run = ReindexRun.start(store, first, INPUTS)
    assert current_reindex_id(store, INPUTS, now=now + timedelta(hours=19)) == first
    assert current_reindex_id(store, INPUTS, now=now + timedelta(hours=24)) != first
    assert current_reindex_id(store, replace(INPUTS, full=True), now=now) != first
    run.finish()
    assert (
        current_reindex_id(store, INPUTS, now=now + timedelta(hours=24))
        == f"{now + timedelta(hours=24):%Y-%m-%d}-{INPUTS.digest()}"
    )


def test_id_of_a_run_with_other_inputs_is_rejected(store: Store) -> None:
    ReindexRun.start(store, "n", INPUTS)
    with pytest.raises(Mismatch, match="started with alias vehicles, not cars"):
        ReindexRun.start(store, "n", replace(INPUTS, alias="cars"))
    for name in ("", "a/b", "../up", ".hidden"):
        with pytest.raises(BadSetting):
            ReindexRun.start(store, name, INPUTS)


def test_step_is_recorded_once(store: Store) -> None:
    run = recorded_run(store, "n", until="plan")
    run.record(Step("plan", run.created, 9.0, {"said": "another"}))
    step = ReindexRun.open(store, "n").step("plan")
    assert step is not None
    assert step.outcome["said"] == "incremental"
    assert [recorded.name for recorded in run.steps()] == ["plan"]


def test_attempts_record_errors_and_kills(store: Store) -> None:
    run = recorded_run(store, "n", until="load")
    run.start_attempt()
    failed = run.start_attempt()
    run.finish_attempt(failed, "gate", GateFailed("recall is low", remedy="rebuild"))
    first, second = run.attempts()
    assert first.outcome is None
    assert second.outcome is not None
    assert (second.outcome["error"], second.outcome["step"], second.outcome["exit_code"]) == (
        "GateFailed",
        "gate",
        8,
    )
    summary = summarise(run, None, price=None, nodes=1)
    assert summary["state"] == "failed"
    assert headline(summary) == "reindex run n FAILED at gate: recall is low"
    assert "killed" in summary["attempts"][0]["how"]
    assert "Failed at gate" in build_reindex_page(summary)


def test_summary_compares_cost_with_the_plan_and_figures_with_the_run_before(store: Store) -> None:
    before = recorded_run(store, "one")
    before.write_summary(summarise(before, None, price=None, nodes=2), "")
    before.finish()
    run = recorded_run(store, "two")
    run.finish_attempt(run.start_attempt(), "", None)
    (earlier,) = previous_summaries(run, 5)
    assert previous_summaries(run, 0) == []
    summary = summarise(run, earlier, price=3.0, nodes=2)
    cost = summary["cost"]
    assert (cost["planned_hours"], cost["planned_cost"]) == (2.0, 12.0)
    assert (cost["embedding_hours"], cost["embedding_cost"]) == (0.5, 3.0)
    assert (cost["hours"], cost["cost"]) == (3.0, 18.0)
    assert summary["before"]["night"] == "one"
    page = build_reindex_page(summary)
    assert "What changed since one" in page
    assert "decode/&lt;script&gt;" in page
    assert "<script" not in page
    worse = {**summary, "crops": {**summary["crops"], "quarantined": 7}}
    page = build_reindex_page(worse, [earlier, earlier])  # type: ignore[arg-type]
    assert "+6, worse" in page
    assert "Quarantined in the last 3 runs" in page
    assert [listed.reindex_id for listed in list_reindex_runs(store)] == ["one", "two"]
