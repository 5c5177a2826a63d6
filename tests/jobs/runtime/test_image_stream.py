"""Image streams: every position once, faults of an image as values, faults of the store as errors."""

import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clvr_model.preprocessing import decode
from index.archive.listing import list_crops
from index.archive.manifest import normalize_manifest
from index.archive.packing import pack_folder
from index.archive.reader import ArchiveReader
from index.runs.tombstones import ErasedCrops
from infra.errors import (
    ClvrError,
    ObjectArchived,
    ObjectMissing,
    StoreDenied,
    StoreUnreachable,
    UnusableKey,
)
from infra.store import ObjectBody, Store, StoreSettings, open_store
from jobs.runtime.image_stream import ImageFailure, StreamTimes, stream_images


def jpeg(shade: int) -> bytes:
    Image.fromarray(np.full((20, 30, 3), shade, np.uint8)).save(buffer := io.BytesIO(), "JPEG")
    return buffer.getvalue()


def stream(store: Store, keys: list[str], **options: Any) -> Iterator[tuple[int, np.ndarray | ImageFailure]]:
    return stream_images(ArchiveReader(store), [store.uri_of(key) for key in keys], **options)


class FakeStore(Store):
    """A store whose objects and errors a test decides."""

    def __init__(self, answer: Callable[[str], bytes], *, list_denied: bool = False) -> None:
        super().__init__("s3://fake", StoreSettings())
        self.answer = answer
        self.list_denied = list_denied

    def fetch(self, key: str) -> ObjectBody:
        return ObjectBody(self.answer(key), "e")

    def ensure(self) -> None:
        if self.list_denied:
            raise StoreDenied("access to s3://fake is denied: expired (ExpiredToken)")


@pytest.fixture
def archive(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path))
    for number in range(40):
        store.put(f"{number}.jpg", jpeg(number))
    return store


def test_stream_yields_every_position_once_with_its_image(archive: Store) -> None:
    keys = [info.key for info in archive.list()]
    times = StreamTimes()
    images = dict(stream(archive, keys, prefetch=7, times=times))
    assert sorted(images) == list(range(40))
    for position, image in images.items():
        assert isinstance(image, np.ndarray)
        assert np.array_equal(image, decode(archive.get(keys[position])))
    assert times.bytes == sum(info.size for info in archive.list())
    assert times.decode_seconds > 0 and times.fetch_seconds > 0


def test_fault_of_one_image_is_a_value_with_stage_and_cause(archive: Store) -> None:
    archive.put("bad.jpg", b"no picture")
    archive.put("empty.jpg", b"")
    keys = ["0.jpg", "bad.jpg", "empty.jpg", "none.jpg", "1.jpg"]
    etags = ["", "", "", "", "another"]
    images = dict(stream(archive, keys, etags=etags))
    causes = {
        position: (value.stage, value.cause)
        for position, value in images.items()
        if isinstance(value, ImageFailure)
    }
    assert causes == {
        1: ("decode", "not-a-picture"),
        2: ("decode", "empty"),
        3: ("fetch", "missing"),
        4: ("fetch", "changed"),
    }


def test_etag_of_a_listing_equals_the_etag_of_a_fetch(archive: Store) -> None:
    for info in archive.list():
        assert archive.fetch(info.key).etag == info.etag


def test_unreachable_store_raises(archive: Store) -> None:
    def answer(key: str) -> bytes:
        raise StoreUnreachable("no answer")

    with pytest.raises(StoreUnreachable):
        list(stream(FakeStore(answer), ["a"] * 100))


def test_refused_credentials_stop_the_stream_at_once() -> None:
    def answer(key: str) -> bytes:
        if key == "ok":
            return jpeg(1)
        raise StoreDenied("no")

    images = stream(FakeStore(answer, list_denied=True), ["ok"] * 10 + ["x"] * 90)
    with pytest.raises(StoreDenied, match="ExpiredToken"):
        list(images)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (StoreDenied("no"), "denied"),
        (ObjectArchived("in cold storage"), "archived"),
        (ObjectMissing("gone"), "missing"),
        (UnusableKey("a//b"), "unusable-key"),
    ],
)
def test_a_whole_folder_of_refused_crops_does_not_stop_the_stream(error: ClvrError, cause: str) -> None:
    def answer(key: str) -> bytes:
        if key == "cold":
            raise error
        return jpeg(1)

    images = dict(stream(FakeStore(answer), ["cold"] * 40 + ["ok"] * 40, prefetch=4))
    failures = [image for image in images.values() if isinstance(image, ImageFailure)]
    assert {(failure.stage, failure.cause) for failure in failures} == {("fetch", cause)}
    assert (len(images), len(failures)) == (80, 40)


