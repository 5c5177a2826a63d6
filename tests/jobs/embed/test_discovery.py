"""Selections of crops: a listing, a key list, a side table, an increment, a quarantine."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clvr_model.embeddings import Embeddings
from index.archive.manifest import crop_id_of
from index.runs.run import Run, vanished_ids
from infra.errors import BadInput, BadLabels, BadSetting, EmptyArchive
from infra.store import Store, TimeRange, open_store
from jobs.embed.discovery import CropSelection, Discovery, discover
from jobs.embed.part import embed_parts, open_decoders

PATTERN = "dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg"
KEYS = [f"dt=2026-11-2{day}/cam=00{cam}/179300000000{day}_t{cam}.jpg" for day in (0, 1) for cam in (1, 2)]


class Stub:
    """Embeds every image as zeros."""

    batch_size, feature_dim, image_size, fingerprint = 2, 1024, 299, "f"

    def __call__(self, images: Any) -> Embeddings:
        count = len(images)
        return Embeddings(
            np.zeros((count, 1024), np.float32), np.zeros(count, np.int32), np.ones(count, np.float32)
        )


@pytest.fixture
def archive(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "archive"))
    for key in KEYS:
        store.put(key, jpeg())
    store.put("dt=2026-11-20/readme.txt", b"x")
    return store


@pytest.fixture
def runs(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "runs"))


def jpeg(shade: int = 9) -> bytes:
    Image.fromarray(np.full((20, 30, 3), shade, np.uint8)).save(buffer := io.BytesIO(), "JPEG")
    return buffer.getvalue()


def keys_of(selection: CropSelection, archive: Store, runs: Store) -> list[str]:
    manifest = discover(selection, archive, runs).crops.read()
    return [uri.removeprefix(f"{archive.uri}/") for uri in manifest["uri"].to_pylist()]


def finished_run(run_id: str, discovery: Discovery, archive: Store, runs: Store, **settings: Any) -> Run:
    run = Run.create(
        runs,
        run_id,
        manifest=discovery.crops,
        archive=archive.uri,
        fingerprint="f",
        model="m",
        settings=settings,
    )
    embed_pending(run, archive)
    run.finish()
    return run


def embed_pending(run: Run, archive: Store) -> None:
    with open_decoders(archive, Stub(), 1) as decoders:
        list(embed_parts(run, run.pending_parts(), Stub(), decoders))


def test_listing_parses_camera_and_counts_other_objects(archive: Store, runs: Store) -> None:
    discovery = discover(CropSelection(archive.uri, key_pattern=PATTERN), archive, runs)
    assert (discovery.crops.read().num_rows, discovery.ignored, discovery.unmatched) == (4, 1, 0)
    assert set(discovery.crops.read()["camera_id"].to_pylist()) == {"001", "002"}
    assert not list(runs.list()) if Path(runs.uri).exists() else True


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_key_list_replaces_the_listing(archive: Store, runs: Store, tmp_path: Path, kind: str) -> None:
    listed = pa.table({"key": KEYS[:2]})
    path = tmp_path / f"keys.{kind}"
    if kind == "parquet":
        pq.write_table(listed, path)
    else:
        pa.csv.write_csv(listed, path)
    selection = CropSelection(archive.uri, manifest=str(path), key_pattern=PATTERN)
    assert keys_of(selection, archive, runs) == sorted(KEYS[:2])


def test_key_list_of_another_archive_is_rejected(archive: Store, runs: Store, tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": ["/elsewhere/a.jpg"]}), tmp_path / "keys.parquet")
    with pytest.raises(BadInput, match="outside of"):
        discover(CropSelection(archive.uri, manifest=str(tmp_path / "keys.parquet")), archive, runs)


TIMES = [1_767_600_000_005, 1_767_600_000_006, 1_767_600_000_007, 1_767_600_000_008]


def test_side_table_adds_camera_and_time(archive: Store, runs: Store, tmp_path: Path) -> None:
    table = pa.table({"key": KEYS, "camera_id": list("abcd"), "captured_at": TIMES})
    pq.write_table(table, tmp_path / "side.parquet")
    discovery = discover(CropSelection(archive.uri, labels=str(tmp_path / "side.parquet")), archive, runs)
    assert sorted(discovery.crops.read()["camera_id"].to_pylist()) == list("abcd")
    assert sorted(discovery.crops.read()["captured_at"].to_pylist()) == TIMES


def test_increment_selects_new_and_changed_crops(archive: Store, runs: Store) -> None:
    finished_run("base", discover(CropSelection(archive.uri), archive, runs), archive, runs)
    archive.put(KEYS[0], jpeg(200))
    archive.put("dt=2026-11-22/cam=001/new.jpg", jpeg())
    archive.delete(KEYS[3])
    discovery = discover(CropSelection(archive.uri, since_run="base"), archive, runs)
    assert discovery.changes is not None
    assert str(discovery.changes) == "1 new, 1 changed, 2 unchanged, 1 vanished"
    assert discovery.crops.read().num_rows == 2

    window = discover(CropSelection(archive.uri, since_run="base", lookback_days=0), archive, runs)
    assert str(window.changes) == "1 new, 0 changed, 1 unchanged, 1 vanished"
    assert "since 2026-11-21" in window.notes[0]


def test_increment_without_changes_raises_empty_archive(archive: Store, runs: Store) -> None:
    finished_run("base", discover(CropSelection(archive.uri), archive, runs), archive, runs)
    with pytest.raises(EmptyArchive, match="no new, changed or vanished"):
        discover(CropSelection(archive.uri, since_run="base"), archive, runs)


def test_retry_of_a_quarantine_reads_its_crops_anew(archive: Store, runs: Store) -> None:
    archive.put(KEYS[0], b"not a picture")
    archive.put(KEYS[1], b"")
    finished_run("base", discover(CropSelection(archive.uri), archive, runs), archive, runs)
    assert keys_of(CropSelection(archive.uri, retry_quarantined="base"), archive, runs) == sorted(KEYS[:2])
    only = CropSelection(archive.uri, retry_quarantined="base", causes=("decode/empty",))
    assert keys_of(only, archive, runs) == [KEYS[1]]
    assert keys_of(
        CropSelection(archive.uri, retry_quarantined="base", causes=("not-a-picture",)), archive, runs
    ) == [KEYS[0]]

    archive.put(KEYS[0], jpeg())
    again = finished_run(
        "again", discover(CropSelection(archive.uri, retry_quarantined="base"), archive, runs), archive, runs
    )
    assert (again.summary.embedded, again.summary.quarantined) == (1, 1)
    with pytest.raises(EmptyArchive, match="no crop with cause truncated"):
        discover(CropSelection(archive.uri, retry_quarantined="base", causes=("truncated",)), archive, runs)


@pytest.mark.parametrize(
    "given",
    [
        {"retry_quarantined": "r", "since_run": "s"},
        {"retry_quarantined": "r", "manifest": "m"},
        {"causes": ("truncated",)},
        {"lookback_days": 3},
        {"since_run": "s", "lookback_days": -1},
    ],
)
def test_contradicting_selection_is_rejected(given: dict[str, Any]) -> None:
    with pytest.raises(BadSetting):
        CropSelection("/archive", **given)


def test_a_list_whose_crops_do_not_exist_is_refused_with_an_example_of_each_side(
    archive: Store, runs: Store, tmp_path: Path
) -> None:
    (tmp_path / "list.csv").write_text("key\n" + "".join(f"old/{n}.jpg\n" for n in range(100)))
    selection = CropSelection(archive.uri, manifest=str(tmp_path / "list.csv"))
    with pytest.raises(BadInput, match=r"64 do not exist|50 do not exist") as caught:
        discover(selection, archive, runs)
    assert "old/0.jpg" in caught.value.message and "the archive has" in caught.value.message


def test_a_list_with_some_crops_that_are_gone_is_taken(archive: Store, runs: Store, tmp_path: Path) -> None:
    present = next(info.key for info in archive.list() if info.key.endswith(".jpg"))
    (tmp_path / "list.csv").write_text(f"key\n{present}\ngone.jpg\na//b.jpg\n")
    found = discover(CropSelection(archive.uri, manifest=str(tmp_path / "list.csv")), archive, runs)
    assert found.crops.read().num_rows == 2
    assert any("1 (key that cannot be addressed), such as 'a//b.jpg'" in note for note in found.notes)


def test_labels_of_another_archive_are_refused_with_an_example_of_each_side(
    archive: Store, runs: Store, tmp_path: Path
) -> None:
    (tmp_path / "labels.csv").write_text("key,vehicle_id\nelsewhere/1.jpg,1\n")
    with pytest.raises(BadLabels, match=r"labels 0 of \d+ crops: .*elsewhere/1\.jpg, the archive has"):
        discover(CropSelection(archive.uri, labels=str(tmp_path / "labels.csv")), archive, runs)


def test_implausible_times_are_refused_unless_the_range_allows_them(
    archive: Store, runs: Store, tmp_path: Path
) -> None:
    key = next(info.key for info in archive.list() if info.key.endswith(".jpg"))
    (tmp_path / "labels.csv").write_text(f"key,captured_at\n{key},1975-01-05T10:00:00Z\n")
    selection = CropSelection(archive.uri, labels=str(tmp_path / "labels.csv"))
    with pytest.raises(BadLabels, match=r"labels\.csv, data row 1, column captured_at: '1975-01-05T10"):
        discover(selection, archive, runs)
    wide = replace(selection, times=TimeRange.of("1970-01-02", None))
    assert 158_148_000_000 in discover(wide, archive, runs).crops.read()["captured_at"].to_pylist()


def test_globs_choose_the_crops_of_a_listing_and_of_a_list(
    archive: Store, runs: Store, tmp_path: Path
) -> None:
    archive.put("night/1.jpg", jpeg())
    archive.put(".hidden/2.jpg", jpeg())
    assert keys_of(CropSelection(archive.uri, include=("night",)), archive, runs) == ["night/1.jpg"]
    assert not set(keys_of(CropSelection(archive.uri, exclude=("night",)), archive, runs)) & {
        "night/1.jpg",
        ".hidden/2.jpg",
    }
    (tmp_path / "list.csv").write_text("key\nnight/1.jpg\n.hidden/2.jpg\n")
    listed = CropSelection(archive.uri, manifest=str(tmp_path / "list.csv"))
    assert keys_of(listed, archive, runs) == [".hidden/2.jpg", "night/1.jpg"]
    assert keys_of(replace(listed, exclude=(".hidden",)), archive, runs) == ["night/1.jpg"]


def test_a_corrected_list_or_label_file_is_another_origin(archive: Store, tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    selection = CropSelection(archive.uri, manifest=str(path), labels=str(path))
    path.write_text("key,vehicle_id\na.jpg,1\n")
    before = selection.origin()
    path.touch()
    assert selection.origin() == before
    path.write_text("key,vehicle_id\na.jpg,2\n")
    after = selection.origin()
    assert after["manifest_sha256"] != before["manifest_sha256"]
    assert after["labels_sha256"] != before["labels_sha256"]
    assert replace(selection, include=("*.png",)).origin() != after


def test_erased_crops_are_in_no_full_run_no_increment_and_no_requeue(
    archive: Store, runs: Store, hide: Callable[..., str]
) -> None:
    archive.put(KEYS[1], b"no picture")
    selection = CropSelection(archive.uri)
    run = finished_run("first", discover(selection, archive, runs), archive, runs)
    hide(runs, [crop_id_of(archive.uri_of(key)) for key in KEYS[:2]])

    found = discover(selection, archive, runs)
    assert found.crops.read()["uri"].to_pylist() == [archive.uri_of(key) for key in KEYS[2:]]
    assert "2 left out because they were erased" in found.notes[0]
    with pytest.raises(EmptyArchive, match="has no new, changed or vanished crop"):
        discover(CropSelection(archive.uri, since_run="first"), archive, runs)
    archive.delete(*KEYS[:3])
    changes = discover(CropSelection(archive.uri, since_run="first"), archive, runs).changes
    assert changes is not None
    assert changes.vanished.to_pylist() == [archive.uri_of(KEYS[2])]  # and no erased one is named
    assert run.quarantine().num_rows == 1
    with pytest.raises(EmptyArchive, match="quarantine of run first has no crop"):
        discover(CropSelection(archive.uri, retry_quarantined="first"), archive, runs)


def ids_by_key(run: Run) -> dict[str, int]:
    rows = run.manifest().to_pylist()
    return {row["uri"].removeprefix(f"{run.info.archive}/"): row["crop_id"] for row in rows}


def test_crops_whose_ids_collide_get_others_and_keep_them(
    archive: Store, runs: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ids of 6 bits, so that 24 crops collide many times."""
    monkeypatch.setattr("index.archive.manifest.CROP_ID_MASK", 63)
    archive.delete(*KEYS)
    keys = [f"dt=2026-11-2{number % 3}/{number:02d}.jpg" for number in range(24)]
    for key in keys[:16]:
        archive.put(key, jpeg())
    found = discover(CropSelection(archive.uri), archive, runs)
    assert any("crops got another crop_id" in note for note in found.notes)
    first = finished_run("first", found, archive, runs)
    ids = ids_by_key(first)
    assert len(set(ids.values())) == 16
    hashes = {key: crop_id_of(archive.uri_of(key)) for key in keys}
    for crop_id in {hashes[key] for key in keys[:16]}:
        holder = min(key for key in keys[:16] if hashes[key] == crop_id)
        assert ids[holder] == crop_id  # the first by URI

    for key in keys[16:]:  # they come before the known ones by URI, too, and do not take their ids
        archive.put(key, jpeg())
    archive.put(keys[3], jpeg(200))
    archive.delete(keys[5])
    planned = discover(CropSelection(archive.uri, since_run="first"), archive, runs, keep=False)
    assert str(planned.changes) == "8 new, 1 changed, 14 unchanged, 1 vanished"
    found = discover(CropSelection(archive.uri, since_run="first"), archive, runs)
    assert str(found.changes) == str(planned.changes)
    assert found.crops.read().equals(planned.crops.read())  # a plan writes nothing, and says the same
    assert found.changes is not None
    second = Run.create(
        runs,
        "second",
        manifest=found.crops,
        archive=archive.uri,
        fingerprint="f",
        model="m",
        settings={"since_run": "first"},
        vanished=found.changes.vanished,
    )
    embed_pending(second, archive)
    second.finish()
    later = ids_by_key(second)
    assert later[keys[3]] == ids[keys[3]]
    assert len(set((ids | later).values())) == 24
    assert vanished_ids(second).tolist() == [ids[keys[5]]]
    with pytest.raises(EmptyArchive, match="no new, changed or vanished"):
        discover(CropSelection(archive.uri, since_run="second"), archive, runs)

    again = discover(CropSelection(archive.uri), archive, runs)  # by another model, say
    everything = finished_run("again", again, archive, runs)
    assert ids_by_key(everything) == {key: (ids | later)[key] for key in keys if key != keys[5]}


def test_an_increment_of_a_run_of_another_archive_is_refused(
    archive: Store, runs: Store, tmp_path: Path
) -> None:
    finished_run("base", discover(CropSelection(archive.uri), archive, runs), archive, runs)
    other = open_store(str(tmp_path / "archive" / "dt=2026-11-20"))
    with pytest.raises(BadInput, match="run base is of the archive"):
        discover(CropSelection(other.uri, since_run="base"), other, runs)
