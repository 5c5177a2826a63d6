"""Pictures for training: in the order asked for, by either way, with the time they are waited for."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.errors import BadSetting, ObjectChanged
from jobs.train.input import ImageLoader, TimedIterator, choose_input_backend
from jobs.train.job import Pictures


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    """Twelve pictures, each as grey as its number says."""
    uris = []
    for number in range(12):
        buffer = io.BytesIO()
        Image.new("RGB", (40, 30), (number * 20,) * 3).save(buffer, "PNG")
        (tmp_path / f"{number}.png").write_bytes(buffer.getvalue())
        uris.append(str(tmp_path / f"{number}.png"))
    return Pictures(uris, np.arange(12, dtype=np.int64) * 10)


def test_batches_come_in_the_order_of_the_rows_and_the_last_one_may_be_short(pictures: Pictures) -> None:
    rows = np.random.default_rng(1).permutation(12).astype(np.int64)[:11]
    batches = list(ImageLoader("local", 1).batches(pictures, rows, 4))
    assert [len(classes) for _, classes in batches] == [4, 4, 3]
    assert np.concatenate([classes for _, classes in batches]).tolist() == (rows * 10).tolist()
    greys = np.concatenate([each[:, 150, 150, 0] for each, _ in batches])
    assert greys.tolist() == (rows * 20).tolist()


def test_without_rows_there_is_no_batch(pictures: Pictures) -> None:
    assert list(ImageLoader("local", 1).batches(pictures, np.zeros(0, np.int64), 4)) == []


def test_pictures_are_changed_where_they_are_decoded_and_by_their_rows(pictures: Pictures) -> None:
    def change(found: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return found + rows.astype(np.uint8)[:, None, None, None]

    ((found, _),) = ImageLoader("local", 1).batches(pictures, np.array([3, 7]), 4, change)
    assert found[:, 0, 0, 0].tolist() == [63, 147]


def test_a_picture_that_is_gone_since_the_start_stops_it_by_name(pictures: Pictures) -> None:
    Path(pictures.uris[5]).unlink()
    with pytest.raises(ObjectChanged, match=r"5\.png"):
        list(ImageLoader("local", 1).batches(pictures, np.arange(12), 4))


def test_leaving_in_the_middle_leaves_no_thread_working(pictures: Pictures) -> None:
    batches = ImageLoader("local", 1).batches(pictures, np.arange(12), 2)
    next(batches)
    batches.close()  # type: ignore[attr-defined]


def test_only_the_time_in_which_a_batch_was_waited_for_is_counted() -> None:
    def slow():  # type: ignore[no-untyped-def]
        for number in range(3):
            time.sleep(0.05)
            yield number

    waiting = TimedIterator(slow())
    for _ in waiting:
        time.sleep(0.1)
    assert 0.15 <= waiting.seconds < 0.25


@pytest.mark.parametrize(
    ("workers", "gpu", "cpus", "way"),
    [(2, False, 64, "local"), (2, True, 64, "ray"), (8, True, 16, "local"), (1, True, 3, "ray")],
)
def test_ray_data_is_taken_where_gpus_learn_and_cpus_are_left(
    workers: int, gpu: bool, cpus: int, way: str
) -> None:
    assert choose_input_backend("auto", workers=workers, gpu=gpu, cpus=cpus) == way


def test_ray_data_without_a_cpu_to_decode_on_is_refused_instead_of_waiting_for_ever() -> None:
    with pytest.raises(BadSetting, match="the cluster has 3"):
        choose_input_backend("ray", workers=2, gpu=False, cpus=3)
    assert choose_input_backend("ray", workers=2, gpu=False, cpus=4) == "ray"


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(BadSetting, match="--input"):
        choose_input_backend("disk", workers=1, gpu=False, cpus=4)
