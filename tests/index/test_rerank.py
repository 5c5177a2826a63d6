"""k-reciprocal re-ranking: neighbours that see each other move up, and nothing is lost."""

import numpy as np
import pytest

from index.rerank import k_reciprocal


def test_a_mutual_neighbour_overtakes_a_hub_that_is_a_little_nearer() -> None:
    rng = np.random.default_rng(0)
    own = rng.normal(size=(8, 16)) * 0.3
    others = rng.normal(size=(12, 16)) * 0.3 + 2.0
    bridge = np.full((1, 16), 0.35)
    head = np.concatenate([own[1:], bridge, others]).astype(np.float32)
    order = k_reciprocal(own[0].astype(np.float32), head, k1=6, k2=3)
    assert set(order[:7]) == set(range(7))


@pytest.mark.parametrize("rows", [0, 1, 2, 30])
def test_every_answer_keeps_exactly_one_place(rows: int) -> None:
    rng = np.random.default_rng(1)
    head = rng.normal(size=(rows, 8)).astype(np.float32)
    order = k_reciprocal(rng.normal(size=8).astype(np.float32), head)
    assert sorted(order.tolist()) == list(range(rows))


def test_equal_vectors_break_nothing() -> None:
    assert len(k_reciprocal(np.zeros(4, np.float32), np.zeros((5, 4), np.float32))) == 5
