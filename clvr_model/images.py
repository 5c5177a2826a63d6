"""Images as programs have them: paths, URIs, bytes, PIL images and arrays, as pixels for a network."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from clvr_model.preprocessing import decode
from infra.errors import BadInput, UnreadableImage
from infra.store import open_store

ImageInput = str | Path | bytes | Image.Image | NDArray[np.uint8]


def read_pixels(image: ImageInput, size: int, number: int = 0) -> NDArray[np.uint8]:
    """Return uint8 (size, size, 3) RGB of a path, a URI, encoded bytes, a PIL image or an array (h, w, 3).

    Arrays and PIL images pass through a lossless PNG, so that they get the same checks and the same resizing
    as files. number: of the image, for errors.
    Raises UnreadableImage, BadInput for another type or shape, ObjectMissing, StoreError.
    """
    if isinstance(image, str | Path):
        name, data = str(image), _read(str(image))
    else:
        name, data = f"image {number}", image if isinstance(image, bytes) else _encode(image, number)
    try:
        return decode(data, size)
    except UnreadableImage as error:
        raise UnreadableImage(f"{name}: {error.message}", cause=error.cause) from error


def _read(uri: str) -> bytes:
    if "://" not in uri:
        uri = str(Path(uri).expanduser().absolute())
    folder, _, name = uri.rpartition("/")
    return open_store(folder or "/").get(name)


def _encode(image: Any, number: int) -> bytes:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise BadInput(f"image {number} is {image.dtype} {image.shape}, expected uint8 (h, w, 3) RGB")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise BadInput(
            f"image {number} is a {type(image).__name__}",
            remedy="Give a path, a URI, bytes, a PIL image or a uint8 array (h, w, 3).",
        )
    file = io.BytesIO()
    ImageOps.exif_transpose(image).convert("RGB").save(file, "PNG", compress_level=1)
    return file.getvalue()
