"""Exact nearest rows under a mask that differs from probe to probe, such as "no row of its own camera".

The result is that of `numba_kernels.pair_sq_distances`, far from zero, with tiny differences, and with an
outlier too.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.exact import NO_ID
from index.exact.knn import NearestRows
from index.exact.products import TORCH, ProductScreen, require_finite

NO_ROW = NO_ID  # pads results with fewer rows than asked for, at infinite distance


class MaskedNearest:
    """The rows of one array of features, to be searched under masks."""

    def __init__(self, features: NDArray[np.float32]) -> None:
        """Take features (n, d). Raises BadInput for NaN and infinity."""
        require_finite(features)
        self.features = np.ascontiguousarray(features, dtype=np.float32)

    def bound(self, probes: NDArray[np.int64]) -> "DistanceBounds":
        """Bound the distances of some rows (p,), the probes, to all rows."""
        screen = ProductScreen(self.features[probes], self.features, TORCH)
        screen.load(self.features)
        return DistanceBounds(self.features, probes, screen, screen.product(slice(0, len(probes))))


@dataclass(frozen=True, slots=True, eq=False)
class DistanceBounds:
    """Bounds of the distances of probes to all rows."""

    features: NDArray[np.float32]  # (n, d)
    probes: NDArray[np.int64]  # (p,)
    screen: ProductScreen
    product: NDArray[np.float32]  # (p, n)

    def nearest(self, k: int, allowed: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return rows and exact distances, both (p, k), of the nearest rows among those `allowed` (p, n).

        They ascend by distance; equal distances rank by row. Missing rows are `NO_ROW` at infinite distance.
        """
        count, rows = allowed.shape
        best = NearestRows(count, min(k, rows))
        product = np.where(allowed, self.product, np.float32(-np.inf))
        best.update_slice(
            self.screen, slice(0, count), product, self.features[self.probes], self.features, np.arange(rows)
        )
        nearest_rows, sq_dist = best.sorted()
        return nearest_rows, np.sqrt(sq_dist)
