"""Calibration and TPR at FPR far from zero, with tiny differences, with an outlier and with ties.

The references are float64 differences and the definition: the largest true-positive rate whose false-positive
rate is at most r, as scikit-learn's `roc_curve` has it.
"""

from collections.abc import Callable

import numpy as np
import pytest

from index.evaluation.breakdowns import Distances, sample_distances
from index.evaluation.cmc import LabeledFeatures, Split
from index.exact.k_reciprocal import k_reciprocal
from index.exact.masked import NO_ROW, MaskedNearest
from index.exact.numba_kernels import pair_sq_distances, sq_distance_matrix
from index.exact.products import count_within
from index.search.calibration import DEPTH, calibrate
from infra.errors import BadInput

VEHICLES, SIGHTINGS, DIMENSION = 40, 5, 48


def _outlier(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[7] *= 1e6
    return x


SCALES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "near zero": lambda x: x,
    "mean 100": lambda x: x + 100,
    "mean 1e4": lambda x: x + 1e4,
    "signs of 1e4": lambda x: x + 1e4 * np.where(np.arange(x.shape[1]) % 2, 1, -1),
    "one and 1e-7": lambda x: 1 + 1e-7 * x,
    "tiny": lambda x: 1e-20 * x,
    "huge": lambda x: 1e15 * x,
    "one outlier": _outlier,
    "outlier far off": lambda x: _outlier(x) + 1e4,
    "small integers": lambda x: np.round(x),
    "half precision": lambda x: x.astype(np.float16),
    "after ReLU": lambda x: np.maximum(x, 0),
}


