"""Listing an archive: every image, by its key, whatever the folders and the number of workers."""

from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest

from index.archive.key_pattern import KeyPattern
from index.archive.listing import days_since, list_crops
from index.archive.manifest import crop_id_of
from index.schema import MANIFEST_SCHEMA, UNKNOWN_TIME
from infra.errors import BadSetting, BucketMissing, EmptyArchive
from infra.servers import SeaweedFs
from infra.store import Store, open_store

PATTERN = KeyPattern("dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg")


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
        assert listing.manifest.schema.equals(MANIFEST_SCHEMA)
        assert (listing.manifest.num_rows, listing.num_not_images, listing.unmatched) == (12, 0, 0)
        first = listing.manifest.slice(0, 1).to_pylist()[0]
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
            list_crops(archive, pattern=PATTERN, workers=workers).manifest for workers in (1, 2, 64)
        )
        assert one.num_rows == 14
        assert one.equals(two)
        assert one.equals(many)

    def test_keeps_and_counts_keys_that_do_not_match(self, archive: Store) -> None:
        archive.put("dt=2026-11-21/cam=001/unmatched.jpg", b"crop")
        listing = list_crops(archive, pattern=PATTERN)
        assert (listing.manifest.num_rows, listing.unmatched) == (13, 1)
        unmatched = listing.manifest.filter(pa.compute.match_substring(listing.manifest["uri"], "unmatched"))
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
        assert (listing.manifest.num_rows, listing.num_not_images, listing.unmatched) == (5, 4, 0)

    def test_includes_folders_that_are_no_partitions(self, archive: Store) -> None:
        archive.put("other/deep/er/x.jpg", b"crop")
        archive.put("dt=2026-11-21/more/y.jpg", b"crop")
        assert list_crops(archive).manifest.num_rows == 14

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
        assert (many.manifest.num_rows, many.num_not_images, many.unmatched) == (31, 1, 1)
        assert one.manifest.equals(many.manifest)
        assert many.manifest["uri"][0].as_py().startswith(f"{bucket}/crops/dt=2026-11-20/")

    def test_since_a_day_lists_only_that_and_later_days(self, tmp_path: Path) -> None:
        archive = open_store(str(tmp_path))
        for key in ("dt=2026-11-01/cam=1/a.jpg", "dt=2026-11-20/cam=1/b.jpg", "dt=2026-11-21/c.jpg"):
            archive.put(key, b"x")
        uris = list_crops(archive, since=date(2026, 11, 20)).manifest["uri"].to_pylist()
        assert [uri.rpartition("/")[2] for uri in uris] == ["b.jpg", "c.jpg"]

    def test_since_a_day_needs_folders_of_days(self, tmp_path: Path) -> None:
        archive = open_store(str(tmp_path))
        archive.put("cam=1/a.jpg", b"x")
        with pytest.raises(BadSetting, match="no folders dt="):
            days_since(archive, date(2026, 11, 20))
