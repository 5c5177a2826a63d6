"""Promotion, rollback and retirement: the alias moves only to a gated generation, and can move back."""

from contextlib import contextmanager
from dataclasses import replace

import pytest

from index.generations import promotion, records
from index.generations.gate import check_gate
from index.generations.load import LoadOptions, load_runs
from index.generations.promotion import promote, retire, rollback
from index.lock import ROWS, acquire, alias_lock
from index.milvus import collection
from index.milvus.client import Milvus
from infra.errors import BadInput, BadSetting, GateFailed, IndexUnreachable, Locked
from infra.store import Store


def gated(milvus: Milvus, store: Store, runs, **options):
    generation = load_runs(milvus, store, runs, alias="clvr", options=LoadOptions(latest_wins=True))
    return generation, check_gate(milvus, store, generation, runs, **options)


def cut_alias_moves(patch: pytest.MonkeyPatch) -> None:
    """Let the server be lost whenever the alias is about to move."""
    call = Milvus.call

    def lost(self: Milvus, method: str, *args: object, **named: object) -> object:
        if method == "alter_alias":
            raise IndexUnreachable("gone")
        return call(self, method, *args, **named)

    patch.setattr(Milvus, "call", lost)


def moves(store: Store, name: str) -> list[dict[str, object]]:
    record = records.read(store, name)
    assert record is not None
    return list(record.promotions)


def test_promotion_fails_without_a_gate_or_a_complete_load(milvus: Milvus, store: Store, make_run) -> None:
    run = make_run("r1", 30)
    generation = load_runs(milvus, store, [run], alias="clvr")
    with pytest.raises(GateFailed, match="has not been through the gate"):
        promote(milvus, store, generation.name)
    records.update(store, generation.name, state="loading")
    with pytest.raises(BadInput, match="load was interrupted"):
        promote(milvus, store, generation.name, force="now")
    with pytest.raises(BadInput, match="not ready"):
        check_gate(milvus, store, generation, [run])
    with pytest.raises(BadInput, match="is no generation"):
        promote(milvus, store, "clvr_gone")
    assert collection.live_generation(milvus, "clvr") is None


def test_promotion_fails_when_rows_changed_since_the_gate(milvus: Milvus, store: Store, make_run) -> None:
    generation, report = gated(milvus, store, [make_run("r1", 30)])
    assert report.passed
    milvus.call("delete", generation.name, filter="captured_at == -1")
    with pytest.raises(GateFailed, match=r"count\(\*\) is 27 now, by its record it is 30"):
        promote(milvus, store, generation.name)


def test_promotion_fails_when_another_model_went_live_since_the_gate(
    milvus: Milvus, store: Store, make_run
) -> None:
    gated_first, report = gated(milvus, store, [make_run("r1", 30, fingerprint="mine" * 4)])
    assert report.passed
    other = load_runs(milvus, store, [make_run("r2", 30, fingerprint="other" * 4)], alias="clvr")
    promote(milvus, store, other.name, force="a colleague")
    with pytest.raises(GateFailed, match="went live since the gate"):
        promote(milvus, store, gated_first.name)


def test_force_passes_over_the_gate_and_its_reason_is_recorded(
    milvus: Milvus, store: Store, make_run
) -> None:
    generation = load_runs(milvus, store, [make_run("r1", 20)], alias="clvr")
    promote(milvus, store, generation.name, force="demo tonight")
    assert collection.live_generation(milvus, "clvr") == generation
    assert [move["force"] for move in moves(store, generation.name)] == ["demo tonight"]


def test_promoting_the_live_generation_changes_nothing(milvus: Milvus, store: Store, make_run) -> None:
    runs = [make_run("r1", 20)]
    first, _ = gated(milvus, store, runs)
    second, _ = gated(milvus, store, runs)
    promote(milvus, store, first.name)
    promote(milvus, store, second.name)
    promote(milvus, store, second.name)
    assert len(moves(store, second.name)) == 1
    assert records.previous(milvus, store, "clvr") == first


def three_moves(milvus: Milvus, store: Store, make_run) -> list[collection.Generation]:
    """Promote three generations, one after the other."""
    runs = [make_run("r1", 20)]
    generations = [gated(milvus, store, runs)[0] for _ in range(3)]
    for generation in generations:
        promote(milvus, store, generation.name)
    return generations


