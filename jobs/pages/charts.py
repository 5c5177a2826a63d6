"""Drawings of the page beside the CMC: distances of same and different vehicles, and Figure 4."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.evaluation.breakdowns import Classification, Distances

_BINS = 60


@dataclass(frozen=True, slots=True)
class Histogram:
    """Shares of same-vehicle and of different-vehicle pairs by L2 distance, over common bins."""

    edges: NDArray[np.float64]  # (bins + 1,)
    same: NDArray[np.float64]  # (bins,)
    different: NDArray[np.float64]
    overlap: float  # the area that both have in common: 0 is apart, 1 is alike
    width: float = 960.0
    height: float = 260.0

    @property
    def areas(self) -> list[str]:
        """Polygon points: of the same vehicles, and of different ones."""
        most = max(float(self.same.max(initial=0)), float(self.different.max(initial=0)), 1e-12)
        return [self._area(share / most) for share in (self.same, self.different)]

    @property
    def ticks(self) -> list[tuple[float, float]]:
        """(x, distance) of five marks."""
        low, high = float(self.edges[0]), float(self.edges[-1])
        return [(self._x(share), low + share * (high - low)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]

    @property
    def floor(self) -> float:
        """Where nothing stands."""
        return self.height - 34

    def _x(self, share: float) -> float:
        return round(20 + share * (self.width - 40), 1)

    def _area(self, heights: NDArray[np.float64]) -> str:
        bins = len(heights)
        points = [f"{self._x(0)},{self.floor}"]
        for number, height in enumerate(heights):
            y = round(self.floor - float(height) * (self.floor - 12), 1)
            points += [f"{self._x(number / bins)},{y}", f"{self._x((number + 1) / bins)},{y}"]
        return " ".join([*points, f"{self._x(1)},{self.floor}"])


def histogram(distances: Distances) -> Histogram | None:
    """Common bins over all but the outermost 0.1 % of either kind; None where one of the kinds is absent.

    What lies outside counts in the first and the last bin.
    """
    if not len(distances.same) or not len(distances.different):
        return None
    ends = [np.quantile(values, [0.001, 0.999]) for values in (distances.same, distances.different)]
    low, high = float(min(end[0] for end in ends)), float(max(end[1] for end in ends))
    edges = np.linspace(low, max(high, low + 1e-9), _BINS + 1)
    same, different = (
        np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / len(values)
        for values in (distances.same, distances.different)
    )
    return Histogram(edges, same, different, float(np.minimum(same, different).sum()))


@dataclass(frozen=True, slots=True)
class ClassBar:
    """One vehicle model in Figure 4."""

    x: float
    width: float
    share_y: float
    share_height: float
    accuracy_y: float
    text: str  # what a pointer over it says


@dataclass(frozen=True, slots=True)
class ClassChart:
    """The paper's Figure 4: accuracy of each class above its share of the pictures, by falling share."""

    bars: Sequence[ClassBar]
    largest_share: float
    width: float = 960.0
    top: float = 14.0  # where accuracy is 100 %
    middle: float = 150.0  # where accuracy is 0
    share_top: float = 176.0
    bottom: float = 256.0


def class_chart(models: Classification, names: Sequence[str]) -> ClassChart:
    """`names` stand for `models.classes`, in their order."""
    largest = max((one.share for one in models.classes), default=1.0)
    step = (960.0 - 70) / max(len(models.classes), 1)
    bars = []
    for number, (one, name) in enumerate(zip(models.classes, names, strict=True)):
        height = one.share / largest * (256.0 - 176.0)
        bars.append(
            ClassBar(
                x=round(56 + step * number, 2),
                width=round(max(step * 0.8, 0.6), 2),
                share_y=round(256.0 - height, 2),
                share_height=round(height, 2),
                accuracy_y=round(150.0 - one.accuracy * (150.0 - 14.0), 2),
                text=f"{name}: {one.accuracy:.1%} of {one.pictures:,} pictures, {one.share:.1%} of all",
            )
        )
    return ClassChart(bars, largest)
