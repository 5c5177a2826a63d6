"""The metrics of a ranking: the registry from which JSON, tables, pages and comparisons are made.

A metric has one value per probe, computed from the ranks of the probe's positives. Its figure is the mean
over the probes that have a positive; a protocol reports mean and standard deviation over its repeats. To add
a metric, add it to `METRICS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

REPORTED_RANKS = (1, 5, 10, 20)  # of the CMC, in tables, JSON and charts


@dataclass(frozen=True, slots=True)
class Ranking:
    """The ranks of all positives of each probe, in the order of the probes."""

    positive_ranks: NDArray[np.int64]  # (m,) from 1, by probe, ascending
    num_positives: NDArray[np.int64]  # (p,) 0 for a probe without a positive
    gallery_sizes: NDArray[np.int64]  # (p,) gallery entries that were ranked for the probe

    @classmethod
    def from_counts(
        cls,
        negatives_ahead: NDArray[np.int64],
        num_positives: NDArray[np.int64],
        gallery_sizes: NDArray[np.int64],
    ) -> "Ranking":
        """Make a ranking from the negatives ahead of each positive (m,), by probe, nearest first."""
        return cls(negatives_ahead + segmented_arange(num_positives) + 1, num_positives, gallery_sizes)

    @classmethod
    def empty(cls, probes: int) -> "Ranking":
        """Return a ranking of probes without a positive."""
        zeros = np.zeros(probes, dtype=np.int64)
        return cls(np.zeros(0, dtype=np.int64), zeros, zeros)

    @classmethod
    def concatenate(cls, rankings: Sequence["Ranking"]) -> "Ranking":
        """Return the probes of several rankings one after the other."""
        return cls(
            positive_ranks=np.concatenate([ranking.positive_ranks for ranking in rankings]),
            num_positives=np.concatenate([ranking.num_positives for ranking in rankings]),
            gallery_sizes=np.concatenate([ranking.gallery_sizes for ranking in rankings]),
        )

    def take(self, probes: NDArray[np.int64]) -> "Ranking":
        """Return the given probes, in the given order."""
        counts = self.num_positives[probes]
        positives = np.repeat(self._start[probes], counts) + segmented_arange(counts)
        return Ranking(self.positive_ranks[positives], counts, self.gallery_sizes[probes])

    @property
    def has_positive(self) -> NDArray[np.bool_]:
        """Which probes have a positive, and are ranked: (p,)."""
        return self.num_positives > 0

    @property
    def first_ranks(self) -> NDArray[np.int64]:
        """Rank of the first positive (p,); 0 for a probe without one."""
        return self._rank_at(self._start)

    @property
    def last_ranks(self) -> NDArray[np.int64]:
        """Rank of the last positive (p,); 0 for a probe without one."""
        return self._rank_at(self._start + self.num_positives - 1)

    @property
    def _start(self) -> NDArray[np.int64]:
        return np.asarray(np.cumsum(self.num_positives) - self.num_positives)

    def _rank_at(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        ranks = np.zeros(len(self.num_positives), dtype=np.int64)
        ranks[self.has_positive] = self.positive_ranks[index[self.has_positive]]
        return ranks


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric with one value per probe."""

    name: str  # key in JSON
    title: str  # in tables and pages
    per_probe: Callable[[Ranking], NDArray[np.float64]]  # values (p,); 0 for a probe without a positive

    def mean(self, ranking: Ranking) -> float:
        """Return the mean over the probes that have a positive."""
        return float(self.per_probe(ranking)[ranking.has_positive].mean())


def average_precision(ranking: Ranking) -> NDArray[np.float64]:
    """Mean of the precision at the rank of each positive: (p,)."""
    nth = segmented_arange(ranking.num_positives) + 1
    probe = np.repeat(np.arange(len(ranking.num_positives)), ranking.num_positives)
    precision_sum = np.bincount(probe, nth / ranking.positive_ranks, minlength=len(ranking.num_positives))
    return np.asarray(precision_sum / np.maximum(ranking.num_positives, 1), dtype=np.float64)


def trapezoid_average_precision(ranking: Ranking) -> NDArray[np.float64]:
    """Area below the precision over the recall by the trapezoid rule: (p,). It is lower than the mean.

    Between two ranks the precision counts as the mean of both, and before rank 1 it is 1. Source:
    `compute_AP.m` of VeRi-776 and of Market-1501, after the evaluation of the Oxford buildings.
    """
    nth = segmented_arange(ranking.num_positives) + 1
    probe = np.repeat(np.arange(len(ranking.num_positives)), ranking.num_positives)
    before = np.where(ranking.positive_ranks > 1, (nth - 1) / np.maximum(ranking.positive_ranks - 1, 1), 1.0)
    steps = (before + nth / ranking.positive_ranks) / 2
    area = np.bincount(probe, steps, minlength=len(ranking.num_positives))
    return np.asarray(area / np.maximum(ranking.num_positives, 1), dtype=np.float64)


def inverse_negative_penalty(ranking: Ranking) -> NDArray[np.float64]:
    """Positives divided by the rank of the last one: (p,).

    Source: Ye et al., "Deep Learning for Person Re-identification", arXiv 2001.04193, section 4.2.
    """
    return np.asarray(ranking.num_positives / np.maximum(ranking.last_ranks, 1), dtype=np.float64)


def rank_k(k: int) -> Metric:
    """The CMC at rank k: 1 for a probe whose first positive is at rank k or better."""

    def hit(ranking: Ranking) -> NDArray[np.float64]:
        ranks = ranking.first_ranks
        return np.asarray((ranks > 0) & (ranks <= k), dtype=np.float64)

    return Metric(f"rank-{k}", f"rank-{k}", hit)


METRICS = (
    Metric("map", "mAP", average_precision),
    Metric("minp", "mINP", inverse_negative_penalty),
)
"""The metrics that are reported besides the CMC, in the order of their columns."""

TRAPEZOID = Metric("map_trapezoid", "mAP, trapezoid", trapezoid_average_precision)
COMPUTED = (*METRICS, TRAPEZOID)
AP_RULES = ("mean", "trapezoid")


def metrics_by(ap: str) -> tuple[Metric, ...]:
    """Return the metrics to report, with the average precision by one of `AP_RULES`."""
    if ap == "mean":
        return METRICS
    return tuple(TRAPEZOID if metric.name == "map" else metric for metric in METRICS)


def segmented_arange(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0, 1, …, counts[0] - 1, 0, 1, …, counts[1] - 1, and so on."""
    return np.asarray(
        np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts), dtype=np.int64
    )
