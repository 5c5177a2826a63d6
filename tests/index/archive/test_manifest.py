"""A manifest holds each picture of the archive once, in one order, whoever made it and however."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.archive.key_pattern import KeyPattern
from index.archive.labels import with_labels
from index.archive.listing import list_archive, list_crops
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
    BadLabels,
    BucketMissing,
    DuplicateCropId,
    EmptyArchive,
    ObjectMissing,
    SchemaMismatch,
)
from infra.servers import SeaweedFs
from infra.store import Store, open_store

PATTERN = KeyPattern("dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg")


def row(uri: str, **given: Any) -> dict[str, Any]:
    facts = {"crop_id": crop_id_of(uri), "uri": uri, "etag": "e", "size": 1, "last_modified": 5}
    unknown = {
        "camera_id": "",
        "captured_at": UNKNOWN_TIME,
        "track_id": "",
        "vehicle_id": None,
        "model_id": None,
    }
    return facts | unknown | given


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


class TestListing:
    def test_has_a_row_for_each_picture_with_what_its_key_says(self, archive: Store) -> None:
        listing = list_crops(archive, pattern=PATTERN)
        assert listing.manifest.schema.equals(MANIFEST_SCHEMA)
        assert (listing.manifest.num_rows, listing.ignored, listing.unmatched) == (12, 0, 0)
        first = listing.manifest.slice(0, 1).to_pylist()[0]
        assert first["uri"] == archive.uri_of("dt=2026-11-21/cam=001/1795219200_t0.jpg")
        assert first["crop_id"] == crop_id_of(first["uri"])
        assert (first["camera_id"], first["captured_at"], first["track_id"]) == ("001", 1795219200000, "t0")
        assert (first["size"], first["vehicle_id"], first["model_id"]) == (4, None, None)
        found = archive.head("dt=2026-11-21/cam=001/1795219200_t0.jpg")
        assert found is not None and first["etag"] == found.etag

    def test_does_not_depend_on_the_number_of_workers(self, archive: Store) -> None:
        archive.put("loose.jpg", b"crop")
        archive.put("dt=2026-11-21/between.jpg", b"crop")
        one, two, many = (list_archive(archive, pattern=PATTERN, workers=workers) for workers in (1, 2, 64))
        assert one.num_rows == 14
        assert one.equals(two)
        assert one.equals(many)

    def test_keeps_keys_that_the_pattern_misses_and_counts_them(self, archive: Store) -> None:
        archive.put("dt=2026-11-21/cam=001/strange.jpg", b"crop")
        listing = list_crops(archive, pattern=PATTERN)
        assert (listing.manifest.num_rows, listing.unmatched) == (13, 1)
        strange = listing.manifest.filter(pa.compute.match_substring(listing.manifest["uri"], "strange"))
        assert strange.select(["camera_id", "captured_at", "track_id"]).to_pylist() == [
            {"camera_id": "", "captured_at": UNKNOWN_TIME, "track_id": ""}
        ]

    def test_takes_pictures_only_by_suffix_in_either_case(self, tmp_path: Path) -> None:
        store = open_store(str(tmp_path))
        for key in (
            "a.JPG",
            "b.jpeg",
            "c.Png",
            "d.webp",
            "e.bmp",
            "f.txt",
            "g.jpg.tmp",
            "jpg",
            "dt=1/_SUCCESS",
        ):
            store.put(key, b"x")
        listing = list_crops(store, pattern=None)
        assert (listing.manifest.num_rows, listing.ignored, listing.unmatched) == (5, 4, 0)

    def test_goes_on_where_only_some_folders_are_partitions(self, archive: Store) -> None:
        archive.put("other/deep/er/x.jpg", b"crop")
        archive.put("dt=2026-11-21/more/y.jpg", b"crop")
        assert list_archive(archive).num_rows == 14

    def test_of_no_pictures_says_what_is_there_instead(self, tmp_path: Path) -> None:
        store = open_store(str(tmp_path))
        store.put("readme.txt", b"x")
        with pytest.raises(EmptyArchive, match="1 other objects"):
            list_archive(store)

    def test_of_a_missing_folder_is_not_an_empty_archive(self, tmp_path: Path) -> None:
        with pytest.raises(BucketMissing):
            list_archive(open_store(str(tmp_path / "nowhere")))

    def test_over_s3_is_the_same_for_any_number_of_workers(self, seaweedfs: SeaweedFs, bucket: str) -> None:
        store = open_store(f"{bucket}/crops", seaweedfs.settings)
        for number in range(30):
            store.put(f"dt=2026-11-2{number % 3}/cam=00{number % 2}/{1795219200 + number}_t.jpg", b"crop")
        store.put("dt=2026-11-20/loose.jpg", b"crop")
        store.put("readme.txt", b"x")
        one, many = (list_crops(store, pattern=PATTERN, workers=workers) for workers in (1, 16))
        assert (many.manifest.num_rows, many.ignored, many.unmatched) == (31, 1, 1)
        assert one.manifest.equals(many.manifest)
        assert many.manifest["uri"][0].as_py().startswith(f"{bucket}/crops/dt=2026-11-20/")


class TestCanonicalForm:
    def test_sorts_by_uri_and_puts_the_newest_of_equal_uris_first(self) -> None:
        old, new, other = row("b", last_modified=1), row("b", last_modified=2), row("a")
        assert normalize_manifest(table(old, new, other)).to_pylist() == [other, new, old]

    def test_brings_columns_into_order_and_type(self) -> None:
        wide = table(row("a")).append_column("more", pa.array([1]))
        wide = wide.set_column(3, "size", pa.array([1], pa.int32())).select(wide.schema.names[::-1])
        assert normalize_manifest(wide).equals(table(row("a")))

    def test_refuses_missing_columns_nulls_and_other_types(self) -> None:
        with pytest.raises(SchemaMismatch, match="lacks the columns etag, uri"):
            normalize_manifest(table(row("a")).drop_columns(["uri", "etag"]))
        with pytest.raises(SchemaMismatch, match="1 nulls in column camera_id"):
            normalize_manifest(table(row("a", camera_id=None)))
        with pytest.raises(SchemaMismatch, match="another type"):
            normalize_manifest(table(row("a")).set_column(3, "size", pa.array(["big"])))


class TestUniqueness:
    def test_counts_and_drops_uris_that_are_listed_again(self) -> None:
        kept, duplicates = drop_duplicates(
            table(row("a", size=1), row("b"), row("a", size=2), row("a", size=3))
        )
        assert duplicates == 2
        assert kept.to_pylist() == [row("a", size=1), row("b")]

    def test_of_unique_rows_changes_nothing(self) -> None:
        rows = table(row("b"), row("a"))
        assert drop_duplicates(rows) == (rows, 0)

    def test_refuses_two_uris_of_one_crop_id_and_names_both(self) -> None:
        with pytest.raises(DuplicateCropId, match=r"1 pairs.*7 \(a and b\)"):
            drop_duplicates(table(row("a", crop_id=7), row("c"), row("b", crop_id=7)))

    @settings(deadline=None)
    @given(st.lists(st.sampled_from("abcdef"), max_size=20))
    def test_never_loses_a_uri(self, uris: list[str]) -> None:
        kept, duplicates = drop_duplicates(table(*map(row, uris)))
        assert kept["uri"].to_pylist() == list(dict.fromkeys(uris))
        assert kept.num_rows + duplicates == len(uris)


class TestDigest:
    def test_does_not_depend_on_chunks(self) -> None:
        rows = [row(f"u{number}", vehicle_id=number or None) for number in range(10)]
        torn = pa.concat_tables([table(*rows[:3]), table(*rows[3:4]), table(*rows[4:])])
        assert (
            manifest_digest(torn) == manifest_digest(table(*rows)) == manifest_digest(torn.combine_chunks())
        )

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

    def test_knows_where_one_string_ends(self) -> None:
        one = table(row("u", crop_id=1, camera_id="ab"), row("u", crop_id=1, camera_id="c"))
        two = table(row("u", crop_id=1, camera_id="a"), row("u", crop_id=1, camera_id="bc"))
        assert manifest_digest(one) != manifest_digest(two)


class TestLabels:
    crops = table(row("s3://a/x.jpg"), row("s3://a/y.jpg", camera_id="004"), row("s3://a/z.jpg"))

    def test_join_by_uri_and_are_counted(self) -> None:
        labels = pa.table({"uri": ["s3://a/y.jpg", "s3://a/q.jpg"], "vehicle_id": [7, 8], "model_id": [3, 4]})
        joined, report = with_labels(self.crops, labels)
        assert joined.schema.equals(MANIFEST_SCHEMA)
        assert joined["vehicle_id"].to_pylist() == [None, 7, None]
        assert joined["model_id"].to_pylist() == [None, 3, None]
        assert (report.labelled, report.unlabelled, report.unmatched) == (1, 2, 1)
        assert report.examples == ("s3://a/q.jpg",)

    def test_join_by_key_below_the_archive(self) -> None:
        labels = pa.table({"key": ["x.jpg"], "vehicle_id": [7]})
        joined, report = with_labels(self.crops, labels, archive="s3://a/")
        assert (joined["vehicle_id"].to_pylist(), report.labelled) == ([7, None, None], 1)

    def test_replace_what_the_key_said_only_where_they_say_something(self) -> None:
        labels = pa.table(
            {"uri": ["s3://a/x.jpg", "s3://a/y.jpg"], "camera_id": ["001", None], "captured_at": [5, 6]}
        )
        joined, _ = with_labels(self.crops, labels)
        assert joined["camera_id"].to_pylist() == ["001", "004", ""]
        assert joined["captured_at"].to_pylist() == [5, 6, UNKNOWN_TIME]

    def test_may_repeat_but_not_contradict_themselves(self) -> None:
        twice = pa.table({"uri": ["s3://a/x.jpg"] * 2, "vehicle_id": [7, 7]})
        assert with_labels(self.crops, twice)[1].labelled == 1
        torn = pa.table({"uri": ["s3://a/x.jpg"] * 2, "vehicle_id": [7, 8]})
        with pytest.raises(BadLabels, match=r"1 crops have two labels that differ: s3://a/x\.jpg"):
            with_labels(self.crops, torn)

    @pytest.mark.parametrize(
        ("labels", "why"),
        [
            ({"vehicle_id": [7]}, "neither a column 'uri'"),
            ({"key": ["x.jpg"], "vehicle_id": [7]}, "neither a column 'uri'"),
            ({"uri": ["s3://a/x.jpg"]}, "none of the columns"),
            ({"uri": ["s3://a/x.jpg", None], "vehicle_id": [7, 8]}, "no crop in row 1"),
            ({"uri": ["s3://a/x.jpg"], "model_id": ["Golf"]}, "int32 in column model_id"),
            ({"uri": ["s3://a/x.jpg"], "model_id": [2**31]}, "int32 in column model_id"),
        ],
    )
    def test_that_cannot_be_trusted_are_refused(self, labels: dict[str, Any], why: str) -> None:
        with pytest.raises(BadLabels, match=why):
            with_labels(self.crops, pa.table(labels))

    def test_join_nothing_to_an_archive_they_do_not_belong_to(self) -> None:
        labels = pa.table({"uri": pa.array([], pa.string()), "vehicle_id": pa.array([], pa.int64())})
        joined, report = with_labels(self.crops, labels)
        assert joined.equals(self.crops)
        assert (report.labelled, report.unlabelled, report.unmatched) == (0, 3, 0)


class TestKeyLists:
    def test_a_manifest_is_read_back_from_parquet(self, archive: Store, tmp_path: Path) -> None:
        listed = list_archive(archive, pattern=PATTERN)
        pq.write_table(listed, tmp_path / "list.parquet")
        assert read_manifest(str(tmp_path / "list.parquet")).equals(listed)

    def test_keys_in_a_csv_file_are_enough(self, tmp_path: Path) -> None:
        keys = ["dt=2026-11-22/cam=004/1795305600_t7.jpg", "dt=2026-11-22/cam=003/odd.jpg"]
        (tmp_path / "keys.csv").write_text("\n".join(["key", *keys]) + "\n")
        read = read_manifest(str(tmp_path / "keys.csv"), archive="s3://a/p", pattern=PATTERN).to_pylist()
        known = {"camera_id": "004", "captured_at": 1795305600000, "track_id": "t7"}
        unknown = {"etag": "", "size": -1, "last_modified": UNKNOWN_TIME}
        assert read == [
            row(f"s3://a/p/{keys[1]}", **unknown),
            row(f"s3://a/p/{keys[0]}", **unknown, **known),
        ]

    def test_columns_of_the_list_are_better_than_the_pattern(self, tmp_path: Path) -> None:
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
    def test_a_list_that_cannot_be_used_is_refused(self, tmp_path: Path, text: str, why: str) -> None:
        (tmp_path / "list.csv").write_text(text)
        with pytest.raises(BadInput, match=why):
            read_manifest(str(tmp_path / "list.csv"))

    def test_a_missing_or_broken_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ObjectMissing, match=r"none\.parquet"):
            read_manifest(str(tmp_path / "none.parquet"))
        (tmp_path / "broken.parquet").write_bytes(b"PAR1 but no more")
        with pytest.raises(BadInput, match=r"broken\.parquet"):
            read_manifest(str(tmp_path / "broken.parquet"))
