"""What CMC counts over: the pictures of an evaluation as numbered rows, and the trials of its repeats."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.distances import PAIRS_AT_ONCE, exact_squared

_TAKEN_AT_ONCE = 8 * PAIRS_AT_ONCE  # finding a pair's rows costs more per call than per pair


@dataclass(frozen=True, slots=True)
class Pool:
    """All pictures of an evaluation as one numbered list of rows, in one or several arrays or memory maps."""

    parts: tuple[NDArray[np.float32], ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows (n,) as float32 (n, d); a run of rows in one part is a view."""
        starts = np.cumsum([0, *(len(part) for part in self.parts)])
        owner = np.searchsorted(starts, rows, side="right") - 1
        if not len(rows) or owner.min() == owner.max():
            number = int(owner[0]) if len(rows) else 0
            part, within = np.asarray(self.parts[number]), rows - starts[number]
            if len(rows) and within[-1] - within[0] == len(rows) - 1 and (np.diff(within) == 1).all():
                return part[within[0] : within[-1] + 1]
            return np.asarray(part[within])
        taken = np.empty((len(rows), self.parts[0].shape[1]), dtype=np.float32)
        for number, part in enumerate(self.parts):
            taken[owner == number] = np.asarray(part)[rows[owner == number] - starts[number]]
        return taken

    def squared(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """Exact squared distances between the rows of pairs, two arrays (m,)."""
        squared = np.empty(len(left))
        for start in range(0, len(left), _TAKEN_AT_ONCE):
            some = slice(start, start + _TAKEN_AT_ONCE)
            x, y = self.take(left[some]), self.take(right[some])
            for first in range(0, len(x), PAIRS_AT_ONCE):
                part = slice(first, first + PAIRS_AT_ONCE)
                squared[some][part] = exact_squared(x[part], y[part])
        return squared


@dataclass(frozen=True, slots=True)
class Trials:
    """Trials (v,), and flat over their true matches (m,), by trial and nearest first."""

    probe: NDArray[np.int64]  # (v,) row in the pool
    repeat: NDArray[np.int64]  # (v,)
    matches: NDArray[np.int64]  # (v,) how many true matches
    entry: NDArray[np.int64]  # (m,) row of each
    limit: NDArray[np.float64]  # (m,) its exact squared distance
