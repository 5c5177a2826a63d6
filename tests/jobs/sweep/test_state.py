"""Sweeps and their audit log: an audit record first, every probe once, counts that add up."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index.archive.manifest import crop_id_of
from index.runs.tombstones import ErasedCrops, read_tombstones, write_tombstones
from index.search.calibration import Calibration
from infra.errors import AccountingError, BadInput, CountMismatch, Mismatch, ObjectExists
from infra.store import Store, open_store
from jobs.sweep.audit import AuditLog, AuditRecord, append_record, require_record
from jobs.sweep.purge import count_in_sweep, purge_sweep
from jobs.sweep.state import PROBE_SCHEMA, RESULT_SCHEMA, Sweep, anonymous_list, checked_list


def probe_list(count: int = 10) -> pa.Table:
    return checked_list([f"p{n}" for n in range(count)], [f"/x/{n}.jpg" for n in range(count)], "here")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "runs").mkdir()
    return open_store(str(tmp_path / "runs"))


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return create(open_store(str(tmp_path / "out")))


def create(store: Store, count: int = 10) -> Sweep:
    return Sweep.create(
        store,
        probe_list(count),
        request={"top": 5},
        generation="g",
        fingerprint="f",
        audit="audit/x.json",
        rows_per_part=4,
    )


def finish_part(sweep: Sweep, part: int, verdict: str = "found") -> None:
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


def test_finished_parts_are_not_pending_after_a_restart(sweep: Sweep) -> None:
    assert sweep.pending() == [0, 1, 2]
    finish_part(sweep, 1)
    again = Sweep.open(sweep.store)
    assert again is not None
    assert again.pending() == [0, 2]


def test_a_part_without_results_is_pending_again(sweep: Sweep) -> None:
    for part in range(3):
        finish_part(sweep, part)
    sweep.store.delete("results/part-00001.parquet")
    assert sweep.pending() == [1]
    with pytest.raises(CountMismatch, match="1 parts"):
        sweep.finish()
    finish_part(sweep, 1)
    summary = sweep.finish()
    assert (summary.probes, summary.answers, summary.verdicts) == (10, 10, {"found": 10})
    assert sweep.summary == summary


def test_a_part_with_outcomes_of_other_probes_raises(sweep: Sweep) -> None:
    with pytest.raises(CountMismatch, match="other probes"):
        sweep.write_part(0, RESULT_SCHEMA.empty_table(), PROBE_SCHEMA.empty_table())


def test_a_folder_contains_one_sweep(sweep: Sweep) -> None:
    with pytest.raises(Mismatch, match="already contains a sweep"):
        create(sweep.store)
    sweep.require_same(probe_list(), {"top": 5}, "f", ErasedCrops())
    for probes, request, model, difference in (
        (probe_list(9), {"top": 5}, "f", "the probes"),
        (probe_list(), {"top": 6}, "f", "top"),
        (probe_list(), {"top": 5}, "other", "the model"),
    ):
        with pytest.raises(Mismatch, match=difference):
            sweep.require_same(probes, request, model, ErasedCrops())


def test_a_sweep_whose_probe_was_erased_is_continued_by_the_same_command(
    sweep: Sweep, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tombstones(store, "e", np.array([crop_id_of("/x/3.jpg"), crop_id_of("/x/9.jpg")]), [None, None])
    store.put("erasures/e/receipt.json", b"{}")
    erased = read_tombstones(store)
    (tmp_path / "link").symlink_to("/x")
    monkeypatch.chdir(tmp_path)
    as_typed = checked_list([f"p{n}" for n in range(10)], [f"link/{n}.jpg" for n in range(10)], "here")
    assert anonymous_list(as_typed, erased)["uri"].to_pylist()[3] == "(erased)"
    sweep.require_same(probe_list(), {"top": 5}, "f", erased)
    finish_part(sweep, 0)
    assert purge_sweep(sweep.store, erased, None).found > 0  # type: ignore[union-attr]
    again = Sweep.open(sweep.store)
    assert again is not None
    assert again.all_probes()["uri"].to_pylist()[9] == "(erased)"
    again.require_same(probe_list(), {"top": 5}, "f", erased)
    with pytest.raises(Mismatch, match="the probes"):
        again.require_same(probe_list(), {"top": 5}, "f", ErasedCrops())
    with pytest.raises(Mismatch, match="the probes"):
        again.require_same(probe_list(9), {"top": 5}, "f", erased)


def test_a_purge_finds_what_a_sweep_or_a_purge_left_when_it_was_cut_off(sweep: Sweep, store: Store) -> None:
    write_tombstones(store, "e", np.array([crop_id_of("/x/3.jpg")]), [None])
    store.put("erasures/e/receipt.json", b"{}")
    erased = read_tombstones(store)
    folder = sweep.store
    finish_part(sweep, 0)
    folder.delete("results/part-00000.parquet")  # cut off between the outcomes and the matches
    (old_list,) = (info.key for info in folder.list("list"))
    data = folder.get(old_list)
    assert count_in_sweep(folder, erased) == 2
    assert purge_sweep(folder, erased, None).left == 0  # type: ignore[union-attr]
    folder.put(old_list, data)  # cut off before the old list was deleted
    assert count_in_sweep(folder, erased) == 1
    purge_sweep(folder, erased, None)
    assert count_in_sweep(folder, erased) == 0
    folder.put(old_list, data)
    folder.delete("sweep.json")  # cut off before sweep.json
    assert count_in_sweep(folder, erased) == 1
    purge_sweep(folder, erased, None)
    assert (count_in_sweep(folder, erased), folder.head(old_list)) == (None, None)


def test_an_empty_folder_has_no_sweep(tmp_path: Path) -> None:
    assert Sweep.open(open_store(str(tmp_path / "nowhere"))) is None


@pytest.mark.parametrize(
    ("names", "uris", "message"),
    [([], [], "no probe"), (["a", "a"], ["x", "y"], "repeated"), (["a", ""], ["x", "y"], "probe 2")],
)
def test_an_invalid_list_of_probes_raises(names: list[str], uris: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        checked_list(names, uris, "list.csv")


def record(case: str = "26-117", who: str = "ann") -> AuditRecord:
    return AuditRecord(who, case, "sweep start", "g", "f", {"top": 5})


def test_an_audit_record_cannot_be_replaced(store: Store) -> None:
    key = append_record(store, record())
    require_record(store, key)
    log = AuditLog.read(store)
    assert log.to_json()[0]["key"] == key
    assert "26-117" in log.to_text()
    with pytest.raises(ObjectExists):
        store.create(key, b"{}")


def test_audit_records_are_read_in_the_order_of_time(store: Store) -> None:
    keys = [append_record(store, record(case=f"c{n}")) for n in range(5)]
    assert [key for key, _ in AuditLog.read(store).records] == sorted(keys)


@pytest.mark.parametrize("key", ["audit/none.json", "runs/x", ""])
def test_a_missing_audit_record_raises(store: Store, key: str) -> None:
    with pytest.raises(AccountingError, match="no audit record"):
        require_record(store, key)


@pytest.mark.parametrize("wrong", [{"case": " "}, {"who": ""}], ids=str)
def test_an_audit_record_needs_a_user_and_a_reason(wrong: dict[str, str]) -> None:
    with pytest.raises(BadInput):
        record(**wrong)


def test_the_verdict_of_a_purged_probe_does_not_depend_on_the_order_of_its_matches(
    sweep: Sweep, store: Store
) -> None:
    # Re-ranking put the nearest match behind another one.
    names = sweep.probes(0)["probe_id"].to_pylist()
    outcomes = [
        {"probe_id": n, "uri": u, "verdict": "found", "answers": 3, "cause": "", "detail": ""}
        for n, u in zip(names, sweep.probes(0)["uri"].to_pylist(), strict=True)
    ]
    matches = [(1, 11, 0.4), (2, 12, 0.9), (3, 13, 0.3)]
    results = [
        {"probe_id": name, "rank": rank, "crop_id": crop_id, "distance": distance}
        for name in names
        for rank, crop_id, distance in matches
    ]
    sweep.write_part(
        0,
        pa.Table.from_pylist(results, schema=RESULT_SCHEMA),
        pa.Table.from_pylist(outcomes, schema=PROBE_SCHEMA),
    )
    write_tombstones(store, "e", np.array([11]), [None])
    store.put("erasures/e/receipt.json", b"{}")
    calibration = Calibration(
        fingerprint="f",
        run_id="r",
        false_alarm_rate=0.01,
        threshold=0.5,
        detection_rate=0.5,
        probes=1,
        vehicles=1,
        gallery=1,
        pairs=1,
        brier=0.1,
        brier_base=0.2,
        same_camera=False,
        created="2026-11-29T12:00:00+00:00",
        distances=(0.0, 1.0),
        likelihoods=(1.0, 0.0),
    )
    purge_sweep(sweep.store, read_tombstones(store), calibration)
    (purged,) = {(row["verdict"], row["answers"]) for row in sweep.outcomes_of(0).to_pylist()}
    assert purged == ("found", 2)
    assert [row["crop_id"] for row in sweep.results(0).to_pylist()[:2]] == [12, 13]
