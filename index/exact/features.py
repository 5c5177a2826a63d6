"""The input of exact counting: features as one table of rows, and the trials of a protocol's repeats."""

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from index.exact.numba_kernels import pair_sq_distances


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """The features of all images of an evaluation, numbered through one or several arrays or memory maps."""

    arrays: tuple[NDArray[np.float32], ...]  # each (n, d)

    def __len__(self) -> int:
        return sum(len(array) for array in self.arrays)

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return rows (n,) as C-contiguous float32 (n, d); consecutive rows of one array are a view."""
        array_index, offset = self._array_and_offset(rows)
        if not len(rows) or array_index.min() == array_index.max():
            array = np.asarray(self.arrays[int(array_index[0]) if len(rows) else 0])
            if len(rows) and offset[-1] - offset[0] == len(rows) - 1 and (np.diff(offset) == 1).all():
                return _contiguous(array[offset[0] : offset[-1] + 1])
            return _contiguous(array[offset])
        gathered = np.empty((len(rows), self.arrays[0].shape[1]), dtype=np.float32)
        for number, array in enumerate(self.arrays):
            gathered[array_index == number] = np.asarray(array)[offset[array_index == number]]
        return gathered

    def pair_sq_distances(
        self, left_row: NDArray[np.int64], right_row: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the exact squared distances (m,) between the rows of pairs, two arrays (m,)."""
        sq_dist = np.empty(len(left_row))
        left_array, left_offset = self._array_and_offset(left_row)
        right_array, right_offset = self._array_and_offset(right_row)
        arrays = [_contiguous(array) for array in self.arrays]
        for i, j in product(range(len(arrays)), repeat=2):
            pairs = np.flatnonzero((left_array == i) & (right_array == j))
            sq_dist[pairs] = pair_sq_distances(arrays[i], arrays[j], left_offset[pairs], right_offset[pairs])
        return sq_dist

    def _array_and_offset(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each row, the number of its array and its row within that array."""
        starts = np.cumsum([0, *(len(array) for array in self.arrays)])
        array_index = np.searchsorted(starts, rows, side="right") - 1
        return array_index, rows - starts[array_index]


@dataclass(frozen=True, slots=True)
class ProbeTrials:
    """Trials (v,), each one probe in one repeat, and their targets (m,): by trial, nearest first.

    A target is a positive of the trial's probe: an image of its vehicle whose rank is counted.
    """

    probe_row: NDArray[np.int64]  # (v,) row in the feature table
    repeat: NDArray[np.int64]  # (v,)
    num_targets: NDArray[np.int64]  # (v,)
    target_row: NDArray[np.int64]  # (m,) row in the feature table
    target_sq_dist: NDArray[np.float64]  # (m,) exact squared distance


def _contiguous(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows in the layout of the compiled loops; copies only where the layout differs."""
    return np.ascontiguousarray(rows, dtype=np.float32)
