"""Small JPEGs of crops, for pages; crops are hostile input here as everywhere."""

import io

from PIL import Image, ImageOps

from clvr_model.preprocessing import decode
from index.archive.reader import ArchiveReader
from infra.errors import ClvrError, UnreadablePicture

SIDE = 240
QUALITY = 85


def thumbnail(data: bytes) -> bytes:
    """JPEG of at most 240 x 240, of whatever `decode` takes. Raises UnreadablePicture."""
    decode(data)  # holds all the limits on bytes, pixels and formats
    try:
        file = Image.open(io.BytesIO(data))
        file.draft("RGB", (SIDE, SIDE))
        picture = ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, ValueError) as error:
        raise UnreadablePicture(str(error), cause="not-a-picture") from error
    picture.thumbnail((SIDE, SIDE))
    return _jpeg(picture)


def thumbnail_of(reader: ArchiveReader, uri: str) -> bytes:
    """The crop's thumbnail, or a grey one where the crop is gone: a page must not fail for one picture."""
    try:
        return thumbnail(reader.fetch(uri).data)
    except ClvrError:
        return _jpeg(Image.new("RGB", (SIDE, SIDE * 3 // 4), (128, 128, 128)))


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
