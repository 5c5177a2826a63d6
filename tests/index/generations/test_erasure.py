"""Erasure removes crops from every generation, keeps them out of later ones, and writes a receipt."""

import json

import numpy as np
import pytest

from index.archive.manifest import crop_id_of
from index.generations import records
from index.generations.erasure import forget, resume_erasures
from index.generations.gate import check_gate
from index.generations.load import load_runs
from index.generations.promotion import promote
from index.generations.receipt import Receipt, read_receipt
from index.generations.reconcile import reconcile
from index.generations.selection import EraseSelection
from index.lock import ROWS, acquire
from index.milvus import collection
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.runs.run import Run
from index.runs.tombstones import erasure_ids, read_tombstones
from infra.errors import BadSetting, IndexUnreachable, Locked, SchemaMismatch
from infra.store import Store

ON_CAMERA_3 = 20  # of 100 crops


def erase(milvus: Milvus, store: Store, selection: EraseSelection, *, dry_run: bool = False) -> Receipt:
    return forget(milvus, store, selection, reason="case 17", dry_run=dry_run)


def two_generations(milvus: Milvus, store: Store, make_run) -> tuple[Generation, Generation, Run]:
    run = make_run("r1", 100)
    retained, live = (load_runs(milvus, store, [run], alias="clvr") for _ in range(2))
    promote(milvus, store, live.name, force="test")
    return retained, live, run


def test_a_dry_run_counts_and_changes_nothing(milvus: Milvus, store: Store, make_run) -> None:
    retained, live, _ = two_generations(milvus, store, make_run)
    receipt = erase(milvus, store, EraseSelection(cameras=("cam-3",)), dry_run=True)
    assert (receipt.state, receipt.erasure_id, receipt.crops) == ("dry run", "", ON_CAMERA_3)
    assert receipt.runs == {"r1": ON_CAMERA_3}
    assert [(erased.generation, erased.live, erased.matching) for erased in receipt.generations] == [
        (retained.name, False, ON_CAMERA_3),
        (live.name, True, ON_CAMERA_3),
    ]
    assert [collection.row_count(milvus, generation) for generation in (retained, live)] == [100, 100]
    assert erasure_ids(store) == []


def test_rows_leave_the_live_and_the_retained_generation_by_the_receipt(
    milvus: Milvus, store: Store, make_run
) -> None:
    retained, live, _ = two_generations(milvus, store, make_run)
    receipt = erase(milvus, store, EraseSelection(cameras=("cam-3",)))
    assert receipt.state == "done"
    assert len(receipt.generations) == 2
    for erased in receipt.generations:
        assert (erased.rows_before, erased.matching) == (100, 20)
        assert (erased.rows_after, erased.left) == (80, 0)
    document = json.loads(store.get(f"erasures/{receipt.erasure_id}/receipt.json"))
    assert document["reason"] == "case 17"
    assert (document["wanted"], document["crops"]) == ({"cameras": ["cam-3"]}, 20)
    assert document["finished"] >= document["begun"]
    assert read_receipt(store, receipt.erasure_id) == receipt
    for generation in (retained, live):
        assert collection.fetch_ids(milvus, generation.name, 'camera_id == "cam-3"').size == 0
        record = records.read(store, generation.name)
        assert record is not None
        assert record.rows == 80
        assert record.changes[-1]["erasure_id"] == receipt.erasure_id


def test_a_later_rebuild_leaves_erased_crops_out(milvus: Milvus, store: Store, make_run) -> None:
    _, _, run = two_generations(milvus, store, make_run)
    erase(milvus, store, EraseSelection(cameras=("cam-3",)))
    rebuilt = load_runs(milvus, store, [run], alias="clvr")
    assert collection.row_count(milvus, rebuilt) == 80
    assert collection.fetch_ids(milvus, rebuilt.name, 'camera_id == "cam-3"').size == 0
    assert check_gate(milvus, store, rebuilt, [run]).passed
    result = reconcile(milvus, store, rebuilt, [run])
    assert (result.embedded, result.erased, result.expected, result.differences) == (100, 20, 80, ())


def test_a_new_run_over_the_same_images_leaves_erased_crops_out(
    milvus: Milvus, store: Store, make_run
) -> None:
    two_generations(milvus, store, make_run)
    erase(milvus, store, EraseSelection(cameras=("cam-3",)))
    again = load_runs(milvus, store, [make_run("r2", 100)], alias="clvr")
    assert collection.row_count(milvus, again) == 80


def test_a_generation_that_was_gated_before_may_still_be_promoted(
    milvus: Milvus, store: Store, make_run
) -> None:
    retained, _, run = two_generations(milvus, store, make_run)
    check_gate(milvus, store, retained, [run])
    erase(milvus, store, EraseSelection(cameras=("cam-3",)))
    promote(milvus, store, retained.name)
    assert collection.live_generation(milvus, "clvr") == retained


