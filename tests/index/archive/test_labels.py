"""Labels are joined to a manifest by URI or key, and refused if they contradict themselves."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from index.archive.labels import lists_of, read_label_table, require_fit, with_labels
from index.archive.manifest import crop_id_of
from index.schema import MANIFEST_SCHEMA, UNKNOWN_TIME
from infra.errors import BadLabels


def crop(uri: str, camera_id: str = "") -> dict[str, Any]:
    known = {"crop_id": crop_id_of(uri), "uri": uri, "etag": "e", "size": 1, "last_modified": 5}
    return known | {"camera_id": camera_id, "captured_at": UNKNOWN_TIME, "track_id": ""}


class TestLabels:
    crops = pa.Table.from_pylist(
        [crop("s3://a/x.jpg"), crop("s3://a/y.jpg", camera_id="004"), crop("s3://a/z.jpg")], MANIFEST_SCHEMA
    )

    def test_are_joined_by_uri_and_counted(self) -> None:
        labels = pa.table({"uri": ["s3://a/y.jpg", "s3://a/q.jpg"], "vehicle_id": [7, 8], "model_id": [3, 4]})
        joined, report = with_labels(self.crops, labels)
        assert joined.schema.equals(MANIFEST_SCHEMA)
        assert joined["vehicle_id"].to_pylist() == [None, 7, None]
        assert joined["model_id"].to_pylist() == [None, 3, None]
        assert (report.labelled, report.unlabelled, report.unmatched) == (1, 2, 1)
        assert report.examples == ("s3://a/q.jpg",)

    def test_are_joined_by_key_below_the_archive(self) -> None:
        labels = pa.table({"key": ["x.jpg"], "vehicle_id": [7]})
        joined, report = with_labels(self.crops, labels, archive="s3://a/")
        assert (joined["vehicle_id"].to_pylist(), report.labelled) == ([7, None, None], 1)

    def test_replace_the_manifest_only_with_values_that_are_not_null(self) -> None:
        labels = pa.table(
            {"uri": ["s3://a/x.jpg", "s3://a/y.jpg"], "camera_id": ["001", None], "captured_at": [5, 6]}
        )
        joined, _ = with_labels(self.crops, labels)
        assert joined["camera_id"].to_pylist() == ["001", "004", ""]
        assert joined["captured_at"].to_pylist() == [5, 6, UNKNOWN_TIME]

    def test_may_repeat_but_not_contradict_themselves(self) -> None:
        twice = pa.table({"uri": ["s3://a/x.jpg"] * 2, "vehicle_id": [7, 7]})
        assert with_labels(self.crops, twice)[1].labelled == 1
        contradicting = pa.table({"uri": ["s3://a/x.jpg"] * 2, "vehicle_id": [7, 8]})
        with pytest.raises(BadLabels, match=r"1 crops have two labels that differ: s3://a/x\.jpg"):
            with_labels(self.crops, contradicting)

    @pytest.mark.parametrize(
        ("labels", "reason"),
        [
            ({"vehicle_id": [7]}, "neither a column 'uri'"),
            ({"key": ["x.jpg"], "vehicle_id": [7]}, "neither a column 'uri'"),
            ({"uri": ["s3://a/x.jpg"]}, "none of the columns"),
            ({"uri": ["s3://a/x.jpg", None], "vehicle_id": [7, 8]}, "data row 2 of the labels names no crop"),
            ({"uri": ["s3://a/x.jpg"], "model_id": ["Golf"]}, "column model_id of the labels is not int32"),
            ({"uri": ["s3://a/x.jpg"], "model_id": [2**31]}, "column model_id of the labels is not int32"),
        ],
    )
    def test_that_are_unusable_are_refused_with_the_reason(self, labels: dict[str, Any], reason: str) -> None:
        with pytest.raises(BadLabels, match=reason):
            with_labels(self.crops, pa.table(labels))

    def test_of_minus_one_or_of_the_empty_text_are_unknown(self) -> None:
        labels = pa.table(
            {
                "uri": ["s3://a/x.jpg", "s3://a/y.jpg"],
                "vehicle_id": [-1, 7],
                "model_id": [4, -1],
                "camera_id": ["", ""],
                "captured_at": [-1, 6],
            }
        )
        joined, _ = with_labels(self.crops, labels)
        assert joined["vehicle_id"].to_pylist() == [None, 7, None]
        assert joined["model_id"].to_pylist() == [4, None, None]
        assert joined["camera_id"].to_pylist() == ["", "004", ""]
        assert joined["captured_at"].to_pylist() == [UNKNOWN_TIME, 6, UNKNOWN_TIME]

    def test_that_fit_hardly_a_crop_are_refused_with_an_example_of_each(self) -> None:
        for uris, refused in (
            (["s3://b/x.jpg"], True),
            (["s3://a/x.jpg"], False),
            ([f"s3://b/{n}.jpg" for n in range(500)] + ["s3://a/x.jpg"], False),  # a third of the crops
        ):
            joined, report = with_labels(self.crops, pa.table({"uri": uris, "vehicle_id": [1] * len(uris)}))
            if refused:
                with pytest.raises(
                    BadLabels, match=r"l\.csv labels 0 of 3 crops.*s3://b/x\.jpg.*s3://a/x\.jpg"
                ):
                    require_fit(report, joined, "l.csv")
            else:
                require_fit(report, joined, "l.csv")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("key,vehicle_id,vehicle_id\na.jpg,1,1\n", "two columns named vehicle_id"),
            ("key,captured_at\na.jpg,2026-01-05\n", "data row 1, column captured_at: '2026-01-05'"),
            ("key,captured_at\na.jpg,\nb.jpg,1767607200\n", "data row 2, column captured_at"),
            ("key,vehicle_id\na.jpg,Golf\n", "data row 1, column vehicle_id: 'Golf'"),
            ("key,vehicle_id\na.jpg,1\n,2\n", "data row 2: empty key"),
            ("vehicle_id\n1\n", "no column uri or key"),
            ("", "is empty"),
        ],
    )
    def test_of_a_file_are_refused_with_file_row_and_value(
        self, tmp_path: Path, text: str, message: str
    ) -> None:
        (tmp_path / "l.csv").write_text(text)
        with pytest.raises(BadLabels, match=rf"l\.csv.*{message}"):
            read_label_table(str(tmp_path / "l.csv"))

    def test_of_a_file_are_as_written(self, tmp_path: Path) -> None:
        (tmp_path / "l.csv").write_text(
            "key;camera_id;track_id;captured_at;split\n"
            "a.jpg;004;000123;2026-01-05T10:00:00Z;1\n"
            "b.jpg;12:30;1e5;2026-01-05T12:00:00.5+02:00;01\n"
        )
        assert read_label_table(str(tmp_path / "l.csv"), split="01").to_pylist() == [
            {
                "key": "b.jpg",
                "camera_id": "12:30",
                "captured_at": 1767607200500,
                "track_id": "1e5",
                "split": "01",
            }
        ]

    def test_without_rows_change_nothing(self) -> None:
        labels = pa.table({"uri": pa.array([], pa.string()), "vehicle_id": pa.array([], pa.int64())})
        joined, report = with_labels(self.crops, labels)
        assert joined.equals(self.crops)
        assert (report.labelled, report.unlabelled, report.unmatched) == (0, 3, 0)


def test_a_split_may_be_a_test_list_which_has_the_images_of_the_smaller_ones(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    lists = ["small", "medium", "", "large"]
    rows = [f"{number}.jpg,{number},{name}\n" for number, name in enumerate(lists)]
    path.write_text("key,vehicle_id,test_list\n" + "".join(rows))
    assert read_label_table(str(path), split="small")["vehicle_id"].to_pylist() == [0]
    assert read_label_table(str(path), split="medium")["vehicle_id"].to_pylist() == [0, 1]
    assert read_label_table(str(path), split="large")["vehicle_id"].to_pylist() == [0, 1, 3]
    assert lists_of(read_label_table(str(path))) == ["small", "medium", "large"]
    assert lists_of(read_label_table(str(path), split="medium")) == ["small", "medium"]
    with pytest.raises(BadLabels, match="no row whose column split is 'huge'"):
        read_label_table(str(path), split="huge")
