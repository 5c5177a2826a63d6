"""Rankings keep the ranks of all positives, and each metric is its definition over them."""

import numpy as np
import pytest

from index.evaluation.metrics import METRICS, Ranking, average_precision, inverse_negative_penalty, rank_k


def make_ranking() -> Ranking:
    """Three probes with 2, 0 and 3 positives."""
    return Ranking.from_counts(
        negatives_ahead=np.array([0, 3, 1, 1, 4]),
        num_positives=np.array([2, 0, 3]),
        gallery_sizes=np.array([9, 8, 7]),
    )


def test_ranks_count_negatives_and_positives_ahead() -> None:
    ranking = make_ranking()
    assert ranking.positive_ranks.tolist() == [1, 5, 2, 3, 7]
    assert ranking.first_ranks.tolist() == [1, 0, 2]
    assert ranking.last_ranks.tolist() == [5, 0, 7]
    assert ranking.has_positive.tolist() == [True, False, True]


def test_each_metric_is_its_definition() -> None:
    ranking = make_ranking()
    assert average_precision(ranking) == pytest.approx([(1 / 1 + 2 / 5) / 2, 0, (1 / 2 + 2 / 3 + 3 / 7) / 3])
    assert inverse_negative_penalty(ranking) == pytest.approx([2 / 5, 0, 3 / 7])
    assert rank_k(1).per_probe(ranking).tolist() == [1, 0, 0]
    assert rank_k(5).per_probe(ranking).tolist() == [1, 0, 1]
    assert [(metric.name, metric.title) for metric in METRICS] == [("map", "mAP"), ("minp", "mINP")]


def test_a_mean_is_over_probes_with_a_positive() -> None:
    assert rank_k(1).mean(make_ranking()) == 0.5


def test_probes_are_taken_in_any_order_and_joined_again() -> None:
    ranking = make_ranking()
    reordered = ranking.take(np.array([2, 1, 0]))
    assert reordered.positive_ranks.tolist() == [2, 3, 7, 1, 5]
    assert reordered.gallery_sizes.tolist() == [7, 8, 9]
    joined = Ranking.concatenate([Ranking.empty(2), reordered])
    assert joined.num_positives.tolist() == [0, 0, 3, 0, 2]
    assert joined.take(np.array([4, 3, 2])).positive_ranks.tolist() == ranking.positive_ranks.tolist()
