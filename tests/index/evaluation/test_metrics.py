"""Rankings keep the ranks of all positives, and each metric is its definition over them."""

import numpy as np
import pytest

from index.evaluation.metrics import (
    METRICS,
    Ranking,
    average_precision,
    inverse_negative_penalty,
    metrics_by,
    rank_k,
    trapezoid_average_precision,
)


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


def veri_ap(positive_ranks: list[int]) -> float:
    """`compute_AP.m` of VeRi-776 for a ranking without junk, statement by statement."""
    old_recall, old_precision, area, found = 0.0, 1.0, 0.0, 0
    for place in range(max(positive_ranks, default=0)):
        found += place + 1 in positive_ranks
        recall, precision = found / len(positive_ranks), found / (place + 1)
        area += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return area


def test_the_trapezoid_precision_is_that_of_veri() -> None:
    ranking = make_ranking()
    expected = [veri_ap([1, 5]), 0, veri_ap([2, 3, 7])]
    assert trapezoid_average_precision(ranking) == pytest.approx(expected)
    assert expected[0] == pytest.approx((1 + (1 / 4 + 2 / 5) / 2) / 2)
    assert (trapezoid_average_precision(ranking) <= average_precision(ranking)).all()
    assert [metric.name for metric in metrics_by("trapezoid")] == ["map_trapezoid", "minp"]
    assert metrics_by("mean") == METRICS


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
