"""A manifest has one normal form and one digest, and is read from Parquet or CSV."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.archive.key_pattern import KeyPattern
from index.archive.listing import list_crops
from index.archive.manifest import (
    crop_id_of,
    drop_duplicates,
    manifest_digest,
    normalize_manifest,
    read_manifest,
)
from index.archive.skipped import SkippedObjects
from index.schema import MANIFEST_SCHEMA, UNKNOWN_TIME
from infra.errors import (
    BadInput,
    DuplicateCropId,
    ObjectMissing,
    SchemaMismatch,
)
from infra.store import UNADDRESSABLE, Store, open_store

PATTERN = KeyPattern("dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg")


def row(uri: str, **values: Any) -> dict[str, Any]:
    known = {"crop_id": crop_id_of(uri), "uri": uri, "etag": "e", "size": 1, "last_modified": 5}
    unknown = {
        "camera_id": "",
        "captured_at": UNKNOWN_TIME,
        "track_id": "",
        "vehicle_id": None,
        "model_id": None,
    }
    return known | unknown | values


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), MANIFEST_SCHEMA)


@pytest.fixture
def archive(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "archive"))
    for day in ("2026-11-21", "2026-11-22"):
        for camera in ("001", "002"):
            for second in range(3):
                store.put(f"dt={day}/cam={camera}/{1795219200 + second}_t{second}.jpg", b"crop")
    return store


class TestCropId:
    def test_is_63_bits_of_xxh3_and_never_changes(self) -> None:
        assert crop_id_of("s3://archive/dt=2026-11-22/cam=004/1.jpg") == 497_919_552_591_024_807

    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def test_fits_a_signed_64_bit_integer(self, uri: str) -> None:
        assert 0 <= crop_id_of(uri) < 2**63


class TestNormalForm:
    def test_is_sorted_by_uri_with_the_newest_of_equal_uris_first(self) -> None:
        old, new, other = row("b", last_modified=1), row("b", last_modified=2), row("a")
        assert normalize_manifest(table(old, new, other)).to_pylist() == [other, new, old]

    def test_has_columns_in_order_and_of_the_right_type(self) -> None:
        wide = table(row("a")).append_column("more", pa.array([1]))
        wide = wide.set_column(3, "size", pa.array([1], pa.int32())).select(wide.schema.names[::-1])
        assert normalize_manifest(wide).equals(table(row("a")))

    def test_of_missing_columns_nulls_and_other_types_is_refused(self) -> None:
        with pytest.raises(SchemaMismatch, match="lacks the columns etag, uri"):
            normalize_manifest(table(row("a")).drop_columns(["uri", "etag"]))
        with pytest.raises(SchemaMismatch, match="1 nulls in column camera_id"):
            normalize_manifest(table(row("a", camera_id=None)))
        with pytest.raises(SchemaMismatch, match="another type"):
            normalize_manifest(table(row("a")).set_column(3, "size", pa.array(["big"])))


class TestDuplicates:
    def test_are_dropped_and_counted(self) -> None:
        unique, duplicates = drop_duplicates(
            table(row("a", size=1), row("b"), row("a", size=2), row("a", size=3))
        )
        assert duplicates == 2
        assert unique.to_pylist() == [row("a", size=1), row("b")]

    def test_do_not_change_a_manifest_without_any(self) -> None:
        rows = table(row("b"), row("a"))
        assert drop_duplicates(rows) == (rows, 0)

    def test_of_a_crop_id_but_not_of_its_uri_are_refused_with_both_uris(self) -> None:
        with pytest.raises(DuplicateCropId, match=r"1 pairs.*7 \(a and b\)"):
            drop_duplicates(table(row("a", crop_id=7), row("c"), row("b", crop_id=7)))

    @settings(deadline=None)
    @given(st.lists(st.sampled_from("abcdef"), max_size=20))
    def test_never_cost_a_uri(self, uris: list[str]) -> None:
        unique, duplicates = drop_duplicates(table(*map(row, uris)))
        assert unique["uri"].to_pylist() == list(dict.fromkeys(uris))
        assert unique.num_rows + duplicates == len(uris)


class TestDigest:
    def test_does_not_depend_on_chunks(self) -> None:
        rows = [row(f"u{number}", vehicle_id=number or None) for number in range(10)]
        chunked = pa.concat_tables([table(*rows[:3]), table(*rows[3:4]), table(*rows[4:])])
        assert manifest_digest([chunked]) == manifest_digest([table(*rows)])
        assert manifest_digest([chunked.slice(0, 4), chunked.slice(4)]) == manifest_digest([table(*rows)])

    @pytest.mark.parametrize(
        "change",
        [
            {"crop_id": 1},
            {"uri": "v"},
            {"etag": ""},
            {"size": 2},
            {"last_modified": 6},
            {"camera_id": "c"},
            {"captured_at": 0},
            {"track_id": "t"},
            {"vehicle_id": 0},
            {"model_id": 0},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_changes_with_every_column(self, change: dict[str, Any]) -> None:
        assert manifest_digest([table(row("u") | change)]) != manifest_digest([table(row("u"))])

    def test_depends_on_where_a_string_ends(self) -> None:
        one = table(row("u", crop_id=1, camera_id="ab"), row("u", crop_id=1, camera_id="c"))
        two = table(row("u", crop_id=1, camera_id="a"), row("u", crop_id=1, camera_id="bc"))
        assert manifest_digest([one]) != manifest_digest([two])


class TestReading:
    def test_parquet_gives_back_the_manifest(self, archive: Store, tmp_path: Path) -> None:
        listed = normalize_manifest(list_crops(archive, pattern=PATTERN).crops.read())
        pq.write_table(listed, tmp_path / "list.parquet")
        assert read_manifest(str(tmp_path / "list.parquet")).equals(listed)

    def test_a_csv_of_keys_is_completed_by_the_pattern(self, tmp_path: Path) -> None:
        keys = ["dt=2026-11-22/cam=004/1795305600_t7.jpg", "dt=2026-11-22/cam=003/odd.jpg"]
        (tmp_path / "keys.csv").write_text("\n".join(["key", *keys]) + "\n")
        read = read_manifest(str(tmp_path / "keys.csv"), archive="s3://a/p", pattern=PATTERN).to_pylist()
        known = {"camera_id": "004", "captured_at": 1795305600000, "track_id": "t7"}
        unknown = {"etag": "", "size": -1, "last_modified": UNKNOWN_TIME}
        assert read == [
            row(f"s3://a/p/{keys[1]}", **unknown),
            row(f"s3://a/p/{keys[0]}", **unknown, **known),
        ]

    def test_columns_of_the_list_win_over_the_pattern(self, tmp_path: Path) -> None:
        (tmp_path / "list.csv").write_text("uri,camera_id,vehicle_id\ns3://a/9.jpg,007,12\n")
        pattern = KeyPattern("{camera_id}.jpg")
        read = read_manifest(str(tmp_path / "list.csv"), archive="s3://a", pattern=pattern).to_pylist()[0]
        assert (read["camera_id"], read["vehicle_id"]) == ("007", 12)

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("name\nx\n", "no column uri"),
            ("key\nx.jpg\n", "no column uri"),
            ("uri,size\nx.jpg,big\n", "data row 1, column size: 'big' is not a whole number"),
            ("uri,crop_id\nx.jpg,1\n", "crop_id 1 does not belong to its URI x.jpg"),
            ("uri,crop_id\nx.jpg,x\n", "data row 1, column crop_id: 'x' is not a whole number"),
            ("uri,size\nx.jpg,1\n,2\n", "data row 2: empty uri"),
            ("uri,captured_at\nx.jpg,1767607200\n", "data row 1, column captured_at: .*in seconds"),
            ("uri,model_id\nx.jpg,2147483648\n", "data row 1, column model_id: 2147483648"),
            ("uri,uri\nx.jpg,y.jpg\n", "two columns named uri"),
            ("uri\n", "lists no crops"),
            ("", "is empty"),
        ],
    )
    def test_an_unusable_list_is_refused(self, tmp_path: Path, text: str, why: str) -> None:
        (tmp_path / "list.csv").write_text(text)
        with pytest.raises(BadInput, match=why):
            read_manifest(str(tmp_path / "list.csv"))

    def test_ids_and_names_are_those_that_were_written(self, tmp_path: Path) -> None:
        (tmp_path / "list.csv").write_text(
            "uri,camera_id,track_id,vehicle_id,model_id,captured_at\n"
            "s3://a/1.jpg,004,000123,-1,,2026-01-05T10:00:00Z\n"
            "s3://a/2.jpg,false,1e5,007,-1,\n"
        )
        one, two = read_manifest(str(tmp_path / "list.csv")).to_pylist()
        assert (one["camera_id"], one["track_id"], one["captured_at"]) == ("004", "000123", 1767607200000)
        assert (two["camera_id"], two["track_id"], two["captured_at"]) == ("false", "1e5", UNKNOWN_TIME)
        assert (one["vehicle_id"], one["model_id"]) == (None, None)
        assert (two["vehicle_id"], two["model_id"]) == (7, None)

    @pytest.mark.parametrize(
        "columns",
        [
            {"track_id": pa.nulls(1)},
            {"uri": pa.array([b"s3://a/1.jpg"])},
            {"uri": pa.array(["s3://a/1.jpg"]).dictionary_encode()},
            {"uri": pa.array(["s3://a/1.jpg"], pa.large_string())},
            {"uri": pa.array(["s3://a/1.jpg"], pa.string_view())},
            {"captured_at": pa.array([None], pa.timestamp("ns", "UTC"))},
            {"vehicle_id": pa.array([float("nan")])},
            {"etag": pa.nulls(1), "size": pa.nulls(1), "last_modified": pa.nulls(1, pa.timestamp("us"))},
        ],
        ids=lambda columns: "-".join(f"{name} {column.type}" for name, column in columns.items()),
    )
    def test_every_type_of_column_gives_the_same(self, tmp_path: Path, columns: dict[str, Any]) -> None:
        path = tmp_path / "list.parquet"
        pq.write_table(pa.table({"uri": ["s3://a/1.jpg"]} | columns), path)
        read = read_manifest(str(path), archive="s3://a", pattern=KeyPattern("{*}.jpg"))
        unknown = {"etag": "", "size": -1, "last_modified": UNKNOWN_TIME}
        assert read.to_pylist() == [row("s3://a/1.jpg", **unknown)]

    def test_unknown_cells_of_the_list_are_filled_by_the_pattern(self, tmp_path: Path) -> None:
        (tmp_path / "list.csv").write_text("key,camera_id\n004.jpg,\n005.jpg,7\n")
        read = read_manifest(
            str(tmp_path / "list.csv"), archive="s3://a", pattern=KeyPattern("{camera_id}.jpg")
        )
        assert read["camera_id"].to_pylist() == ["004", "7"]

    def test_keys_that_no_store_can_address_are_left_out_and_named(self, tmp_path: Path) -> None:
        bad = ["a//b.jpg", "/c.jpg", "../d.jpg", "e\tf.jpg", "g\nh.jpg", "i/./j.jpg", "k/"]
        pq.write_table(pa.table({"key": ["ok.jpg", *bad]}), tmp_path / "list.parquet")
        skipped = SkippedObjects()
        read = read_manifest(str(tmp_path / "list.parquet"), archive="s3://a", skipped=skipped)
        assert read["uri"].to_pylist() == ["s3://a/ok.jpg"]
        assert skipped.counts == {UNADDRESSABLE: len(bad)}
        assert "left out: 7 (key that cannot be addressed), such as 'a//b.jpg'" in skipped.notes()[0]
        pq.write_table(pa.table({"uri": ["s3://a/ok.jpg", "s3://a//x.jpg"]}), tmp_path / "uris.parquet")
        assert read_manifest(str(tmp_path / "uris.parquet")).num_rows == 1
        pq.write_table(pa.table({"key": bad}), tmp_path / "bad.parquet")
        with pytest.raises(BadInput, match="only crops whose keys cannot be addressed"):
            read_manifest(str(tmp_path / "bad.parquet"), archive="s3://a")

    def test_a_missing_or_broken_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ObjectMissing, match=r"none\.parquet"):
            read_manifest(str(tmp_path / "none.parquet"))
        (tmp_path / "broken.parquet").write_bytes(b"PAR1 but no more")
        with pytest.raises(BadInput, match=r"broken\.parquet"):
            read_manifest(str(tmp_path / "broken.parquet"))