def test_keys_that_cannot_be_addressed_are_values(archive: Store) -> None:
    images = dict(stream(archive, ["0.jpg", "a//b.jpg", "../up.jpg", "t\tab.jpg", "x" * 300 + ".jpg"]))
    assert not isinstance(images[0], ImageFailure)
    causes = [image.cause for _, image in sorted(images.items()) if isinstance(image, ImageFailure)]
    assert causes == ["unusable-key"] * 3 + ["missing"]


def test_one_refused_object_among_many_is_a_value() -> None:
    def answer(key: str) -> bytes:
        if key == "x":
            raise StoreDenied("no")
        return jpeg(1)

    images = dict(stream(FakeStore(answer), ["ok"] * 20 + ["x"], prefetch=4))
    assert isinstance(images[20], ImageFailure) and images[20].cause == "denied"


def test_unexpected_exception_of_a_thread_is_raised() -> None:
    def answer(key: str) -> bytes:
        raise MemoryError("none left")

    with pytest.raises(MemoryError):
        list(stream(FakeStore(answer), ["a"]))


def test_stream_fetches_no_more_images_than_its_prefetch() -> None:
    lock, fetches = threading.Lock(), [0]

    def answer(key: str) -> bytes:
        with lock:
            fetches[0] += 1
        return jpeg(1)

    images = stream(FakeStore(answer), ["a"] * 200, prefetch=10)
    for _ in range(5):
        next(images)
    assert fetches[0] <= 5 + 10


def test_closing_a_stream_early_ends_its_threads(archive: Store) -> None:
    before = threading.active_count()
    images = stream(archive, [info.key for info in archive.list()], prefetch=8)
    next(images)
    images.close()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        if thread.name.startswith("load-"):
            thread.join(5)
    assert threading.active_count() <= before


def test_denied_local_file_is_a_value(archive: Store) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    Path(archive.uri_of("0.jpg")).chmod(0)
    images = dict(stream(archive, ["0.jpg", "1.jpg"]))
    assert isinstance(images[0], ImageFailure) and isinstance(images[0].cause, str)
    assert not isinstance(images[1], ClvrError)


@pytest.fixture
def packed(archive: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[str], list[str]]:
    """The archive in tar files of a few images: the store, the URIs, and the etags of the members."""
    target = open_store(str(tmp_path_factory.mktemp("packed")))
    pack_folder(archive, target, "", ErasedCrops(), tar_bytes=10_000)
    manifest = normalize_manifest(list_crops(target).crops.read())
    return target, manifest["uri"].to_pylist(), manifest["etag"].to_pylist()


@pytest.mark.parametrize(("prefetch", "decoders"), [(1, 1), (4, 2), (64, 2)])
def test_members_of_tar_files_give_the_same_images(
    archive: Store, packed: tuple[Store, list[str], list[str]], prefetch: int, decoders: int
) -> None:
    store, uris, etags = packed
    times = StreamTimes()
    images = dict(
        stream_images(
            ArchiveReader(store), uris, etags=etags, prefetch=prefetch, decoders=decoders, times=times
        )
    )
    assert sorted(images) == list(range(40))
    for position, image in images.items():
        key = uris[position].rpartition("#")[2]
        assert np.array_equal(image, decode(archive.get(key)))  # type: ignore[arg-type]
    assert times.bytes == sum(len(archive.get(f"{number}.jpg")) for number in range(40))


def test_members_and_objects_stream_together_and_a_stream_may_be_closed(
    archive: Store, packed: tuple[Store, list[str], list[str]]
) -> None:
    store, uris, etags = packed
    store.put("x.jpg", jpeg(7))
    mixed, of_mixed = [store.uri_of("x.jpg"), *uris], ["", *etags]
    before = threading.active_count()
    images = dict(stream_images(ArchiveReader(store), mixed, etags=of_mixed, prefetch=4))
    assert sorted(images) == list(range(41))
    stream = stream_images(ArchiveReader(store), mixed, etags=of_mixed, prefetch=2)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    for _ in range(100):
        if threading.active_count() <= before:
            break
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_members_of_a_file_that_was_written_again_have_changed(
    packed: tuple[Store, list[str], list[str]],
) -> None:
    store, uris, etags = packed
    store.put("00000.tar", store.get("00001.tar"))
    store.delete("00002.tar")
    found = dict(stream_images(ArchiveReader(store), uris, etags=etags))
    causes = {uris[position].rpartition("/")[2].partition("#")[0]: image for position, image in found.items()}
    assert causes["00000.tar"].cause == "changed"  # type: ignore[union-attr]
    assert causes["00002.tar"].cause == "missing"  # type: ignore[union-attr]
    assert isinstance(causes["00001.tar"], np.ndarray)
