"""Exact distances are float64 sums of differences, equal in both directions to the last bit."""

import numpy as np
import pytest

from index.exact.numba_kernels import pair_sq_distances


def test_pairs_are_measured_by_differences() -> None:
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((n, 37)).astype(np.float32) for n in (5, 6))
    left_row, right_row = np.array([0, 4, 4, 2]), np.array([5, 0, 1, 1])
    true = np.square(left[left_row].astype(np.float64) - right[right_row]).sum(1)
    assert pair_sq_distances(left, right, left_row, right_row) == pytest.approx(true, rel=1e-14)
    assert pair_sq_distances(left, left, left_row, left_row).tolist() == [0, 0, 0, 0]
    assert len(pair_sq_distances(left, right, left_row[:0], right_row[:0])) == 0


def test_the_distance_of_a_pair_is_the_same_in_both_directions_to_the_last_bit() -> None:
    rng = np.random.default_rng(1)
    left, right = (rng.standard_normal((50, 1021)).astype(np.float32) for _ in range(2))
    left_row, right_row = rng.integers(0, 50, (2, 300))
    forward = pair_sq_distances(left, right, left_row, right_row)
    reverse = pair_sq_distances(right, left, right_row, left_row)
    assert forward.tolist() == reverse.tolist()


def test_read_only_rows_are_accepted_and_strided_rows_are_refused() -> None:
    rows = np.zeros((4, 8), np.float32)
    rows.flags.writeable = False
    index = np.arange(4)
    assert pair_sq_distances(rows, rows, index, index).tolist() == [0] * 4
    with pytest.raises(TypeError):
        pair_sq_distances(rows[:, ::2], rows[:, ::2], index, index)
