"""Order of an epoch in sets: K images of a vehicle stand together, and no batch has a vehicle twice."""

import numpy as np
from numpy.typing import NDArray

from infra.errors import BadLabels

MIN_IMAGES = 2  # a vehicle with one image has nothing to bring together
MIN_VEHICLES = 2  # one vehicle has no negatives


def vehicle_order(
    vehicles: NDArray[np.int64],
    *,
    images: int,
    batch: int,
    seed: int,
    stage: int,
    epoch: int,
    models: NDArray[np.int64] | None = None,
    times: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Return an epoch's order over images of vehicles (n,): whole batches of `batch // images` sets.

    A set is `images` rows of one vehicle, one after the other; a vehicle with fewer images repeats some. In a
    batch all vehicles differ. An epoch has about as many rows as there are images, in rounds in which every
    vehicle has one set; the last sets of a round that fill no batch are left out, at random. Equal for equal
    arguments. models (n,): the vehicles of a model follow each other in a round, so that a batch has several
    of it. times (n,): vehicles of about the same time are in a batch, and the batches are in random order.
    Raises BadLabels if fewer vehicles have MIN_IMAGES images than a batch needs.
    """
    rng = np.random.default_rng([seed, stage, epoch])
    known, numbers, counts = np.unique(vehicles, return_inverse=True, return_counts=True)
    usable = np.flatnonzero(counts >= MIN_IMAGES)
    sets = batch // images
    if len(usable) < sets:
        fit = images * len(usable)
        raise BadLabels(
            f"a batch of {batch} takes {sets} vehicles of {images} images, and {len(usable)} of {len(known)} "
            f"vehicles have {MIN_IMAGES} images or more",
            remedy=(
                f"--set batch={fit}, or label more vehicles"
                if len(usable) >= MIN_VEHICLES
                else "label more images with their vehicle"
            ),
        )
    rounds = max(1, round(int(counts[usable].sum()) / (images * len(usable))))
    by_vehicle = np.split(np.argsort(numbers, kind="stable"), np.cumsum(counts)[:-1])
    rows = np.empty((len(usable), rounds * images), np.int64)
    for place, vehicle in enumerate(usable):
        rows[place] = _repeated(by_vehicle[vehicle], rounds * images, rng)
    whole = len(usable) - len(usable) % sets
    order = []
    for turn in range(rounds):
        shuffled = rng.permutation(len(usable))
        if models is not None:
            # The roll decides which vehicles fill no batch.
            grouped = _grouped(shuffled, models[rows[shuffled, 0]], rng)
            shuffled = np.roll(grouped, -int(rng.integers(len(usable))))
        if times is not None:
            by_time = shuffled[np.argsort(times[rows[shuffled, 0]], kind="stable")]
            by_time = np.roll(by_time, -int(rng.integers(len(usable))))
            shuffled = rng.permutation(by_time[:whole].reshape(-1, sets)).ravel()
        order.append(rows[shuffled[:whole], turn * images : (turn + 1) * images])
    return np.concatenate(order).ravel()


def _grouped(
    vehicles: NDArray[np.int64], models: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Put vehicles of equal models (n,) beside each other; models in random order, vehicles as they were."""
    _, numbers = np.unique(models, return_inverse=True)
    return vehicles[np.argsort(rng.permutation(numbers.max() + 1)[numbers], kind="stable")]


def _repeated(members: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw `count` members, all of them equally often up to one."""
    permutations = [rng.permutation(members) for _ in range(-(-count // len(members)))]
    return np.concatenate(permutations)[:count]


def share_of_sets(order: NDArray[np.int64], images: int, *, rank: int, world_size: int) -> NDArray[np.int64]:
    """Return a worker's rows of an order in sets of `images` rows: every `world_size`-th set, whole."""
    return order.reshape(-1, images)[rank::world_size].ravel()
