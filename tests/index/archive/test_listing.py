"""Listing an archive: every image, by its key, whatever the folders and the number of workers."""

import os
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest

from index.archive.key_choice import KeyChoice
from index.archive.key_pattern import KeyPattern
from index.archive.listing import Listing, list_crops
from index.archive.manifest import crop_id_of, normalize_manifest
from index.archive.sections import days_since
from index.archive.skipped import HIDDEN
from index.schema import MANIFEST_SCHEMA, UNKNOWN_TIME
from infra.errors import BadSetting, BucketMissing, EmptyArchive, StoreDenied
from infra.servers import SeaweedFs
from infra.store import UNADDRESSABLE, Store, open_store
from infra.store.s3 import admin_client

PATTERN = KeyPattern("dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg")


def table_of(listing: Listing) -> pa.Table:
    """The rows of a listing, sorted by URI."""
    return normalize_manifest(listing.crops.read())


@pytest.fixture
def archive(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "archive"))
    for day in ("2026-11-21", "2026-11-22"):
        for camera in ("001", "002"):
            for second in range(3):
                store.put(f"dt={day}/cam={camera}/{1795219200 + second}_t{second}.jpg", b"crop")
    return store


class TestListing:
    def test_has_a_row_for_each_image_with_the_fields_of_its_key(self, archive: Store) -> None:
        listing = list_crops(archive, pattern=PATTERN)
        assert table_of(listing).schema.equals(MANIFEST_SCHEMA)
        assert (table_of(listing).num_rows, listing.num_not_images, listing.unmatched) == (12, 0, 0)
        first = table_of(listing).slice(0, 1).to_pylist()[0]
        assert first["uri"] == archive.uri_of("dt=2026-11-21/cam=001/1795219200_t0.jpg")
        assert first["crop_id"] == crop_id_of(first["uri"])
        assert (first["camera_id"], first["captured_at"], first["track_id"]) == ("001", 1795219200000, "t0")
        assert (first["size"], first["vehicle_id"], first["model_id"]) == (4, None, None)
        info = archive.head("dt=2026-11-21/cam=001/1795219200_t0.jpg")
        assert info is not None and first["etag"] == info.etag

    def test_does_not_depend_on_the_number_of_workers(self, archive: Store) -> None:
        archive.put("loose.jpg", b"crop")
        archive.put("dt=2026-11-21/between.jpg", b"crop")
        one, two, many = (
            table_of(list_crops(archive, pattern=PATTERN, workers=workers)) for workers in (1, 2, 64)
        )
        assert one.num_rows == 14
        assert one.equals(two)
        assert one.equals(many)

    def test_keeps_and_counts_keys_that_do_not_match(self, archive: Store) -> None:
        archive.put("dt=2026-11-21/cam=001/unmatched.jpg", b"crop")
        listing = list_crops(archive, pattern=PATTERN)
        assert (table_of(listing).num_rows, listing.unmatched) == (13, 1)
        rows = table_of(listing)
        unmatched = rows.filter(pa.compute.match_substring(rows["uri"], "unmatched"))
        assert unmatched.select(["camera_id", "captured_at", "track_id"]).to_pylist() == [
            {"camera_id": "", "captured_at": UNKNOWN_TIME, "track_id": ""}
        ]

    def test_recognises_images_by_suffix_in_upper_and_lower_case(self, tmp_path: Path) -> None:
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
        assert (table_of(listing).num_rows, listing.num_not_images, listing.unmatched) == (5, 4, 0)

    def test_includes_folders_that_are_no_partitions(self, archive: Store) -> None:
        archive.put("other/deep/er/x.jpg", b"crop")
        archive.put("dt=2026-11-21/more/y.jpg", b"crop")
        assert table_of(list_crops(archive)).num_rows == 14

    def test_without_images_fails_with_the_number_of_other_objects(self, tmp_path: Path) -> None:
        store = open_store(str(tmp_path))
        store.put("readme.txt", b"x")
        with pytest.raises(EmptyArchive, match="1 other objects"):
            list_crops(store)

    def test_of_a_missing_folder_fails_as_missing(self, tmp_path: Path) -> None:
        with pytest.raises(BucketMissing):
            list_crops(open_store(str(tmp_path / "nowhere")))

    def test_over_s3_is_the_same_for_any_number_of_workers(self, seaweedfs: SeaweedFs, bucket: str) -> None:
        store = open_store(f"{bucket}/crops", seaweedfs.settings)
        for number in range(30):
            store.put(f"dt=2026-11-2{number % 3}/cam=00{number % 2}/{1795219200 + number}_t.jpg", b"crop")
        store.put("dt=2026-11-20/loose.jpg", b"crop")
        store.put("readme.txt", b"x")
        one, many = (list_crops(store, pattern=PATTERN, workers=workers) for workers in (1, 16))
        assert (table_of(many).num_rows, many.num_not_images, many.unmatched) == (31, 1, 1)
        assert table_of(one).equals(table_of(many))
        assert table_of(many)["uri"][0].as_py().startswith(f"{bucket}/crops/dt=2026-11-20/")

    def test_since_a_day_lists_only_that_and_later_days(self, tmp_path: Path) -> None:
        archive = open_store(str(tmp_path))
        for key in ("dt=2026-11-01/cam=1/a.jpg", "dt=2026-11-20/cam=1/b.jpg", "dt=2026-11-21/c.jpg"):
            archive.put(key, b"x")
        uris = table_of(list_crops(archive, since=date(2026, 11, 20)))["uri"].to_pylist()
        assert [uri.rpartition("/")[2] for uri in uris] == ["b.jpg", "c.jpg"]

    def test_since_a_day_needs_folders_of_days(self, tmp_path: Path) -> None:
        archive = open_store(str(tmp_path))
        archive.put("cam=1/a.jpg", b"x")
        with pytest.raises(BadSetting, match="no folders dt="):
            days_since(archive, date(2026, 11, 20))


