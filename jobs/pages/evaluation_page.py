"""The HTML report of an evaluation: strips of crops, the CMC with its protocols, and the counts.

The page is self-contained and has no script: the content policy admits its inline styles by their hash,
images are inline JPEG, curves are inline SVG. All data are escaped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from index.evaluation.breakdowns import (
    FALSE_POSITIVE_RATES,
    AttributeAccuracy,
    CameraPair,
    Classification,
    Distances,
    TimeOfDay,
    ValueRanks,
)
from index.evaluation.index_recall import IndexCmcLoss
from index.evaluation.metrics import METRICS, REPORTED_RANKS, Metric
from index.evaluation.model_groups import Oracle
from index.evaluation.protocols import ProtocolResult
from index.runs.balance import RunBalance
from index.schema import UNKNOWN_TIME
from infra.errors import CountMismatch
from jobs.pages.charts import ClassChart, Histogram, class_chart, histogram
from jobs.pages.html import render
from jobs.pages.published import PUBLISHED_MODEL_ACCURACY, Published

BASELINE = "baseline"
"""How the name of the baseline's features starts, among the variants."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A crop on the page: JPEG bytes and its labels. Empty strings and -1 mean unknown."""

    jpeg: bytes = field(repr=False)
    vehicle: str = ""
    camera: str = ""
    captured_at: int = UNKNOWN_TIME  # ms since 1970, UTC
    model: str = ""  # predicted
    attributes: Sequence[str] = ()  # predicted color and body type, as text


@dataclass(frozen=True, slots=True)
class Ranked:
    """A gallery image at its rank."""

    sighting: Sighting
    distance: float  # L2
    correct: bool  # whether it is the vehicle of the probe


@dataclass(frozen=True, slots=True)
class Strip:
    """A probe and its first ranks."""

    probe: Sighting
    ranked: Sequence[Ranked]
    first_hit: int | None  # rank of the first true match, if known

    @property
    def panel(self) -> int:
        """0: first match at rank 1; 1: at ranks 2 to 5; 2: below."""
        if self.first_hit is None or self.first_hit > 5:
            return 2
        return 0 if self.first_hit == 1 else 1


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Number of probes by the rank of their first true match: 1, 2 to 5, or below."""

    at_1: int
    in_2_to_5: int
    missed: int
    method: str = ""  # such as 'leave-one-out, first repeat, exact L2'


@dataclass(frozen=True, slots=True)
class Counts:
    """The accounting of a run: listed = embedded + quarantined + duplicates."""

    listed: int
    embedded: int
    quarantined: int = 0
    duplicates: int = 0
    causes: Mapping[str, int] = field(default_factory=dict)  # of quarantine


@dataclass(frozen=True, slots=True)
class ModelAccuracy:
    """Accuracy of the classifier of vehicle models on validation images."""

    micro: float  # over images
    macro: float  # mean over classes
    classes: int
    images: int
    chance: float  # share of the largest class


@dataclass(frozen=True, slots=True)
class Timing:
    """One stage of the run."""

    stage: str
    seconds: float
    amount: int = 0
    unit: str = ""  # of `amount`, in the plural


@dataclass(frozen=True, slots=True)
class Classified:
    """A crop whose model was predicted (Figure 5)."""

    sighting: Sighting
    true: str
    confidence: float
    correct: bool


@dataclass(frozen=True, slots=True)
class ListSection:
    """The part of the page on one list of images. `dataset` says in words which images these are."""

    dataset: str
    name: str = ""  # of the list, '' if there is only one
    results: Sequence[ProtocolResult] = ()  # the first is the headline
    strips: Sequence[Strip] = ()
    outcomes: Outcomes | None = None
    variants: Sequence[ProtocolResult] = ()  # the same splits with other features or re-ranking
    hardest: Sequence[Strip] = ()  # probes with the worst rank of the first true match
    distances: Distances | None = None
    models: Classification | None = None
    model_names: Sequence[str] = ()  # of `models.classes`
    classified: Sequence[Classified] = ()
    camera_pairs: Sequence[CameraPair] = ()
    day_parts: Sequence[TimeOfDay] = ()
    attributes: Sequence[AttributeAccuracy] = ()
    by_color: Sequence[ValueRanks] = ()
    index: IndexCmcLoss | None = None
    not_ranked: Sequence[str] = ()  # excluded crops and labels, with the reason
    oracles: Mapping[str, Sequence[Oracle]] = field(default_factory=dict)  # by protocol
    published: Published | None = None

    @property
    def panels(self) -> list[list[Strip]]:
        """The strips by the rank of their first true match."""
        return [[strip for strip in self.strips if strip.panel == panel] for panel in range(3)]

    @property
    def chart(self) -> "Chart":
        """The CMC chart of the protocols."""
        return Chart(max_rank=min([len(result.mean) for result in self.results], default=1))

    @property
    def rates(self) -> list[tuple[float, float | None]]:
        """The true positive rate at each of the false positive rates; None for too few pairs."""
        distances = self.distances
        return [(rate, distances.tpr_at_fpr(rate) if distances else None) for rate in FALSE_POSITIVE_RATES]

    @property
    def histogram(self) -> Histogram | None:
        """The histogram of distances."""
        return histogram(self.distances) if self.distances else None

    @property
    def classes(self) -> ClassChart | None:
        """The chart of the accuracy of each vehicle model."""
        return class_chart(self.models, self.model_names) if self.models else None


@dataclass(frozen=True, slots=True)
class EvaluationPage:
    """The content of the page. `note`: limits of the figures. The headline is of the first list."""

    title: str
    summary: str
    dataset: str
    note: str
    counts: Counts
    lists: Sequence[ListSection] = ()
    metrics: Sequence[Metric] = METRICS  # to show besides the CMC
    model_accuracy: ModelAccuracy | None = None
    timings: Sequence[Timing] = ()
    facts: Mapping[str, str] = field(default_factory=dict)  # fingerprint, device, version, date, …
    command: str = ""  # that makes this page

    @property
    def headline(self) -> ProtocolResult | None:
        """The result whose figures head the page."""
        return next((section.results[0] for section in self.lists if section.results), None)

    @property
    def baseline(self) -> ProtocolResult | None:
        """The baseline's result by the protocol of the headline, if there is a baseline."""
        headline = self.headline
        variants = self.lists[0].variants if self.lists and headline else ()
        return next(
            (
                result
                for result in variants
                if headline and result.name == headline.name and result.features.startswith(BASELINE)
            ),
            None,
        )

    @property
    def beside(self) -> ProtocolResult | None:
        """The result by the paper's protocol, if the headline is another protocol's."""
        results = self.lists[0].results if self.lists else ()
        return next((result for result in results[1:] if result.name == "vehicleid-paper"), None)


