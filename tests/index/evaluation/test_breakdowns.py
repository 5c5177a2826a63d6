"""Verification, camera pairs, times of day and vehicle models, on data small enough to count by hand."""

import numpy as np
import pytest

from index.evaluation.breakdowns import (
    Distances,
    attribute_accuracy,
    by_camera_pair,
    by_day_part,
    by_value,
    classification,
    l2_normalized,
    sample_distances,
)
from index.evaluation.cmc import LabeledFeatures, Split, cmc_of_splits
from jobs.pages.charts import class_chart, histogram

HOUR = 3_600_000


def make_images() -> LabeledFeatures:
    rng = np.random.default_rng(0)
    vehicles = np.repeat(np.arange(12), 4)
    features = (rng.standard_normal((12, 8))[vehicles] + 0.6 * rng.standard_normal((48, 8))).astype(
        np.float32
    )
    return LabeledFeatures(features, vehicles, np.tile(["a", "b", "c", "a"], 12), np.arange(48))


def test_tpr_at_fpr_is_a_threshold_on_different_vehicles() -> None:
    different = np.arange(1000, dtype=np.float32)
    distances = Distances(np.array([5, 9, 11, 500], np.float32), different, 10)
    assert distances.tpr_at_fpr(0.01) == 0.5  # ten of 1,000 lie below 10
    assert distances.tpr_at_fpr(0.001) == 0.0
    assert distances.tpr_at_fpr(0.0001) is None


def test_distances_cover_every_ranked_pair() -> None:
    images = make_images()
    rows = np.arange(48)
    found = sample_distances(images, Split(rows, rows))
    assert (len(found.same), len(found.different), found.probes) == (48 * 3, 48 * 44, 48)
    true = np.linalg.norm(images.features[0] - images.features[1])
    assert np.abs(found.same - true).min() < 1e-5
    junk = sample_distances(images, Split(rows, rows), junk=True)
    assert len(junk.same) == 48 * 3 - 12 * 2  # the two by camera a do not count for each other
    assert found.same.mean() < found.different.mean()


def test_camera_pairs_rank_against_one_camera_alone() -> None:
    images = make_images()
    pairs = by_camera_pair(images)
    assert [(p.probe_camera, p.gallery_camera) for p in pairs] == [
        ("a", "b"), ("a", "c"), ("b", "a"), ("b", "c"), ("c", "a"), ("c", "b"),
    ]  # fmt: skip
    assert images.camera_ids is not None
    probes, gallery = (np.flatnonzero(images.camera_ids == name) for name in "ab")
    (alone,) = cmc_of_splits(images, [Split(probes, gallery)], max_rank=1)
    assert (pairs[0].probes, pairs[0].rank_1, pairs[0].map) == (24, float(alone.curve[0]), alone.mean_ap)


def test_times_of_day_exclude_unknown_times() -> None:
    images = make_images()
    split = Split(np.arange(6), np.arange(48))
    (result,) = cmc_of_splits(images, [split])
    times = np.full(48, -1)
    times[:4] = np.array([3, 13, 14, 24 * 400 + 23]) * HOUR
    parts = by_day_part(split, result.ranking, times)
    assert [(part.name, part.probes) for part in parts] == [("night", 1), ("afternoon", 2), ("evening", 1)]
    assert parts[1].rank_1 == (result.first_ranks[1:3] == 1).mean()


def test_classification_averages_over_images_and_over_models() -> None:
    true = np.array([0, 0, 0, 0, 7, 7, -1])
    found = classification(np.array([0, 0, 0, 7, 7, 0, 0]), true)
    assert found is not None
    assert (found.micro, found.macro, found.pictures, found.chance) == (4 / 6, (3 / 4 + 1 / 2) / 2, 6, 4 / 6)
    assert [(model.model_id, model.pictures, model.accuracy) for model in found.classes] == [
        (0, 4, 0.75),
        (7, 2, 0.5),
    ]
    assert classification(true, np.full(7, -1)) is None
    chart = class_chart(found, ["zero", "seven"])
    assert chart.bars[0].tooltip == "zero: 75.0% of 4 images, 66.7% of these images"


def test_the_chart_of_classes_shows_the_share_of_training_images_in_falling_order() -> None:
    found = classification(np.array([0, 0, 0, 7, 7, 0]), np.array([0, 0, 0, 0, 7, 7]))
    assert found is not None
    chart = class_chart(found, ["zero", "seven"], {0: 10, 7: 30, 9: 60})  # no held-out image is of model 9
    assert [bar.tooltip for bar in chart.bars] == [
        "seven: 50.0% of 2 images, 30.0% of the training images",
        "zero: 75.0% of 4 images, 10.0% of the training images",
    ]
    assert chart.largest_share == 0.3
    assert chart.bars[0].share_height == pytest.approx(3 * chart.bars[1].share_height, abs=0.02)


def test_the_histogram_has_common_bins() -> None:
    drawn = histogram(Distances(np.array([0, 1], np.float32), np.array([1, 6], np.float32), 1))
    assert drawn is not None
    assert drawn.same.sum() == drawn.different.sum() == 1
    assert drawn.overlap == pytest.approx(0.5)
    assert histogram(Distances(np.array([], np.float32), np.array([1], np.float32), 1)) is None


def test_normalized_rows_have_length_one_and_zeros_stay() -> None:
    rows = l2_normalized(np.array([[3, 4], [0, 0]], np.float32))
    assert rows.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]


def test_an_attribute_is_scored_where_its_value_is_known() -> None:
    true = np.array(["red", "red", "red", "blue", "", ""])
    found = attribute_accuracy("color", np.array(["red", "red", "blue", "blue", "red", ""]), true)
    assert found is not None
    assert (found.micro, found.pictures, found.chance) == (0.75, 4, 0.75)
    assert found.macro == pytest.approx((2 / 3 + 1) / 2)
    assert [(each.value, each.pictures) for each in found.values] == [("red", 3), ("blue", 1)]
    assert attribute_accuracy("color", true, np.full(6, "")) is None
    assert attribute_accuracy("color", np.full(6, ""), true) is None


def test_probes_are_ranked_by_their_value() -> None:
    # Images 0 and 1 are near each other, 2 is nearer to 0 than its own vehicle's 3.
    features = np.array([[0.0], [0.1], [0.3], [9.0]], np.float32)
    images = LabeledFeatures(features, np.array([1, 1, 2, 2]), None, np.arange(4))
    split = Split(np.array([0, 2]), np.arange(4))
    ranking = cmc_of_splits(images, [split], max_rank=1)[0].ranking
    parts = by_value(split, ranking, np.array(["red", "", "blue", "red"]))
    assert [(part.value, part.probes, part.rank_1) for part in parts] == [("blue", 1, 0.0), ("red", 1, 1.0)]
