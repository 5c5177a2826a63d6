"""Re-ranking follows its paper on a small set, and improves the precision of clustered vehicles."""

import numpy as np
import pytest
from numpy.typing import NDArray

from index.evaluation.cmc import LabeledFeatures, Split, cmc, cmc_of_splits
from index.evaluation.rerank import rank_by_matrix, rerank, with_probe_expansion
from index.exact.k_reciprocal import k_reciprocal
from infra.errors import BadSetting


def by_definition(
    features: NDArray[np.float32], probes: int, k1: int, k2: int, lambda_: float
) -> NDArray[np.float64]:
    """Equations 2 to 12 of Zhong et al. with sets and loops."""
    total = len(features)
    sq_dist = np.square(features[:, None].astype(np.float64) - features[None]).sum(-1)
    sq_dist /= sq_dist.max(axis=1, keepdims=True)
    order = np.argsort(sq_dist, axis=1, kind="stable")

    def reciprocal(row: int, k: int) -> set[int]:
        near = set(order[row, : k + 1].tolist())
        return {other for other in near if row in order[other, : k + 1]}

    vectors = np.zeros((total, total))
    for row in range(total):
        close = reciprocal(row, k1)
        members = set(close)
        for other in close:
            half = reciprocal(other, round(k1 / 2))
            if len(half & close) > 2 / 3 * len(half):
                members |= half
        for other in members:
            vectors[row, other] = np.exp(-sq_dist[row, other])
        vectors[row] /= vectors[row].sum()
    vectors = np.array([vectors[order[row, :k2]].mean(axis=0) for row in range(total)])
    jaccard = np.array(
        [
            [
                1 - np.minimum(vectors[p], vectors[g]).sum() / np.maximum(vectors[p], vectors[g]).sum()
                for g in range(probes, total)
            ]
            for p in range(probes)
        ]
    )
    return (1 - lambda_) * jaccard + lambda_ * sq_dist[:probes, probes:]


def make_images(noise: float = 0.8) -> LabeledFeatures:
    rng = np.random.default_rng(2)
    vehicles = np.repeat(np.arange(10), 8)
    features = rng.standard_normal((10, 6))[vehicles] + noise * rng.standard_normal((80, 6))
    return LabeledFeatures(features.astype(np.float32), vehicles, None, np.arange(80))


def test_distances_equal_the_definition_of_the_paper() -> None:
    features = make_images().features
    distances = k_reciprocal(features, 12, k1=7, k2=3, lambda_=0.3)
    assert distances == pytest.approx(by_definition(features, 12, 7, 3, 0.3), abs=1e-5)


def test_ranking_by_a_matrix_equals_counting() -> None:
    images = make_images()
    split = Split(np.arange(0, 80, 4), np.arange(80))
    sq_dist = np.square(images.features[split.probes][:, None] - images.features[None]).sum(-1)
    (counted,) = cmc_of_splits(images, [split])
    by_matrix = rank_by_matrix(sq_dist, images, split)
    assert by_matrix.first_ranks.tolist() == counted.first_ranks.tolist()
    assert by_matrix.means == pytest.approx(counted.means)
    assert by_matrix.chance == pytest.approx(counted.chance)


def test_re_ranking_raises_the_mean_precision_of_clustered_vehicles() -> None:
    images = make_images(0.55)
    split = Split(np.arange(0, 80, 8), np.flatnonzero(np.arange(80) % 8))
    (before,) = cmc_of_splits(images, [split])
    assert rerank(images, split).mean_ap > before.mean_ap


def test_an_expanded_probe_is_the_mean_of_itself_and_its_nearest() -> None:
    images = make_images()
    split = Split(np.arange(80), np.arange(80))
    probes = with_probe_expansion(images, split, neighbours=2)
    distances = np.linalg.norm(images.features - images.features[7], axis=1)
    nearest = np.argsort(distances)[:3]  # the probe itself is the nearest, and counts once
    assert probes.features[7] == pytest.approx(images.features[nearest].mean(axis=0), abs=1e-6)
    assert cmc(probes, images).probes == 80


def test_more_images_than_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index.exact.k_reciprocal.MAX_IMAGES", 79)
    with pytest.raises(BadSetting, match="80 images"):
        rerank(make_images(), Split(np.arange(40), np.arange(40, 80)))
