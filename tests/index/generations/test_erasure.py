"""Erasure removes crops from every generation, keeps them out of later ones, and writes a receipt."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index.archive.manifest import crop_id_of
from index.generations import erasure, records
from index.generations.erasure import forget, resume_erasures
from index.generations.gate import check_gate
from index.generations.load import load_runs
from index.generations.promotion import promote
from index.generations.receipt import Receipt, read_receipt
from index.generations.reconcile import reconcile
from index.generations.selection import EraseSelection, select_crops
from index.lock import ROWS, acquire
from index.milvus import collection
from index.milvus.client import Milvus
from index.milvus.collection import Generation
from index.parquet import ParquetReader
from index.runs.run import Run
from index.runs.tombstones import erasure_ids, read_tombstones
from infra.errors import BadInput, BadSetting, CorruptObject, IndexUnreachable, Locked, SchemaMismatch
from infra.store import ObjectBody, Store, TimeRange, open_store

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


@pytest.mark.parametrize("sizes", [[9, 9, 9, 9], [9, 9, -1, -1], [-1, -1, 9, 9]])
def test_copies_of_a_named_crop_are_erased_wherever_they_lie(
    milvus: Milvus, store: Store, make_finished_run, tmp_path: Path, sizes: list[int]
) -> None:
    archive = open_store(str(tmp_path / "archive"))
    for key in ("a/1.jpg", "b/1.jpg", "b/2.jpg", "a/2.jpg"):
        archive.put(key, b"vehicle " + key[2:3].encode())
    keys = sorted(info.key for info in archive.list())
    run = make_finished_run(
        store,
        "r1",
        [9] * len(keys),
        size=sizes,  # all of one length, where it is known
        uri=[archive.uri_of(key) for key in keys],
        etag=[info.etag for info in sorted(archive.list(), key=lambda info: info.key)],
        look=lambda numbers: np.zeros((len(numbers), 1024), np.float32),
    )
    replaced = Run(store, replace(run.info, archive=archive.uri))
    store.put("runs/r1/run.json", replaced.info.to_json())
    store.put("runs/r1/done.json", replace(run.summary, archive=archive.uri).to_json())
    generation = load_runs(milvus, store, [Run.open(store, "r1")], alias="clvr")

    receipt = erase(milvus, store, EraseSelection(crop_ids=(crop_id_of(archive.uri_of("a/1.jpg")),)))

    assert (receipt.crops, receipt.copies, receipt.unread) == (2, 1, 0)
    left = set(collection.fetch_ids(milvus, generation.name).tolist())
    assert left == {crop_id_of(archive.uri_of(key)) for key in ("a/2.jpg", "b/2.jpg")}
    erased = read_tombstones(store)
    assert erased.is_erased_content(b"vehicle 1") and not erased.is_erased_content(b"vehicle 2")


def test_an_etag_that_is_an_md5_tells_copies_without_the_archive(
    milvus: Milvus, store: Store, make_finished_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    etags = [hashlib.md5(data).hexdigest() for data in (b"one", b"two", b"one", b"six")]  # noqa: S324
    make_finished_run(
        store, "r1", [5] * 4, etag=etags, uri=[f"s3://archive/{n}.jpg" for n in range(4)], look=_zeros
    )
    monkeypatch.setattr("index.generations.selection.open_store", lambda *_: pytest.fail("it was read"))
    receipt = erase(milvus, store, EraseSelection(crop_ids=(crop_id_of("s3://archive/0.jpg"),)))
    assert (receipt.crops, receipt.copies, receipt.unread) == (2, 1, 0)
    assert read_tombstones(store).erased_ids(
        map(crop_id_of, (f"s3://archive/{n}.jpg" for n in range(4)))
    ) == {
        crop_id_of("s3://archive/0.jpg"),
        crop_id_of("s3://archive/2.jpg"),
    }


def _zeros(numbers: np.ndarray) -> np.ndarray:
    return np.zeros((len(numbers), 1024), np.float32)


def test_a_camera_or_a_time_selects_no_copies(milvus: Milvus, store: Store, make_run) -> None:
    make_run("r1", 50)
    receipt = erase(milvus, store, EraseSelection(cameras=("cam-3",)))
    assert (receipt.copies, receipt.unread) == (0, 0)
    assert not read_tombstones(store).knows_content


def test_an_erasure_reaches_the_ledgers_and_tombstones_of_all_folders_of_runs(
    milvus: Milvus, store: Store, make_run, make_finished_run, tmp_path: Path
) -> None:
    other = open_store(str(tmp_path / "other"))
    other.create_bucket()
    ours, theirs = make_run("r1", 50), make_run("r1", 50)
    for info in list(store.list("runs")):
        other.put(info.key, store.get(info.key))
    first = load_runs(milvus, store, [ours], alias="clvr")
    second = load_runs(milvus, other, [Run.open(other, theirs.run_id)], alias="others")

    receipt = erase(milvus, store, EraseSelection(cameras=("cam-3",)))

    assert set(receipt.folders) == {store.uri, other.uri}
    assert {one.folder for one in receipt.generations} == {store.uri, other.uri}
    for folder, generation in ((store, first), (other, second)):
        assert read_receipt(folder, receipt.erasure_id).state == "done"
        assert len(read_tombstones(folder)) == 10
        assert not reconcile(milvus, folder, generation, [Run.open(folder, "r1")]).differences
        assert json.loads(folder.get("locks/rows.json"))["released"] is True
    rebuilt = load_runs(milvus, other, [Run.open(other, "r1")], alias="others")
    assert collection.row_count(milvus, rebuilt) == 40


def test_an_erasure_refuses_to_start_beside_a_generation_whose_folder_is_gone(
    milvus: Milvus, store: Store, make_run, tmp_path: Path
) -> None:
    other = open_store(str(tmp_path / "other"))
    other.create_bucket()
    run = make_run("r1", 50)
    foreign = load_runs(milvus, other, [run], alias="others")
    ours = load_runs(milvus, store, [run], alias="clvr")
    other.delete(*(info.key for info in other.list("generations")))
    with pytest.raises(BadInput, match=f"{foreign.name} is on this server, and its folder"):
        erase(milvus, store, EraseSelection(cameras=("cam-3",)))
    assert collection.row_count(milvus, ours) == 50
    assert erasure_ids(store) == []


def test_an_erasure_that_is_cut_off_between_two_folders_is_finished_in_both(
    milvus: Milvus, store: Store, make_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_store(str(tmp_path / "other"))
    other.create_bucket()
    run = make_run("r1", 50)
    for info in list(store.list("runs")):
        other.put(info.key, store.get(info.key))
    load_runs(milvus, store, [run], alias="clvr")
    load_runs(milvus, other, [Run.open(other, "r1")], alias="others")
    create = Store.create

    def cut(self: Store, key: str, data: bytes) -> None:
        if self.uri == other.uri and key.endswith("receipt.json"):
            raise IndexUnreachable("gone")
        create(self, key, data)

    with monkeypatch.context() as patched, pytest.raises(IndexUnreachable):
        patched.setattr(Store, "create", cut)
        erase(milvus, store, EraseSelection(cameras=("cam-3",)))
    assert (len(read_tombstones(store)), len(read_tombstones(other))) == (10, 0)

    load_runs(milvus, store, [run], alias="clvr")

    assert (len(read_tombstones(store)), len(read_tombstones(other))) == (10, 10)
    for generation in collection.list_generations(milvus):
        assert collection.row_count(milvus, generation) == 40


def test_a_lost_folder_of_erasures_is_noticed(milvus: Milvus, store: Store, make_run) -> None:
    _, live, run = two_generations(milvus, store, make_run)
    erase(milvus, store, EraseSelection(cameras=("cam-3",)))
    store.delete(*(info.key for info in store.list("erasures")))
    with pytest.raises(CorruptObject, match=r"was changed by erasure .* no receipt of it"):
        load_runs(milvus, store, [run], alias="clvr")
    with pytest.raises(CorruptObject, match="no receipt of it"):
        reconcile(milvus, store, live, [run])


def test_the_receipt_and_the_tombstones_name_no_crop(milvus: Milvus, store: Store, make_run) -> None:
    make_run("r1", 50)
    wanted = crop_id_of("s3://archive/cam-3/000003.jpg")
    receipt = erase(milvus, store, EraseSelection(crop_ids=(wanted,), cameras=("cam-3",)))
    assert receipt.wanted == {"crop_ids": 1, "cameras": ["cam-3"]}
    for info in store.list("erasures"):
        assert str(wanted).encode() not in store.get(info.key)
        assert wanted.to_bytes(8, "little") not in store.get(info.key)


def test_an_erasure_by_time_refuses_times_that_cannot_be(milvus: Milvus, store: Store, make_run) -> None:
    make_run("r1", 50)  # its times are of 1970, as if seconds had been taken for milliseconds
    window = EraseSelection(captured_to=10**12)
    with pytest.raises(BadInput, match="45 crops have none that is plausible, such as s3://archive/cam-"):
        forget(milvus, store, window, reason="r", dry_run=False, times=TimeRange())
    assert erasure_ids(store) == []
    by_camera = EraseSelection(cameras=("cam-3",))
    assert forget(milvus, store, by_camera, reason="r", dry_run=True, times=TimeRange()).crops == 10


def test_a_crop_that_several_runs_have_is_read_once(
    milvus: Milvus, store: Store, make_finished_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = open_store(str(tmp_path / "archive"))
    archive.put("1.jpg", b"vehicle")
    uri = archive.uri_of("1.jpg")
    for name in ("r1", "r2", "r3"):
        run = make_finished_run(store, name, [5], uri=[uri], look=_zeros)
        store.put(f"runs/{name}/run.json", replace(run.info, archive=archive.uri).to_json())
        store.put(f"runs/{name}/done.json", replace(run.summary, archive=archive.uri).to_json())
    reads: list[str] = []
    fetch = Store.fetch

    def counted(self: Store, key: str) -> ObjectBody:
        if self.uri == archive.uri:
            reads.append(key)
        return fetch(self, key)

    monkeypatch.setattr(Store, "fetch", counted)
    receipt = erase(milvus, store, EraseSelection(crop_ids=(crop_id_of(uri),)), dry_run=True)
    assert (receipt.crops, receipt.unread, reads) == (1, 0, ["1.jpg"])


def test_a_selection_reads_only_the_parts_that_can_match(
    store: Store, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run("r1", 40, first=1001)
    run = Run.open(store, "r1")
    again = Run.create(
        store,
        "parts",
        manifest=run.manifest(),
        archive=run.info.archive,
        fingerprint=run.fingerprint,
        model="m",
        settings={},
        rows_per_part=5,
    )
    read: list[int] = []
    original = ParquetReader.read_row_group
    monkeypatch.setattr(
        ParquetReader,
        "read_row_group",
        lambda self, group, columns=None: read.append(group) or original(self, group, columns),
    )
    rows = run.manifest()
    cameras = {row["camera_id"] for row in rows.to_pylist()}
    for camera in sorted(cameras):
        read.clear()
        found = select_crops([again], EraseSelection(cameras=(camera,)))
        wanted = [row["crop_id"] for row in rows.to_pylist() if row["camera_id"] == camera]
        assert found.crop_ids.tolist() == sorted(wanted)
        assert len(set(read)) < 4  # of 8 parts, because the manifest is sorted by camera
    start, end = 1_010_000, 1_020_000
    found = select_crops([again], EraseSelection(captured_from=start, captured_to=end))
    times = rows.to_pylist()
    assert found.crop_ids.tolist() == sorted(
        row["crop_id"] for row in times if start <= row["captured_at"] < end
    )
    assert found.unknown_time == sum(row["captured_at"] == -1 for row in times)


def test_an_erasure_opens_only_the_shards_that_have_its_crops(
    milvus: Milvus, store: Store, make_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        make_run(f"r{number}", 40, first=1000 * number, rows_per_shard=10)
    opened: list[str] = []
    original = erasure.read_shards
    monkeypatch.setattr(
        erasure, "read_shards", lambda store, keys, **kw: opened.extend(keys) or original(store, keys, **kw)
    )
    chosen = Run.open(store, "r1").manifest()["crop_id"].to_pylist()[12]
    receipt = forget(milvus, store, EraseSelection(crop_ids=(chosen,)), reason="test", dry_run=True)
    assert receipt.runs == {"r1": 1}
    assert opened == ["runs/r1/shards/shard-00001.parquet"]
