"""Images for the page, encoded again: no byte of an upload or of the archive reaches a browser as it is."""

import io
import math
from dataclasses import dataclass

from PIL import Image

from clvr_model.preprocessing import ImageArray, decode_upright, fit_square
from infra.errors import BadInput, UnreadableImage

MAX_SIDE = 4096
"""Pixels of the longer side of an image that is looked at."""

SMALL_SIDE = 480
"""Pixels of the longer side of an upload beside its answers."""

QUALITY = 92


@dataclass(frozen=True, slots=True)
class Box:
    """A part of an upright image, in shares of its width and height from its upper left corner."""

    x: float
    y: float
    width: float
    height: float

    @classmethod
    def parse(cls, text: str) -> "Box":
        """Parse `x,y,width,height`. Raises BadInput."""
        wrong = BadInput(f"{text[:60]!r} is no box", remedy="write x,y,width,height, each from 0 to 1")
        parts = text.split(",")
        if len(parts) != 4 or not all(part.replace(".", "", 1).isdecimal() for part in parts):
            raise wrong
        x, y, width, height = map(float, parts)
        inside = x + width <= 1.001 and y + height <= 1.001 and width > 0 and height > 0
        if not (inside and all(map(math.isfinite, (x, y, width, height)))):
            raise wrong
        return cls(x, y, width, height)

    def cut(self, pixels: ImageArray) -> ImageArray:
        """Return the part of an image (h, w, 3), at least a pixel high and wide."""
        height, width = pixels.shape[:2]
        left, top = min(width - 1, round(self.x * width)), min(height - 1, round(self.y * height))
        right = max(left + 1, min(width, round((self.x + self.width) * width)))
        bottom = max(top + 1, min(height, round((self.y + self.height) * height)))
        return pixels[top:bottom, left:right]


@dataclass(frozen=True, slots=True)
class Viewable:
    """A JPEG that we encoded, without any metadata, and its size in pixels."""

    jpeg: bytes
    width: int
    height: int


def viewable(data: bytes, *, box: Box | None = None, side: int = MAX_SIDE) -> Viewable:
    """Decode an image of any format that searches take, or a box of it, and encode it again.

    side: pixels of the longer side, at most. Raises BadInput.
    """
    pixels = _decode(data, side) if box is None else box.cut(_decode(data, MAX_SIDE))
    image = Image.fromarray(pixels)
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return Viewable(buffer.getvalue(), *image.size)


def viewable_size(data: bytes) -> tuple[int, int]:
    """Return the width and height that an image has when it is looked at. Raises BadInput if it cannot be."""
    height, width = _decode(data, MAX_SIDE).shape[:2]
    return width, height


def cut_square(data: bytes, box: Box, size: int) -> ImageArray:
    """Return the box of an image as a network takes it, uint8 (size, size, 3). Raises BadInput."""
    return fit_square(box.cut(_decode(data, MAX_SIDE)), size)


def _decode(data: bytes, side: int) -> ImageArray:
    try:
        return decode_upright(data, side)
    except UnreadableImage as error:
        raise BadInput(f"this is not a usable image ({error.cause}): {error.message}") from error
