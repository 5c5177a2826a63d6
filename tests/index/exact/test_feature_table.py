"""Rows of several arrays are gathered and measured as if they were one array."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from index.exact.features import FeatureTable


@pytest.fixture
def arrays(tmp_path: Path) -> tuple[NDArray[np.float32], ...]:
    """An array, a read-only memory map, a strided view, and one of float64."""
    rng = np.random.default_rng(0)
    plain, strided = (rng.standard_normal((n, 6)).astype(np.float32) for n in (5, 8))
    rng.standard_normal((7, 6)).astype(np.float32).tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float32, "r", shape=(7, 6))
    return plain, mapped, strided[::2], rng.standard_normal((3, 6))


def test_gathered_rows_are_those_of_the_concatenated_arrays(arrays: tuple[NDArray[np.float32], ...]) -> None:
    table, whole = FeatureTable(arrays), np.concatenate(arrays).astype(np.float32)
    assert len(table) == len(whole) == 19
    for rows in ([0], [3, 4], [5, 6, 7], [12, 14], [18, 0, 9], list(range(19)), []):
        gathered = table.gather(np.array(rows, dtype=np.int64))
        assert gathered.tolist() == whole[rows].tolist()
        assert gathered.dtype == np.float32 and gathered.flags.c_contiguous


def test_consecutive_rows_are_not_copied(arrays: tuple[NDArray[np.float32], ...]) -> None:
    assert np.shares_memory(FeatureTable(arrays).gather(np.array([6, 7, 8])), arrays[1])


def test_pairs_within_and_between_arrays_are_measured_exactly(
    arrays: tuple[NDArray[np.float32], ...],
) -> None:
    table, whole = FeatureTable(arrays), np.concatenate(arrays).astype(np.float32).astype(np.float64)
    left, right = (index.ravel() for index in np.meshgrid(np.arange(19), np.arange(19)))
    sq_dist = table.pair_sq_distances(left, right)
    assert sq_dist == pytest.approx(np.square(whole[left] - whole[right]).sum(1), rel=1e-13)
    assert (sq_dist[left == right] == 0).all()
    assert table.pair_sq_distances(right, left).tolist() == sq_dist.tolist()
