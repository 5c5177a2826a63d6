"""The passes before a position in a training, by which its remaining time is estimated."""

import pytest

from clvr_model.recipe import load_recipe
from jobs.train.job import Position, Work

SHORT = ["warmup.epochs=2", "target.epochs=3"]


@pytest.fixture
def work() -> Work:
    return Work(load_recipe("paper", SHORT), num_training=100, num_validation=20)


def test_cached_stage_costs_one_pass_and_then_almost_nothing(work: Work) -> None:
    first, second = work.passes_before(0, 1), work.passes_before(0, 2)
    assert first == pytest.approx(120, abs=3)
    assert second - first <= 2


def test_training_all_layers_costs_three_passes_an_image_and_one_per_validation_image(work: Work) -> None:
    assert work.passes_before(1, 1) - work.passes_before(1, 0) == 3 * 100 + 20
    assert work.passes_before(1, 0, images=50) - work.passes_before(1, 0) == 150


def test_total_is_the_passes_before_the_end(work: Work) -> None:
    assert work.total == work.passes_before(1, 3) == pytest.approx(120 + 2 + 3 * 320, abs=3)


def test_stage_with_augmentation_caches_no_features() -> None:
    work = Work(load_recipe("paper", [*SHORT, "warmup.flip=true"]), num_training=100, num_validation=20)
    assert work.passes_before(0, 1) == pytest.approx(122, abs=1)
    assert work.passes_before(0, 2) == pytest.approx(244, abs=1)


def test_position_counts_images_of_finished_epochs_and_of_the_current_one() -> None:
    position = Position(history=[{"pictures": 100}, {"pictures": 100}])
    position.totals = type(position.totals)(loss=1.0, correct=1, pictures=7)
    assert position.images_seen == 207