def test_rows_of_deleted_runs_are_erased_too(milvus: Milvus, store: Store, make_run) -> None:
    _, live, run = two_generations(milvus, store, make_run)
    store.delete(*(info.key for info in store.list(f"runs/{run.run_id}")))
    receipt = erase(milvus, store, EraseSelection(cameras=("cam-3",)))
    assert receipt.crops == 20
    assert collection.row_count(milvus, live) == 80


@pytest.mark.parametrize(
    ("selection", "crops"),
    [
        (EraseSelection(crop_ids=(crop_id_of("s3://archive/cam-3/000003.jpg"),)), 1),
        (EraseSelection(cameras=("cam-1", "cam-2"), captured_from=20_000, captured_to=40_000), 8),
        (EraseSelection(captured_to=10_000), 9),  # 0 and 10 have no known time
        (EraseSelection(vehicles=(5,)), 0),
    ],
)
def test_all_criteria_must_match(
    milvus: Milvus, store: Store, make_run, selection: EraseSelection, crops: int
) -> None:
    make_run("r1", 50)
    assert erase(milvus, store, selection, dry_run=True).crops == crops


def test_crops_of_unknown_time_are_counted_and_not_erased(milvus: Milvus, store: Store, make_run) -> None:
    make_run("r1", 50)
    receipt = erase(milvus, store, EraseSelection(captured_to=10**12))
    assert (receipt.crops, receipt.unknown_time) == (45, 5)


def test_nothing_is_written_if_nothing_matches(milvus: Milvus, store: Store, make_run) -> None:
    make_run("r1", 50)
    assert erase(milvus, store, EraseSelection(cameras=("nowhere",))).state == "nothing matches"
    assert erasure_ids(store) == []


def test_an_interrupted_erasure_is_finished_by_the_next_load(
    milvus: Milvus, store: Store, make_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    retained, live, run = two_generations(milvus, store, make_run)
    call = Milvus.call

    def lost(self: Milvus, method: str, *args: object, **named: object) -> object:
        if method == "delete" and args[0] == live.name:
            raise IndexUnreachable("gone")
        return call(self, method, *args, **named)

    with monkeypatch.context() as cut:
        cut.setattr(Milvus, "call", lost)
        with pytest.raises(IndexUnreachable):
            erase(milvus, store, EraseSelection(cameras=("cam-3",)))
    assert [collection.row_count(milvus, generation) for generation in (retained, live)] == [80, 100]
    assert len(read_tombstones(store)) == 20

    load_runs(milvus, store, [run], alias="clvr")

    assert [collection.row_count(milvus, generation) for generation in (retained, live)] == [80, 80]
    (erasure_id,) = erasure_ids(store)
    assert read_receipt(store, erasure_id).state == "done"
    for generation in (retained, live):
        assert not reconcile(milvus, store, generation, [run]).differences


def test_finishing_twice_changes_nothing(milvus: Milvus, store: Store, make_run) -> None:
    _, live, _ = two_generations(milvus, store, make_run)
    erase(milvus, store, EraseSelection(cameras=("cam-3",)))
    assert resume_erasures(milvus, store) == []
    assert collection.row_count(milvus, live) == 80


def test_an_erasure_during_a_load_is_refused(milvus: Milvus, store: Store, make_run) -> None:
    make_run("r1", 20)
    with acquire(store, ROWS, "a load of alias clvr"), pytest.raises(Locked, match="a load of alias clvr"):
        erase(milvus, store, EraseSelection(cameras=("cam-3",)))


def test_an_erasure_needs_a_reason_and_criteria(milvus: Milvus, store: Store) -> None:
    with pytest.raises(BadSetting, match="needs a reason"):
        forget(milvus, store, EraseSelection(cameras=("a",)), reason=" ", dry_run=True)
    with pytest.raises(BadSetting, match="nothing selects"):
        erase(milvus, store, EraseSelection())
    with pytest.raises(BadSetting, match="window is empty"):
        erase(milvus, store, EraseSelection(captured_from=5, captured_to=5))


def test_a_damaged_receipt_is_named(store: Store) -> None:
    store.put("erasures/e/receipt.json", b"{}")
    with pytest.raises(SchemaMismatch, match="no receipt"):
        read_receipt(store, "e")


def test_a_crop_in_several_erasures_counts_once(milvus: Milvus, store: Store, make_run) -> None:
    run = make_run("r1", 50)
    for camera in ("cam-1", "cam-2", "cam-1"):
        erase(milvus, store, EraseSelection(cameras=(camera,)))
    erased = read_tombstones(store)
    assert len(erased) == 20
    assert erased.is_erased(np.asarray(run.manifest()["crop_id"])).sum() == 20
