"""Re-ranking follows its paper on a small set, and improves the precision of clustered vehicles."""

import numpy as np
import pytest
from numpy.typing import NDArray

from index.evaluation.cmc import LabeledFeatures, Split, cmc, cmc_of_splits
from index.evaluation.metrics import Ranking
from index.evaluation.rerank import rerank, with_probe_expansion
from index.exact.k_reciprocal import Parameters, encode, k_reciprocal


def by_definition(
    features: NDArray[np.float32], probes: int, k1: int, k2: int, lambda_: float
) -> NDArray[np.float64]:
    """Equations 2 to 12 of Zhong et al. with sets and loops."""
    total = len(features)
    sq_dist = np.square(features[:, None].astype(np.float64) - features[None]).sum(-1)
    sq_dist /= np.maximum(sq_dist.max(axis=1, keepdims=True), 1e-30)
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
        vectors[row] /= max(vectors[row].sum(), 1e-30)
    if k2 > 1:
        vectors = np.array([vectors[order[row, :k2]].mean(axis=0) for row in range(total)])
    jaccard = np.array(
        [
            [
                1
                - np.minimum(vectors[p], vectors[g]).sum()
                / max(np.maximum(vectors[p], vectors[g]).sum(), 1e-30)
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


@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (7, 3), (5, 1), (1, 2), (60, 90)])
@pytest.mark.parametrize("kind", ["binary", "small integers", "all equal", "far from zero"])
def test_sparse_distances_equal_the_dense_ones_with_ties(kind: str, k1: int, k2: int) -> None:
    features = tied(kind, 45)
    distances = k_reciprocal(features, 12, k1=k1, k2=k2)
    assert distances == pytest.approx(by_definition(features, 12, k1, k2, 0.3), abs=1e-6)


def tied(kind: str, rows: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(5)
    if kind == "all equal":
        return np.full((rows, 3), 0.1, np.float32)
    values = rng.integers(0, 2 if kind == "binary" else 4, (rows, 4)).astype(np.float32)
    return values + 4096 if kind == "far from zero" else values


def test_blocks_of_any_size_give_the_same_encoding() -> None:
    features = tied("small integers", 300)
    whole, cut = encode(features, 40), encode(features, 40, block_rows=7)
    for probe in range(40):
        assert whole.jaccard(probe).tolist() == cut.jaccard(probe).tolist()
    assert whole.farthest_sq.tolist() == cut.farthest_sq.tolist()


def by_matrix(
    distances: NDArray[np.float64], images: LabeledFeatures, split: Split, junk: bool
) -> list[list[int]]:
    """The ranks of the positives of each probe, by a stable sort of the allowed columns."""
    ranks = []
    for number, probe in enumerate(split.probes):
        is_positive = images.vehicle_ids[split.gallery] == images.vehicle_ids[probe]
        is_ranked = split.gallery != probe
        if junk and images.camera_ids is not None:
            is_ranked &= ~(is_positive & (images.camera_ids[split.gallery] == images.camera_ids[probe]))
        columns = np.flatnonzero(is_ranked)
        order = columns[np.argsort(distances[number, columns], kind="stable")]
        ranks.append((np.flatnonzero(is_positive[order]) + 1).tolist())
    return ranks


def ranks_of(ranking: Ranking) -> list[list[int]]:
    ends = np.cumsum(ranking.num_positives)[:-1]
    return [ranks.tolist() for ranks in np.split(ranking.positive_ranks, ends)]


@pytest.mark.parametrize("junk", [False, True])
@pytest.mark.parametrize("kind", ["small integers", "binary", "all equal", "clusters"])
def test_ranks_are_those_of_a_sorted_matrix(kind: str, junk: bool) -> None:
    rng = np.random.default_rng(1)
    features = make_images(0.7).features if kind == "clusters" else tied(kind, 80)
    images = LabeledFeatures(features, np.arange(80) // 4, rng.choice(["a", "b"], 80), np.arange(80))
    split = Split(np.arange(0, 80, 3), np.arange(80))
    encoding = encode(features[np.concatenate([split.probes, split.gallery])], len(split.probes))
    sq_dist = np.square(features[split.probes].astype(np.float64)[:, None] - features[split.gallery]).sum(-1)
    matrix = np.array(
        [encoding.combine(row, encoding.jaccard(row), sq_dist[row]) for row in range(len(split.probes))]
    )
    result = rerank(images, split, junk=junk)
    assert ranks_of(result.ranking) == by_matrix(matrix, images, split, junk)


def test_without_neighbours_and_jaccard_the_order_is_that_of_l2() -> None:
    images = make_images()
    split = Split(np.arange(0, 80, 4), np.arange(80))
    (plain,) = cmc_of_splits(images, [split])
    result = rerank(images, split, parameters=Parameters(lambda_=1.0))
    assert ranks_of(result.ranking) == ranks_of(plain.ranking)
    assert result.means == pytest.approx(plain.means)
    assert result.chance == pytest.approx(plain.chance)


def test_parts_of_a_split_are_ranked_by_their_own_galleries() -> None:
    images = make_images()
    parts = [Split(np.arange(0, 40, 8), np.arange(40)), Split(np.arange(40, 80, 8), np.arange(30, 80))]
    result = rerank(images, Split.of_parts(parts))
    expected = [ranks for part in parts for ranks in ranks_of(rerank(images, part).ranking)]
    assert ranks_of(result.ranking) == expected


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