def test_a_repeated_rollback_changes_nothing_and_a_name_undoes_it(
    milvus: Milvus, store: Store, make_run
) -> None:
    _, second, third = three_moves(milvus, store, make_run)
    done = rollback(milvus, store, "clvr")
    assert (done.generation, done.moved, done.replaced) == (second, True, third.name)
    again = rollback(milvus, store, "clvr")
    assert again == replace(done, moved=False)
    assert collection.live_generation(milvus, "clvr") == second
    assert [move["kind"] for move in moves(store, second.name)] == ["promote", "rollback"]
    undone = rollback(milvus, store, "clvr", third.name)
    assert (undone.generation, undone.moved) == (third, True)
    assert not rollback(milvus, store, "clvr", third.name).moved
    assert not rollback(milvus, store, "clvr").moved


def test_a_rollback_after_another_promotion_moves_again(milvus: Milvus, store: Store, make_run) -> None:
    _, second, third = three_moves(milvus, store, make_run)
    rollback(milvus, store, "clvr")
    promote(milvus, store, third.name)
    done = rollback(milvus, store, "clvr")
    assert (done.generation, done.moved) == (second, True)


def test_a_rollback_by_name_goes_only_to_what_was_live(milvus: Milvus, store: Store, make_run) -> None:
    first, _, third = three_moves(milvus, store, make_run)
    never, _ = gated(milvus, store, [make_run("r2", 20)])
    with pytest.raises(BadInput, match="was never live") as refused:
        rollback(milvus, store, "clvr", never.name)
    assert f"clvr promote {never.name}" in refused.value.remedy
    other = load_runs(milvus, store, [make_run("r3", 20)], alias="other")
    with pytest.raises(BadInput, match="is of alias other"):
        rollback(milvus, store, "clvr", other.name)
    with pytest.raises(BadInput, match="is no generation"):
        rollback(milvus, store, "clvr", "clvr_gone")
    assert rollback(milvus, store, "clvr", first.name).moved
    live = rollback(milvus, store, "clvr", first.name)
    assert (live.moved, live.replaced) == (False, third.name)


