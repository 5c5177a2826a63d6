"""What rounding to bfloat16 can change is bounded by what was measured; pairs score as a matrix does."""

import numpy as np
import pytest
import torch

from index.exact.products import (
    BF16_UNIT_ROUNDOFF,
    BF16Rows,
    Normalization,
    NormalizedRows,
    bf16_error_bound,
    should_use_bf16,
)


@pytest.mark.parametrize("kind", ["random", "one-sided"])
def test_rounded_scores_lie_within_the_stated_width(kind: str) -> None:
    rng = np.random.default_rng(10)

    def rows(count: int) -> NormalizedRows:
        values = rng.standard_normal((count, 512)).astype(np.float32)
        if kind == "one-sided":  # each value loses almost half a step, and all of them to the same side
            values = (1 + rng.integers(0, 16, values.shape) * 2.0**-7 + 0.98 * 2.0**-8).astype(np.float32)
        return NormalizedRows(torch.from_numpy(values), np.square(values.astype(np.float64)).sum(1))

    probes, gallery = rows(30), rows(50)
    true = gallery.squares / 2 - probes.values.double().numpy() @ gallery.values.double().numpy().T
    rounded = BF16Rows.of(probes), BF16Rows.of(gallery)
    product = torch.mm(rounded[0].values, rounded[1].values.T).double().numpy()
    bound = bf16_error_bound(*rounded, 512)[:, None]
    width = bound + BF16_UNIT_ROUNDOFF * (np.abs(gallery.squares / 2 - true) + bound)
    off = np.abs(gallery.squares / 2 - product - true)
    assert (off <= width).all()
    assert kind == "random" or off.max() > 0.4 * width.max()  # the width is not idle


def test_values_that_bfloat16_holds_lose_nothing() -> None:
    values = torch.tensor([[1.0, -2.5, 0.0], [2.0**-20, 3.0, 96.0]])
    rounded = BF16Rows.of(NormalizedRows(values, np.square(values.double().numpy()).sum(1)))
    assert rounded.lost.tolist() == [0.0, 0.0]
    assert rounded.lengths == pytest.approx(np.sqrt(rounded.squares))


def test_zeros_behind_a_relu_lose_nothing_in_the_frame() -> None:
    rng = np.random.default_rng(4)
    features = np.maximum(rng.standard_normal((300, 64)) - 0.3, 0).astype(np.float32)
    features[0] = 0
    placed = Normalization.around(features).place(features)
    lost = BF16Rows.of(placed).lost
    assert lost[0] == 0 < lost[1:].min()


def test_a_frame_far_from_zero_stays_in_the_middle_of_its_rows() -> None:
    rng = np.random.default_rng(5)
    features = (5.01 + 1e-4 * rng.standard_normal((300, 8))).astype(np.float32)
    assert Normalization.around(features).origin == pytest.approx(
        features.mean(0, dtype=np.float64), abs=1e-6
    )


def test_little_work_is_not_worth_the_question() -> None:
    assert not should_use_bf16("cpu", work=1e6)
    assert not should_use_bf16("meta", work=1e15)
