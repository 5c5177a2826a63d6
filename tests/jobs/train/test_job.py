"""Work: how much of a training lies before a place in it, so that its end can be foretold."""

import pytest

from clvr_model.recipe import load_recipe
from jobs.train.job import Place, Work

SHORT = ["warmup.epochs=2", "target.epochs=3"]


@pytest.fixture
def work() -> Work:
    return Work(load_recipe("paper", SHORT), training=100, held=20)


def test_a_cached_stage_costs_one_pass_and_then_hardly_anything(work: Work) -> None:
    first, second = work.before(0, 1), work.before(0, 2)
    assert first == pytest.approx(120, abs=3)
    assert second - first <= 2


def test_learning_all_layers_costs_three_passes_a_picture_and_one_for_each_held_out(work: Work) -> None:
    assert work.before(1, 1) - work.before(1, 0) == 3 * 100 + 20
    assert work.before(1, 0, pictures=50) - work.before(1, 0) == 150


def test_all_work_lies_before_the_end(work: Work) -> None:
    assert work.total == work.before(1, 3) == pytest.approx(120 + 2 + 3 * 320, abs=3)


def test_a_stage_that_augments_keeps_no_features_and_pays_for_every_epoch() -> None:
    work = Work(load_recipe("paper", [*SHORT, "warmup.flip=true"]), training=100, held=20)
    assert work.before(0, 1) == pytest.approx(122, abs=1)
    assert work.before(0, 2) == pytest.approx(244, abs=1)


def test_a_place_counts_the_pictures_of_whole_epochs_and_of_the_one_it_is_in() -> None:
    place = Place(history=[{"pictures": 100}, {"pictures": 100}])
    place.totals = type(place.totals)(loss=1.0, correct=1, pictures=7)
    assert place.seen == 207