@dataclass(frozen=True, slots=True)
class Line:
    """A protocol's curve in the coordinates of the drawing."""

    result: ProtocolResult
    path: str
    band: str
    chance: str
    label_y: float
    marks: list[tuple[int, float, float, float, float]]  # rank, x, y, mean, std


@dataclass(frozen=True, slots=True)
class Chart:
    """The CMC chart: 0 to 100 % over ranks 1 to `max_rank`."""

    max_rank: int
    width: float = 960.0
    height: float = 420.0
    left: float = 52.0
    right: float = 150.0
    top: float = 14.0
    bottom: float = 46.0

    def x(self, rank: float) -> float:
        """Return the x of a rank."""
        span = self.width - self.left - self.right
        return round(self.left + (rank - 1) / max(self.max_rank - 1, 1) * span, 2)

    def y(self, share: float) -> float:
        """Return the y of a share, clipped to the range from 0 to 1."""
        clipped = min(max(float(share), 0.0), 1.0)
        return round(self.height - self.bottom - clipped * (self.height - self.top - self.bottom), 2)

    @property
    def ranks(self) -> list[int]:
        """The ranks with a tick label."""
        return [rank for rank in (1, 5, 10, 20, 30, 40, 50) if rank <= self.max_rank]

    def lines(self, results: Sequence[ProtocolResult]) -> list[Line]:
        """Return the curve, band, chance level and marks of every protocol."""
        labels = _spread_labels(
            [self.y(float(result.mean[-1])) for result in results], gap=34, bottom=self.y(0)
        )
        return [self._line(result, y) for result, y in zip(results, labels, strict=True)]

    def _line(self, result: ProtocolResult, label_y: float) -> Line:
        mean, std = result.mean[: self.max_rank], result.std[: self.max_rank]
        upper, lower = self._points(mean + std), self._points(mean - std)
        return Line(
            result=result,
            path=" ".join(self._points(mean)),
            band=" ".join(upper + lower[::-1]) if std.any() else "",
            chance=" ".join(self._points(result.chance[: self.max_rank])),
            label_y=label_y,
            marks=[
                (
                    rank,
                    self.x(rank),
                    self.y(float(mean[rank - 1])),
                    float(mean[rank - 1]),
                    float(std[rank - 1]),
                )
                for rank in REPORTED_RANKS
                if rank <= self.max_rank
            ],
        )

    def _points(self, shares: NDArray[np.float64]) -> list[str]:
        return [f"{self.x(rank)},{self.y(share)}" for rank, share in enumerate(shares, start=1)]


def build_evaluation_page(data: EvaluationPage) -> str:
    """Render the page; the same data give the same HTML.

    Raises CountMismatch if the counts do not add up, UnreadableImage for image bytes that are not JPEG.
    """
    _check_counts(data.counts)
    return render(
        "evaluation_page.html.j2",
        data=data,
        metrics=data.metrics,
        published_accuracy=PUBLISHED_MODEL_ACCURACY,
        total_seconds=sum(timing.seconds for timing in data.timings),
        longest=max((timing.seconds for timing in data.timings), default=0.0),
    )


def _check_counts(counts: Counts) -> None:
    balance = RunBalance(counts.listed, counts.embedded, counts.quarantined, counts.duplicates)
    balance.to_text("the run of the evaluation")
    if counts.causes and sum(counts.causes.values()) != counts.quarantined:
        raise CountMismatch(
            f"causes add up to {sum(counts.causes.values())} of {counts.quarantined} quarantined crops"
        )


def _spread_labels(positions: Sequence[float], *, gap: float, bottom: float) -> list[float]:
    """Move labels down, and up again at the bottom of the chart, until no two overlap."""
    order = np.argsort(positions, kind="stable")
    placed = np.array(positions, dtype=np.float64)
    for above, below in pairwise(order):
        placed[below] = max(placed[below], placed[above] + gap)
    limit = bottom
    for index in order[::-1]:
        placed[index] = limit = min(placed[index], limit)
        limit -= gap
    return [round(float(y), 2) for y in placed]