def make(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    ids = np.repeat(np.arange(VEHICLES), SIGHTINGS)
    features = rng.normal(size=(VEHICLES, DIMENSION))[ids] + 0.7 * rng.normal(size=(len(ids), DIMENSION))
    cameras = np.array([f"c{n}" for n in rng.integers(0, 3, len(ids))])
    return np.asarray(SCALES[name](features), np.float32), ids.astype(np.int64), cameras


def true_distances(features: np.ndarray) -> np.ndarray:
    wide = features.astype(np.float64)
    return np.sqrt(((wide[:, None] - wide[None]) ** 2).sum(axis=2))


@pytest.mark.parametrize("name", SCALES)
def test_the_calibration_is_that_of_exact_distances(name: str) -> None:
    features, ids, cameras = make(name)
    rate = 0.05
    found = calibrate(features, ids, cameras, fingerprint="f", run_id="r", false_alarm_rate=rate)
    distance = true_distances(features)
    same = ids[:, None] == ids
    excluded = (cameras[:, None] == cameras) | np.eye(len(ids), dtype=bool)
    genuine = np.where(same & ~excluded, distance, np.inf).min(axis=1)
    impostor = np.where(~same & ~excluded, distance, np.inf).min(axis=1)
    allowed = int(rate * len(ids))
    threshold = np.sort(impostor)[allowed]
    assert found.threshold == pytest.approx(threshold, rel=1e-12)
    assert found.threshold < threshold * (1 + 1e-12)
    detected = (genuine[np.isfinite(genuine)] < threshold * (1 - 1e-12)).mean()
    assert found.detection_rate == pytest.approx(detected)
    assert found.pairs == np.minimum(DEPTH, (~excluded).sum(axis=1)).sum()


@pytest.mark.parametrize("name", SCALES)
def test_tpr_at_fpr_is_that_of_exact_distances(name: str) -> None:
    features, ids, _ = make(name)
    rows = np.arange(len(ids))
    images = LabeledFeatures(features, ids)
    found = sample_distances(images, Split(rows, rows))
    distance = true_distances(features)
    same = ids[:, None] == ids
    positives = np.sort(distance[same & ~np.eye(len(ids), dtype=bool)])
    negatives = np.sort(distance[~same])
    assert np.allclose(np.sort(found.same), positives, rtol=1e-12, atol=0)
    for rate in (1e-1, 1e-2, 1e-3):
        thresholds = np.unique(np.concatenate([positives, negatives]))
        fpr = np.searchsorted(negatives, thresholds, side="right") / len(negatives)
        tpr = np.searchsorted(positives, thresholds, side="right") / len(positives)
        # Equal distances that differ in the last bit of another order of summation would be no ties here.
        expected = max(tpr[fpr <= rate], default=0.0)
        assert found.tpr_at_fpr(rate) == pytest.approx(expected, abs=1e-12)


def test_ties_are_not_split() -> None:
    same = np.array([1.0, 1.0, 2.0, 3.0])
    different = np.array([1.0] * 3 + [2.0] * 7 + [4.0] * 90)
    distances = Distances(same, different, 1)
    assert distances.tpr_at_fpr(0.02) == 0.0  # the three at distance 1 are accepted together, or not at all
    assert distances.tpr_at_fpr(0.03) == 0.5
    assert distances.tpr_at_fpr(0.10) == 1.0


@pytest.mark.parametrize(
    ("rate", "total"), [(0.29, 100), (0.07, 100), (0.01, 100), (1e-4, 30_000), (0.3, 10)]
)
def test_a_rate_is_compared_as_a_share(rate: float, total: int) -> None:
    count = count_within(rate, total)
    assert count / total <= rate < (count + 1) / total
    assert count == round(rate * total)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    features, ids, cameras = make("near zero")
    features[31, 5] = value
    rows = np.arange(len(ids))
    with pytest.raises(BadInput, match="NaN or infinity"):
        calibrate(features, ids, cameras, fingerprint="f", run_id="r", false_alarm_rate=0.05)
    with pytest.raises(BadInput, match="NaN or infinity"):
        sample_distances(LabeledFeatures(features, ids), Split(rows, rows))
    with pytest.raises(BadInput, match="NaN or infinity"):
        k_reciprocal(features, 10)


def test_equal_crops_of_two_vehicles_are_named() -> None:
    features, ids, cameras = make("near zero")
    features[SIGHTINGS:] = features[: len(features) - SIGHTINGS].copy()
    features[1::2] = features[0]
    with pytest.raises(BadInput, match="features of another vehicle's crop"):
        calibrate(features, ids, cameras, fingerprint="f", run_id="r", false_alarm_rate=0.05)


def test_the_nearest_rows_are_the_exact_ones_with_ties_by_row() -> None:
    rng = np.random.default_rng(0)
    features = np.round(rng.normal(size=(300, 6))).astype(np.float32)  # many equal distances
    allowed = rng.random((20, 300)) < 0.4
    allowed[3] = False
    allowed[4, :] = False
    allowed[4, 17] = True
    probes = np.arange(20) * 3
    rows, distances = MaskedNearest(features).bound(probes).nearest(8, allowed)
    exact = true_distances(features)[probes]
    for probe in range(20):
        candidates = np.flatnonzero(allowed[probe])
        order = candidates[np.lexsort((candidates, exact[probe, candidates]))][:8]
        assert rows[probe, : len(order)].tolist() == order.tolist()
        assert (rows[probe, len(order) :] == NO_ROW).all()
        assert np.allclose(distances[probe, : len(order)], exact[probe, order], rtol=1e-12)


def test_a_matrix_of_distances_equals_the_pairs_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(17, 1024)).astype(np.float32), rng.normal(size=(23, 1024)).astype(np.float32)
    left, right = (index.ravel() for index in np.indices((17, 23)))
    assert (sq_distance_matrix(x, y).ravel() == pair_sq_distances(x, y, left, right)).all()


def test_re_ranking_is_the_same_far_from_zero() -> None:
    features, _, _ = make("small integers")
    assert np.allclose(k_reciprocal(features, 20), k_reciprocal(features + 1000, 20), atol=1e-6)
