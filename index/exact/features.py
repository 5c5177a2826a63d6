"""What CMC counts over: the pictures of an evaluation as numbered rows, and the trials of its repeats."""

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from index.exact.numba_kernels import pair_sq_distances


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """All pictures of an evaluation as one numbered list of rows, in one or several arrays or memory maps."""

    parts: tuple[NDArray[np.float32], ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows (n,) as float32 (n, d), C-contiguous; a run of rows in one part is a view."""
        owner, within = self._located(rows)
        if not len(rows) or owner.min() == owner.max():
            part = np.asarray(self.parts[int(owner[0]) if len(rows) else 0])
            if len(rows) and within[-1] - within[0] == len(rows) - 1 and (np.diff(within) == 1).all():
                return _contiguous(part[within[0] : within[-1] + 1])
            return _contiguous(part[within])
        taken = np.empty((len(rows), self.parts[0].shape[1]), dtype=np.float32)
        for number, part in enumerate(self.parts):
            taken[owner == number] = np.asarray(part)[within[owner == number]]
        return taken

    def squared(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """Exact squared distances between the rows of pairs, two arrays (m,)."""
        squared = np.empty(len(left))
        of_left, x = self._located(left)
        of_right, y = self._located(right)
        parts = [_contiguous(part) for part in self.parts]
        for first, second in product(range(len(parts)), repeat=2):
            some = np.flatnonzero((of_left == first) & (of_right == second))
            squared[some] = pair_sq_distances(parts[first], parts[second], x[some], y[some])
        return squared

    def _located(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each row the number of its part, and its place there."""
        starts = np.cumsum([0, *(len(part) for part in self.parts)])
        owner = np.searchsorted(starts, rows, side="right") - 1
        return owner, rows - starts[owner]


@dataclass(frozen=True, slots=True)
class ProbeTrials:
    """Trials (v,), and flat over their true matches (m,), by trial and nearest first."""

    probe: NDArray[np.int64]  # (v,) row in the pool
    repeat: NDArray[np.int64]  # (v,)
    matches: NDArray[np.int64]  # (v,) how many true matches
    entry: NDArray[np.int64]  # (m,) row of each
    limit: NDArray[np.float64]  # (m,) its exact squared distance


def _contiguous(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows as the compiled loops take them: not copied if they are so already."""
    return np.ascontiguousarray(rows, dtype=np.float32)
