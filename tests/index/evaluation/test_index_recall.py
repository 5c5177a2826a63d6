"""The protocol through a real index: equal to the exact one where the index is exact, a loss elsewhere."""

import numpy as np

from index.evaluation.cmc import LabeledFeatures, Ranking, Split, cmc_of_splits
from index.evaluation.index_recall import index_loss, ranks_through_index
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
    # Vehicles that do not follow the look: first true matches then stand at all kinds of ranks.
    pictures = LabeledFeatures(features, np.random.default_rng(0).integers(0, 30, 120), None, np.arange(120))
    everyone = np.arange(120)
    partnered = everyone[np.isin(pictures.vehicle_ids, np.flatnonzero(np.bincount(pictures.vehicle_ids) > 1))]
    split = Split(partnered[::3], np.flatnonzero(everyone % 5 > 0))
    (exact,) = cmc_of_splits(pictures, [split], skip_unmatched=True)
    ranks, short = ranks_through_index(milvus, generation, pictures, crop_ids, split, top=120)
    assert ranks.tolist() == exact.ranks.tolist()
    loss = index_loss(generation.name, exact.ranking, ranks, short, 120)
    assert loss.exact == loss.found
    few, short = ranks_through_index(milvus, generation, pictures, crop_ids, split, top=10)
    assert short > 0
    assert ((few == 0) | (few == exact.ranks)).all()


def test_a_lost_match_lowers_the_curve() -> None:
    one = np.ones(4)
    exact = Ranking(np.array([1, 2, 7, 0]), one, one, np.array([1, 1, 1, 0]), np.full(4, 9))
    loss = index_loss("g", exact, np.array([1, 0, 6, 0]), 1, 50)
    assert loss.probes == 3
    assert loss.exact == (1 / 3, 2 / 3, 1.0, 1.0)
    assert loss.found == (1 / 3, 1 / 3, 2 / 3, 2 / 3)