def test_a_generation_whose_promotion_was_cut_off_was_never_live(
    milvus: Milvus, store: Store, make_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_moves(milvus, store, make_run)
    fourth, _ = gated(milvus, store, [make_run("r2", 20)])
    with monkeypatch.context() as cut:
        cut_alias_moves(cut)
        with pytest.raises(IndexUnreachable):
            promote(milvus, store, fourth.name)
    with pytest.raises(BadInput, match="was never live"):
        rollback(milvus, store, "clvr", fourth.name)


@pytest.mark.parametrize("by_name", [False, True])
def test_a_rollback_cut_off_before_the_move_is_completed_by_the_same_command(
    milvus: Milvus, store: Store, make_run, monkeypatch: pytest.MonkeyPatch, by_name: bool
) -> None:
    _, second, third = three_moves(milvus, store, make_run)
    name = second.name if by_name else None
    with monkeypatch.context() as cut:
        cut_alias_moves(cut)
        with pytest.raises(IndexUnreachable):
            rollback(milvus, store, "clvr", name)
    assert collection.live_generation(milvus, "clvr") == third
    for moved in (True, False, False):
        done = rollback(milvus, store, "clvr", name)
        assert (done.generation, done.moved, done.replaced) == (second, moved, third.name)


def test_a_rollback_whose_alias_moves_at_the_same_time_is_refused(
    milvus: Milvus, store: Store, make_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = three_moves(milvus, store, make_run)
    fourth, _ = gated(milvus, store, [make_run("r2", 20)])

    @contextmanager
    def after_a_promotion(store: Store, name: str, purpose: str):
        with acquire(store, name, "a promotion"):
            monkeypatch.setattr(promotion, "acquire", acquire)
            milvus.call("alter_alias", fourth.name, "clvr")
        with acquire(store, name, purpose) as lock:
            yield lock

    monkeypatch.setattr(promotion, "acquire", after_a_promotion)
    with pytest.raises(Locked, match=f"moved clvr from {third.name} to {fourth.name}"):
        rollback(milvus, store, "clvr")
    assert collection.live_generation(milvus, "clvr") == fourth
    monkeypatch.setattr(promotion, "acquire", after_a_promotion)
    assert rollback(milvus, store, "clvr", second.name).generation == second
    with pytest.raises(Locked, match="moved clvr"):
        promote(milvus, store, first.name, replacing=third.name)
    assert collection.live_generation(milvus, "clvr") == second


def test_rollback_needs_a_previous_generation(milvus: Milvus, store: Store, make_run) -> None:
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
    with monkeypatch.context() as cut:
        cut_alias_moves(cut)
        with pytest.raises(IndexUnreachable):
            promote(milvus, store, third.name)
    assert collection.live_generation(milvus, "clvr") == second
    assert rollback(milvus, store, "clvr").generation == first
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
    with pytest.raises(GateFailed, match=r"count\(\*\) is 18 now, by its record it is 20"):
        rollback(milvus, store, "clvr")
    assert rollback(milvus, store, "clvr", force="the new one is worse").generation == first
    assert moves(store, first.name)[-1]["force"] == "the new one is worse"


def test_retirement_keeps_the_newest_the_live_and_the_previous_generation(
    milvus: Milvus, store: Store, make_run
) -> None:
    run = make_run("r1", 20)
    generations = [load_runs(milvus, store, [run], alias="clvr") for _ in range(5)]
    other = load_runs(milvus, store, [run], alias="other")
    for generation in (generations[1], generations[0]):
        promote(milvus, store, generation.name, force="test")
    done = retire(milvus, store, "clvr", keep=1)
    assert done.dropped == (generations[2].name, generations[3].name)
    assert done.kept == (generations[0].name, generations[1].name, generations[4].name)
    assert collection.live_generation(milvus, "clvr") == generations[0]
    assert collection.get_generation(milvus, other.name) == other
    with pytest.raises(BadSetting):
        retire(milvus, store, "clvr", keep=0)


def cut_drops(patch: pytest.MonkeyPatch) -> None:
    """Let the process end right after a collection was dropped."""
    update = records.update

    def killed(store: Store, name: str, **changes: object) -> object:
        if changes.get("state") == "dropped":
            raise KeyboardInterrupt
        return update(store, name, **changes)

    patch.setattr(records, "update", killed)


def test_a_retirement_cut_off_before_its_record_is_completed_by_the_next(
    milvus: Milvus, store: Store, make_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("r1", 20)
    generations = [load_runs(milvus, store, [run], alias="clvr") for _ in range(3)]
    promote(milvus, store, generations[2].name, force="test")
    with monkeypatch.context() as cut:
        cut_drops(cut)
        with pytest.raises(KeyboardInterrupt):
            retire(milvus, store, "clvr", keep=1)
    (gone,) = records.without_collection(milvus, store, "clvr")
    assert (gone.name, gone.state) == (generations[0].name, "dropping")
    done = retire(milvus, store, "clvr", keep=1)
    assert (done.corrected, done.dropped) == ((generations[0].name,), (generations[1].name,))
    states = {record.name: record.state for record in records.list_records(store, "clvr")}
    assert [states[generation.name] for generation in generations] == ["dropped", "dropped", "ready"]
    assert retire(milvus, store, "clvr", keep=1).corrected == ()


def test_a_drop_cut_off_before_its_collection_is_completed_by_whoever_changes_rows_next(
    milvus: Milvus, store: Store, make_run
) -> None:
    run = make_run("r1", 20)
    first, second, third = (load_runs(milvus, store, [run], alias="clvr") for _ in range(3))
    for generation in (first, second, third):
        promote(milvus, store, generation.name, force="test")
    records.update(store, first.name, state="dropping")
    for move in (promote, lambda *place, force: rollback(*place[:2], "clvr", place[2], force=force)):
        with pytest.raises(BadInput, match="drop was interrupted"):
            move(milvus, store, first.name, force="now")
    load_runs(milvus, store, [run], alias="clvr")
    assert not milvus.call("has_collection", first.name)
    assert records.read(store, first.name).state == "dropped"
    records.update(store, second.name, state="dropping")
    assert retire(milvus, store, "clvr", keep=9).dropped == (second.name,)


def test_a_retirement_corrects_the_record_of_a_collection_dropped_by_hand(
    milvus: Milvus, store: Store, make_run
) -> None:
    run = make_run("r1", 20)
    first, second = (load_runs(milvus, store, [run], alias="clvr") for _ in range(2))
    other = load_runs(milvus, store, [run], alias="other")
    records.update(store, other.name, state="loading")
    for generation in (first, other):
        milvus.call("drop_collection", generation.name)
    assert retire(milvus, store, "clvr").corrected == (first.name,)
    milvus.call("drop_collection", second.name)
    # Without any generation of the alias it may be another server: nothing is concluded from that.
    assert retire(milvus, store, "clvr").corrected == ()
    assert retire(milvus, store, "other").corrected == ()
    states = {record.name: record.state for record in records.list_records(store)}
    assert states == {first.name: "dropped", second.name: "ready", other.name: "loading"}
