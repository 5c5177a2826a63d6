"""Re-ranking follows its paper on a small set, and both second looks help where vehicles cluster."""

import numpy as np
import pytest
from numpy.typing import NDArray

from index.evaluation.cmc import LabeledFeatures, Split, cmc, cmc_of_splits
from index.evaluation.rerank import rank_by_matrix, rerank, with_probe_expansion
from index.exact.k_reciprocal import k_reciprocal
from infra.errors import BadSetting


def plain(features: NDArray[np.float32], probes: int, k1: int, k2: int, weight: float) -> NDArray[np.float64]:
    """Equations 2 to 12 of Zhong et al. with sets and loops."""
    total = len(features)
    squared = np.square(features[:, None].astype(np.float64) - features[None]).sum(-1)
    squared /= squared.max(axis=1, keepdims=True)
    order = np.argsort(squared, axis=1, kind="stable")

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
            vectors[row, other] = np.exp(-squared[row, other])
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
    return (1 - weight) * jaccard + weight * squared[:probes, probes:]


def pictures(noise: float = 0.8) -> LabeledFeatures:
    rng = np.random.default_rng(2)
    vehicles = np.repeat(np.arange(10), 8)
    features = rng.standard_normal((10, 6))[vehicles] + noise * rng.standard_normal((80, 6))
    return LabeledFeatures(features.astype(np.float32), vehicles, None, np.arange(80))


def test_equals_a_plain_reading_of_the_paper() -> None:
    features = pictures().features
    ours = k_reciprocal(features, 12, k1=7, k2=3, weight=0.3)
    assert ours == pytest.approx(plain(features, 12, 7, 3, 0.3), abs=1e-5)


def test_ranking_by_a_matrix_equals_counting() -> None:
    everything = pictures()
    split = Split(np.arange(0, 80, 4), np.arange(80))
    squared = np.square(everything.features[split.probes][:, None] - everything.features[None]).sum(-1)
    (counted,) = cmc_of_splits(everything, [split])
    sorted_ = rank_by_matrix(squared, everything, split)
    assert sorted_.ranks.tolist() == counted.ranks.tolist()
    assert (sorted_.map, sorted_.minp) == (pytest.approx(counted.map), pytest.approx(counted.minp))
    assert sorted_.chance == pytest.approx(counted.chance)


def test_re_ranking_raises_the_mean_precision_of_clustered_vehicles() -> None:
    everything = pictures(0.55)
    split = Split(np.arange(0, 80, 8), np.flatnonzero(np.arange(80) % 8))
    (before,) = cmc_of_splits(everything, [split])
    assert rerank(everything, split).map > before.map


def test_an_expanded_probe_is_the_mean_of_itself_and_its_nearest() -> None:
    everything = pictures()
    split = Split(np.arange(80), np.arange(80))
    probes = with_probe_expansion(everything, split, neighbours=2)
    away = np.linalg.norm(everything.features - everything.features[7], axis=1)
    nearest = np.argsort(away)[:3]  # itself is the nearest of all, and counts once
    assert probes.features[7] == pytest.approx(everything.features[nearest].mean(axis=0), abs=1e-6)
    assert cmc(probes, everything).probes == 80


def test_more_pictures_than_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index.exact.k_reciprocal.MAX_IMAGES", 79)
    with pytest.raises(BadSetting, match="80 pictures"):
        rerank(pictures(), Split(np.arange(40), np.arange(40, 80)))
