"""Small JPEGs of crops for pages; crops are untrusted input."""

import io

from PIL import Image

from clvr_model.preprocessing import decode_within
from index.archive.reader import ArchiveReader
from infra.errors import ClvrError

SIDE = 240
QUALITY = 85


def thumbnail(data: bytes) -> bytes:
    """Return a JPEG of at most 240 x 240 pixels of an encoded image. Raises UnreadableImage."""
    return _jpeg(Image.fromarray(decode_within(data, SIDE)))


def thumbnail_of(reader: ArchiveReader, uri: str) -> bytes:
    """Return the thumbnail of a crop, or a grey one if the crop cannot be read."""
    try:
        return thumbnail(reader.fetch(uri).data)
    except ClvrError:
        return _jpeg(Image.new("RGB", (SIDE, SIDE * 3 // 4), (128, 128, 128)))


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
