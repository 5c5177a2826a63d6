"""Promotion: numbers first, then one move of the alias, and always a way back."""

from dataclasses import asdict

import numpy as np
import pytest

from index.generations import records
from index.generations.gate import GateReport, check_gate
from index.generations.load import load_runs
from index.generations.promotion import promote, rollback
from index.lock import ROWS, acquire, alias_lock
from index.milvus import collection
from index.milvus.client import Milvus
from infra.errors import BadInput, GateFailed, IndexUnreachable, Locked
from infra.store import Store


def gated(milvus: Milvus, store: Store, runs, **options):
    generation = load_runs(milvus, store, runs, alias="clvr", latest_wins=True)
    return generation, check_gate(milvus, store, generation, runs, **options)


def moves(store: Store, name: str) -> list[dict[str, object]]:
    entry = records.read(store, name)
    assert entry is not None
    return list(entry.promotions)


def test_a_good_generation_passes_with_all_its_numbers_on_record(
    milvus: Milvus, store: Store, make_run
) -> None:
    generation, report = gated(milvus, store, [make_run("r1", 400, rows_per_shard=150)], probes=100)
    assert report.passed
    assert (report.rows_expected, report.rows_indexed, report.probes) == (400, 400, 100)
    assert report.recall_at_1 == 1.0
    assert report.recall_at_10 >= 0.98
    assert 0 < report.latency_p50_ms <= report.latency_p95_ms
    entry = records.read(store, generation.name)
    assert entry is not None
    assert entry.gate is not None
    assert GateReport(**{**entry.gate, "failures": tuple(entry.gate["failures"])}) == report


def test_fewer_rows_than_probes_or_than_ten_are_fine(milvus: Milvus, store: Store, make_run) -> None:
    _, report = gated(milvus, store, [make_run("r1", 4)])
    assert report.passed
    assert report.probes == 4


def test_twins_at_one_distance_are_equally_right(milvus: Milvus, store: Store, make_run) -> None:
    # 60 crops of two pictures: which ten of thirty twins come first is nobody's fault.
    two = np.random.default_rng(0).normal(size=(2, 1024)).astype(np.float32)
    _, report = gated(milvus, store, [make_run("r1", 60, look=lambda numbers, seed: two[numbers % 2])])
    assert report.recall_at_10 == report.recall_at_1 == 1.0


def test_lost_rows_fail_the_gate_with_both_numbers(milvus: Milvus, store: Store, make_run) -> None:
    run = make_run("r1", 50)
    generation = load_runs(milvus, store, [run], alias="clvr")
    milvus.call("delete", generation.name, filter="captured_at == -1")
    report = check_gate(milvus, store, generation, [run])
    assert "45 rows are indexed, the shards hold 50" in report.failures[0]
    with pytest.raises(GateFailed, match="45 rows are indexed"):
        promote(milvus, store, generation.name)


def test_an_index_of_other_vectors_fails_on_recall(milvus: Milvus, store: Store, make_run) -> None:
    run = make_run("r1", 100)
    generation = load_runs(milvus, store, [run], alias="clvr")
    rows = milvus.call("query", generation.name, filter="crop_id >= 0", output_fields=["*"], limit=1000)
    noise = np.random.default_rng(5).normal(size=(len(rows), 1024)).astype(np.float32)
    milvus.call(
        "upsert",
        generation.name,
        [{**row, "embedding": vector} for row, vector in zip(rows, noise, strict=True)],
    )
    milvus.call("flush", generation.name)
    report = check_gate(milvus, store, generation, [run])
    assert report.recall_at_10 < 0.5
    assert any("recall@10" in failure for failure in report.failures)


def test_another_model_must_be_asked_for_by_name(milvus: Milvus, store: Store, make_run) -> None:
    first, _ = gated(milvus, store, [make_run("old", 30, fingerprint="old" * 8)])
    promote(milvus, store, first.name)
    runs = [make_run("new", 30, fingerprint="new" * 8)]
    second, report = gated(milvus, store, runs)
    assert "its model" in report.failures[0]
    assert report.live_fingerprint == "old" * 8
    with pytest.raises(GateFailed, match="--new-model"):
        promote(milvus, store, second.name)
    assert check_gate(milvus, store, second, runs, new_model=True).passed
    promote(milvus, store, second.name)
    assert collection.live_generation(milvus, "clvr") == second


def test_nothing_is_promoted_that_was_not_gated_or_not_loaded(milvus: Milvus, store: Store, make_run) -> None:
    run = make_run("r1", 30)
    generation = load_runs(milvus, store, [run], alias="clvr")
    with pytest.raises(GateFailed, match="has not been through the gate"):
        promote(milvus, store, generation.name)
    records.update(store, generation.name, state="loading")
    with pytest.raises(BadInput, match="load was cut off"):
        promote(milvus, store, generation.name, force="now")
    with pytest.raises(BadInput, match="not ready"):
        check_gate(milvus, store, generation, [run])
    with pytest.raises(BadInput, match="is no generation"):
        promote(milvus, store, "clvr_gone")
    assert collection.live_generation(milvus, "clvr") is None


def test_the_gate_wants_the_runs_of_the_generation(milvus: Milvus, store: Store, make_run) -> None:
    generation = load_runs(milvus, store, [make_run("r1", 20)], alias="clvr")
    with pytest.raises(BadInput, match="built of other runs: r1"):
        check_gate(milvus, store, generation, [make_run("r2", 20)])


def test_what_changed_since_the_gate_fails_the_promotion(milvus: Milvus, store: Store, make_run) -> None:
    generation, report = gated(milvus, store, [make_run("r1", 30)])
    assert report.passed
    milvus.call("delete", generation.name, filter="captured_at == -1")
    with pytest.raises(GateFailed, match=r"count\(\*\) is 27 now, by the ledger it is 30"):
        promote(milvus, store, generation.name)


