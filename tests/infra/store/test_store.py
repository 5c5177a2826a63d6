"""One specification of the store: the first tests run on a local folder and on a real S3 server."""

import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from obstore.exceptions import GenericError

from infra.errors import (
    BadInput,
    BucketMissing,
    ClvrError,
    DiskFull,
    ObjectChanged,
    ObjectExists,
    ObjectMissing,
    StoreDenied,
    StoreUnreachable,
)
from infra.servers import SeaweedFs
from infra.store import ObjectBody, Store, StoreSettings, open_store
from infra.store.errors import store_error


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.integration)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path))
    seaweedfs: SeaweedFs = request.getfixturevalue("seaweedfs")
    return open_store(request.getfixturevalue("bucket") + "/some/prefix", seaweedfs.settings)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.integration)])
def rootless(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "nowhere"))
    seaweedfs: SeaweedFs = request.getfixturevalue("seaweedfs")
    return open_store("s3://no-such-bucket/prefix", seaweedfs.settings)


def test_get_returns_what_put_wrote(store: Store) -> None:
    store.put("dt=2026-11-22/cam=004/a.jpg", b"image")
    assert store.get("dt=2026-11-22/cam=004/a.jpg") == b"image"


def test_a_put_replaces_the_whole_object(store: Store) -> None:
    store.put("a", b"long and old")
    store.put("a", b"new")
    assert store.get("a") == b"new"


def test_an_empty_object_is_an_object(store: Store) -> None:
    store.put("empty", b"")
    assert store.get("empty") == b""


@pytest.mark.parametrize("key", ["with space.jpg", "ä/ö.jpg", "a%20b", "a#b?c&d", "dt=1/x+y", "q'uote\"s"])
def test_keys_keep_their_spelling(store: Store, key: str) -> None:
    store.put(key, b"x")
    assert store.get(key) == b"x"
    assert [info.key for info in store.list()] == [key]


def test_a_file_of_many_megabytes_goes_up_whole(
    store: Store, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("upload") / "big"
    path.write_bytes(bytes(range(256)) * 50_000)
    store.put("big", path)
    assert store.get("big") == path.read_bytes()


@pytest.mark.parametrize("key", ["../a", "a/../../b", "/etc/passwd", "a//b", "a/", "", ".", "a\nb", "a\0b"])
def test_a_key_that_could_leave_the_root_is_refused(store: Store, key: str) -> None:
    for act in (store.get, store.head, store.delete, lambda key: store.put(key, b"x")):
        with pytest.raises(BadInput):
            act(key)
    with pytest.raises(BadInput):
        store.create(key, b"x")
    with pytest.raises(BadInput):
        store.replace(key, b"x", etag="e")


def test_the_error_of_a_missing_object_has_its_whole_uri(store: Store) -> None:
    with pytest.raises(ObjectMissing, match=store.uri_of("a/b")):
        store.get("a/b")


def test_head_returns_size_and_etag_or_none(store: Store) -> None:
    assert store.head("a") is None
    store.put("a", b"four")
    info = store.head("a")
    assert info is not None
    assert (info.key, info.size) == ("a", 4)
    assert info.etag == store.fetch("a").etag
    assert '"' not in info.etag


def test_listing_and_reading_agree_on_the_etag(store: Store) -> None:
    store.put("a/b", b"x")
    (listed,) = store.list("a")
    assert listed.etag == store.fetch("a/b").etag
    assert listed.last_modified.tzinfo is not None


def test_the_etag_changes_with_the_object(store: Store) -> None:
    store.put("a", b"one")
    before = store.fetch("a").etag
    store.put("a", b"two")
    assert store.fetch("a").etag != before


def test_a_prefix_is_whole_folders(store: Store) -> None:
    for key in ("dt=1/a", "dt=1/cam=2/b", "dt=10/c", "top"):
        store.put(key, b"x")
    assert sorted(info.key for info in store.list("dt=1")) == ["dt=1/a", "dt=1/cam=2/b"]
    assert sorted(info.key for info in store.list("dt=1/")) == ["dt=1/a", "dt=1/cam=2/b"]
    assert store.folders() == ["dt=1", "dt=10"]
    assert store.folders("dt=1") == ["dt=1/cam=2"]
    assert list(store.list("nothing")) == []
    assert store.folders("nothing") == []


def test_more_objects_than_one_page_are_listed_once_each(store: Store) -> None:
    keys = {f"part/{number:04d}" for number in range(1100)}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: store.put(key, b"x"), keys))
    listed = [info.key for info in store.list()]
    assert len(listed) == len(keys)
    assert set(listed) == keys


