"""A protocol through a real index: equal to the exact one if the index is exact, else a loss."""

import numpy as np

from index.evaluation.cmc import LabeledFeatures, Split, cmc_of_splits
from index.evaluation.index_recall import index_loss, ranks_through_index
from index.evaluation.metrics import Ranking
from index.generations.load import load_runs
from index.generations.load_plan import plan_load
from index.milvus.client import Milvus
from infra.store import Store


def test_ranks_through_the_index_equal_exact_ranks(milvus: Milvus, store: Store, make_run) -> None:
    run = make_run("r1", 120)
    generation = load_runs(milvus, store, [run], alias="clvr")
    blocks = list(plan_load([run]).blocks())
    crop_ids = np.concatenate([ids for ids, _ in blocks])
    features = np.concatenate([vectors for _, vectors in blocks])
    # Vehicles at random, so that first positives are at all kinds of ranks.
    images = LabeledFeatures(features, np.random.default_rng(0).integers(0, 30, 120), None, np.arange(120))
    rows = np.arange(120)
    partnered = rows[np.isin(images.vehicle_ids, np.flatnonzero(np.bincount(images.vehicle_ids) > 1))]
    split = Split(partnered[::3], np.flatnonzero(rows % 5 > 0))
    (exact,) = cmc_of_splits(images, [split], skip_unmatched=True)
    ranks, short = ranks_through_index(milvus, generation, images, crop_ids, split, top=120)
    assert ranks.tolist() == exact.first_ranks.tolist()
    loss = index_loss(generation.name, exact.ranking, ranks, short, 120)
    assert loss.exact == loss.found
    few, short = ranks_through_index(milvus, generation, images, crop_ids, split, top=10)
    assert short > 0
    assert ((few == 0) | (few == exact.first_ranks)).all()


def test_a_lost_match_lowers_the_curve() -> None:
    exact = Ranking(
        positive_ranks=np.array([1, 2, 7]), num_positives=np.array([1, 1, 1, 0]), gallery_sizes=np.full(4, 9)
    )
    loss = index_loss("g", exact, np.array([1, 0, 6, 0]), 1, 50)
    assert loss.probes == 3
    assert loss.exact == (1 / 3, 2 / 3, 1.0, 1.0)
    assert loss.found == (1 / 3, 1 / 3, 2 / 3, 2 / 3)
