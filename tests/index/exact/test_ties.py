"""Equal distances rank by gallery row: in the kernels, in sorts, by counting and by a matrix."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.evaluation.cmc import LabeledFeatures, Split, cmc, cmc_of_splits
from index.exact import products
from index.exact.numba_kernels import Targets, count_ahead, pair_sq_distances, rank_order, ranks_ahead


@pytest.fixture(params=[products.TORCH, products.BF16], ids=lambda product: product.name)
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either product, also on processors that would not choose bfloat16."""
    monkeypatch.setattr(products, "fastest_product", lambda **_: request.param)
    monkeypatch.setattr(products, "_MIN_MACS_TO_RACE", 0)


def test_a_nearer_entry_ranks_ahead_and_an_equal_one_by_row() -> None:
    entries = [(1.0, 9), (2.0, 4), (2.0, 5), (2.0, 6), (3.0, 0)]
    assert [ranks_ahead(*entry, 2.0, 5) for entry in entries] == [True, True, False, False, False]


@given(seed=st.integers(0, 2**32), rows=st.integers(1, 30))
def test_a_sort_puts_each_entry_behind_all_that_rank_ahead_of_it(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    sq_dist, row = rng.integers(0, 4, rows).astype(np.float64), rng.permutation(rows)
    num_ahead = np.vectorize(ranks_ahead)(sq_dist[:, None], row[:, None], sq_dist, row).sum(0)
    assert num_ahead[rank_order(sq_dist, row)].tolist() == list(range(rows))


@pytest.mark.parametrize("dimension", [1, 7, 16, 33, 127, 1000, 1021, 1024])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_target_at_its_own_distance_is_a_tie_to_the_last_bit(dimension: int, bf16: bool) -> None:
    """Targets are measured by one compiled loop and ambiguous entries by another, in the same order."""
    rng = np.random.default_rng(dimension)
    probes, gallery = (rng.standard_normal((64, dimension)).astype(np.float32) for _ in range(2))
    rows, target = np.arange(64), rng.integers(0, 64, 64)
    sq_dist = pair_sq_distances(probes, gallery, rows, target)
    product = np.zeros((64, 64), np.uint16 if bf16 else np.float32)
    counts = []
    for target_row in (target, target + 1):  # an equal distance ranks ahead of the next row only
        num_ahead = np.zeros(64, np.int64)
        targets = Targets(
            probe=rows,
            repeat=np.zeros(64, np.int64),
            start=np.arange(65),
            low=np.full(64, -1e9, np.float32),
            high=np.full(64, 1e9, np.float32),
            sq_dist=sq_dist,
            row=target_row,
        )
        zeros, all_rows = np.zeros(64, np.float32), (rows, np.array([0, 64]))
        num_ambiguous = count_ahead(
            product, zeros, zeros, *all_rows, targets, probes, gallery, rows, num_ahead
        )
        assert num_ambiguous == 64 * 64
        counts.append(num_ahead)
    assert (counts[1] - counts[0]).tolist() == [1] * 64


@pytest.mark.usefixtures("product")
def test_equal_distances_rank_by_gallery_order() -> None:
    probe = LabeledFeatures(np.zeros((1, 2), np.float32), np.array([7]))
    square = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]], np.float32)
    for position in range(4):
        vehicles = np.array([1, 2, 3, 4])
        vehicles[position] = 7
        assert cmc(probe, LabeledFeatures(square, vehicles)).first_ranks.tolist() == [position + 1]


@pytest.mark.usefixtures("product")
def test_collapsed_features_rank_by_gallery_order() -> None:
    features = np.full((40, 16), 0.3, np.float32)
    vehicles = np.arange(40) % 10
    result = cmc(LabeledFeatures(features[:10], vehicles[:10]), LabeledFeatures(features[10:], vehicles[10:]))
    assert result.first_ranks.tolist() == list(range(1, 11))


@pytest.mark.usefixtures("product")
def test_a_matrix_of_equal_distances_ranks_as_counting_does() -> None:
    rng = np.random.default_rng(0)
    images = LabeledFeatures(rng.integers(0, 2, (90, 3)).astype(np.float32), rng.integers(0, 9, 90))
    split = Split(np.arange(0, 90, 2), np.arange(90))
    sq_dist = np.square(images.features[split.probes][:, None] - images.features[None]).sum(-1)
    (counted,) = cmc_of_splits(images, [split], skip_unmatched=True)
    sorted_ranks: list[int] = []
    for number, probe in enumerate(split.probes):
        columns = np.flatnonzero(split.gallery != probe)
        order = columns[np.argsort(sq_dist[number, columns], kind="stable")]
        is_positive = images.vehicle_ids[split.gallery[order]] == images.vehicle_ids[probe]
        sorted_ranks += (np.flatnonzero(is_positive) + 1).tolist()
    assert counted.ranking.positive_ranks.tolist() == sorted_ranks