def test_create_rejects_an_existing_key(store: Store) -> None:
    store.create("run.json", b"first")
    with pytest.raises(ObjectExists):
        store.create("run.json", b"second")
    assert store.get("run.json") == b"first"


def _race(contenders: int, act: Callable[[int], None], expected: type[ClvrError]) -> list[int]:
    barrier = threading.Barrier(contenders)

    def run(number: int) -> bool:
        barrier.wait()
        try:
            act(number)
        except expected:
            return False
        return True

    with ThreadPoolExecutor(contenders) as pool:
        return [number for number, won in enumerate(pool.map(run, range(contenders))) if won]


def test_create_has_one_winner_of_sixteen(store: Store) -> None:
    winners = _race(16, lambda number: store.create("lock", str(number).encode()), ObjectExists)
    assert len(winners) == 1
    assert store.get("lock") == str(winners[0]).encode()


def test_replace_needs_the_current_etag(store: Store) -> None:
    store.put("lock", b"one")
    etag = store.fetch("lock").etag
    store.replace("lock", b"two", etag=etag)
    with pytest.raises(ObjectChanged):
        store.replace("lock", b"three", etag=etag)
    assert store.get("lock") == b"two"


def test_replace_does_not_create(store: Store) -> None:
    for key in ("lock", "no/such/folder/lock"):
        with pytest.raises(ObjectChanged):
            store.replace(key, b"x", etag="0" * 32)
        assert store.head(key) is None


def test_replace_has_one_winner_of_sixteen(store: Store) -> None:
    store.put("lock", b"free")
    etag = store.fetch("lock").etag
    winners = _race(16, lambda n: store.replace("lock", f"{n}".encode(), etag=etag), ObjectChanged)
    assert len(winners) == 1
    assert store.get("lock") == str(winners[0]).encode()


def test_readers_never_see_half_an_object(store: Store) -> None:
    old, new = b"o" * 300_000, b"n" * 300_000
    store.put("a", old)
    done = threading.Event()

    def write() -> None:
        for _ in range(15):
            store.put("a", new)
            store.put("a", old)
        done.set()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not done.is_set() and not writing.done():
            assert store.get("a") in (old, new)
        writing.result()


def test_delete_takes_many_keys_and_ignores_missing_ones(store: Store) -> None:
    for key in ("a", "b/c", "keep"):
        store.put(key, b"x")
    store.delete("a", "missing", "b/c")
    store.delete()
    assert [info.key for info in store.list()] == ["keep"]


def test_get_many_gives_every_key_once_and_errors_as_values(store: Store) -> None:
    for number in range(0, 300, 3):
        store.put(f"k/{number}", str(number).encode())
    keys = [f"k/{number}" for number in range(300)] + ["../outside"]
    results = dict(store.get_many(keys, in_flight=8))
    assert sorted(results) == list(range(301))
    for position, result in results.items():
        if position == 300:
            assert isinstance(result, BadInput)
        elif position % 3:
            assert isinstance(result, ObjectMissing)
        else:
            assert isinstance(result, ObjectBody)
            assert result.data == str(position).encode()


@pytest.mark.parametrize("in_flight", [1, 3, 64])
def test_get_many_works_with_any_number_in_flight(store: Store, in_flight: int) -> None:
    store.put("a", b"x")
    assert len(list(store.get_many(["a"] * 10, in_flight=in_flight))) == 10
    assert list(store.get_many([], in_flight=in_flight)) == []


