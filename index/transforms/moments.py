"""Count, mean and scatter of features, and the means of groups of them: float64, mergeable, in one pass.

Source: T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise algorithm for computing
sample variances", COMPSTAT 1982.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Group = tuple[str, int]
"""A camera and an hour of the day, UTC; the hour is ANY_HOUR where hours are not told apart or unknown."""

ANY_HOUR = -1
_HOUR_MS = 3_600_000
_ROW_CHUNK = 2048  # 32 MB of float64 at 1,024 dimensions, for the rows and their deviations


@dataclass(frozen=True, slots=True, eq=False)
class GroupMean:
    """The number of rows of a group and their mean (d,) float64."""

    count: int
    mean: NDArray[np.float64]

    def merge(self, other: "GroupMean") -> "GroupMean":
        """Return the mean of both sets of rows."""
        total = self.count + other.count
        share = other.count / total if total else 0.0
        return GroupMean(total, self.mean + (other.mean - self.mean) * share)


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """The count, mean (d,) and scatter (d, d) of rows: the sum of the outer products of their deviations.

    groups: the rows of each camera, or of each camera and hour; empty if cameras are not told apart. Every
    row is in one group; those of an unknown camera are in the group of the camera "".
    """

    count: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]
    groups: Mapping[Group, GroupMean] = field(default_factory=dict)

    @classmethod
    def empty(cls, dimension: int) -> "Moments":
        """Return the moments of no rows."""
        return cls(0, np.zeros(dimension), np.zeros((dimension, dimension)))

    @classmethod
    def of(cls, features: NDArray[np.floating], groups: Sequence[Group] | None = None) -> "Moments":
        """Return the moments of features (n, d), whose rows are of the groups (n,)."""
        total = cls.empty(features.shape[1])
        for start in range(0, len(features), _ROW_CHUNK):
            rows = np.asarray(features[start : start + _ROW_CHUNK], np.float64)
            mean = rows.mean(axis=0)
            deviations = rows - mean
            chosen = None if groups is None else groups[start : start + _ROW_CHUNK]
            means = {} if chosen is None else _means(rows, chosen)
            total = total.merge(cls(len(rows), mean, deviations.T @ deviations, means))
        return total

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of both sets of rows."""
        if not other.count or not self.count:
            return other if other.count else self
        total = self.count + other.count
        difference = other.mean - self.mean
        between = np.outer(difference, difference) * (self.count * other.count / total)
        merged = dict(self.groups)
        for group, mean in other.groups.items():
            merged[group] = merged[group].merge(mean) if group in merged else mean
        return Moments(
            total,
            self.mean + difference * (other.count / total),
            self.scatter + other.scatter + between,
            merged,
        )


def groups_of(
    cameras: Sequence[str], captured_at: NDArray[np.int64] | None = None, *, by_hour: bool = False
) -> list[Group]:
    """Return the group of each row, by cameras (n,) and times (n,) in ms since 1970, UTC, -1 if unknown."""
    if not by_hour or captured_at is None:
        return [(camera, ANY_HOUR) for camera in cameras]
    hours = np.where(captured_at < 0, ANY_HOUR, captured_at // _HOUR_MS % 24).tolist()
    # Rows of an unknown camera have the statistics of all rows at any hour.
    return [(camera, hour if camera else ANY_HOUR) for camera, hour in zip(cameras, hours, strict=True)]


def _means(rows: NDArray[np.float64], groups: Sequence[Group]) -> dict[Group, GroupMean]:
    numbers: dict[Group, int] = {}
    number_of = np.fromiter((numbers.setdefault(group, len(numbers)) for group in groups), np.int64)
    order = np.argsort(number_of, kind="stable")
    starts = np.searchsorted(number_of[order], np.arange(len(numbers)))
    counts = np.diff([*starts, len(rows)])
    sums = np.add.reduceat(rows[order], starts, axis=0) if len(rows) else np.empty((0, rows.shape[1]))
    return {
        group: GroupMean(int(counts[number]), sums[number] / counts[number])
        for group, number in numbers.items()
    }
