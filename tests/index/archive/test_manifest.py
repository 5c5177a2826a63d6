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
from index.schema import MANIFEST_SCHEMA, UNKNOWN_TIME
from infra.errors import (
    BadInput,
    DuplicateCropId,
    ObjectMissing,
    SchemaMismatch,
)
from infra.store import Store, open_store

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
        assert manifest_digest(chunked) == manifest_digest(table(*rows))
        assert manifest_digest(chunked.combine_chunks()) == manifest_digest(table(*rows))

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
        assert manifest_digest(table(row("u") | change)) != manifest_digest(table(row("u")))

    def test_depends_on_where_a_string_ends(self) -> None:
        one = table(row("u", crop_id=1, camera_id="ab"), row("u", crop_id=1, camera_id="c"))
        two = table(row("u", crop_id=1, camera_id="a"), row("u", crop_id=1, camera_id="bc"))
        assert manifest_digest(one) != manifest_digest(two)


class TestReading:
    def test_parquet_gives_back_the_manifest(self, archive: Store, tmp_path: Path) -> None:
        listed = list_crops(archive, pattern=PATTERN).manifest
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
            ("name\nx\n", "neither a column 'uri'"),
            ("key\nx.jpg\n", "neither a column 'uri'"),
            ("uri,size\nx.jpg,big\n", "not a usable CSV"),
            ("uri,crop_id\nx.jpg,1\n", "do not belong to its URIs"),
            ("uri\n", "lists no crops"),
            ("", "not a usable CSV"),
        ],
    )
    def test_an_unusable_list_is_refused(self, tmp_path: Path, text: str, why: str) -> None:
        (tmp_path / "list.csv").write_text(text)
        with pytest.raises(BadInput, match=why):
            read_manifest(str(tmp_path / "list.csv"))

    def test_a_missing_or_broken_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ObjectMissing, match=r"none\.parquet"):
            read_manifest(str(tmp_path / "none.parquet"))
        (tmp_path / "broken.parquet").write_bytes(b"PAR1 but no more")
        with pytest.raises(BadInput, match=r"broken\.parquet"):
            read_manifest(str(tmp_path / "broken.parquet"))
