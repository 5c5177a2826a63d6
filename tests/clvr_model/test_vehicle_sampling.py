"""P x K sampling: sets stay whole, batches hold different vehicles, and epochs are equal for equal seeds."""

from typing import Any

import numpy as np
import pytest

from clvr_model.vehicle_sampling import share_of_sets, vehicle_order
from infra.errors import BadLabels


def _vehicles(seed: int = 0) -> np.ndarray:
    """11 vehicles of 2 to 9 images and two of one image, in random order."""
    rng = np.random.default_rng(seed)
    counts = [2, 3, 4, 5, 5, 6, 6, 7, 8, 9, 9, 1, 1]
    return rng.permutation(np.repeat(1000 + np.arange(len(counts)), counts))


def _order(vehicles: np.ndarray, **changes: Any) -> np.ndarray:
    settings = {"images": 3, "batch": 12, "seed": 5, "stage": 1, "epoch": 0} | changes
    return vehicle_order(vehicles, **settings)


def test_batches_are_whole_sets_of_different_vehicles() -> None:
    vehicles = _vehicles()
    for epoch in range(5):
        order = _order(vehicles, epoch=epoch)
        assert len(order) and len(order) % 12 == 0
        for batch in vehicles[order].reshape(-1, 4, 3):
            assert (batch == batch[:, :1]).all()
            assert len(np.unique(batch[:, 0])) == 4


def test_single_images_are_left_out_and_few_images_repeat() -> None:
    vehicles = _vehicles()
    orders = np.concatenate([_order(vehicles, epoch=epoch) for epoch in range(30)])
    assert not set(vehicles[orders]) & {1011, 1012}
    usable = np.flatnonzero(~np.isin(vehicles, [1011, 1012]))
    assert set(orders) == set(usable)
    sets = orders.reshape(-1, 3)
    for row in sets:
        available = int((vehicles == vehicles[row[0]]).sum())
        # A set shows as many different images as the vehicle has, unless it spans two permutations.
        assert len(set(row)) >= min(2, available)


def test_epoch_is_as_long_as_the_data() -> None:
    vehicles = np.repeat(np.arange(40), 6)
    assert len(_order(vehicles)) == 240
    assert sorted(_order(vehicles)) == list(range(240))  # six images are two sets: each image once


def test_equal_arguments_give_equal_orders() -> None:
    vehicles = _vehicles()
    assert np.array_equal(_order(vehicles), _order(vehicles))
    for change in ({"seed": 6}, {"stage": 2}, {"epoch": 1}):
        assert not np.array_equal(_order(vehicles), _order(vehicles, **change))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_workers_share_every_batch_in_whole_sets(world_size: int) -> None:
    vehicles = _vehicles()
    order = _order(vehicles)
    shares = [share_of_sets(order, 3, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    size = 12 // world_size
    for number, batch in enumerate(order.reshape(-1, 12)):
        parts = [share[number * size : (number + 1) * size] for share in shares]
        assert sorted(np.concatenate(parts)) == sorted(batch)
        for part in parts:
            assert (vehicles[part].reshape(-1, 3) == vehicles[part].reshape(-1, 3)[:, :1]).all()


def test_vehicles_of_a_model_share_batches() -> None:
    vehicles = np.repeat(np.arange(40), 3)
    models = np.repeat(np.arange(10), 12)  # four vehicles each
    rivals = []
    for epoch in range(5):
        order = _order(vehicles, epoch=epoch, models=models)
        assert sorted(order) == list(range(120))
        for batch in order.reshape(-1, 12):
            assert len(np.unique(vehicles[batch])) == 4
            rivals.append(np.bincount(models[batch[::3]]).max())
    assert min(rivals) >= 2  # four of 40 in a row always have two of one model
    assert np.mean(rivals) > 2.5


def test_too_few_vehicles_name_a_batch_that_fits() -> None:
    vehicles = np.repeat(np.arange(3), 4)
    with pytest.raises(BadLabels, match="3 of 3 vehicles") as caught:
        _order(vehicles)
    assert "batch=9" in caught.value.remedy
    assert len(_order(vehicles, batch=9)) % 9 == 0
    with pytest.raises(BadLabels) as caught:
        _order(np.array([1, 2, 2, 3]))
    assert "batch" not in caught.value.remedy
