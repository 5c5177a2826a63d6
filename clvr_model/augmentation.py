"""Random changes of training images, equal for the same image, epoch and seed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from clvr_model.recipe import Stage

ImageArray = NDArray[np.uint8]

# The network sees this grey as zero.
GREY = 127
ERASED_AREA = (0.02, 0.3)
ERASED_ASPECT = 0.3  # the smallest; the largest is its inverse
BLUR_RADIUS = (0.5, 2.0)
LUMA = np.array((0.299, 0.587, 0.114))

_TAG = 0xA06  # keeps these streams apart from those of the epochs' order
_DRAWS = 12


def augment(
    images: NDArray[np.uint8],
    rows: Sequence[int] | NDArray[np.int64],
    stage: Stage,
    *,
    seed: int,
    number: int,
    epoch: int,
) -> NDArray[np.uint8]:
    """Augment uint8 (n, h, w, 3) images for an epoch; `rows` are the images' numbers in the data.

    The result depends on (seed, stage number, epoch, row) only, and not on order, batch or worker: a resumed
    training sees the same images, also with another number of workers.
    """
    if not stage.augments:
        return images
    augmented = [
        augment_image(image, stage, np.random.default_rng([int(row), epoch, number, seed, _TAG]))
        for image, row in zip(images, rows, strict=True)
    ]
    return np.stack(augmented) if augmented else images


def augment_image(image: ImageArray, stage: Stage, rng: np.random.Generator) -> ImageArray:
    """Mirror, color, blur and erase parts of one uint8 (h, w, 3) image, as the stage says."""
    # The number of draws is fixed, so that one switch does not change the randomness of the others.
    flip, blur, radius, erase, area, aspect, top, left, *colors = rng.random(_DRAWS).tolist()
    if stage.horizontal_flip and flip < 0.5:
        image = image[:, ::-1]
    if stage.color_jitter:
        image = _jitter_color(image, 1 + stage.color_jitter * (2 * np.asarray(colors[:3]) - 1))
    if blur < stage.blur:
        size = BLUR_RADIUS[0] + radius * (BLUR_RADIUS[1] - BLUR_RADIUS[0])
        image = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(size)))
    if erase < stage.random_erasing:
        image = _erase(image, area, aspect, top, left)
    return np.ascontiguousarray(image)


def _jitter_color(image: ImageArray, factors: NDArray[np.float64]) -> ImageArray:
    """Scale brightness, contrast (about the mean grey) and saturation, in one product."""
    brightness, contrast, saturation = factors
    grey = float(image.reshape(-1, 3).mean(axis=0) @ LUMA)
    mix = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * LUMA)
    offset = brightness * (1 - contrast) * grey
    matrix = np.column_stack([mix, np.full(3, offset)])
    source = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(source.convert("RGB", tuple(matrix.ravel().tolist())))


def _erase(image: ImageArray, area: float, aspect: float, top: float, left: float) -> ImageArray:
    height, width = image.shape[:2]
    pixels = height * width * (ERASED_AREA[0] + area * (ERASED_AREA[1] - ERASED_AREA[0]))
    ratio = ERASED_ASPECT ** (2 * aspect - 1)
    tall, wide = min(height, round((pixels * ratio) ** 0.5)), min(width, round((pixels / ratio) ** 0.5))
    y, x = int(top * (height - tall + 1)), int(left * (width - wide + 1))
    erased = image.copy()
    erased[y : y + tall, x : x + wide] = GREY
    return erased
