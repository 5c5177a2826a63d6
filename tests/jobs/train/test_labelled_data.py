"""The labelled images of a training: from any release, a table or folders, and refused without models."""

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_releases import LAYOUTS, write_release

from index.archive.reader import reader_of
from infra.errors import BadLabels
from jobs.train.dataset import data_digest, read_labelled

WITHOUT_MODELS = ("AI City", "VeRi-CARLA", "VRIC")


@pytest.mark.parametrize(
    "layout", [name for name in LAYOUTS if name not in (*WITHOUT_MODELS, "VERI-Wild 2.0")]
)
def test_a_release_with_models_gives_images_to_train_on(layout: str, tmp_path: Path) -> None:
    labelled = read_labelled(write_release(str(tmp_path), LAYOUTS[layout][1]))
    assert labelled.classes
    assert (labelled.model_ids >= 0).all()
    assert {*labelled.classes} <= {*labelled.model_names} or layout == "VehicleID"


@pytest.mark.parametrize("layout", WITHOUT_MODELS)
def test_a_release_without_models_is_refused(layout: str, tmp_path: Path) -> None:
    with pytest.raises(BadLabels, match="labels vehicles, but has no vehicle models to train on") as caught:
        read_labelled(write_release(str(tmp_path), LAYOUTS[layout][1]))
    assert "model_id" in caught.value.remedy


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "VERI-Wild 2.0"])
def test_vehicles_of_a_release_are_read_for_recipes_that_learn_from_them(layout: str, tmp_path: Path) -> None:
    root = write_release(str(tmp_path), LAYOUTS[layout][1])
    try:
        labelled = read_labelled(root, labels="vehicle")
    except BadLabels as error:
        assert "which vehicle it shows" in error.message
        assert layout not in (*WITHOUT_MODELS, "VehicleID")
        return
    assert labelled.vehicle_ids is not None
    assert (labelled.vehicle_ids >= 0).all()
    with_models = [] if layout in WITHOUT_MODELS else read_labelled(root, labels="both").uris
    assert set(with_models) <= set(labelled.uris)


def test_model_recipes_have_no_vehicles_and_the_digest_that_they_always_had(tmp_path: Path) -> None:
    root = write_release(str(tmp_path), LAYOUTS["VehicleID"][1])
    models, both = read_labelled(root), read_labelled(root, labels="both")
    assert models.vehicle_ids is None
    assert models.uris == both.uris
    assert data_digest(models) != data_digest(both)


def test_a_release_with_tests_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadLabels, match=r"is VERI-Wild 2.0, which has test lists only"):
        read_labelled(write_release(str(tmp_path), LAYOUTS["VERI-Wild 2.0"][1]))


def test_folders_of_models_are_read_as_before(tmp_path: Path) -> None:
    labelled = read_labelled(write_release(str(tmp_path), {"golf/1.jpg": b"", "polo/2.jpg": b""}))
    assert labelled.model_names == {0: "golf", 1: "polo"}


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))


def test_webdataset_tar_files_of_a_split_are_read_with_their_labels(tmp_path: Path) -> None:
    labels = b'{"model_id": 7, "vehicle_id": 3, "camera_id": "c1", "model_name": "Golf", "other": [1]}'
    write_tar(tmp_path / "train-000000.tar", {"a/1.jpg": b"1", "a/1.json": labels, "a/2.v2.txt": b""})
    write_tar(tmp_path / "train-000001.tar", {"a/1.png": b"2", "a/1.cls": b"9\n"})
    write_tar(tmp_path / "val-000000.tar", {"a/1.jpg": b"3", "a/1.cls": b"9"})
    labelled = read_labelled(str(tmp_path), split="train", labels="both")
    assert labelled.uris == [f"{tmp_path}/train-000000.tar#a/1.jpg"]
    assert (labelled.classes, labelled.model_names) == ([7], {7: "Golf"})
    models = read_labelled(str(tmp_path), split="train")
    assert models.model_ids.tolist() == [7, 9]
    assert reader_of(models.uris).fetch(models.uris[1]).data == b"2"
    with pytest.raises(BadLabels, match="no tar or Parquet file of split 'test'"):
        read_labelled(str(tmp_path), split="test")


def test_parquet_files_with_images_are_read_with_their_labels(tmp_path: Path) -> None:
    images = [{"bytes": bytes([number]), "path": f"{number}.jpg"} for number in range(4)]
    table = pa.table({"image": images, "label": [0, 1, -1, 1], "vehicle_id": [5, 6, 7, 6]})
    pq.write_table(table, tmp_path / "train-00000-of-00001.parquet", row_group_size=2)
    for data in (tmp_path, tmp_path / "train-00000-of-00001.parquet"):
        labelled = read_labelled(str(data), labels="both")
        assert labelled.model_ids.tolist() == [0, 1, 1]
        assert labelled.vehicle_ids is not None
        assert labelled.vehicle_ids.tolist() == [5, 6, 6]
        bodies = dict(reader_of(labelled.uris).fetch_many(labelled.uris))
        assert [bodies[row].data for row in range(3)] == [b"\0", b"\1", b"\3"]  # type: ignore[union-attr]


def test_a_parquet_without_images_is_a_table_or_no_part_of_a_folder(tmp_path: Path) -> None:
    labels = {"uri": ["a.jpg", "b.jpg"], "image": ["1", "2"], "model_id": [1, 2], "split": ["train", "test"]}
    pq.write_table(pa.table(labels), tmp_path / "labels.parquet")
    assert len(read_labelled(str(tmp_path / "labels.parquet"), split="train")) == 1
    for name in ("golf/1.jpg", "polo/1.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    assert len(read_labelled(str(tmp_path), split="train")) == 2


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.jpg": b"1"}, "1 of 1 images have no labels, first 1.jpg"),
        ({"1.jpg": b"1", "1.json": b"{"}, "1.json is not JSON"),
        ({"1.jpg": b"1", "1.json": b'{"model_id": "x"}'}, "model_id is 'x', not a number"),
        ({"1.jpg": b"1", "1.cls": b"1" * 70_000}, "too large for labels"),
    ],
)
def test_labels_of_a_tar_file_that_cannot_be_used_are_refused(
    members: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(BadLabels, match=message):
        read_labelled(str(tmp_path))


def test_a_dataset_of_save_to_disk_is_refused_with_the_way_to_parquet(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "data-00000-of-00001.arrow").write_bytes(b"")
    with pytest.raises(BadLabels, match="save_to_disk") as caught:
        read_labelled(str(tmp_path))
    assert "to_parquet" in caught.value.remedy
