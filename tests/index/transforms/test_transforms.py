"""Transforms are those of NumPy on all rows, however the rows are divided, and shrunk for few crops."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from index.transforms.fitting import MIN_GROUP_ROWS, TransformSettings, fit, fit_features
from index.transforms.moments import ANY_HOUR, Moments, groups_of
from index.transforms.transform import normalized
from infra.errors import BadInput, BadSetting

HOUR = 3_600_000


def features_of(rows: int, dimension: int = 12, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, dimension)) @ rng.normal(size=(dimension, dimension)) + 2).astype(
        np.float32
    )


def cameras_of(rows: int, cameras: int = 3) -> list[str]:
    return [f"c{number % cameras}" if number % 7 else "" for number in range(rows)]


def test_moments_of_parts_are_those_of_all_rows_in_any_order() -> None:
    features, cameras = features_of(500).astype(np.float64), cameras_of(500)
    groups = groups_of(cameras)
    bounds = [0, 3, 3, 100, 101, 420, 500]
    parts = [Moments.of(features[first:last], groups[first:last]) for first, last in pairwise(bounds)]
    for order in (range(6), (5, 2, 0, 4, 1, 3)):
        total = Moments.empty(12)
        for part in order:
            total = total.merge(parts[part])
        assert total.count == 500
        np.testing.assert_allclose(total.mean, features.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(total.scatter / 500, np.cov(features.T, bias=True), rtol=1e-10)
        for group, mean in total.groups.items():
            own = features[[other == group for other in groups]]
            assert mean.count == len(own)
            np.testing.assert_allclose(mean.mean, own.mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("rows", [9, 400])
def test_whitening_is_that_of_numpy(rows: int) -> None:
    features = features_of(rows)
    transform = fit_features(features, TransformSettings("whiten", shrinkage=0.1))
    x = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    covariance = np.cov(x.T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    ridge = 0.1 * values.mean()
    # Any rotation of the whitened features has the same distances.
    expected = (x - x.mean(axis=0)) @ vectors / np.sqrt(values + ridge) @ vectors.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    actual = transform(features).astype(np.float64)
    np.testing.assert_allclose(actual @ actual.T, expected @ expected.T, atol=2e-6)


def test_reduction_keeps_the_components_of_the_largest_variances() -> None:
    features = features_of(400)
    whole = fit_features(features, TransformSettings("whiten"))
    reduced = fit_features(features, TransformSettings("whiten", dimensions=5))
    assert (reduced.dimension, reduced.input_dimension) == (5, 12)
    assert whole.matrix is not None
    assert reduced.matrix is not None
    np.testing.assert_array_equal(reduced.matrix, whole.matrix[:5])
    assert np.allclose(np.linalg.norm(reduced(features), axis=1), 1)


@pytest.mark.parametrize("dimensions", [None, 5])
def test_few_rows_are_whitened_as_by_their_moments(dimensions: int | None) -> None:
    features, cameras = features_of(9), cameras_of(9)
    settings = TransformSettings("whiten-camera", dimensions)
    few = fit_features(features, settings, cameras)
    groups = groups_of(cameras)
    many = fit(Moments.of(normalized(features.astype(np.float64)), groups), settings)
    probes, at = features_of(6, seed=4), ["c0", "c1", "c2", "", "new", "c0"]
    one, other = (transform(probes, at).astype(np.float64) for transform in (few, many))
    np.testing.assert_allclose(one @ one.T, other @ other.T, atol=2e-6)


def test_camera_means_are_removed_and_shrunk_for_few_crops() -> None:
    features = features_of(300)
    cameras = ["busy"] * 290 + ["new"] * 10
    features[290:] += 5
    transform = fit_features(features, TransformSettings("camera", camera_prior=30), cameras)
    x = normalized(features.astype(np.float64))
    mean = x.mean(axis=0)
    new = mean + (x[290:].mean(axis=0) - mean) * 10 / 40
    busy = mean + (x[:290].mean(axis=0) - mean) * 290 / 320
    rest = np.concatenate([x[:290] - busy, x[290:] - new]).mean(axis=0)
    np.testing.assert_allclose(transform.offsets["new", ANY_HOUR], new + rest, rtol=1e-9)
    np.testing.assert_allclose(transform.offset, mean + rest, rtol=1e-9)
    removed = transform(features[290:], ["new"] * 10)
    np.testing.assert_allclose(removed, normalized(x[290:] - new - rest), atol=1e-6)


@pytest.mark.parametrize("by_hour", [False, True])
def test_whitening_after_camera_means_has_the_covariance_of_what_they_leave(by_hour: bool) -> None:
    rng = np.random.default_rng(3)
    cameras = [f"c{number}" if number else "" for number in rng.integers(0, 4, size=600)]
    times = np.where(rng.random(600) < 0.1, -1, rng.integers(0, 30, size=600) * HOUR)
    features = features_of(600)
    settings = TransformSettings("whiten-camera", by_hour=by_hour, camera_prior=5)
    transform = fit_features(features, settings, cameras, times)
    assert len(transform.offsets) >= 3
    assert (("c1", 5) in transform.offsets) == by_hour
    # The transform by camera alone has the offsets before whitening.
    means = fit_features(
        features, TransformSettings("camera", by_hour=by_hour, camera_prior=5), cameras, times
    )
    groups = groups_of(cameras, times, by_hour=by_hour)
    x = normalized(features.astype(np.float64))
    # An hour with few crops has the mean of its camera.
    of_cameras = {name: means.offsets.get((name, ANY_HOUR), means.offset) for name in set(cameras)}
    left = x - np.stack([means.offsets.get(group, of_cameras[group[0]]) for group in groups])
    np.testing.assert_allclose(left.mean(axis=0), 0, atol=1e-12)
    expected = fit_features_of_rows(left)
    assert transform.matrix is not None
    np.testing.assert_allclose(transform.matrix, expected, rtol=1e-6, atol=1e-9)


def fit_features_of_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    transform = fit(Moments.of(rows), TransformSettings("whiten"))
    assert transform.matrix is not None
    return transform.matrix


def test_the_mean_of_few_crops_is_not_kept() -> None:
    features = features_of(200)
    cameras = np.repeat(["few", "enough", "many"], [MIN_GROUP_ROWS - 1, MIN_GROUP_ROWS, 181]).tolist()
    times = np.full(200, 5 * HOUR, np.int64)
    times[-1] = 8 * HOUR  # the only crop of its hour
    transform = fit_features(features, TransformSettings("camera", by_hour=True), cameras, times)
    assert set(transform.offsets) == {
        ("enough", ANY_HOUR),
        ("enough", 5),
        ("many", ANY_HOUR),
        ("many", 5),
    }
    rare = transform(features[-1:], ["many"], np.array([8 * HOUR]))
    assert np.array_equal(rare, transform(features[-1:], ["many"], np.array([-1])))
    assert np.array_equal(transform(features[:1], ["few"]), transform(features[:1], [""]))


def test_an_unknown_camera_and_hour_get_the_statistics_above_them() -> None:
    cameras = ["a", "b"] * 100
    times = np.arange(200, dtype=np.int64) % 2 * HOUR + HOUR * 8
    settings = TransformSettings("camera", by_hour=True)
    transform = fit_features(features_of(200), settings, cameras, times)
    probe = features_of(1, seed=9)
    everywhere = transform(probe)
    np.testing.assert_array_equal(transform(probe, [""], np.array([8 * HOUR])), everywhere)
    np.testing.assert_array_equal(transform(probe, ["new"], np.array([8 * HOUR])), everywhere)
    at_a = transform(probe, ["a"])
    assert not np.array_equal(at_a, everywhere)
    np.testing.assert_array_equal(transform(probe, ["a"], np.array([3 * HOUR])), at_a)
    assert not np.array_equal(transform(probe, ["a"], np.array([8 * HOUR])), at_a)


def test_a_row_of_zeros_stays_finite() -> None:
    features = features_of(50)
    features[7] = 0
    assert np.isfinite(fit_features(features, TransformSettings("whiten"))(features)).all()


def test_what_cannot_be_fitted_is_refused() -> None:
    same = np.ones((30, 4), np.float32)
    with pytest.raises(BadInput, match="equal"):
        fit_features(same, TransformSettings("whiten"))
    with pytest.raises(BadInput, match="1 crops"):
        fit_features(same[:1], TransformSettings("whiten"))
    with pytest.raises(BadInput, match="cameras"):
        fit_features(features_of(30), TransformSettings("camera"))
    with pytest.raises(BadSetting, match="13 dimensions"):
        fit_features(features_of(30), TransformSettings("whiten", dimensions=13))
    with pytest.raises(BadInput, match="shape"):
        fit_features(features_of(30), TransformSettings("whiten"))(features_of(3, 5))


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "pca"},
        {"kind": "camera", "dimensions": 3},
        {"kind": "whiten", "by_hour": True},
        {"kind": "whiten", "shrinkage": 0.0},
        {"kind": "whiten", "shrinkage": float("nan")},
        {"kind": "camera", "camera_prior": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(BadSetting):
        TransformSettings(**settings)  # type: ignore[arg-type]
