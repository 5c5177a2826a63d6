"""Decode images to square uint8 RGB of a backbone's size, for training and embedding alike.

Images are untrusted input: `image_headers` checks them against budgets before they are decoded, only four
formats are opened, and every decoder error becomes UnreadableImage.
"""

import importlib
import io
import re
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clvr_model.image_headers import ImageHeader, read_header, too_large
from infra.errors import UnreadableImage


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


cv2 = _optional("cv2")
simplejpeg = _optional("simplejpeg")
if cv2:
    # One image is too small to share between threads, and an actor has one core.
    cv2.setNumThreads(0)

IMAGE_SIZE = 299  # of most backbones; each says its own, see `Backbone.input_size`
# From 4 times the target size, scaled decoding saves most of the work and leaves a factor of 2 to average.
SCALED_FROM = 4
# Part of the fingerprint: raise the number with any change that changes a pixel.
# Without the two fast libraries the pixels differ slightly, so their names are included.
PREPROCESSING_VERSION = f"1-{'turbojpeg' if simplejpeg else 'pillow'}-{'cv2' if cv2 else 'pillow'}"

# Of ImageNet's training images, in [0, 1].

_BAND_PIXELS = 1 << 22  # converted at a time, so that a large image is not held three times
_MAX_STRAY_RUNS = 4
_ZERO_TAIL = 8  # bytes; the last ones that the decoder of a JPEG without an end used
_STRAY_BYTES = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")

ImageArray = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom exclusive


def decode(
    data: bytes, size: int = IMAGE_SIZE, box: Box | None = None, out: ImageArray | None = None
) -> ImageArray:
    """Decode a JPEG, PNG, WebP or BMP to uint8 (size, size, 3) RGB, upright and resized to a square.

    box: the part of the stored image (before its orientation is applied) to keep, cut at the image's borders.
    out: a contiguous array of this shape to write to and return, instead of a new one.

    Grey, palette, CMYK and 16-bit images become 8-bit RGB, transparency is dropped, and only the first of
    several frames is read. Equal bytes give equal pixels. The cost is bounded: see `image_headers`. Raises
    UnreadableImage with cause empty, too-large, not-a-picture, unsupported or truncated, or outside for a box
    outside of the image.
    """
    header = read_header(data)
    # A reduced image has no exact place for a box.
    pixels = _decode(header, size) if box is None else _crop(_decode(header, max(header.size)), box)
    pixels = _resize_to_square(pixels, size, out if header.orientation == 1 else None)
    pixels = _apply_exif_orientation(pixels, header.orientation)
    if out is None:
        return np.ascontiguousarray(pixels)
    if pixels is not out:
        out[...] = pixels
    return out


def decode_within(data: bytes, side: int) -> ImageArray:
    """Decode to uint8 (h, w, 3) RGB, upright, in its own proportions and at most `side` pixels high and wide.

    `side` is at most twice `IMAGE_SIZE`. Smaller images are not enlarged. Raises as `decode` does.
    """
    header = read_header(data)
    return _shrunk(header, _decode(header, IMAGE_SIZE), side)


def decode_upright(data: bytes, side: int) -> ImageArray:
    """Decode to uint8 (h, w, 3) RGB, upright and in its own proportions, to look at it.

    At most `side` pixels high and wide, for any `side`; smaller images are not enlarged. Raises as `decode`
    does.
    """
    header = read_header(data)
    return _shrunk(header, _decode(header, side), side)


