import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clvr_model.datasets.labelled import (
    UNKNOWN_MODEL,
    LabeledImages,
    class_numbers,
    hold_out_models,
    read_folder,
    read_table,
    single_image_models,
    split_by_vehicle,
    split_per_class,
)
from infra.errors import BadLabels, BadSetting, BucketMissing, EmptyArchive


def labelled(*model_ids: int) -> LabeledImages:
    return LabeledImages([f"/p/{i}.jpg" for i in range(len(model_ids))], np.array(model_ids, dtype=np.int64))


def write_csv(path: Path, *rows: list[str]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return str(path)


class TestHoldOutModels:
    def test_whole_models_leave_at_the_share_that_is_not_trained(self) -> None:
        images = labelled(*list(range(10)) * 4, UNKNOWN_MODEL)
        kept, held_out = hold_out_models(images, 0.8, seed=3)
        assert len(held_out) == 2
        assert sorted([*kept.classes, *held_out]) == list(range(10))
        assert len(kept) == 32  # all images of the eight, and none of an unknown model
        assert hold_out_models(images, 0.8, seed=3)[1] == held_out
        assert any(hold_out_models(images, 0.8, seed)[1] != held_out for seed in range(4, 9))

    def test_a_share_that_holds_out_no_model_or_all_but_one_is_refused(self) -> None:
        with pytest.raises(BadSetting, match="holds out none of 3 models"):
            hold_out_models(labelled(1, 2, 3), 1.0)
        with pytest.raises(BadLabels, match="leaves 1 of 2 models"):
            hold_out_models(labelled(1, 2), 0.8)


class TestSplitPerClass:
    @settings(deadline=None)
    @given(st.lists(st.integers(0, 6), min_size=2, max_size=200), st.integers(0, 100))
    def test_training_gets_the_floor_of_the_share_of_each_model(self, models: list[int], seed: int) -> None:
        images = labelled(*models, *models)
        training, validation = split_per_class(images, 0.8, seed)
        for model in set(models):
            count = 2 * models.count(model)
            assert np.sum(training.model_ids == model) == count * 4 // 5
        assert single_image_models(images) == []
        assert sorted(training.uris + validation.uris) == sorted(images.uris)

    def test_the_share_is_exact_despite_floating_point(self) -> None:
        training, _ = split_per_class(labelled(*[7] * 100), 0.29)
        assert len(training) == 29

    def test_the_split_depends_on_the_seed_alone(self) -> None:
        images = labelled(*[1, 2, 3] * 20)
        assert split_per_class(images, seed=4)[0].uris == split_per_class(images, seed=4)[0].uris
        assert split_per_class(images, seed=4)[0].uris != split_per_class(images, seed=5)[0].uris

    def test_a_model_with_one_image_is_trained_on_and_not_validated(self) -> None:
        images = labelled(1, 1, 1, 1, 1, 2, UNKNOWN_MODEL)
        training, validation = split_per_class(images.with_known_model())
        assert training.classes == [1, 2]
        assert validation.classes == [1]
        assert single_image_models(images) == [2]

    def test_images_without_a_model_are_refused(self) -> None:
        with pytest.raises(BadLabels, match="1 of 2 images have no model"):
            split_per_class(labelled(3, UNKNOWN_MODEL))

    def test_a_split_without_training_images_is_refused(self) -> None:
        with pytest.raises(BadLabels, match="no model has enough images"):
            split_per_class(labelled(1, 1, 2, 2), 0.4)

    @pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
    def test_a_share_out_of_range_is_refused(self, share: float) -> None:
        with pytest.raises(BadSetting, match="train_share"):
            split_per_class(labelled(1, 1), share)


class TestLabelled:
    def test_columns_must_have_one_length(self) -> None:
        with pytest.raises(BadLabels, match="2 images, but 1 model_ids"):
            LabeledImages(["a", "b"], np.array([1]))

    def test_classes_are_the_known_models(self) -> None:
        assert labelled(9, UNKNOWN_MODEL, 2, 9).classes == [2, 9]
        assert labelled(9, UNKNOWN_MODEL, 2).with_known_model().uris == ["/p/0.jpg", "/p/2.jpg"]


class TestClassNumbers:
    def test_class_numbers_are_positions_among_the_classes(self) -> None:
        assert class_numbers(labelled(9, 2, 9), (2, 5, 9)).tolist() == [2, 0, 2]

    def test_a_label_outside_of_the_list_is_named_with_its_image(self) -> None:
        for model in (1, 4, 10):
            with pytest.raises(
                BadLabels, match=f"1 of 3 .* outside the 3 classes, first /p/1.jpg with {model}"
            ):
                class_numbers(labelled(9, model, 2), (2, 5, 9))


class TestReadFolder:
    def test_folder_names_become_models(self, tmp_path: Path) -> None:
        for name in ("beetle/1.jpg", "beetle/more/2.PNG", "audi/1.jpeg", "audi/notes.txt"):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        images = read_folder(str(tmp_path))
        assert images.model_names == {0: "audi", 1: "beetle"}
        assert images.uris == [
            f"{tmp_path}/{n}" for n in ("audi/1.jpeg", "beetle/1.jpg", "beetle/more/2.PNG")
        ]
        assert images.model_ids.tolist() == [0, 1, 1]

    def test_numbered_folders_keep_their_numbers(self, tmp_path: Path) -> None:
        for name in ("10", "9"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "a.jpg").write_bytes(b"x")
        assert read_folder(str(tmp_path)).classes == [9, 10]

    def test_images_outside_any_folder_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").write_bytes(b"x")
        with pytest.raises(BadLabels, match=r"a\.jpg"):
            read_folder(str(tmp_path))

    def test_an_empty_and_a_missing_folder_are_told_apart(self, tmp_path: Path) -> None:
        with pytest.raises(EmptyArchive):
            read_folder(str(tmp_path))
        with pytest.raises(BucketMissing):
            read_folder(str(tmp_path / "nowhere"))


def test_hidden_folders_and_files_are_no_training_data(tmp_path: Path) -> None:
    for name in (
        "golf/1.jpg",
        "polo/2.jpg",
        ".cache/3.jpg",
        "golf/.thumbnails/4.jpg",
        "__MACOSX/golf/._5.jpg",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    images = read_folder(str(tmp_path))
    assert [Path(uri).name for uri in images.uris] == ["1.jpg", "2.jpg"]
    assert images.model_names == {0: "golf", 1: "polo"}


class TestReadTable:
    def test_a_csv_file_gives_uris_ids_and_cameras(self, tmp_path: Path) -> None:
        rows = (
            ["uri", "model_id", "vehicle_id", "camera_id"],
            ["s3://b/1.jpg", "4", "77", "c1"],
            ["/2.jpg", "", "", ""],
        )
        images = read_table(write_csv(tmp_path / "labels.csv", *rows))
        assert images.uris == ["s3://b/1.jpg", "/2.jpg"]
        assert images.model_ids.tolist() == [4, UNKNOWN_MODEL]
        assert images.vehicle_ids is not None
        assert images.vehicle_ids.tolist() == [77, -1]
        assert images.camera_ids == ["c1", ""]

    def test_a_parquet_file_may_have_keys_below_a_root(self, tmp_path: Path) -> None:
        table = pa.table({"key": ["a/1.jpg", "a/2.jpg"], "model_id": [1, 2], "split": ["train", "test"]})
        pq.write_table(table, tmp_path / "labels.parquet")
        images = read_table(str(tmp_path / "labels.parquet"), root="s3://bucket/", split="train")
        assert images.uris == ["s3://bucket/a/1.jpg"]

    @pytest.mark.parametrize(
        "ids", [pa.array([7, None, 0]), pa.array(["7", "", "0"]), pa.array(["07", None, "0"])]
    )
    def test_ids_of_parquet_may_be_numbers_or_text(self, tmp_path: Path, ids: pa.Array) -> None:
        pq.write_table(pa.table({"uri": ["a", "b", "c"], "model_id": ids}), tmp_path / "labels.parquet")
        images = read_table(str(tmp_path / "labels.parquet"))
        assert images.model_ids.tolist() == [7, UNKNOWN_MODEL, 0]

    def test_text_of_csv_is_kept_as_written(self, tmp_path: Path) -> None:
        (tmp_path / "labels.csv").write_bytes(
            '\ufeffuri,model_id,camera_id,model_name\r\n"a,b.jpg",3,007,"Golf ""GTI"""\r\n'.encode()
        )
        images = read_table(str(tmp_path / "labels.csv"))
        assert (images.uris, images.camera_ids) == (["a,b.jpg"], ["007"])
        assert images.model_names == {3: 'Golf "GTI"'}

    def test_a_data_row_is_counted_without_line_breaks_in_quotes(self, tmp_path: Path) -> None:
        rows = (["uri", "model_id", "note"], ["a", "1", "two\nlines"], ["b", "two", ""])
        with pytest.raises(BadLabels, match=r"labels\.csv, data row 2, column model_id: 'two' is not"):
            read_table(write_csv(tmp_path / "labels.csv", *rows))

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([["uri", "model_id"], ["a", "1"], ["b", "two"]], r"data row 2, column model_id: 'two' is not"),
            ([["uri", "model_id"], ["a", "-5"]], r"data row 1, column model_id: -5 is not"),
            (
                [["uri", "model_id"], ["a", "1"], ["a", "2"]],
                r"data row 2: a is already labelled in data row 1",
            ),
            ([["uri", "model_id"], ["", "1"]], r"data row 1: empty uri"),
            ([["uri", "model_id"], ["a", "1", "9"]], r"data row 1: 3 fields, but the header has 2"),
            ([["uri", "model_id"], ["a"]], r"data row 1: 1 fields, but the header has 2"),
            ([["uri", "model"], ["a", "1"]], r"has no column model_id"),
            ([["uri", "model_id"]], r"labels no image"),
            ([["key", "model_id"], ["a", "1"]], r"gives keys, not URIs"),
        ],
    )
    def test_an_error_names_the_data_row(self, tmp_path: Path, rows: list[list[str]], message: str) -> None:
        with pytest.raises(BadLabels, match=message):
            read_table(write_csv(tmp_path / "labels.csv", *rows))

    def test_broken_and_missing_files_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "labels.parquet").write_bytes(b"PAR1 but no")
        with pytest.raises(BadLabels, match="not a usable Parquet"):
            read_table(str(tmp_path / "labels.parquet"))
        (tmp_path / "labels.csv").write_bytes(b"uri,model_id\nok,1\n\xff\xfe,2\n")
        with pytest.raises(BadLabels, match="line 3: not UTF-8"):
            read_table(str(tmp_path / "labels.csv"))
        with pytest.raises(BadLabels, match="no label file"):
            read_table(str(tmp_path / "absent.csv"))


