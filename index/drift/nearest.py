"""Distances to the nearest crop by another camera: those of new crops against those of earlier ones.

A threshold is a distance. If new crops are nearer to the archive than earlier ones were, or farther, a
calibrated threshold no longer keeps its rate of false alarms. Both samples are compared with one gallery,
because the nearest crop is nearer in a larger one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_PROBES = 500
MAX_GALLERY = 4000
MIN_PROBES = 30
LIMIT = 0.1
_RESAMPLES = 1000
_PROBE_CHUNK = 100


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Some crops: features (n, d) and cameras (n,)."""

    features: NDArray[np.float32]
    cameras: NDArray[np.str_]


@dataclass(frozen=True, slots=True)
class NearestChange:
    """Median distances (L2) to the nearest crop by another camera, and the relative change.

    low, high: 95 % interval of the change, by the bootstrap over probes.
    """

    gallery: int
    recent_probes: int
    earlier_probes: int
    recent: float
    earlier: float
    change: float
    low: float
    high: float

    @property
    def alert(self) -> str:
        """Say that the change is large and no accident; '' if it is not."""
        if abs(self.change) <= LIMIT or self.low <= 0 <= self.high:
            return ""
        word = "farther" if self.change > 0 else "nearer"
        return (
            f"the nearest crop by another camera is {abs(self.change):.0%} {word} than it was "
            f"({self.recent:.3g} instead of {self.earlier:.3g}): a calibrated threshold is out of date"
        )


def nearest_change(recent: Sample, earlier: Sample, gallery: Sample, seed: int = 0) -> NearestChange | None:
    """Compare the last weeks' crops with earlier ones; None with fewer than MIN_PROBES of either.

    The samples do not overlap. Raises BadInput for features that are not finite.
    """
    near = [_nearest(probes, gallery) for probes in (recent, earlier)]
    if min(map(len, near)) < MIN_PROBES:
        return None
    medians = [float(np.median(distances)) for distances in near]
    if not medians[1]:
        return None
    rng = np.random.default_rng(seed)
    drawn = [np.median(rng.choice(distances, (_RESAMPLES, len(distances))), axis=1) for distances in near]
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = np.nanquantile(drawn[0] / drawn[1] - 1, [0.025, 0.975]).tolist()
    return NearestChange(
        gallery=len(gallery.features),
        recent_probes=len(near[0]),
        earlier_probes=len(near[1]),
        recent=medians[0],
        earlier=medians[1],
        change=medians[0] / medians[1] - 1,
        low=low,
        high=high,
    )


def _nearest(probes: Sample, gallery: Sample) -> NDArray[np.float64]:
    """Distances of the probes that have a crop by another camera in the gallery."""
    from index.exact.masked import MaskedNearest

    count = len(probes.features)
    if not count or not len(gallery.features):
        return np.empty(0)
    searcher = MaskedNearest(np.concatenate([probes.features, gallery.features]))
    found = []
    for start in range(0, count, _PROBE_CHUNK):
        rows = np.arange(start, min(start + _PROBE_CHUNK, count))
        allowed = np.zeros((len(rows), count + len(gallery.features)), bool)
        allowed[:, count:] = probes.cameras[rows, None] != gallery.cameras
        found.append(searcher.bound(rows).nearest(1, allowed)[1][:, 0])
    distances = np.concatenate(found)
    return distances[np.isfinite(distances)]
