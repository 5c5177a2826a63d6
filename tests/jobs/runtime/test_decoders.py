"""Decoder processes: each crop once with its image, and no image or kill that ends more than its crop."""

import io
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from clvr_model.preprocessing import decode
from index.archive.listing import list_crops
from index.archive.manifest import normalize_manifest
from index.archive.packing import pack_folder
from index.runs.tombstones import ErasedCrops, md5_of, read_tombstones
from infra.errors import WorkerLost
from infra.store import Store, open_store
from jobs.runtime.decoders import Batch, CropList, Decoders
from jobs.runtime.image_stream import ImageFailure

CROPS, SIZE = 40, 64
FATAL, NO_MEMORY, SLOW, HANGS = b"ends its decoder", b"no memory", b"slow", b"hangs"


def jpeg(shade: int) -> bytes:
    Image.fromarray(np.full((20, 30, 3), shade, np.uint8)).save(buffer := io.BytesIO(), "JPEG")
    return buffer.getvalue()


def decode_or_die(data: bytes, size: int, out: NDArray[np.uint8]) -> None:
    """Decode, but obey the bytes behind an image."""
    if data.endswith(FATAL):
        os.kill(os.getpid(), signal.SIGSEGV)
    if data.endswith(NO_MEMORY):
        raise MemoryError("none left")
    if data.endswith(HANGS):
        time.sleep(3600)
    if data.endswith(SLOW):
        time.sleep(0.3)
    decode(data, size, out=out)


@pytest.fixture
def archive(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "archive"))
    for number in range(CROPS):
        store.put(f"{number:02d}.jpg", jpeg(number * 6))
    return store


def decoders_of(archive: Store, *, processes: int = 1, decode_seconds: float = 60) -> Decoders:
    return Decoders(
        archive,
        processes=processes,
        batch_size=8,
        image_size=SIZE,
        decode=decode_or_die,
        decode_seconds=decode_seconds,
    )


def crops_of(archive: Store, key: object = 0, erased: ErasedCrops | None = None) -> CropList:
    manifest = normalize_manifest(list_crops(archive).crops.read())
    uris, etags = (manifest[name].to_pylist() for name in ("uri", "etag"))
    return CropList(key, uris, etags, erased or ErasedCrops())


Results = dict[str, NDArray[np.uint8] | ImageFailure]


def results_of(batches: Iterator[Batch]) -> Results:
    """The image or the failure of each crop of one list, by the last part of its URI."""
    results: Results = {}
    for batch in batches:
        for row, position in enumerate(batch.positions):
            name = batch.crops.uris[position].replace("#", "/").rpartition("/")[2]
            assert name not in results
            results[name] = batch.failures.get(row, batch.images[row].copy())
    return results


def check_images(results: Results, archive: Store, failures: dict[str, tuple[str, str]]) -> None:
    assert sorted(results) == [f"{number:02d}.jpg" for number in range(CROPS)]
    found = {name: result for name, result in results.items() if isinstance(result, ImageFailure)}
    assert {name: (failure.stage, failure.cause) for name, failure in found.items()} == failures
    for name in results.keys() - failures.keys():
        assert np.array_equal(results[name], decode(archive.get(name), SIZE))  # type: ignore[arg-type]


def test_lists_are_decoded_once_each_in_batches_of_their_own(archive: Store) -> None:
    crops = crops_of(archive)
    lists = [CropList("a", crops.uris[:21], crops.etags[:21]), CropList("none", [], []), crops]
    with decoders_of(archive, processes=2) as decoders:
        seen: dict[object, list[int]] = {}
        for batch in decoders.batches(lists):
            seen.setdefault(batch.crops.key, []).extend(batch.positions)
            for row, position in enumerate(batch.positions):
                data = archive.get(batch.crops.uris[position].rpartition("/")[2])
                assert np.array_equal(batch.images[row], decode(data, SIZE))
        assert {key: sorted(positions) for key, positions in seen.items()} == {
            "a": list(range(21)),
            "none": [],
            0: list(range(CROPS)),
        }
        check_images(results_of(decoders.batches([crops])), archive, {})