class TestSplitByVehicle:
    def images(self) -> LabeledImages:
        """Three models with 5, 4 and 1 vehicles, of 3 images each."""
        vehicles = np.repeat(np.arange(10), 3)
        models = np.repeat([1] * 5 + [2] * 4 + [3], 3)
        order = np.random.default_rng(0).permutation(30)
        return LabeledImages([f"/p/{i}.jpg" for i in order], models[order], vehicles[order])

    def test_vehicles_stay_whole_and_each_model_gives_the_floor_of_its_vehicles(self) -> None:
        images = self.images()
        training, validation = split_by_vehicle(images, 0.8, seed=3)
        assert training.vehicle_ids is not None
        assert validation.vehicle_ids is not None
        assert not set(training.vehicle_ids) & set(validation.vehicle_ids)
        assert sorted(training.uris + validation.uris) == sorted(images.uris)
        for model, count in ((1, 4), (2, 3), (3, 1)):
            assert len(set(training.vehicle_ids[training.model_ids == model])) == count
        assert split_by_vehicle(images, 0.8, seed=3)[0].uris == training.uris

    def test_images_of_no_vehicle_are_refused(self) -> None:
        with pytest.raises(BadLabels, match="2 of 2 images have no vehicle"):
            split_by_vehicle(labelled(1, 2))


def test_tracks_take_the_place_of_vehicles(tmp_path: Path) -> None:
    table = write_csv(
        tmp_path / "labels.csv",
        ["uri", "model_id", "camera_id", "track_id", "vehicle_id"],
        *(["/a.jpg", "1", "c1", "7", "5"], ["/b.jpg", "1", "c1", "7", "5"], ["/c.jpg", "1", "c2", "7", "5"]),
        *(["/d.jpg", "2", "c1", "", "6"], ["/e.jpg", "2", "c1", "", "6"]),
    )
    images = read_table(table).with_tracks_as_vehicles()
    assert images.vehicle_ids is not None
    # Track 7 of another camera is another track, and each image without a track is its own.
    assert images.vehicle_ids.tolist() == [0, 0, 1, 2, 3]
    with pytest.raises(BadLabels, match="no image has a known track"):
        labelled(1, 2).with_tracks_as_vehicles()
