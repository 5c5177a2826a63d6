"""Sweeps and their audit log: nothing without an entry, nothing twice, nothing lost."""

from pathlib import Path

import pyarrow as pa
import pytest

from infra.errors import AccountingError, BadInput, CountMismatch, Mismatch, ObjectExists
from infra.store import Store, open_store
from jobs.sweep import audit
from jobs.sweep.state import PROBE_SCHEMA, RESULT_SCHEMA, Sweep, checked_list


def listed(count: int = 10) -> pa.Table:
    return checked_list([f"p{n}" for n in range(count)], [f"/x/{n}.jpg" for n in range(count)], "here")


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return create(open_store(str(tmp_path / "out")))


def create(store: Store, count: int = 10) -> Sweep:
    return Sweep.create(
        store,
        listed(count),
        request={"top": 5},
        generation="g",
        fingerprint="f",
        audit="audit/x.json",
        rows_per_part=4,
    )


def do(sweep: Sweep, part: int, verdict: str = "found") -> None:
    names = sweep.probes(part)["probe_id"].to_pylist()
    uris = sweep.probes(part)["uri"].to_pylist()
    probes = [
        {"probe_id": n, "uri": u, "verdict": verdict, "answers": 1, "cause": "", "detail": ""}
        for n, u in zip(names, uris, strict=True)
    ]
    results = [{"probe_id": name, "rank": 1, "crop_id": 1, "distance": 0.5} for name in names]
    sweep.write_part(
        part,
        pa.Table.from_pylist(results, schema=RESULT_SCHEMA),
        pa.Table.from_pylist(probes, schema=PROBE_SCHEMA),
    )


def test_parts_are_done_once_and_the_rest_stays_pending(sweep: Sweep) -> None:
    assert sweep.pending() == [0, 1, 2]
    do(sweep, 1)
    again = Sweep.open(sweep.store)
    assert again is not None
    assert again.pending() == [0, 2]


def test_a_part_that_was_cut_off_before_its_results_is_done_again(sweep: Sweep) -> None:
    for part in range(3):
        do(sweep, part)
    sweep.store.delete("results/part-00001.parquet")
    assert sweep.pending() == [1]
    with pytest.raises(CountMismatch, match="1 parts"):
        sweep.finish()
    do(sweep, 1)
    summary = sweep.finish()
    assert (summary.probes, summary.answers, summary.verdicts) == (10, 10, {"found": 10})
    assert sweep.summary == summary


def test_a_part_answers_exactly_its_own_probes(sweep: Sweep) -> None:
    with pytest.raises(CountMismatch, match="other probes"):
        sweep.write_part(0, RESULT_SCHEMA.empty_table(), PROBE_SCHEMA.empty_table())


def test_a_folder_holds_one_sweep(sweep: Sweep) -> None:
    with pytest.raises(Mismatch, match="holds a sweep already"):
        create(sweep.store)
    sweep.require_same(listed(), {"top": 5}, "f")
    for probes, request, model, said in (
        (listed(9), {"top": 5}, "f", "the probes"),
        (listed(), {"top": 6}, "f", "top"),
        (listed(), {"top": 5}, "other", "the model"),
    ):
        with pytest.raises(Mismatch, match=said):
            sweep.require_same(probes, request, model)


def test_an_empty_folder_holds_none(tmp_path: Path) -> None:
    assert Sweep.open(open_store(str(tmp_path / "nowhere"))) is None


@pytest.mark.parametrize(
    ("names", "uris", "said"),
    [([], [], "no probe"), (["a", "a"], ["x", "y"], "twice"), (["a", ""], ["x", "y"], "probe 2")],
)
def test_a_list_that_is_none_is_refused(names: list[str], uris: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        checked_list(names, uris, "list.csv")


def entry(case: str = "26-117", who: str = "ann") -> audit.AuditRecord:
    return audit.AuditRecord(who, case, "sweep start", "g", "f", {"top": 5})


def test_an_audit_entry_stands_for_ever(store: Store) -> None:
    key = audit.append(store, entry())
    audit.require(store, key)
    assert [(name, found.case) for name, found in audit.entries(store)] == [(key, "26-117")]
    with pytest.raises(ObjectExists):
        store.create(key, b"{}")


def test_entries_come_in_the_order_of_time(store: Store) -> None:
    keys = [audit.append(store, entry(case=f"c{n}")) for n in range(5)]
    assert [key for key, _ in audit.entries(store)] == sorted(keys)


@pytest.mark.parametrize("key", ["audit/none.json", "runs/x", ""])
def test_without_an_entry_nothing_runs(store: Store, key: str) -> None:
    with pytest.raises(AccountingError, match="no audit entry"):
        audit.require(store, key)


@pytest.mark.parametrize("wrong", [{"case": " "}, {"who": ""}], ids=str)
def test_an_entry_says_who_and_why(wrong: dict[str, str]) -> None:
    with pytest.raises(BadInput):
        entry(**wrong)
