"""Scores by each screen are within the stated bounds, and the bounds are not idle."""

import numpy as np
import pytest
import torch

from index.exact.numba_kernels import BF16_UNIT_ROUNDOFF
from index.exact.products import (
    BF16,
    NUMPY,
    ONEDNN,
    TORCH,
    DifferenceScreen,
    Normalization,
    Product,
    ProductScreen,
    Screen,
    choose_screen,
    fastest_product,
)

PRODUCTS = [TORCH, ONEDNN, NUMPY, BF16]


def score_bounds(screen: Screen, probes: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    product = screen.product(slice(0, probes))
    rounding = np.zeros((probes, rows))
    if product.dtype == np.uint16:
        product = torch.from_numpy(product).view(torch.bfloat16).float().numpy()
        rounding = 1.01 * BF16_UNIT_ROUNDOFF * np.abs(product)
    return screen.bias - product - rounding, screen.bias + getattr(screen, "slack", 0) - product + rounding


def make_features(kind: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(9)
    x, y = (rng.standard_normal((rows, 512)).astype(np.float32) for rows in (40, 70))
    if kind == "after ReLU":
        x, y = np.maximum(x, 0), np.maximum(y, 0)
    if kind == "one-sided":  # each value loses almost half a unit, and all of them in one direction
        x, y = (
            (1 + rng.integers(0, 16, each.shape) * 2.0**-7 + 0.98 * 2.0**-8).astype(np.float32)
            for each in (x, y)
        )
    if kind == "far off":
        x, y = x + 1000, y + 1000
    return x, y


@pytest.mark.parametrize("product", PRODUCTS, ids=lambda product: product.name)
@pytest.mark.parametrize("kind", ["random", "after ReLU", "one-sided", "far off"])
def test_the_interval_of_a_distance_meets_that_of_its_score(product: Product, kind: str) -> None:
    x, y = make_features(kind)
    screen = ProductScreen(x, y, product)
    screen.load(y)
    lower, upper = score_bounds(screen, len(x), len(y))
    sq_dist = np.square(x[:, None].astype(np.float64) - y).sum(-1)
    probe = np.repeat(np.arange(len(x)), len(y))
    low, high = (each.reshape(sq_dist.shape) for each in screen.interval(sq_dist.ravel(), probe))
    assert (lower <= high).all() and (low <= upper).all()
    usual = np.median(sq_dist) * float(screen._normalization.scale) ** 2
    assert np.median(high - low + screen.slack) < (0.05 if product is BF16 else 0.001) * usual


def test_differences_are_within_their_interval() -> None:
    x, y = make_features("far off")
    screen = DifferenceScreen(x)
    screen.load(y)
    score, _ = score_bounds(screen, len(x), len(y))
    sq_dist = np.square(x[:, None].astype(np.float64) - y).sum(-1)
    low, high = (
        each.reshape(sq_dist.shape)
        for each in screen.interval(sq_dist.ravel(), np.repeat(np.arange(len(x)), len(y)))
    )
    assert (low <= score).all() and (score <= high).all()
    assert (high - low < 1e-3 * sq_dist).all()


def test_an_origin_far_from_zero_is_the_median_of_the_rows() -> None:
    rng = np.random.default_rng(5)
    features = (5.01 + 1e-4 * rng.standard_normal((300, 8))).astype(np.float32)
    features[7] = 1e6
    assert Normalization.fit(features).origin == pytest.approx(np.full(8, 5.01), abs=1e-4)


def test_features_of_usual_size_are_multiplied_as_they_are() -> None:
    x, y = make_features("after ReLU")
    assert Normalization.fit(x, y, min_gain=16).is_identity
    assert not Normalization.fit(x, y).is_identity


def test_few_probes_are_compared_by_differences_and_many_by_the_fastest_product() -> None:
    rows = np.zeros((8192, 256), np.float32)
    assert choose_screen(rows[:1], rows).name == "differences"
    assert choose_screen(rows[:30], rows).name == "torch.mm"  # too small a product for the race
    assert choose_screen(rows[:512], rows).name == fastest_product().name
    assert fastest_product(use_bf16=False).name in {"torch.mm", "oneDNN", "numpy"}