def test_faults_of_single_crops_are_values(archive: Store, tmp_path: Path, hide: Callable[..., str]) -> None:
    crops, runs = crops_of(archive), open_store(str(tmp_path / "runs"))
    runs.create_bucket()
    archive.put("03.jpg", b"no picture")
    archive.delete("05.jpg")
    hide(runs, [1], [md5_of(archive.get("07.jpg"))])
    crops = CropList(0, crops.uris, [""] * CROPS, read_tombstones(runs))
    failures = {
        "03.jpg": ("decode", "not-a-picture"),
        "05.jpg": ("fetch", "missing"),
        "07.jpg": ("fetch", "erased"),
    }
    with decoders_of(archive) as decoders:
        check_images(results_of(decoders.batches([crops])), archive, failures)


def test_a_crop_that_ends_its_decoder_twice_is_a_failure_and_the_others_are_decoded(archive: Store) -> None:
    for number in (5, 30):
        archive.put(f"{number:02d}.jpg", jpeg(1) + FATAL)
    crashed = ("decode", "crashed")
    with decoders_of(archive) as decoders:
        results = results_of(decoders.batches([crops_of(archive)]))
        check_images(results, archive, {"05.jpg": crashed, "30.jpg": crashed})
        assert "-11" in results["05.jpg"].detail  # type: ignore[union-attr]


def test_a_crop_whose_decoder_hangs_twice_is_a_failure_and_the_others_are_decoded(archive: Store) -> None:
    archive.put("05.jpg", jpeg(1) + HANGS)
    archive.put("06.jpg", jpeg(36) + SLOW)
    with decoders_of(archive, decode_seconds=1.0) as decoders:
        results = results_of(decoders.batches([crops_of(archive)]))
        check_images(results, archive, {"05.jpg": ("decode", "timeout")})
        assert "1 s" in results["05.jpg"].detail  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["single", "tar", "parquet"])
def test_killed_decoders_are_replaced_and_their_crops_are_decoded(
    archive: Store, tmp_path: Path, kind: str
) -> None:
    for number in range(0, CROPS, 4):
        archive.put(f"{number:02d}.jpg", jpeg(number) + SLOW)
    packed = open_store(str(tmp_path / "packed"))
    packed.create_bucket()
    if kind == "tar":
        pack_folder(archive, packed, "", ErasedCrops())
    if kind == "parquet":
        names = sorted(info.key for info in archive.list())
        pq.write_table(
            pa.table({"image": [archive.get(name) for name in names], "name": names}),
            sink := io.BytesIO(),
            row_group_size=CROPS // 2,
        )
        packed.put("0.parquet", sink.getvalue())
    store = archive if kind == "single" else packed
    with decoders_of(store) as decoders:

        def killing() -> Iterator[Batch]:
            for number, batch in enumerate(decoders.batches([crops_of(store)])):
                if number == 1:
                    for decoder in decoders.running:
                        decoder.process.kill()
                yield batch

        check_images(results_of(killing()), archive, {})


def test_an_error_that_is_not_of_one_crop_is_raised_and_the_decoders_can_be_used_again(
    archive: Store,
) -> None:
    crops = crops_of(archive)
    archive.put("09.jpg", jpeg(9) + NO_MEMORY)
    with decoders_of(archive) as decoders:
        with pytest.raises(MemoryError):
            results_of(decoders.batches([crops_of(archive)]))
        archive.put("09.jpg", jpeg(9))
        crops = crops_of(archive)
        for batch in decoders.batches([crops]):
            del batch
            break
        check_images(results_of(decoders.batches([crops])), archive, {})
        processes = [one.process for one in decoders.running]
    assert all(process.poll() is not None for process in processes)


def test_processes_that_do_not_start_are_an_error(archive: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.runtime.decoders._START", "raise SystemExit(3)")
    with decoders_of(archive) as decoders, pytest.raises(WorkerLost, match="status 3"):
        results_of(decoders.batches([crops_of(archive)]))