def names_of(listing: Listing, store: Store) -> list[str]:
    return [uri.removeprefix(store.uri_of("")) for uri in table_of(listing)["uri"].to_pylist()]


class TestWhatIsLeftOut:
    def test_hidden_files_and_folders_are_left_out_and_counted(self, tmp_path: Path) -> None:
        store = open_store(str(tmp_path))
        hidden = [
            ".a.jpg",
            "._b.jpg",
            "c/.thumbnails/d.jpg",
            "__MACOSX/e.jpg",
            "f/@eaDir/g.jpg",
            ".h/i/j.jpg",
        ]
        for key in ("k.jpg", "l.m/n.jpg", "__MACOSX.jpg", *hidden):
            store.put(key, b"x")
        listing = list_crops(store)
        assert names_of(listing, store) == ["__MACOSX.jpg", "k.jpg", "l.m/n.jpg"]
        assert listing.skipped.counts == {HIDDEN: len(hidden)}

    @pytest.mark.parametrize(
        ("include", "exclude", "expected"),
        [
            (["*/night/*"], [], ["a/night/1.jpg"]),
            (["night"], [], ["a/night/1.jpg", "night/2.jpg"]),
            (["**/night/**"], [], ["a/night/1.jpg", "night/2.jpg"]),
            (["*.jpg"], ["night", ".hidden"], ["a/day/3.jpg", "a/day/[4].jpg"]),
            ([], ["a/**"], ["night/2.jpg"]),
            ([], ["a/"], ["night/2.jpg"]),
            ([], ["?.jpg"], ["a/day/[4].jpg"]),
            (["[[]4].jpg"], [], ["a/day/[4].jpg"]),
            (["[12].jpg"], [], ["a/night/1.jpg", "night/2.jpg"]),
            (["[1-2].jpg"], [], ["a/night/1.jpg", "night/2.jpg"]),
            (["[!1-3].jpg"], ["[.h]*"], []),
            ([".hidden/**", "night"], ["a"], [".hidden/5.jpg", "night/2.jpg"]),
        ],
    )
    def test_globs_choose_keys(
        self, tmp_path: Path, include: list[str], exclude: list[str], expected: list[str]
    ) -> None:
        store = open_store(str(tmp_path))
        for key in ("a/night/1.jpg", "night/2.jpg", "a/day/3.jpg", "a/day/[4].jpg", ".hidden/5.jpg"):
            store.put(key, b"x")
        choice = KeyChoice(tuple(include), tuple(exclude))
        if not expected:
            with pytest.raises(EmptyArchive, match=r"left out: 5 \(by --include or --exclude\)"):
                list_crops(store, choice=choice)
            return
        listing = list_crops(store, choice=choice)
        assert names_of(listing, store) == expected
        assert sum(listing.skipped.counts.values()) == 5 - len(expected)

    @pytest.mark.parametrize("glob", ["", " ", "/", "[z-a].jpg"])
    def test_a_glob_that_is_none_is_refused(self, glob: str) -> None:
        with pytest.raises(BadSetting, match="pattern"):
            KeyChoice((glob,))

    def test_names_that_are_not_utf8_and_circular_links_do_not_stop_a_listing(self, tmp_path: Path) -> None:
        store = open_store(str(tmp_path))
        for key in ("ok.jpg", "cam=1/ok.jpg", "cam=2/deep/ok.jpg"):
            store.put(key, b"x")
        for name in (b"caf\xe9.jpg", b"t\tab.jpg", b"new\nline.jpg"):
            Path(os.fsdecode(os.fsencode(tmp_path) + b"/cam=1/" + name)).write_bytes(b"x")
        (tmp_path / "loop").symlink_to(".")
        (tmp_path / "cam=2" / "deep" / "up").symlink_to("../..")
        (tmp_path / "cam=1" / "self.jpg").symlink_to("self.jpg")
        (tmp_path / "cam=1" / "gone.jpg").symlink_to("/nowhere")
        os.mkfifo(tmp_path / "pipe.jpg")
        listing = list_crops(store)
        assert names_of(listing, store) == ["cam=1/ok.jpg", "cam=2/deep/ok.jpg", "ok.jpg"]
        assert listing.skipped.counts[UNADDRESSABLE] == 3
        assert listing.skipped.counts["a link to a folder that contains it"] == 2
        assert listing.skipped.counts["a circular link"] == 1
        assert all(note.isprintable() for note in listing.skipped.notes())

    def test_links_to_other_folders_are_followed(self, tmp_path: Path) -> None:
        store = open_store(str(tmp_path / "archive"))
        store.put("a/1.jpg", b"x")
        open_store(str(tmp_path / "elsewhere")).put("2.jpg", b"x")
        (tmp_path / "archive" / "more").symlink_to(tmp_path / "elsewhere")
        assert names_of(list_crops(store), store) == ["a/1.jpg", "more/2.jpg"]

    def test_a_folder_that_may_not_be_read_is_an_error_because_its_crops_would_vanish(
        self, tmp_path: Path
    ) -> None:
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
        store = open_store(str(tmp_path))
        store.put("a/1.jpg", b"x")
        (tmp_path / "a").chmod(0)
        with pytest.raises(StoreDenied, match="may not use"):
            list_crops(store)

    def test_keys_of_a_bucket_that_no_store_can_address_do_not_stop_a_listing(
        self, seaweedfs: SeaweedFs, bucket: str
    ) -> None:
        client = admin_client(seaweedfs.settings)
        good = ["a/b.jpg", "cam=1/c.jpg", "cam=2/d.jpg", "z.jpg"]
        for key in (*good, "a/t\tab.jpg", "cam=1/new\nline.jpg", "cam=2/marker.jpg/"):
            client.put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=b"")
        store = open_store(bucket, seaweedfs.settings)
        for workers in (1, 16):
            listing = list_crops(store, workers=workers)
            assert names_of(listing, store) == good
            assert listing.skipped.counts == {UNADDRESSABLE: 2}
        below = open_store(f"{bucket}/a", seaweedfs.settings)
        assert names_of(list_crops(below), below) == ["b.jpg"]
