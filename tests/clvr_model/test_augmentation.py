"""Augmentation does what its switch says, and the same to the same image of the same epoch, always."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clvr_model.augmentation import ERASED_AREA, GREY, augment
from clvr_model.recipe import Stage

PLAIN = Stage(name="target", epochs=1, optimizer="sgd", lr=0.1)
ALL = PLAIN.model_copy(
    update={"horizontal_flip": True, "random_erasing": 0.5, "color_jitter": 0.2, "blur": 0.3}
)
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 32, 48, 3), np.uint8)
ROWS = np.arange(40)


def draw(stage: Stage, rows: NDArray[np.int64] = ROWS, **place: int) -> NDArray[np.uint8]:
    return augment(IMAGES[rows], rows, stage, **{"seed": 1, "number": 1, "epoch": 0, **place})


def test_a_stage_without_augmentation_returns_its_images() -> None:
    assert augment(IMAGES, ROWS, PLAIN, seed=1, number=1, epoch=0) is IMAGES


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(12)), st.integers(0, 2**40))
def test_augmentation_does_not_depend_on_order_or_batch(order: list[int], seed: int) -> None:
    rows = np.array(order)
    whole = draw(ALL, np.arange(12), seed=seed)
    assert np.array_equal(draw(ALL, rows, seed=seed), whole[rows])
    assert np.array_equal(draw(ALL, rows[5:6], seed=seed)[0], whole[rows[5]])


@pytest.mark.parametrize("place", [{"seed": 2}, {"number": 0}, {"epoch": 1}])
def test_seeds_stages_and_epochs_see_different_images(place: dict[str, int]) -> None:
    assert not np.array_equal(draw(ALL), draw(ALL, **place))


def test_flip_mirrors_about_half_and_changes_nothing_else() -> None:
    drawn = draw(PLAIN.model_copy(update={"horizontal_flip": True}))
    kept = np.array([np.array_equal(a, b) for a, b in zip(drawn, IMAGES, strict=True)])
    turned = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(drawn, IMAGES, strict=True)])
    assert (kept ^ turned).all()
    assert 8 < kept.sum() < 32


def test_erasing_makes_one_grey_rectangle_of_the_stated_size() -> None:
    drawn = draw(PLAIN.model_copy(update={"random_erasing": 1.0}))
    for after, before in zip(drawn, IMAGES, strict=True):
        erased = (after == GREY).all(axis=2)
        ys, xs = np.nonzero(erased)
        box = np.s_[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        assert erased[box].all()
        assert 0.5 * ERASED_AREA[0] < erased.mean() < 1.3 * ERASED_AREA[1]
        assert np.array_equal(after[~erased], before[~erased])


def test_a_probability_is_the_share_of_changed_images() -> None:
    for switch in ("random_erasing", "blur"):
        drawn = draw(PLAIN.model_copy(update={switch: 0.4}))
        changed = sum(not np.array_equal(a, b) for a, b in zip(drawn, IMAGES, strict=True))
        assert 6 < changed < 26, switch


def test_color_jitter_changes_every_image_slightly() -> None:
    drawn = draw(PLAIN.model_copy(update={"color_jitter": 0.1})).astype(float)
    difference = np.abs(drawn - IMAGES).mean(axis=(1, 2, 3))
    assert (difference > 0).all()
    assert difference.max() < 40
    for after, before in zip(drawn, IMAGES, strict=True):
        assert np.corrcoef(after.ravel(), before.ravel())[0, 1] > 0.95


def test_blur_lowers_the_contrast_between_neighbouring_pixels() -> None:
    drawn = draw(PLAIN.model_copy(update={"blur": 1.0})).astype(float)
    assert np.abs(np.diff(drawn, axis=2)).mean() < 0.5 * np.abs(np.diff(IMAGES.astype(float), axis=2)).mean()


def test_turning_one_switch_off_does_not_change_the_others() -> None:
    erased = draw(PLAIN.model_copy(update={"random_erasing": 0.5}))
    both = draw(PLAIN.model_copy(update={"random_erasing": 0.5, "blur": 0.3}))
    blurred = draw(PLAIN.model_copy(update={"blur": 0.3}))
    for one, two, three, original in zip(erased, both, blurred, IMAGES, strict=True):
        if np.array_equal(three, original):
            assert np.array_equal(one, two)


def test_an_empty_batch_stays_empty() -> None:
    assert draw(ALL, ROWS[:0]).shape == (0, 32, 48, 3)
