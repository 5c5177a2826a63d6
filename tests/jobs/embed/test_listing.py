"""Listings by tasks: equal to those of one process on a real server, and taken over after a kill."""

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from index.archive import sections, stored_listing
from index.archive.key_choice import VISIBLE_KEYS
from index.archive.key_pattern import KeyPattern
from index.archive.listing import Listing, list_crops, list_sections
from index.archive.manifest import normalize_manifest
from index.archive.sections import FolderNotFlat, Section, sections_of
from index.archive.stored_listing import ListingInfo, StoredListing, delete_listings
from index.catalogue.catalogue import open_catalogue
from index.catalogue.comparison import Mapper
from index.runs.accounting import QuarantinedCrop, quarantine_table
from index.runs.run import Run
from index.schema import SHARD_SCHEMA
from infra.errors import CorruptObject, EmptyArchive, StoreUnreachable
from infra.servers import SeaweedFs
from infra.store import Store, open_store
from jobs.embed import discovery, listing
from jobs.embed.discovery import CropSelection, NoChanges, discover
from jobs.embed.listing import ListingRequest, PlanningTasks, list_archive
from jobs.runtime.ray_cluster import map_in_ray_tasks

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

PATTERN = KeyPattern("{*}/{camera_id}/{captured_at}_{track_id}.jpg")
KEYS = [
    "loose.jpg",
    "readme.txt",
    "a/1.jpg",
    "a/b/2.jpg",
    "a-b/3.jpg",  # in the order of bytes before a/1.jpg
    "ab/4.jpg",
    "ab/#5.jpg",
    "x.tar#y/6.jpg",
    "ü/ß 7.jpg",
    "日本/8.jpg",
    "dt=2026-11-20/cam=1/1795219200_t.jpg",
    "dt=2026-11-20/cam=10/1795219201_t.jpg",
    "dt=2026-11-20/loose.JPG",
    "dt=2026-11-20/.hidden/9.jpg",
    "dt=20261121/cam=1/1795305600_t.jpg",
    "dt=2026-11-2x/cam=1/1795305601_t.jpg",
]
REQUEST = ListingRequest(PATTERN, "pattern", VISIBLE_KEYS, None)


class Cut(BaseException):
    """The process ends here."""


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (listing, discovery):
        monkeypatch.setattr(module, "MAX_LOCAL_CROPS", 3)
    monkeypatch.setattr(stored_listing, "FILE_ROWS", 2)


@pytest.fixture
def archive(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "archive"))
    for number in range(12):
        store.put(f"dt=2026-11-{number % 4 + 10}/cam=1/{number}.jpg", b"x")
    return store


@pytest.fixture
def runs(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "runs"))


def contents(listed: Listing) -> tuple[Any, ...]:
    rows = normalize_manifest(listed.crops.read()).to_pylist()
    return rows, listed.num_not_images, listed.unmatched, listed.skipped.counts


def objects(store: Store) -> list[str]:
    return sorted(info.key for info in store.list("listings")) if Path(store.uri).exists() else []


