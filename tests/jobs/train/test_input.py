"""Input of a training: images in the requested order, by either backend, with the time spent waiting."""

import io
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clvr_model.recipe import load_recipe
from infra.errors import BadSetting, ObjectChanged
from jobs.train.distributed import DistributedContext
from jobs.train.input import Batches, ImageLoader, TimedIterator, choose_input_backend
from jobs.train.job import Images, TrainJob


@pytest.fixture
def images(tmp_path: Path) -> Images:
    """Twelve images, whose grey is 20 times their number."""
    uris = []
    for number in range(12):
        buffer = io.BytesIO()
        Image.new("RGB", (40, 30), (number * 20,) * 3).save(buffer, "PNG")
        (tmp_path / f"{number}.png").write_bytes(buffer.getvalue())
        uris.append(str(tmp_path / f"{number}.png"))
    return Images(uris, np.arange(12, dtype=np.int64) * 10)


def test_batches_follow_the_order_of_the_rows_and_the_last_may_be_short(images: Images) -> None:
    rows = np.random.default_rng(1).permutation(12).astype(np.int64)[:11]
    batches = list(ImageLoader("local", 1).batches(images, rows, 4))
    assert [len(classes) for _, classes in batches] == [4, 4, 3]
    assert np.concatenate([classes for _, classes in batches]).tolist() == (rows * 10).tolist()
    greys = np.concatenate([arrays[:, 150, 150, 0] for arrays, _ in batches])
    assert greys.tolist() == (rows * 20).tolist()


def test_no_rows_give_no_batch(images: Images) -> None:
    assert list(ImageLoader("local", 1).batches(images, np.zeros(0, np.int64), 4)) == []


def test_transform_receives_the_images_with_their_rows(images: Images) -> None:
    def brighten(arrays: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return arrays + rows.astype(np.uint8)[:, None, None, None]

    ((arrays, _),) = ImageLoader("local", 1).batches(images, np.array([3, 7]), 4, brighten)
    assert arrays[:, 0, 0, 0].tolist() == [63, 147]


def test_only_the_box_of_an_image_is_read(images: Images) -> None:
    split = np.zeros((30, 40, 3), np.uint8)
    split[:, 20:] = 200
    for uri in images.uris[:2]:
        Image.fromarray(split).save(uri)
    boxes = np.full((12, 4), -1, np.int32)
    boxes[1] = 20, 0, 40, 30
    ((arrays, _),) = ImageLoader("local", 1).batches(replace(images, boxes=boxes), np.array([1, 0]), 4)
    assert arrays[0].min() == 200
    assert arrays[1].min() == 0


def test_image_that_disappeared_is_named_in_the_error(images: Images) -> None:
    Path(images.uris[5]).unlink()
    with pytest.raises(ObjectChanged, match=r"5\.png"):
        list(ImageLoader("local", 1).batches(images, np.arange(12), 4))


def test_closing_the_batches_early_ends_all_loading_threads(images: Images) -> None:
    before = set(threading.enumerate())
    batches = ImageLoader("local", 1).batches(images, np.arange(12), 2)
    next(batches)
    assert set(threading.enumerate()) - before
    batches.close()  # type: ignore[attr-defined]
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert set(threading.enumerate()) <= before


def test_timed_iterator_counts_only_the_time_spent_waiting() -> None:
    def slow():  # type: ignore[no-untyped-def]
        for number in range(3):
            time.sleep(0.05)
            yield number

    batches = TimedIterator(slow())
    for _ in batches:
        time.sleep(0.1)
    assert 0.15 <= batches.seconds < 0.25


@pytest.mark.parametrize(
    ("workers", "gpu", "cpus", "backend"),
    [(2, False, 64, "local"), (2, True, 64, "ray"), (8, True, 16, "local"), (1, True, 3, "ray")],
)
def test_auto_chooses_ray_data_for_gpus_with_free_cpus(
    workers: int, gpu: bool, cpus: int, backend: str
) -> None:
    assert choose_input_backend("auto", workers=workers, gpu=gpu, cpus=cpus) == backend


def test_ray_data_without_free_cpus_is_rejected() -> None:
    with pytest.raises(BadSetting, match="the cluster has 3"):
        choose_input_backend("ray", workers=2, gpu=False, cpus=3)
    assert choose_input_backend("ray", workers=2, gpu=False, cpus=4) == "ray"


def test_unknown_backend_is_rejected() -> None:
    with pytest.raises(BadSetting, match="--input"):
        choose_input_backend("disk", workers=1, gpu=False, cpus=4)


@pytest.mark.parametrize("world_size", [1, 2])
def test_sets_of_a_vehicle_stay_on_one_worker_with_their_targets(world_size: int) -> None:
    vehicles = np.repeat(np.arange(8), 3)
    job = TrainJob(
        recipe=load_recipe("ccl").as_dict(),
        classes=(0, 1),
        training=Images([f"/{row}.jpg" for row in range(24)], vehicles % 2, vehicles),
        validation=Images([], np.zeros(0, np.int64)),
        folder="",
    )
    changes = ["batch=12", "stage1.images_per_vehicle=3", "network=inception_v3"]
    shares = [
        Batches(job, load_recipe("ccl", changes), DistributedContext(rank, world_size, torch.device("cpu")))
        for rank in range(world_size)
    ]
    rows = [share.epoch_rows(0, epoch=0) for share in shares]
    assert sorted(np.concatenate(rows)) == list(range(24))
    for share, part in zip(shares, rows, strict=True):
        assert share.share == 12 // world_size
        sets = vehicles[part].reshape(-1, 3)
        assert (sets == sets[:, :1]).all()
        assert job.training.targets(part).tolist() == [[v % 2, v] for v in vehicles[part].tolist()]
    # The batch of every step has four different vehicles, whatever the number of workers.
    steps = np.concatenate([vehicles[part].reshape(2, -1) for part in rows], axis=1)
    assert all(len(np.unique(step)) == 4 for step in steps)
