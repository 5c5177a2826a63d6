"""Bytes of a picture -> uint8 (299, 299, 3) RGB: the one path that training and embedding share.

Pictures are hostile input: size and dimensions are checked before anything is decoded, only four formats are
opened, and whatever a decoder throws becomes UnreadablePicture.
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

from infra.errors import UnreadablePicture


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


cv2 = _optional("cv2")
simplejpeg = _optional("simplejpeg")
if cv2:
    # One picture is far too small to share between threads, and an actor owns one core.
    cv2.setNumThreads(0)

IMAGE_SIZE = 299
MAX_BYTES = 32 * 1024 * 1024
MAX_PIXELS = 50_000_000
# From 4 times the target, libjpeg's scaled decoding saves most of the work and still leaves 2x for averaging.
SCALED_FROM = 4 * IMAGE_SIZE
# Stands in the fingerprint: raise the number with any change that changes a pixel.
# Without the two fast libraries the pixels differ slightly, and so does the name.
PREPROCESSING_VERSION = f"1-{'turbojpeg' if simplejpeg else 'pillow'}-{'cv2' if cv2 else 'pillow'}"

# Of ImageNet's training pictures, in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_UNSUPPORTED = {b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"%PDF": "PDF"}
_EXIF_ORIENTATION = 0x0112

Picture = NDArray[np.uint8]


def decode(data: bytes) -> Picture:
    """uint8 (299, 299, 3) RGB of a JPEG, PNG, WebP or BMP, upright by its EXIF orientation, squashed square.

    Grey, palette, CMYK and 16-bit pictures become 8-bit RGB, transparency is dropped, of several frames the
    first counts. Equal bytes give equal pixels. Raises UnreadablePicture with cause empty, too-large,
    not-a-picture, unsupported or truncated.
    """
    if not data:
        raise UnreadablePicture("the object has no bytes", cause="empty")
    if len(data) > MAX_BYTES:
        raise _too_large(f"{len(data):,} bytes, at most {MAX_BYTES:,}")
    size = _plain_jpeg_size(data)
    if size:
        _check_pixels(*size)
        return np.ascontiguousarray(_squash(_decode_jpeg(data, size)))
    header = _open(data)
    _check_pixels(*header.size)
    orientation = _orientation(header)
    direct = simplejpeg is not None and header.format == "JPEG" and header.mode in ("RGB", "L")
    pixels = _decode_jpeg(data, header.size) if direct else _decode_pillow(header)
    return np.ascontiguousarray(_upright(_squash(pixels), orientation))


def to_input(pictures: Tensor) -> Tensor:
    """uint8 (n, 299, 299, 3) -> float32 (n, 3, 299, 299) in [-1, 1], in channels_last memory order.

    Both torchvision's and TensorFlow's Inception-V3 weights were made for (x / 255 - 0.5) / 0.5.
    """
    planes = pictures.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.channels_last)
    return planes.sub_(127.5).div_(127.5)


def imagenet_normalised(x: Tensor) -> Tensor:
    """[-1, 1] as `to_input` gives it -> what torchvision's ResNet and VGG weights were made for."""
    return normalised(x, IMAGENET_MEAN, IMAGENET_STD)


def normalised(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """[-1, 1] as `to_input` gives it, (n, 3, h, w) -> ((x + 1) / 2 - mean) / std by channel."""
    scale = x.new_tensor([0.5 / each for each in std])[:, None, None]
    shift = x.new_tensor([(0.5 - middle) / each for middle, each in zip(mean, std, strict=True)])[
        :, None, None
    ]
    return x * scale + shift


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG that nothing need be known of but its pixels, else None.

    Pillow's reading of a header costs a tenth of all that is done for a crop of usual size. Two kinds of
    block may hold more than pixels: EXIF an orientation, MPF further pictures.
    """
    if simplejpeg is None or not data.startswith(b"\xff\xd8\xff") or b"Exif\0" in data or b"MPF\0" in data:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (width, height) if colours in ("YCbCr", "Gray") else None


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _too_large(f"{width} x {height} pixels, at most {MAX_PIXELS:,} in all")


def _open(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow warns about large pictures; our own limit is lower and refuses them.
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(str(error)) from error
    except Exception as error:
        kind = _UNSUPPORTED.get(data[:4]) or ("HEIF" if data[4:8] == b"ftyp" else "")
        if kind:
            raise UnreadablePicture(
                f"{kind} is not read here", cause="unsupported", remedy="convert it to JPEG or PNG"
            ) from error
        if data.startswith((b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM")):
            raise UnreadablePicture("the picture ends within its header", cause="truncated") from error
        raise UnreadablePicture("not a JPEG, PNG, WebP or BMP picture", cause="not-a-picture") from error


def _decode_jpeg(data: bytes, size: tuple[int, int]) -> Picture:
    smallest = 2 * IMAGE_SIZE if min(size) >= SCALED_FROM else 0
    try:
        decoded: Picture = simplejpeg.decode_jpeg(data, "RGB", min_height=smallest, min_width=smallest)
        return decoded
    except Exception as error:
        # Stray bytes between two markers are common in cameras' files and harm no pixel; Pillow skips them
        # and still refuses a picture that ends early.
        if "extraneous bytes" in str(error):
            return _decode_pillow(_open(data))
        raise UnreadablePicture(f"damaged JPEG: {error}", cause="truncated") from error


def _decode_pillow(picture: Image.Image) -> Picture:
    try:
        if picture.format == "JPEG" and min(picture.size) >= SCALED_FROM:
            picture.draft(None, (2 * IMAGE_SIZE, 2 * IMAGE_SIZE))
        if picture.mode.startswith("I"):
            # Pillow would clip 16-bit grey at 255 instead of scaling it.
            grey = (np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        return np.asarray(picture.convert("RGB"))
    except Exception as error:
        raise UnreadablePicture(f"damaged {picture.format}: {error}", cause="truncated") from error


def _squash(pixels: Picture) -> Picture:
    height, width = pixels.shape[:2]
    shrunk = (min(width, IMAGE_SIZE), min(height, IMAGE_SIZE))
    # Two passes: averaging is right for shrinking, interpolation for growing, and a crop may need both.
    if shrunk != (width, height):
        pixels = _resize(pixels, shrunk, shrinks=True)
    if shrunk != (IMAGE_SIZE, IMAGE_SIZE):
        pixels = _resize(pixels, (IMAGE_SIZE, IMAGE_SIZE), shrinks=False)
    return pixels


def _resize(pixels: Picture, size: tuple[int, int], *, shrinks: bool) -> Picture:
    if cv2 is not None:
        resized: Picture = cv2.resize(
            pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )
        return resized
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(pixels).resize(size, method))


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # a broken EXIF block must not cost an otherwise good picture
        return 1


def _upright(pixels: Picture, orientation: int) -> Picture:
    """Undo an EXIF orientation (Exif 2.3, tag 0x0112); unknown values change nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        # For 5 to 8 the axes are swapped already: 8 and 7 start at the bottom.
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _too_large(what: str) -> UnreadablePicture:
    return UnreadablePicture(f"too large: {what}", cause="too-large")