def _shrunk(header: ImageHeader, pixels: ImageArray, side: int) -> ImageArray:
    """Return the pixels upright and at most `side` high and wide."""
    height, width = pixels.shape[:2]
    scale = min(1.0, side / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size != (width, height):
        pixels = _resize(pixels, size, shrink=True)
    return np.ascontiguousarray(_apply_exif_orientation(pixels, header.orientation))


def fit_square(pixels: ImageArray, size: int) -> ImageArray:
    """Resize an upright image (h, w, 3), or a part of one, to the (size, size, 3) that a network takes."""
    return np.ascontiguousarray(_resize_to_square(pixels, size))


def _decode(header: ImageHeader, target: int) -> ImageArray:
    """Decode in the image's own size, or reduced to no less than twice the target."""
    if header.format != "JPEG":
        return _decode_pillow(header, target)
    if header.components in (1, 3) and simplejpeg is not None:
        return _decode_jpeg(header, "RGB", target)
    if not header.has_end:
        # Pillow fills what is missing with grey.
        if simplejpeg is None:
            raise UnreadableImage("damaged JPEG: it has no end", cause="truncated")
        _decode_jpeg(header, "CMYK", target)
    return _decode_pillow(header, target)


def _decode_jpeg(header: ImageHeader, color_space: str, target: int) -> ImageArray:
    """Decode by simplejpeg, which refuses an image that ends early or is damaged."""
    scaled = min(header.size) >= SCALED_FROM * target and not header.multi_picture
    min_side = 2 * target if scaled else 0
    data, text = header.data, ""
    for _ in range(_MAX_STRAY_RUNS):
        try:
            decoded: ImageArray = simplejpeg.decode_jpeg(
                data, color_space, min_height=min_side, min_width=min_side
            )
        except Exception as error:
            text = str(error)
        else:
            if not header.has_end and not any(data[-2 - _ZERO_TAIL : -2]):
                # A copy that broke off often has zeros in place of the rest, and zeros can be decoded.
                raise UnreadableImage("damaged JPEG: its end is zeros", cause="truncated")
            return decoded
        # Cameras often write stray bytes behind a scan: they are removed, and the rest must be whole.
        without = _without_stray_bytes(data, text)
        if without is None:
            break
        data = without
    if text.startswith("Warning: unknown JFIF revision") and header.has_end:
        return _decode_pillow(header, target)
    raise UnreadableImage(f"damaged JPEG: {text}", cause="truncated")


def _without_stray_bytes(data: bytes, warning: str) -> bytes | None:
    """Remove the bytes that libjpeg skipped before a marker; None if it warns of something else."""
    found = _STRAY_BYTES.search(warning)
    if not found:
        return None
    count, marker = int(found[1]), b"\xff" + bytes.fromhex(found[2])
    end = data.rfind(marker)
    if not 0 < count <= end:
        return None
    return data[: end - count] + data[end:]


def _decode_pillow(header: ImageHeader, target: int) -> ImageArray:
    try:
        with warnings.catch_warnings():
            # Pillow warns about large images; our limits are lower.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(header.data), formats=[header.format])
            if image.size != header.size:
                raise UnreadableImage(f"damaged {header.format}: it has two sizes", cause="truncated")
            if header.format == "JPEG" and min(image.size) >= SCALED_FROM * target:
                image.draft(None, (2 * target, 2 * target))
            image.load()
            return _to_rgb(image)
    except Image.DecompressionBombError as error:
        raise too_large(str(error)) from error
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(f"damaged {header.format}: {error}", cause="truncated") from error


def _to_rgb(image: Image.Image) -> ImageArray:
    """Convert to uint8 (h, w, 3), in bands of rows."""
    width, height = image.size
    rows = max(1, _BAND_PIXELS // width)
    if height <= rows:
        return _band_to_rgb(image)
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = _band_to_rgb(image.crop((0, top, width, bottom)))
    return pixels


def _band_to_rgb(image: Image.Image) -> ImageArray:
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey at 255 instead of scaling it.
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def _crop(pixels: ImageArray, box: Box) -> ImageArray:
    left, top, right, bottom = box
    part = pixels[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if not part.size:
        height, width = pixels.shape[:2]
        raise UnreadableImage(f"the box {box} is outside of the image of {width} x {height}", cause="outside")
    return part


def _resize_to_square(pixels: ImageArray, side: int, out: ImageArray | None = None) -> ImageArray:
    """Resize, if need be, and return `out` where the last step could write into it."""
    height, width = pixels.shape[:2]
    shrunk = (min(width, side), min(height, side))
    # Shrinking needs averaging and growing needs interpolation; a crop may need both.
    if shrunk != (width, height):
        pixels = _resize(pixels, shrunk, shrink=True, out=out if shrunk == (side, side) else None)
    if shrunk != (side, side):
        pixels = _resize(pixels, (side, side), shrink=False, out=out)
    return pixels


def _resize(
    pixels: ImageArray, size: tuple[int, int], *, shrink: bool, out: ImageArray | None = None
) -> ImageArray:
    if cv2 is not None:
        method = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
        resized: ImageArray = cv2.resize(pixels, size, dst=out, interpolation=method)
        return resized
    method = Image.Resampling.BOX if shrink else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(pixels).resize(size, method))


def _apply_exif_orientation(pixels: ImageArray, orientation: int) -> ImageArray:
    """Undo an EXIF orientation (Exif 2.3, tag 0x0112); unknown values change nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        # For 5 to 8 the axes are already swapped; 7 and 8 start at the bottom.
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
