"""One altered bit in a stored object of a job: whoever uses the object names it, or answers as before."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from infra.store import Store
from jobs.reindex.state import ReindexInputs, ReindexRun, Step
from jobs.sweep.audit import AuditLog, AuditRecord, append_record
from jobs.sweep.state import LIST_SCHEMA, PROBE_SCHEMA, RESULT_SCHEMA, Sweep

Check = Callable[..., None]


def test_of_a_sweep(store: Store, assert_flips_are_noticed: Check) -> None:
    probes = [(f"p{number}", f"s3://archive/{number}.jpg") for number in range(6)]
    sweep = Sweep.create(
        store,
        pa.table(list(zip(*probes, strict=True)), schema=LIST_SCHEMA),
        request={"top": 1},
        generation="g",
        fingerprint="f",
        audit="audit/x.json",
        rows_per_part=3,
    )
    for part in sweep.pending():
        rows = sweep.probes(part).to_pylist()
        results = [
            {"probe_id": row["probe_id"], "rank": 1, "crop_id": 7, "distance": 0.5, "likelihood": None,
             "camera_id": "c", "captured_at": 1, "track_id": "", "generation": "g"} for row in rows
        ]  # fmt: skip
        outcomes = [
            {**row, "verdict": "ranked", "answers": 1, "best_distance": 0.5, "best_likelihood": None,
             "cause": "", "detail": ""} for row in rows
        ]  # fmt: skip
        sweep.write_part(
            part,
            pa.Table.from_pylist(results, RESULT_SCHEMA),
            pa.Table.from_pylist(outcomes, PROBE_SCHEMA),
        )
    sweep.finish()

    def state() -> list[Any]:
        again = Sweep.open(store)
        assert again is not None
        tables = [again.probes(part) for part in range(2)], [again.results(part) for part in range(2)]
        return [again.info, again.summary, *tables, list(again.outcomes())]

    for info in list(store.list()):
        assert_flips_are_noticed(store, info.key, state, tries=40)


def test_of_the_audit_log(store: Store, assert_flips_are_noticed: Check) -> None:
    record = AuditRecord("me", "case 1", "sweep", "g", "f", {"probes": "p.csv"})
    key = append_record(store, record)
    assert_flips_are_noticed(store, key, lambda: AuditLog.read(store).to_json())


def test_of_the_documents_of_a_reindex_run(store: Store, assert_flips_are_noticed: Check) -> None:
    run = ReindexRun.start(store, "n1", ReindexInputs("s3://archive", "f", "clvr", "index.db"))
    attempt = run.start_attempt()
    run.record(Step("plan", "t", 1.5, {"run_id": "n1"}))
    run.finish_attempt(attempt, "promote", None)
    run.write_summary({"state": "finished", "crops": {"new": 3}}, "<p>")

    def state() -> list[Any]:
        again = ReindexRun.open(store, "n1")
        return [again.inputs, again.created, list(again.steps()), again.attempts(), again.read_summary()]

    for info in list(store.list("nights")):
        if info.key.endswith(".json"):
            assert_flips_are_noticed(store, info.key, state)
