"""Charts of pages: the distance histogram, and the accuracy of vehicle models (Figure 4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.evaluation.breakdowns import Classification, Distances

_BINS = 60
MAX_NAMED = 40
"""Bars whose names fit below them."""

MAX_NAME = 18
"""Letters of such a name."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Shares of pairs of the same vehicle and of different vehicles by L2 distance, in common bins."""

    edges: NDArray[np.float64]  # (bins + 1,)
    same: NDArray[np.float64]  # (bins,)
    different: NDArray[np.float64]
    overlap: float  # the common area, from 0 to 1
    width: float = 960.0
    height: float = 260.0

    @property
    def areas(self) -> list[str]:
        """The polygon points of the same and of different vehicles."""
        peak = max(float(self.same.max(initial=0)), float(self.different.max(initial=0)), 1e-12)
        return [self._area(share / peak) for share in (self.same, self.different)]

    @property
    def ticks(self) -> list[tuple[float, float]]:
        """The (x, distance) of five ticks."""
        first, last = float(self.edges[0]), float(self.edges[-1])
        return [(self._x(share), first + share * (last - first)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]

    @property
    def floor(self) -> float:
        """The y of the horizontal axis."""
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
    """Make the histogram over common bins; None if there are no pairs of one kind.

    The bins end at the first 0.5 % and at 99 % of the distances of each kind, because a few far pairs would
    squeeze all others; outer distances count in the first and last bin.
    """
    if not len(distances.same) or not len(distances.different):
        return None
    ranges = [np.quantile(values, [0.005, 0.99]) for values in (distances.same, distances.different)]
    first, last = float(min(ends[0] for ends in ranges)), float(max(ends[1] for ends in ranges))
    edges = np.linspace(first, max(last, first + 1e-9), _BINS + 1)
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
    name: str
    tooltip: str


@dataclass(frozen=True, slots=True)
class ClassChart:
    """The paper's Figure 4: accuracy of each class and its share of the images, by falling share.

    share_of: of which images the share is.
    """

    bars: Sequence[ClassBar]
    largest_share: float
    share_of: str = "the images"
    width: float = 960.0
    top: float = 14.0  # y of an accuracy of 100 %
    middle: float = 150.0  # y of an accuracy of 0
    share_top: float = 176.0
    bottom: float = 256.0

    @property
    def height(self) -> float:
        """The height with the names of the bars, if they fit."""
        return 400.0 if self.has_names else 290.0

    @property
    def has_names(self) -> bool:
        """Whether each bar is named below the chart, and not only where the mouse is."""
        return len(self.bars) <= MAX_NAMED


def class_chart(
    models: Classification, names: Sequence[str], training_images: Mapping[int, int] | None = None
) -> ClassChart:
    """Make the chart; `names` are those of `models.classes`, in the same order.

    training_images: model id -> number of training images, whose share the paper's figure shows; None: the
    share is that of the classified images.
    """
    counts = {row.model_id: row.pictures for row in models.classes}
    share_of = "these images"
    if training_images is not None:
        counts = {model: training_images.get(model, 0) for model in counts}
        share_of = "the training images"
    total = sum((training_images or counts).values())
    shares = {model: count / max(total, 1) for model, count in counts.items()}
    rows = sorted(zip(models.classes, names, strict=True), key=lambda row: -counts[row[0].model_id])
    largest = max(shares.values(), default=0.0) or 1.0
    step = (960.0 - 70) / max(len(models.classes), 1)
    bars = []
    for number, (row, name) in enumerate(rows):
        share = shares[row.model_id]
        height = share / largest * (256.0 - 176.0)
        bars.append(
            ClassBar(
                x=round(56 + step * number, 2),
                width=round(max(step * 0.8, 0.6), 2),
                share_y=round(256.0 - height, 2),
                share_height=round(height, 2),
                accuracy_y=round(150.0 - row.accuracy * (150.0 - 14.0), 2),
                name=name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…",
                tooltip=f"{name}: {row.accuracy:.1%} of {row.pictures:,} images, {share:.1%} of {share_of}",
            )
        )
    return ClassChart(bars, largest, share_of)
