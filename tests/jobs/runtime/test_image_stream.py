"""A stream of pictures: each position once, faults as values, faults of the store as errors."""

import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clvr_model.preprocessing import decode
from index.archive.reader import ArchiveReader
from infra.errors import ClvrError, StoreDenied, StoreUnreachable
from infra.store import ObjectBody, Store, StoreSettings, open_store
from jobs.runtime.image_stream import PERMANENT_ERRORS, ImageFailure, LoadTimes, stream_images


def jpeg(shade: int) -> bytes:
    Image.fromarray(np.full((20, 30, 3), shade, np.uint8)).save(buffer := io.BytesIO(), "JPEG")
    return buffer.getvalue()


def stream(store: Store, keys: list[str], **options: Any) -> Iterator[tuple[int, np.ndarray | ImageFailure]]:
    return stream_images(ArchiveReader(store), [store.uri_of(key) for key in keys], **options)


class Refusing(Store):
    """A store whose answers a test decides."""

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


def test_every_position_comes_once_with_its_own_picture(archive: Store) -> None:
    keys = [info.key for info in archive.list()]
    times = LoadTimes()
    found = dict(stream(archive, keys, ahead=7, times=times))
    assert sorted(found) == list(range(40))
    for position, picture in found.items():
        assert isinstance(picture, np.ndarray)
        assert np.array_equal(picture, decode(archive.get(keys[position])))
    assert times.bytes == sum(info.size for info in archive.list())
    assert times.decode_seconds > 0 and times.fetch_seconds > 0


def test_what_is_wrong_with_one_picture_is_a_value(archive: Store) -> None:
    archive.put("bad.jpg", b"no picture")
    archive.put("empty.jpg", b"")
    keys = ["0.jpg", "bad.jpg", "empty.jpg", "none.jpg", "1.jpg"]
    etags = ["", "", "", "", "another"]
    found = dict(stream(archive, keys, etags=etags))
    causes = {
        place: (value.stage, value.cause) for place, value in found.items() if isinstance(value, ImageFailure)
    }
    assert causes == {
        1: ("decode", "not-a-picture"),
        2: ("decode", "empty"),
        3: ("fetch", "missing"),
        4: ("fetch", "changed"),
    }


def test_the_etag_of_a_listing_is_the_etag_of_a_fetch(archive: Store) -> None:
    for info in archive.list():
        assert archive.fetch(info.key).etag == info.etag


def test_an_unreachable_store_is_an_error(archive: Store) -> None:
    def answer(key: str) -> bytes:
        raise StoreUnreachable("no answer")

    with pytest.raises(StoreUnreachable):
        list(stream(Refusing(answer), ["a"] * 100))


def test_refused_credentials_stop_the_stream_at_once() -> None:
    def answer(key: str) -> bytes:
        if key == "ok":
            return jpeg(1)
        raise StoreDenied("no")

    images = stream(Refusing(answer, list_denied=True), ["ok"] * 10 + ["x"] * 90)
    with pytest.raises(StoreDenied, match="ExpiredToken"):
        list(images)


def test_nothing_but_refusals_stops_the_stream_even_where_listing_is_allowed() -> None:
    def answer(key: str) -> bytes:
        raise StoreDenied("no")

    taken = []
    with pytest.raises(StoreDenied):
        for taken_one in stream(Refusing(answer), ["x"] * 100):
            taken.append(taken_one)
    assert len(taken) < PERMANENT_ERRORS


def test_one_refused_object_is_its_own_fault() -> None:
    def answer(key: str) -> bytes:
        if key == "x":
            raise StoreDenied("no")
        return jpeg(1)

    found = dict(stream(Refusing(answer), ["ok"] * 20 + ["x"], ahead=4))
    assert isinstance(found[20], ImageFailure) and found[20].cause == "denied"


def test_a_fault_nobody_thought_of_is_raised_not_swallowed() -> None:
    def answer(key: str) -> bytes:
        raise MemoryError("none left")

    with pytest.raises(MemoryError):
        list(stream(Refusing(answer), ["a"]))


def test_no_more_pictures_are_loaded_than_were_taken_and_may_wait() -> None:
    lock, asked = threading.Lock(), [0]

    def answer(key: str) -> bytes:
        with lock:
            asked[0] += 1
        return jpeg(1)

    images = stream(Refusing(answer), ["a"] * 200, ahead=10)
    for _ in range(5):
        next(images)
    assert asked[0] <= 5 + 10


def test_a_stream_that_is_left_early_leaves_no_threads(archive: Store) -> None:
    before = threading.active_count()
    images = stream(archive, [info.key for info in archive.list()], ahead=8)
    next(images)
    images.close()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        if thread.name.startswith("load-"):
            thread.join(5)
    assert threading.active_count() <= before


def test_a_denied_local_file_is_a_value(archive: Store) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    Path(archive.uri_of("0.jpg")).chmod(0)
    found = dict(stream(archive, ["0.jpg", "1.jpg"]))
    assert isinstance(found[0], ImageFailure) and isinstance(found[0].cause, str)
    assert not isinstance(found[1], ClvrError)