def test_another_model_that_went_live_since_the_gate_fails_the_promotion(
    milvus: Milvus, store: Store, make_run
) -> None:
    mine, report = gated(milvus, store, [make_run("r1", 30, fingerprint="mine" * 4)])
    assert report.passed
    other = load_runs(milvus, store, [make_run("r2", 30, fingerprint="other" * 4)], alias="clvr")
    promote(milvus, store, other.name, force="a colleague")
    with pytest.raises(GateFailed, match="went live since the gate"):
        promote(milvus, store, mine.name)


def test_force_passes_over_the_gate_and_its_reason_is_recorded(
    milvus: Milvus, store: Store, make_run
) -> None:
    generation = load_runs(milvus, store, [make_run("r1", 20)], alias="clvr")
    promote(milvus, store, generation.name, force="demo tonight")
    assert collection.live_generation(milvus, "clvr") == generation
    assert [move["force"] for move in moves(store, generation.name)] == ["demo tonight"]


def test_promoting_the_live_one_changes_nothing(milvus: Milvus, store: Store, make_run) -> None:
    runs = [make_run("r1", 20)]
    first, _ = gated(milvus, store, runs)
    second, _ = gated(milvus, store, runs)
    promote(milvus, store, first.name)
    promote(milvus, store, second.name)
    promote(milvus, store, second.name)
    assert len(moves(store, second.name)) == 1
    assert records.previous(milvus, store, "clvr") == first


def test_rollback_returns_to_what_was_live_and_can_be_undone(milvus: Milvus, store: Store, make_run) -> None:
    runs = [make_run("r1", 20)]
    first, _ = gated(milvus, store, runs)
    second, _ = gated(milvus, store, runs)
    promote(milvus, store, first.name)
    promote(milvus, store, second.name)
    assert rollback(milvus, store, "clvr") == first
    assert collection.live_generation(milvus, "clvr") == first
    assert rollback(milvus, store, "clvr") == second
    assert [move["kind"] for move in moves(store, second.name)] == ["promote", "rollback"]


def test_without_a_previous_generation_there_is_no_rollback(milvus: Milvus, store: Store, make_run) -> None:
    with pytest.raises(BadInput, match="no previous generation"):
        rollback(milvus, store, "clvr")
    generation, _ = gated(milvus, store, [make_run("r1", 20)])
    promote(milvus, store, generation.name)
    with pytest.raises(BadInput, match="no previous generation"):
        rollback(milvus, store, "clvr")


def test_a_cut_between_the_record_and_the_move_keeps_the_way_back(
    milvus: Milvus, store: Store, make_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [make_run("r1", 20)]
    first, _ = gated(milvus, store, runs)
    second, _ = gated(milvus, store, runs)
    third, _ = gated(milvus, store, runs)
    promote(milvus, store, first.name)
    promote(milvus, store, second.name)
    call = Milvus.call

    def lost(self: Milvus, method: str, *args: object, **named: object) -> object:
        if method == "alter_alias":
            raise IndexUnreachable("gone")
        return call(self, method, *args, **named)

    with monkeypatch.context() as cut:
        cut.setattr(Milvus, "call", lost)
        with pytest.raises(IndexUnreachable):
            promote(milvus, store, third.name)
    assert collection.live_generation(milvus, "clvr") == second
    assert rollback(milvus, store, "clvr") == first
    promote(milvus, store, third.name)
    assert records.previous(milvus, store, "clvr") == first


def test_two_who_move_one_alias_are_one_too_many(milvus: Milvus, store: Store, make_run) -> None:
    generation, _ = gated(milvus, store, [make_run("r1", 20)])
    with acquire(store, alias_lock("clvr"), "a promotion of another"):
        for move in (
            lambda: promote(milvus, store, generation.name),
            lambda: rollback(milvus, store, "clvr"),
        ):
            with pytest.raises(Locked, match="a promotion of another is under way"):
                move()
    promote(milvus, store, generation.name)


def test_a_load_does_not_keep_an_alias_from_moving_but_a_second_load_from_beginning(
    milvus: Milvus, store: Store, make_run
) -> None:
    run = make_run("r1", 20)
    generation, _ = gated(milvus, store, [run])
    with acquire(store, ROWS, "a load of alias other"):
        promote(milvus, store, generation.name)
        with pytest.raises(Locked, match="a load of alias other is under way"):
            load_runs(milvus, store, [run], alias="clvr")
    assert collection.list_generations(milvus) == [generation]


def test_a_rollback_to_a_generation_that_lost_rows_must_be_forced(
    milvus: Milvus, store: Store, make_run
) -> None:
    runs = [make_run("r1", 20)]
    first, _ = gated(milvus, store, runs)
    second, _ = gated(milvus, store, runs)
    promote(milvus, store, first.name)
    promote(milvus, store, second.name)
    milvus.call("delete", first.name, filter="captured_at == -1")
    with pytest.raises(GateFailed, match=r"count\(\*\) is 18 now, by the ledger it is 20"):
        rollback(milvus, store, "clvr")
    assert rollback(milvus, store, "clvr", force="the new one is worse") == first
    assert moves(store, first.name)[-1]["force"] == "the new one is worse"


def test_a_gate_with_a_lower_bar_is_a_lower_bar_on_record(milvus: Milvus, store: Store, make_run) -> None:
    _, report = gated(milvus, store, [make_run("r1", 30)], recall_bar=0.5)
    assert asdict(report)["recall_bar"] == 0.5
