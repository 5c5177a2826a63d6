"""Decode images to uint8 (299, 299, 3) RGB, for training and embedding alike.

Images are untrusted input: size and dimensions are checked before decoding, only four formats are opened, and
every decoder error becomes UnreadableImage.
"""

import importlib
import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

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

IMAGE_SIZE = 299
MAX_BYTES = 32 * 1024 * 1024
MAX_PIXELS = 50_000_000
# From 4 times the target size, scaled decoding saves most of the work and leaves a factor of 2 to average.
SCALED_FROM = 4 * IMAGE_SIZE
# Part of the fingerprint: raise the number with any change that changes a pixel.
# Without the two fast libraries the pixels differ slightly, so their names are included.
PREPROCESSING_VERSION = f"1-{'turbojpeg' if simplejpeg else 'pillow'}-{'cv2' if cv2 else 'pillow'}"

# Of ImageNet's training images, in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_UNSUPPORTED = {b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"%PDF": "PDF"}
_EXIF_ORIENTATION = 0x0112

ImageArray = NDArray[np.uint8]


def decode(data: bytes) -> ImageArray:
    """Decode a JPEG, PNG, WebP or BMP to uint8 (299, 299, 3) RGB, upright and resized to a square.

    Grey, palette, CMYK and 16-bit images become 8-bit RGB, transparency is dropped, and only the first of
    several frames is read. Equal bytes give equal pixels. Raises UnreadableImage with cause empty,
    too-large, not-a-picture, unsupported or truncated.
    """
    if not data:
        raise UnreadableImage("the object has no bytes", cause="empty")
    if len(data) > MAX_BYTES:
        raise _too_large(f"{len(data):,} bytes, at most {MAX_BYTES:,}")
    size = _plain_jpeg_size(data)
    if size:
        _check_pixels(*size)
        return np.ascontiguousarray(_resize_to_square(_decode_jpeg(data, size)))
    header = _open(data)
    _check_pixels(*header.size)
    orientation = _orientation(header)
    direct = simplejpeg is not None and header.format == "JPEG" and header.mode in ("RGB", "L")
    pixels = _decode_jpeg(data, header.size) if direct else _decode_pillow(header)
    return np.ascontiguousarray(_apply_exif_orientation(_resize_to_square(pixels), orientation))


def to_input(images: Tensor) -> Tensor:
    """Convert uint8 (n, 299, 299, 3) to float32 (n, 3, 299, 299) in [-1, 1], in channels_last order.

    torchvision's and TensorFlow's Inception-V3 weights expect (x / 255 - 0.5) / 0.5.
    """
    planes = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)
    return planes.sub_(127.5).div_(127.5)


def imagenet_normalize(x: Tensor) -> Tensor:
    """Convert `to_input`'s [-1, 1] to the range that torchvision's ResNet and VGG weights expect."""
    return normalize(x, IMAGENET_MEAN, IMAGENET_STD)


def normalize(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Convert `to_input`'s [-1, 1], (n, 3, h, w), to ((x + 1) / 2 - mean) / std by channel."""
    scale = x.new_tensor([0.5 / deviation for deviation in std])[:, None, None]
    shift = x.new_tensor([(0.5 - center) / deviation for center, deviation in zip(mean, std, strict=True)])[
        :, None, None
    ]
    return x * scale + shift


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG without EXIF and MPF blocks, else None.

    This avoids Pillow's header parser, which is a tenth of the work for a usual crop. EXIF may have an
    orientation, and MPF more images.
    """
    if simplejpeg is None or not data.startswith(b"\xff\xd8\xff") or b"Exif\0" in data or b"MPF\0" in data:
        return None
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (width, height) if color_space in ("YCbCr", "Gray") else None


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _too_large(f"{width} x {height} pixels, at most {MAX_PIXELS:,} in all")


def _open(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow warns about large images; our limit is lower and refuses them.
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(str(error)) from error
    except Exception as error:
        kind = _UNSUPPORTED.get(data[:4]) or ("HEIF" if data[4:8] == b"ftyp" else "")
        if kind:
            raise UnreadableImage(
                f"{kind} is not supported", cause="unsupported", remedy="convert it to JPEG or PNG"
            ) from error
        if data.startswith((b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM")):
            raise UnreadableImage("the image ends within its header", cause="truncated") from error
        raise UnreadableImage("not a JPEG, PNG, WebP or BMP image", cause="not-a-picture") from error


def _decode_jpeg(data: bytes, size: tuple[int, int]) -> ImageArray:
    min_side = 2 * IMAGE_SIZE if min(size) >= SCALED_FROM else 0
    try:
        decoded: ImageArray = simplejpeg.decode_jpeg(data, "RGB", min_height=min_side, min_width=min_side)
        return decoded
    except Exception as error:
        # Cameras often write stray bytes between two markers. Pillow skips them, and still refuses an image
        # that ends early.
        if "extraneous bytes" in str(error):
            return _decode_pillow(_open(data))
        raise UnreadableImage(f"damaged JPEG: {error}", cause="truncated") from error


def _decode_pillow(image: Image.Image) -> ImageArray:
    try:
        if image.format == "JPEG" and min(image.size) >= SCALED_FROM:
            image.draft(None, (2 * IMAGE_SIZE, 2 * IMAGE_SIZE))
        if image.mode.startswith("I"):
            # Pillow clips 16-bit grey at 255 instead of scaling it.
            grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        return np.asarray(image.convert("RGB"))
    except Exception as error:
        raise UnreadableImage(f"damaged {image.format}: {error}", cause="truncated") from error


def _resize_to_square(pixels: ImageArray) -> ImageArray:
    height, width = pixels.shape[:2]
    shrunk = (min(width, IMAGE_SIZE), min(height, IMAGE_SIZE))
    # Shrinking needs averaging and growing needs interpolation; a crop may need both.
    if shrunk != (width, height):
        pixels = _resize(pixels, shrunk, shrink=True)
    if shrunk != (IMAGE_SIZE, IMAGE_SIZE):
        pixels = _resize(pixels, (IMAGE_SIZE, IMAGE_SIZE), shrink=False)
    return pixels


def _resize(pixels: ImageArray, size: tuple[int, int], *, shrink: bool) -> ImageArray:
    if cv2 is not None:
        resized: ImageArray = cv2.resize(
            pixels, size, interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
        )
        return resized
    method = Image.Resampling.BOX if shrink else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(pixels).resize(size, method))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # a broken EXIF block does not make the image unreadable
        return 1


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


def _too_large(size: str) -> UnreadableImage:
    return UnreadableImage(f"too large: {size}", cause="too-large")
