"""Training pictures, changed at random: the same picture in the same epoch is always changed the same way."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from clvr_model.recipe import Stage

Picture = NDArray[np.uint8]

# What the network sees as zero.
GREY = 127
ERASED_AREA = (0.02, 0.3)
ERASED_ASPECT = 0.3  # and up to its inverse
BLUR_RADIUS = (0.5, 2.0)
LUMA = np.array((0.299, 0.587, 0.114))

_TAG = 0xA06  # keeps these streams apart from those of the epochs' order
_DRAWS = 12


def augment(
    pictures: NDArray[np.uint8],
    rows: Sequence[int] | NDArray[np.int64],
    stage: Stage,
    *,
    seed: int,
    number: int,
    epoch: int,
) -> NDArray[np.uint8]:
    """uint8 (n, h, w, 3) as the stage wants it in that epoch; `rows` are the pictures' numbers in the data.

    Depends on (seed, stage number, epoch, row) alone: not on order, batch or worker, so that a resume, also
    with another number of workers, sees the same pictures.
    """
    if not stage.augments:
        return pictures
    changed = [
        augmented(picture, stage, np.random.default_rng([int(row), epoch, number, seed, _TAG]))
        for picture, row in zip(pictures, rows, strict=True)
    ]
    return np.stack(changed) if changed else pictures


def augmented(picture: Picture, stage: Stage, rng: np.random.Generator) -> Picture:
    """One picture, uint8 (h, w, 3): mirrored, coloured, blurred and erased, each as the stage says."""
    # Always as many draws: turning one switch off leaves the others' randomness as it was.
    flip, blur, radius, erase, area, aspect, top, left, *colours = rng.random(_DRAWS).tolist()
    if stage.horizontal_flip and flip < 0.5:
        picture = picture[:, ::-1]
    if stage.color_jitter:
        picture = _coloured(picture, 1 + stage.color_jitter * (2 * np.asarray(colours[:3]) - 1))
    if blur < stage.blur:
        size = BLUR_RADIUS[0] + radius * (BLUR_RADIUS[1] - BLUR_RADIUS[0])
        picture = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(size)))
    if erase < stage.random_erasing:
        picture = _erased(picture, area, aspect, top, left)
    return np.ascontiguousarray(picture)


def _coloured(picture: Picture, factors: NDArray[np.float64]) -> Picture:
    """Brightness, contrast (about the mean grey) and saturation (about each pixel's grey), in one product."""
    brightness, contrast, saturation = factors
    grey = float(picture.reshape(-1, 3).mean(axis=0) @ LUMA)
    mix = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * LUMA)
    offset = brightness * (1 - contrast) * grey
    matrix = np.column_stack([mix, np.full(3, offset)])
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.convert("RGB", tuple(matrix.ravel().tolist())))


def _erased(picture: Picture, area: float, aspect: float, top: float, left: float) -> Picture:
    height, width = picture.shape[:2]
    pixels = height * width * (ERASED_AREA[0] + area * (ERASED_AREA[1] - ERASED_AREA[0]))
    ratio = ERASED_ASPECT ** (2 * aspect - 1)
    tall, wide = min(height, round((pixels * ratio) ** 0.5)), min(width, round((pixels / ratio) ** 0.5))
    y, x = int(top * (height - tall + 1)), int(left * (width - wide + 1))
    erased = picture.copy()
    erased[y : y + tall, x : x + wide] = GREY
    return erased
