"""Scores by each product are within the stated error bounds, and the bounds are not idle."""

import numpy as np
import pytest
import torch

from index.exact.bf16 import BF16_UNIT_ROUNDOFF, BF16Rows, bf16_error_bound, should_use_bf16
from index.exact.products import Kernel, Normalization, NormalizedRows, OneDnnKernel, error_bound


@pytest.mark.parametrize("kernel", [Kernel(), OneDnnKernel()], ids=lambda kernel: kernel.name)
def test_float32_scores_are_within_the_bound(kernel: Kernel) -> None:
    rng = np.random.default_rng(9)
    x, y = (rng.random((rows, 1024), dtype=np.float32) for rows in (40, 70))
    normalization = Normalization.fit(x, y)
    probes, gallery = normalization.apply(x), normalization.apply(y)
    true = gallery.sq_norms / 2 - probes.values.double().numpy() @ gallery.values.double().numpy().T
    product = kernel.product(kernel.probes(probes), kernel.gallery(gallery)).numpy()
    scores = (gallery.sq_norms / 2).astype(np.float32) - product
    assert (np.abs(scores - true) <= error_bound(probes.sq_norms, gallery.sq_norms, 1024)[:, None]).all()


@pytest.mark.parametrize("kind", ["random", "one-sided"])
def test_bf16_scores_are_within_the_bound(kind: str) -> None:
    rng = np.random.default_rng(10)

    def rows(count: int) -> NormalizedRows:
        values = rng.standard_normal((count, 512)).astype(np.float32)
        if kind == "one-sided":  # each value loses almost half a unit, and all of them in one direction
            values = (1 + rng.integers(0, 16, values.shape) * 2.0**-7 + 0.98 * 2.0**-8).astype(np.float32)
        return NormalizedRows(torch.from_numpy(values), np.square(values.astype(np.float64)).sum(1))

    probes, gallery = rows(30), rows(50)
    true = gallery.sq_norms / 2 - probes.values.double().numpy() @ gallery.values.double().numpy().T
    rounded = BF16Rows.of(probes), BF16Rows.of(gallery)
    product = torch.mm(rounded[0].values, rounded[1].values.T).double().numpy()
    bound = bf16_error_bound(*rounded, 512)[:, None]
    width = bound + BF16_UNIT_ROUNDOFF * (np.abs(gallery.sq_norms / 2 - true) + bound)
    error = np.abs(gallery.sq_norms / 2 - product - true)
    assert (error <= width).all()
    assert kind == "random" or error.max() > 0.4 * width.max()


def test_values_that_bf16_represents_have_no_residual() -> None:
    values = torch.tensor([[1.0, -2.5, 0.0], [2.0**-20, 3.0, 96.0]])
    rounded = BF16Rows.of(NormalizedRows(values, np.square(values.double().numpy()).sum(1)))
    assert rounded.residual_norms.tolist() == [0.0, 0.0]
    assert rounded.norms == pytest.approx(np.sqrt(rounded.sq_norms))


def test_zeros_behind_a_relu_have_no_residual_after_normalization() -> None:
    rng = np.random.default_rng(4)
    features = np.maximum(rng.standard_normal((300, 64)) - 0.3, 0).astype(np.float32)
    features[0] = 0
    residual_norms = BF16Rows.of(Normalization.fit(features).apply(features)).residual_norms
    assert residual_norms[0] == 0 < residual_norms[1:].min()


def test_an_origin_far_from_zero_is_the_mean_of_the_rows() -> None:
    rng = np.random.default_rng(5)
    features = (5.01 + 1e-4 * rng.standard_normal((300, 8))).astype(np.float32)
    assert Normalization.fit(features).origin == pytest.approx(features.mean(0, dtype=np.float64), abs=1e-6)


def test_a_small_product_is_not_benchmarked() -> None:
    assert not should_use_bf16("cpu", macs=1e6)
    assert not should_use_bf16("meta", macs=1e15)
