"""Two models on the same splits: how sure is it that one is better? A paired bootstrap over vehicles."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.evaluation.protocols import ProtocolResult
from infra.errors import BadInput


@dataclass(frozen=True, slots=True)
class Difference:
    """B less A in one measure, with the interval that holds 95 % of the resampled differences."""

    measure: str
    a: float
    b: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """B less A."""
        return self.b - self.a

    @property
    def certain(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def compare(
    a: ProtocolResult,
    b: ProtocolResult,
    vehicle_ids: NDArray[np.int64],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Difference]:
    """Rank-1, rank-5, mAP and mINP of `a` and `b`, which must come from the same splits of the same pictures.

    Vehicles are drawn with replacement, with all their probes of all repeats: pictures of one vehicle are not
    independent, and neither are repeats. vehicle_ids: int64 (n,) of the pictures. Raises BadInput otherwise.
    """
    if len(a.splits) != len(b.splits) or any(
        not np.array_equal(x.probes, y.probes) or not np.array_equal(x.gallery, y.gallery)
        for x, y in zip(a.splits, b.splits, strict=True)
    ):
        raise BadInput("a paired comparison needs the same probes and gallery on both sides")
    vehicle = np.concatenate([vehicle_ids[split.probes] for split in a.splits])
    _, group = np.unique(vehicle, return_inverse=True)
    counted = np.concatenate([ranking.matches > 0 for ranking in a.rankings])
    many = np.bincount(group, counted)
    drawn = np.random.default_rng(seed).multinomial(
        len(many), np.full(len(many), 1 / len(many)), size=resamples
    )
    weight = drawn @ many
    differences = []
    for measure in ("rank-1", "rank-5", "mAP", "mINP"):
        sums = [np.bincount(group, _per_probe_values(result, measure) * counted) for result in (a, b)]
        resampled = drawn @ (sums[1] - sums[0]) / np.maximum(weight, 1)
        low, high = np.quantile(resampled[weight > 0], [0.025, 0.975])
        mean_a, mean_b = (float(total.sum() / many.sum()) for total in sums)
        differences.append(Difference(measure, mean_a, mean_b, float(low), float(high)))
    return differences


def _per_probe_values(result: ProtocolResult, measure: str) -> NDArray[np.float64]:
    if measure == "mAP":
        return np.concatenate([ranking.precision for ranking in result.rankings])
    if measure == "mINP":
        return np.concatenate([ranking.penalty for ranking in result.rankings])
    ranks = np.concatenate(result.ranks)
    return np.asarray((ranks > 0) & (ranks <= int(measure.removeprefix("rank-"))), dtype=np.float64)
