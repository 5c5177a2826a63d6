"""The ledger of a night: one name for one job, steps written once, and a summary that says what happened."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.errors import BadSetting, GateFailed, Mismatch
from infra.store import Store, open_store
from jobs.reindex.page import night_page
from jobs.reindex.state import ReindexInputs, ReindexRun, Step, current_run_id, list_nights, previous_summary
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


def done(store: Store, name: str, *, until: str = "retention") -> ReindexRun:
    night = ReindexRun.begin(store, name, INPUTS)
    for step, outcome in OUTCOMES.items():
        night.record(Step(step, night.created, 1800.0, outcome))
        if step == until:
            return night
    return night


def test_the_same_job_has_one_name_a_day_also_after_midnight_while_it_is_unfinished(store: Store) -> None:
    now = datetime.now(UTC)
    first = current_run_id(store, INPUTS, now=now)
    assert first == f"{now:%Y-%m-%d}-{INPUTS.digest()}"
    night = ReindexRun.begin(store, first, INPUTS)
    assert current_run_id(store, INPUTS, now=now + timedelta(hours=19)) == first
    assert current_run_id(store, INPUTS, now=now + timedelta(hours=24)) != first
    assert current_run_id(store, replace(INPUTS, full=True), now=now) != first
    night.finish()
    assert (
        current_run_id(store, INPUTS, now=now + timedelta(hours=24))
        == f"{now + timedelta(hours=24):%Y-%m-%d}-{INPUTS.digest()}"
    )


def test_a_name_belongs_to_one_job(store: Store) -> None:
    ReindexRun.begin(store, "n", INPUTS)
    with pytest.raises(Mismatch, match="begun with alias vehicles, not cars"):
        ReindexRun.begin(store, "n", replace(INPUTS, alias="cars"))
    for name in ("", "a/b", "../up", ".hidden"):
        with pytest.raises(BadSetting):
            ReindexRun.begin(store, name, INPUTS)


def test_a_step_is_written_once(store: Store) -> None:
    night = done(store, "n", until="plan")
    night.record(Step("plan", night.created, 9.0, {"said": "another"}))
    step = ReindexRun.open(store, "n").step("plan")
    assert step is not None
    assert step.outcome["said"] == "incremental"
    assert [one.name for one in night.steps()] == ["plan"]


def test_attempts_tell_of_errors_and_of_being_killed(store: Store) -> None:
    night = done(store, "n", until="load")
    night.begin_attempt()
    failed = night.begin_attempt()
    night.end_attempt(failed, "gate", GateFailed("recall is low", remedy="rebuild"))
    first, second = night.attempts()
    assert first.ended is None
    assert second.ended is not None
    assert (second.ended["error"], second.ended["step"], second.ended["exit_code"]) == (
        "GateFailed",
        "gate",
        8,
    )
    summary = summarise(night, None, price=None, nodes=1)
    assert summary["state"] == "failed"
    assert headline(summary) == "night n FAILED at gate: recall is low"
    assert "killed" in summary["attempts"][0]["how"]
    assert "Failed at gate" in night_page(summary)


def test_the_summary_holds_cost_against_plan_and_what_is_other_than_before(store: Store) -> None:
    before = done(store, "one")
    before.write_summary(summarise(before, None, price=None, nodes=2), "")
    before.finish()
    night = done(store, "two")
    night.end_attempt(night.begin_attempt(), "", None)
    earlier = previous_summary(night)
    assert earlier is not None
    summary = summarise(night, earlier, price=3.0, nodes=2)
    cost = summary["cost"]
    assert (cost["planned_hours"], cost["planned_cost"]) == (2.0, 12.0)
    assert (cost["embedding_hours"], cost["embedding_cost"]) == (0.5, 3.0)
    assert (cost["hours"], cost["cost"]) == (3.0, 18.0)
    assert summary["before"]["night"] == "one"
    page = night_page(summary)
    assert "What changed since one" in page
    assert "decode/&lt;script&gt;" in page
    assert "<script" not in page
    assert [one.night_id for one in list_nights(store)] == ["one", "two"]
