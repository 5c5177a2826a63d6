"""Rows of several arrays are taken and measured as if they were one, whatever the arrays are."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from index.exact.features import FeatureTable


@pytest.fixture
def parts(tmp_path: Path) -> tuple[NDArray[np.float32], ...]:
    """An array, a read-only memory map, a strided view, and one of float64."""
    rng = np.random.default_rng(0)
    plain, strided = (rng.standard_normal((n, 6)).astype(np.float32) for n in (5, 8))
    rng.standard_normal((7, 6)).astype(np.float32).tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float32, "r", shape=(7, 6))
    return plain, mapped, strided[::2], rng.standard_normal((3, 6))


def test_rows_are_those_of_the_parts_in_a_row(parts: tuple[NDArray[np.float32], ...]) -> None:
    pool, whole = FeatureTable(parts), np.concatenate(parts).astype(np.float32)
    assert len(pool) == len(whole) == 19
    for rows in ([0], [3, 4], [5, 6, 7], [12, 14], [18, 0, 9], list(range(19)), []):
        taken = pool.take(np.array(rows, dtype=np.int64))
        assert taken.tolist() == whole[rows].tolist()
        assert taken.dtype == np.float32 and taken.flags.c_contiguous


def test_a_run_of_rows_is_not_copied(parts: tuple[NDArray[np.float32], ...]) -> None:
    assert np.shares_memory(FeatureTable(parts).take(np.array([6, 7, 8])), parts[1])


def test_pairs_within_and_between_parts_are_measured_exactly(parts: tuple[NDArray[np.float32], ...]) -> None:
    pool, whole = FeatureTable(parts), np.concatenate(parts).astype(np.float32).astype(np.float64)
    left, right = (each.ravel() for each in np.meshgrid(np.arange(19), np.arange(19)))
    squared = pool.squared(left, right)
    assert squared == pytest.approx(np.square(whole[left] - whole[right]).sum(1), rel=1e-13)
    assert (squared[left == right] == 0).all()
    assert pool.squared(right, left).tolist() == squared.tolist()