def test_get_many_stops_reading_when_it_is_closed_early(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("a", b"x")
    reads: list[str] = []
    fetch = store.fetch

    def counted(key: str) -> ObjectBody:
        reads.append(key)
        return fetch(key)

    monkeypatch.setattr(store, "fetch", counted)
    results = store.get_many(["a"] * 1000, in_flight=4)
    next(results)
    results.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while any(thread.name.startswith("get-many") for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a thread still works"
        time.sleep(0.01)
    assert 1 <= len(reads) <= 4


def test_a_store_travels_by_pickle_and_shows_no_secret(store: Store) -> None:
    store.put("a", b"x")
    assert pickle.loads(pickle.dumps(store)).get("a") == b"x"  # noqa: S301
    if store.settings.secret_key:
        for text in (repr(store), repr(store.settings), str(vars(store))):
            assert store.settings.secret_key not in text


def test_arrow_streams_below_the_same_root(store: Store) -> None:
    files, base = store.arrow()
    store.put("folder/a", b"by us")
    with files.open_input_stream(f"{base}/folder/a") as stream:
        assert stream.read() == b"by us"
    with files.open_output_stream(f"{base}/folder/b") as stream:
        stream.write(b"by arrow")
    assert store.get("folder/b") == b"by arrow"


def test_ensure_accepts_an_empty_root_and_writes_nothing(store: Store) -> None:
    store.ensure()
    assert list(store.list()) == []


def test_every_read_names_a_missing_root(rootless: Store) -> None:
    for act in (
        rootless.ensure,
        rootless.folders,
        lambda: rootless.get("a"),
        lambda: rootless.head("a"),
        lambda: list(rootless.list()),
    ):
        with pytest.raises(BucketMissing, match=r"no-such-bucket|nowhere") as caught:
            act()
        assert caught.value.remedy


def test_a_missing_root_is_an_error_value_of_get_many(rootless: Store) -> None:
    ((_, result),) = rootless.get_many(["a"])
    assert isinstance(result, BucketMissing)


def test_create_bucket_keeps_the_objects_of_an_existing_one(store: Store) -> None:
    store.put("a", b"x")
    for _ in range(2):
        store.create_bucket()
        assert store.get("a") == b"x"


# What only one of the two backends has.


def test_a_local_root_comes_into_being_with_its_first_object(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "new" / "root"))
    store.put("a", b"x")
    assert (tmp_path / "new" / "root" / "a").read_bytes() == b"x"


def test_local_writes_leave_no_other_file(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.create("a", b"x")
    store.replace("a", b"y", etag=store.fetch("a").etag)
    store.put("a", b"z")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_require_space_names_both_figures(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "not" / "yet"))
    store.require_space(1)
    with pytest.raises(DiskFull, match=r"1,000,000,000,000,000,000 bytes, and [\d,]+ are free"):
        store.require_space(10**18)


def test_a_full_disk_is_an_error_of_its_own() -> None:
    with (
        pytest.raises(OSError, match="No space") as caught,
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"x")
    assert isinstance(store_error(caught.value, "/dev/full"), DiskFull)


def test_a_key_below_a_file_is_an_error_locally(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("a", b"x")
    with pytest.raises(ClvrError, match="both a file and a folder"):
        store.put("a/b", b"x")


def test_wrong_keys_are_denied(seaweedfs: SeaweedFs, bucket: str) -> None:
    for wrong in ({"secret_key": "w" * 40}, {"access_key": "nobody"}):
        store = open_store(bucket, replace(seaweedfs.settings, **wrong))  # type: ignore[arg-type]
        for act in (store.ensure, lambda s=store: s.get("a"), lambda s=store: s.put("a", b"x")):
            with pytest.raises(StoreDenied) as caught:
                act()
            assert "w" * 40 not in str(caught.value)


@pytest.mark.parametrize(
    "message",
    [
        "Generic S3 error: Error performing GET http://127.0.0.1:1/b/a in 403.3ms, after 3 retries",
        "Generic S3 error: Error performing GET http://127.0.0.1:1/b/(403)/AccessDenied in 1s",
    ],
)
def test_a_duration_or_a_key_that_looks_like_403_is_not_a_denial(message: str) -> None:
    assert isinstance(store_error(GenericError(message), "s3://b/(403)/AccessDenied"), StoreUnreachable)


def test_a_denial_without_its_own_exception_is_recognised() -> None:
    for message in (
        "An error occurred (403) when calling the HeadObject operation: Forbidden",
        "Generic S3 error: Server returned non-2xx status code: 401 Unauthorized",
    ):
        assert isinstance(store_error(GenericError(message), "s3://b/a"), StoreDenied)


def test_a_reader_may_not_write(seaweedfs: SeaweedFs, bucket: str) -> None:
    open_store(bucket, seaweedfs.settings).put("a", b"x")
    reader = open_store(bucket, seaweedfs.reader)
    assert reader.get("a") == b"x"
    for act in (lambda: reader.put("a", b"y"), lambda: reader.delete("a"), lambda: reader.create("b", b"y")):
        with pytest.raises(StoreDenied):
            act()
    assert reader.get("a") == b"x"


def test_no_server_is_unreachable() -> None:
    nowhere = StoreSettings(
        endpoint="http://127.0.0.1:9", access_key="a", secret_key="s", allow_http=True, retries=1
    )
    store = open_store("s3://bucket", nowhere)
    for act in (store.ensure, lambda: store.get("a"), lambda: store.put("a", b"x"), store.create_bucket):
        with pytest.raises(StoreUnreachable, match="s3://bucket") as caught:
            act()
        assert "endpoint" in caught.value.remedy