def cut_after(number: int) -> Mapper:
    """Return a `map` that ends the process after the first items."""

    def each(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        for position, item in enumerate(items):
            if position == number:
                raise Cut
            yield function(item)

    return each


def test_a_listing_of_odd_keys_by_tasks_is_that_of_one_process(seaweedfs: SeaweedFs, bucket: str) -> None:
    archive = open_store(f"{bucket}/archive", seaweedfs.settings)
    runs = open_store(f"{bucket}/runs", seaweedfs.settings)
    for key in KEYS:
        archive.put(key, b"crop")
    with PlanningTasks(map) as tasks:
        listed = list_archive(archive, runs, REQUEST, tasks)
        assert tasks.listing is not None
        assert len(list(runs.list("listings"))) > len(listed.crops.rows)
    assert contents(listed) == contents(list_crops(archive, pattern=PATTERN, workers=1))
    assert listed.crops.num_rows == 13
    assert sorted(listed.crops.rows) == ["", "dt=2026-11-20", "dt=20261121"]
    assert not list(runs.list("listings"))


def test_a_flat_folder_is_listed_in_ranges_of_keys(
    seaweedfs: SeaweedFs, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = open_store(bucket, seaweedfs.settings)
    runs = open_store(f"{bucket}-runs", seaweedfs.settings)
    runs.create_bucket()
    monkeypatch.setattr(sections, "MAX_LOOSE_OBJECTS", 2)
    monkeypatch.setattr(listing, "SECTIONS", 5)
    for number in range(0, 60, 7):
        archive.put(f"flat/crop {number:02d}.jpg" if number % 2 else f"flat/crop-{number:02d}.jpg", b"x")
    for key in ("flat/ü.jpg", "flat/#.jpg", "flat/crop-1.jpg", "flat/note.txt"):
        archive.put(key, b"x")
    request = ListingRequest(None, "", VISIBLE_KEYS, None)
    cut = sections_of(archive, 5, cut_flat=True)
    assert len(cut) >= 3 and all(section.is_range for section in cut)
    with PlanningTasks(map) as tasks:
        assert contents(list_archive(archive, runs, request, tasks)) == contents(list_crops(archive))
    archive.put("flat/crop-1/in a folder.jpg", b"x")
    with pytest.raises(FolderNotFlat):
        list_sections(archive, cut)
    with PlanningTasks(map) as tasks:
        assert contents(list_archive(archive, runs, request, tasks)) == contents(list_crops(archive))


def test_a_planner_takes_over_what_a_killed_one_listed(archive: Store, runs: Store) -> None:
    expected = contents(list_crops(archive))
    request = ListingRequest(None, "", VISIBLE_KEYS, None)
    for number in range(5):
        with pytest.raises(Cut), PlanningTasks(cut_after(number)) as tasks:
            list_archive(archive, runs, request, tasks)
            raise Cut
        seen: list[Section] = []

        def each(
            function: Callable[[Any], Any], items: Iterable[Any], seen: list[Section] = seen
        ) -> Iterator[Any]:
            for item in items:
                seen.extend(item)
                yield function(item)

        with pytest.raises(Cut), PlanningTasks(each) as tasks:
            assert contents(list_archive(archive, runs, request, tasks)) == expected
            raise Cut
        assert len(seen) == 4 - number
        assert objects(runs)
        delete_listings(runs)
        assert not objects(runs)


def test_a_listing_that_is_too_old_or_of_another_request_is_not_taken_over(
    archive: Store, runs: Store
) -> None:
    request = ListingRequest(None, "", VISIBLE_KEYS, None)
    with pytest.raises(Cut), PlanningTasks(cut_after(4)) as tasks:
        list_archive(archive, runs, request, tasks)
        raise Cut
    archive.put("dt=2026-11-10/cam=1/late.jpg", b"x")
    with PlanningTasks(map) as tasks:
        assert list_archive(archive, runs, REQUEST, tasks).crops.num_rows == 13
    (info,) = [key for key in objects(runs) if key.endswith("listing.json")]
    old = datetime.now(UTC) - stored_listing.MAX_AGE + timedelta(minutes=1)
    runs.put(info, ListingInfo(archive.uri, old).to_json())
    with pytest.raises(Cut), PlanningTasks(map) as tasks:
        assert list_archive(archive, runs, request, tasks).crops.num_rows == 12
        raise Cut
    runs.put(info, ListingInfo(archive.uri, old - timedelta(minutes=2)).to_json())
    with PlanningTasks(map) as tasks:
        assert list_archive(archive, runs, request, tasks).crops.num_rows == 13
    assert not objects(runs)


def test_an_altered_file_of_a_listing_is_not_read(archive: Store, runs: Store) -> None:
    stored = StoredListing.start(runs, archive.uri, "")
    sections = [Section("dt=2026-11-10")]
    listing.list_and_store(archive, stored, REQUEST, sections)
    key = next(key for key in objects(runs) if key.endswith(".parquet"))
    data = bytearray(runs.get(key))
    data[len(data) // 2] ^= 1
    runs.put(key, bytes(data))
    with pytest.raises(CorruptObject):
        stored.read(sections)


def test_the_stored_listing_stays_only_after_a_failure_that_a_repeat_may_not_meet(
    archive: Store, runs: Store
) -> None:
    request = ListingRequest(None, "", VISIBLE_KEYS, None)
    for error, is_kept in ((StoreUnreachable("gone"), True), (EmptyArchive("none"), False)):
        with pytest.raises(type(error)), PlanningTasks(map) as tasks:
            list_archive(archive, runs, request, tasks)
            raise error
        assert bool(objects(runs)) == is_kept


def test_a_plan_by_ray_tasks_is_that_of_one_process(
    ray_cluster: "Cluster", seaweedfs: SeaweedFs, bucket: str
) -> None:
    import ray

    def fail_at_three(number: int) -> int:
        if number == 3:
            raise EmptyArchive("number 3")
        return number

    archive = open_store(f"{bucket}/archive", seaweedfs.settings)
    runs = open_store(f"{bucket}/runs", seaweedfs.settings)
    for number in range(12):
        archive.put(f"dt=2026-11-{number % 4 + 10}/cam=1/{number:02d}.jpg", bytes([number]))
    ray.init(address=ray_cluster.address, log_to_driver=False)
    try:
        with PlanningTasks(map_in_ray_tasks) as tasks:
            first = discover(CropSelection(archive.uri), archive, runs, tasks=tasks)
            assert first.crops.read().equals(discover(CropSelection(archive.uri), archive, runs).crops.read())
            finish_run(first.crops.read(), archive, runs)
        archive.put("dt=2026-11-10/cam=1/new.jpg", b"x")
        archive.put("dt=2026-11-11/cam=1/01.jpg", b"y")
        archive.delete("dt=2026-11-12/cam=1/02.jpg")
        selection = CropSelection(archive.uri, since_run="base")
        with PlanningTasks(map_in_ray_tasks) as tasks:
            found = discover(selection, archive, runs, tasks=tasks)
        alone = discover(selection, archive, runs)
        assert found.crops.read().equals(alone.crops.read()) and found.changes == alone.changes
        assert str(found.changes) == "1 new, 1 changed, 10 unchanged, 1 vanished"
        assert not list(runs.list("listings"))
        for _ in range(20):  # with cancelled tasks, Ray aborted this process at one of the first errors
            with pytest.raises(EmptyArchive, match="number 3"):
                list(map_in_ray_tasks(fail_at_three, range(100)))
        assert next(iter(map_in_ray_tasks(fail_at_three, range(3)))) == 0  # and leaves the other results
    finally:
        ray.shutdown()


def finish_run(crops: pa.Table, archive: Store, runs: Store) -> None:
    """Make a finished run of some crops, all of them broken."""
    run = Run.create(
        runs, "base", manifest=crops, archive=archive.uri, fingerprint="f", model="m", settings={}
    )
    for part in run.pending_parts():
        pairs = run.part_manifest(part).select(["crop_id", "uri"]).to_pylist()
        broken = quarantine_table(QuarantinedCrop(**pair, stage="decode", cause="x") for pair in pairs)
        run.write_part(part, SHARD_SCHEMA.empty_table(), broken)
    run.finish()
    assert open_catalogue(runs, "base").catalogue.rows == crops.num_rows


def test_a_night_without_changes_leaves_no_listing(archive: Store, runs: Store) -> None:
    selection = CropSelection(archive.uri)
    finish_run(discover(selection, archive, runs).crops.read(), archive, runs)
    with pytest.raises(NoChanges), PlanningTasks(map) as tasks:
        discover(CropSelection(archive.uri, since_run="base"), archive, runs, tasks=tasks)
    assert tasks.listing is not None and not objects(runs)
