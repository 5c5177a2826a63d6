"""Compare two models on the same splits by a paired bootstrap over vehicles."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.evaluation.metrics import metrics_by, rank_k
from index.evaluation.protocols import ProtocolResult
from infra.errors import BadInput


@dataclass(frozen=True, slots=True)
class Difference:
    """B minus A in one metric, with the interval that holds 95 % of the resampled differences."""

    measure: str  # title of the metric
    a: float
    b: float
    ci_low: float
    ci_high: float

    @property
    def difference(self) -> float:
        """B minus A."""
        return self.b - self.a

    @property
    def is_significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.ci_low > 0 or self.ci_high < 0


def compare(
    a: ProtocolResult,
    b: ProtocolResult,
    vehicle_ids: NDArray[np.int64],
    *,
    ap: str = "mean",
    resamples: int = 2000,
    seed: int = 0,
) -> list[Difference]:
    """Compare rank-1, rank-5 and `metrics_by(ap)` of two results on the same splits of the same images.

    Vehicles are drawn with replacement, with all their probes of all repeats: neither images of one vehicle
    nor repeats are independent. vehicle_ids: int64 (n,) of the images. Raises BadInput for other splits.
    """
    if len(a.splits) != len(b.splits) or any(
        not np.array_equal(x.probes, y.probes) or not np.array_equal(x.gallery, y.gallery)
        for x, y in zip(a.splits, b.splits, strict=True)
    ):
        raise BadInput("a paired comparison needs the same probes and gallery on both sides")
    vehicle = np.concatenate([vehicle_ids[split.probes] for split in a.splits])
    _, group = np.unique(vehicle, return_inverse=True)
    is_ranked = np.concatenate([ranking.has_positive for ranking in a.rankings])
    probes_per_vehicle = np.bincount(group, is_ranked)
    num_vehicles = len(probes_per_vehicle)
    draws = np.random.default_rng(seed).multinomial(
        num_vehicles, np.full(num_vehicles, 1 / num_vehicles), size=resamples
    )
    num_drawn = draws @ probes_per_vehicle
    differences = []
    for metric in (rank_k(1), rank_k(5), *metrics_by(ap)):
        sums = []
        for result in (a, b):
            values = np.concatenate([metric.per_probe(ranking) for ranking in result.rankings])
            sums.append(np.bincount(group, values * is_ranked))
        resampled = draws @ (sums[1] - sums[0]) / np.maximum(num_drawn, 1)
        low, high = np.quantile(resampled[num_drawn > 0], [0.025, 0.975])
        mean_a, mean_b = (float(total.sum() / probes_per_vehicle.sum()) for total in sums)
        differences.append(
            Difference(measure=metric.title, a=mean_a, b=mean_b, ci_low=float(low), ci_high=float(high))
        )
    return differences
