"""Exact nearest rows under a mask that differs from probe to probe, such as "no row of its own camera".

A float64 product bounds all distances; only the rows that these bounds cannot tell apart are measured
exactly. So the result is that of `numba_kernels.pair_sq_distances`, far from zero, with tiny differences, and
with an outlier too.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.exact.numba_kernels import pair_sq_distances
from index.exact.products import subsample
from infra.errors import BadInput

NO_ROW = -1  # pads results with fewer rows than asked for, at infinite distance
_ROW_CHUNK = 8192
_MAX_MEDIAN_ROWS = 2048
_FP64_UNIT_ROUNDOFF = 2.0**-53


def require_finite(features: NDArray[np.float32]) -> None:
    """Check features (n, d). Raises BadInput for NaN and infinity."""
    bad = sum(
        int((~np.isfinite(features[start : start + _ROW_CHUNK])).any(axis=1).sum())
        for start in range(0, len(features), _ROW_CHUNK)
    )
    if bad:
        raise BadInput(
            f"{bad} of {len(features)} features hold NaN or infinity",
            remedy="embed again, or check the shards",
        )


class MaskedNearest:
    """The rows of one array of features, to be searched under masks."""

    def __init__(self, features: NDArray[np.float32]) -> None:
        """Take features (n, d). Raises BadInput for NaN and infinity."""
        require_finite(features)
        self.features = np.ascontiguousarray(features, dtype=np.float32)
        # The median keeps the bounds small where a single outlier would move the mean.
        self._origin = np.median(subsample(self.features, _MAX_MEDIAN_ROWS).astype(np.float64), axis=0)

    def bound(self, probes: NDArray[np.int64]) -> "DistanceBounds":
        """Bound the squared distances of some rows (p,), the probes, to all rows."""
        x = self._moved(self.features[probes])
        x_sq = np.einsum("ij,ij->i", x, x)
        shape = len(probes), len(self.features)
        lower, upper = np.empty(shape), np.empty(shape)
        # Both norms, the product and the sums: Higham, "Accuracy and Stability", section 3.1.
        relative = 4 * (self.features.shape[1] + 8) * _FP64_UNIT_ROUNDOFF
        for start in range(0, len(self.features), _ROW_CHUNK):
            columns = slice(start, start + _ROW_CHUNK)
            y = self._moved(self.features[columns])
            norms = x_sq[:, None] + np.einsum("ij,ij->i", y, y)
            sq_dist = norms - 2 * (x @ y.T)
            norms *= relative
            np.subtract(sq_dist, norms, out=lower[:, columns])
            np.add(sq_dist, norms, out=upper[:, columns])
        return DistanceBounds(self.features, probes, lower, upper)

    def _moved(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        return rows.astype(np.float64) - self._origin


@dataclass(frozen=True, slots=True, eq=False)
class DistanceBounds:
    """Bounds of the squared distances of probes to all rows: lower and upper, both (p, n)."""

    features: NDArray[np.float32]  # (n, d)
    probes: NDArray[np.int64]  # (p,)
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]

    def nearest(self, k: int, allowed: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return rows and exact distances, both (p, k), of the nearest rows among those `allowed` (p, n).

        They ascend by distance; equal distances rank by row. Missing rows are `NO_ROW` at infinite distance.
        """
        k = min(k, allowed.shape[1])
        kth = np.partition(np.where(allowed, self.upper, np.inf), k - 1, axis=1)[:, k - 1]
        probe, row = map(np.ascontiguousarray, np.nonzero(allowed & (self.lower <= kth[:, None])))
        sq_dist = pair_sq_distances(self.features, self.features, self.probes[probe], row)
        order = np.lexsort((row, sq_dist, probe))
        first = np.searchsorted(probe, np.arange(len(self.probes)))
        place = np.arange(len(probe)) - first[probe]  # after sorting; probes stay together
        is_near = place < k
        rows = np.full((len(self.probes), k), NO_ROW, dtype=np.int64)
        distances = np.full((len(self.probes), k), np.inf)
        chosen = order[is_near]
        rows[probe[is_near], place[is_near]] = row[chosen]
        distances[probe[is_near], place[is_near]] = np.sqrt(sq_dist[chosen])
        return rows, distances
