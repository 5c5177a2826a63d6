"""Packing an archive into tar files: nothing lost, nothing twice, the same after a kill."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from index.archive.listing import list_crops
from index.archive.manifest import crop_id_of
from index.archive.members import INDEX_SUFFIX, split_member
from index.archive.packing import Packed, pack_folder, write_indexes
from index.archive.reader import ArchiveReader
from index.runs.tombstones import ErasedCrops, read_tombstones
from infra.errors import BadInput
from infra.store import Store, open_store

NOTHING_ERASED = ErasedCrops()
DAY = "dt=2026-11-22"


@pytest.fixture
def archive(store: Store) -> Store:
    for number in range(10):
        store.put(f"{DAY}/cam={number % 3}/{number:03}.jpg", bytes([number]) * 1000)
    store.put(f"{DAY}/notes.txt", b"no image")
    return store


@pytest.fixture
def target(tmp_path: Path) -> Store:
    (tmp_path / "packed").mkdir()
    return open_store(str(tmp_path / "packed"))


def contents(store: Store) -> dict[str, bytes]:
    """The crops by camera and name, however they are kept."""
    found = {}
    listing = list_crops(store)
    reader = ArchiveReader(store)
    crops = listing.crops.read()
    for uri, etag in zip(*(crops[name].to_pylist() for name in ("uri", "etag")), strict=True):
        key = reader.key_of(uri)
        name = (split_member(key) or ("", key.partition("/")[2]))[1]
        assert name not in found
        found[name] = reader.fetch(uri, etag).data
    return found


def test_packed_crops_are_the_archives_in_files_of_the_given_size(archive: Store, target: Store) -> None:
    packed = pack_folder(archive, target, DAY, NOTHING_ERASED, tar_bytes=3000)
    assert packed == Packed(crops=10, bytes=10_000, tars=4, indexes=4)
    assert contents(target) == contents(archive)
    assert list_crops(target).containers.unindexed == 0
    first = f"{DAY}/00000.tar"
    assert sorted(info.key for info in target.list())[:2] == [first, first + INDEX_SUFFIX]


def test_a_repetition_packs_only_what_is_new(archive: Store, target: Store) -> None:
    pack_folder(archive, target, DAY, NOTHING_ERASED)
    before = {info.key: target.get(info.key) for info in target.list()}
    assert pack_folder(archive, target, DAY, NOTHING_ERASED) == Packed(packed_before=10)
    archive.put(f"{DAY}/cam=0/999.jpg", b"new")
    # In files of 20,000 bytes the first one is full enough to stay as it is.
    assert pack_folder(archive, target, DAY, NOTHING_ERASED, tar_bytes=20_000) == Packed(
        1, 3, 1, 1, packed_before=10
    )
    assert contents(target) == contents(archive)
    assert before.items() <= {info.key: target.get(info.key) for info in target.list()}.items()


def test_new_crops_go_behind_those_of_a_small_file_which_stay_the_same(archive: Store, target: Store) -> None:
    def listed() -> dict[str, str]:
        crops = list_crops(target).crops.read()
        return dict(zip(*(crops[name].to_pylist() for name in ("uri", "etag")), strict=True))

    pack_folder(archive, target, DAY, NOTHING_ERASED, tar_bytes=100_000)
    before = listed()
    for night in range(3):
        for number in range(10):
            archive.put(f"{DAY}/cam=0/night{night}-{number}.jpg", bytes([night, number]) * 500)
        pack_folder(archive, target, DAY, NOTHING_ERASED, tar_bytes=60_000)
        after = listed()
        assert before.items() <= after.items() and len(after) == len(before) + 10
        before = after
        target.delete(f"{DAY}/00000.tar{INDEX_SUFFIX}")
        assert listed() == after  # a file that is read instead gives the same etags
    assert contents(target) == contents(archive)
    assert [info.key for info in target.list() if info.key.endswith(".tar")] == [
        f"{DAY}/00000.tar",
        f"{DAY}/00001.tar",
    ]


class Killed(Exception):
    """Stands for a SIGKILL."""


@pytest.mark.parametrize(
    ("tar_bytes", "writes"), [*((3000, number) for number in range(8)), (30_000, 0), (30_000, 1)]
)
def test_a_kill_between_any_two_writes_loses_and_doubles_nothing(
    archive: Store, target: Store, monkeypatch: pytest.MonkeyPatch, tar_bytes: int, writes: int
) -> None:
    if tar_bytes == 30_000:  # a file of one crop, to which the others come
        begun = open_store(f"{archive.uri}-begun")
        begun.put(f"{DAY}/cam=0/000.jpg", archive.get(f"{DAY}/cam=0/000.jpg"))
        pack_folder(begun, target, DAY, NOTHING_ERASED)
    left = [writes]
    put = Store.put

    def put_or_die(store: Store, key: str, data: bytes) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        put(store, key, data)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Store, "put", put_or_die)
        pack_folder(archive, target, DAY, NOTHING_ERASED, tar_bytes=tar_bytes)
    pack_folder(archive, target, DAY, NOTHING_ERASED, tar_bytes=tar_bytes)
    assert contents(target) == contents(archive)
    assert list_crops(target).containers.unindexed == 0


def test_erased_crops_and_their_copies_are_left_out(
    archive: Store, target: Store, tmp_path: Path, hide: object
) -> None:
    (tmp_path / "runs").mkdir()
    runs = open_store(str(tmp_path / "runs"))
    archive.put(f"{DAY}/cam=0/copy.jpg", bytes([3]) * 1000)
    md5 = hashlib.md5(bytes([3]) * 1000, usedforsecurity=False).digest()
    uri = archive.uri_of(f"{DAY}/cam=0/003.jpg")
    hide(runs, np.array([crop_id_of(uri)]), [md5])  # type: ignore[operator]
    packed = pack_folder(archive, target, DAY, read_tombstones(runs))
    assert (packed.crops, packed.erased) == (9, 2)
    assert not {"cam=0/003.jpg", "cam=0/copy.jpg"} & contents(target).keys()


def test_indexes_are_written_for_tar_files_of_others(archive: Store, target: Store) -> None:
    pack_folder(archive, target, DAY, NOTHING_ERASED)
    target.delete(f"{DAY}/00000.tar{INDEX_SUFFIX}")
    assert write_indexes(target, DAY) == Packed(indexes=1, packed_before=10)
    assert write_indexes(target, DAY) == Packed()
    assert list_crops(target).containers.unindexed == 0


def test_a_tar_file_that_is_cut_short_gets_no_index_and_stays_named(archive: Store, target: Store) -> None:
    pack_folder(archive, target, DAY, NOTHING_ERASED)
    target.delete(f"{DAY}/00000.tar{INDEX_SUFFIX}")
    target.put(f"{DAY}/00000.tar", target.get(f"{DAY}/00000.tar")[:4000])
    assert write_indexes(target, DAY) == Packed()
    assert list_crops(target).skipped.counts["the rest of a file that is damaged or cut short"] == 1


def test_an_image_larger_than_a_tar_file_is_named(archive: Store, target: Store) -> None:
    with pytest.raises(BadInput, match="has 1,000 bytes"):
        pack_folder(archive, target, DAY, NOTHING_ERASED, tar_bytes=999)
