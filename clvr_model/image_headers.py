"""Read the header of an image without decoding it: its size, its orientation, and what decoding would cost.

Images are untrusted. A small file may ask a decoder for seconds of CPU time or for gigabytes, so the cost is
computed from the headers alone, and `read_header` refuses a file above a budget. It also leaves out what no
pixel depends on (metadata, previews, text, bytes between and after the parts of a file), so that decoders
meet neither a text chunk that they refuse nor a metadata block that is costly to read.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from infra.errors import UnreadableImage

MAX_BYTES = 32 * 1024 * 1024
MAX_PIXELS = 50_000_000
MAX_WEBP_PIXELS = 1 << 24  # libwebp holds five copies of the pixels
MAX_SIDE = 65_535
MAX_ROW_DATA = 256 * 1024 * 1024  # bytes that a PNG or BMP unpacks to
MAX_MEMORY = 640 * 1024 * 1024  # bytes that decoding may need, as estimated from the header
MAX_PARTS = 65_536  # chunks of a PNG or WebP
MAX_SEGMENTS = 4_000  # of a JPEG; 32 MiB of metadata are 512 of the largest
MAX_SCANS = 200  # of a JPEG; the usual progressive one has 10
# Blocks of 8 x 8 that all scans visit; 50 megapixels in the usual 10 scans are 11 million. Each costs about
# 20 ns even if its scan is empty.
MAX_BLOCK_VISITS = 24_000_000
MAX_RLE_BYTES = 1 << 20  # Pillow unpacks these in Python, a microsecond a byte

_MAX_EXIF = 1 << 16
_MAX_XMP = 1 << 18
_MAX_TAGS = 1_000
_EXIF_ORIENTATION = 0x0112
_MPF_NUM_IMAGES = 0xB001
_UNSUPPORTED = {b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"%PDF": "PDF"}
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=\"|>)([0-9])")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_SOI, _EOI, _SOS, _DHT, _DAC = 0xD8, 0xD9, 0xDA, 0xC4, 0xCC
_APP0, _APP1, _APP2, _APP14, _APP15, _COM = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {_DHT, 0xC8, _DAC}
_ARITHMETIC = frozenset({0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
# Within a scan FF is followed by 0, by a restart marker, or by another FF.
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What is known of an image before it is decoded.

    data: the bytes to decode, without metadata. components: channels of a JPEG. multi_picture: a JPEG that is
    followed by others, as the cameras of some phones write. has_end: a JPEG without its EOI marker has
    one added to its data, and only a decoder can tell whether its last scan is whole.
    """

    format: str  # JPEG, PNG, WEBP or BMP
    width: int
    height: int
    data: bytes
    orientation: int = 1
    components: int = 3
    multi_picture: bool = False
    has_end: bool = True

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as stored: before the orientation is applied."""
        return self.width, self.height


def read_header(data: bytes) -> ImageHeader:
    """Read the header of a JPEG, PNG, WebP or BMP, in time and memory bounded by its bytes.

    Raises UnreadableImage with cause empty, too-large (over a budget of this module), not-a-picture,
    unsupported or truncated.
    """
    if not data:
        raise UnreadableImage("the object has no bytes", cause="empty")
    if len(data) > MAX_BYTES:
        raise too_large(f"{len(data):,} bytes, at most {MAX_BYTES:,}")
    try:
        if data.startswith(_JPEG_SIGNATURE):
            return _JpegReader(data).read()
        if data.startswith(_PNG_SIGNATURE):
            return _read_png(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _read_webp(data)
        if data.startswith(b"BM"):
            return _read_bmp(data)
    except (struct.error, IndexError) as error:
        raise UnreadableImage("the image ends within its header", cause="truncated") from error
    kind = _UNSUPPORTED.get(data[:4]) or ("HEIF" if data[4:8] == b"ftyp" else "")
    if kind:
        raise UnreadableImage(
            f"{kind} is not supported", cause="unsupported", remedy="convert it to JPEG or PNG"
        )
    if data.startswith((b"\x89PNG", b"RIFF")):
        raise UnreadableImage("the image ends within its header", cause="truncated")
    raise UnreadableImage("not a JPEG, PNG, WebP or BMP image", cause="not-a-picture")


def too_large(size: str) -> UnreadableImage:
    """Return the error of an image over a budget; `size` names both, such as "300 scans, at most 200"."""
    return UnreadableImage(f"too large: {size}", cause="too-large")


def exif_orientation(exif: bytes, xmp: bytes = b"") -> int:
    """Return the orientation (1 to 8) of an EXIF block, else of an XMP packet; 1 without a valid one."""
    block = exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")  # some writers repeat it
    value = _tiff_value(block[:_MAX_EXIF], _EXIF_ORIENTATION)
    if value is None and (match := _XMP_ORIENTATION.search(xmp[:_MAX_XMP])):
        value = int(match[1])
    return value if value is not None and 1 <= value <= 8 else 1


def _check_size(width: int, height: int, *, max_pixels: int = MAX_PIXELS) -> None:
    if width < 1 or height < 1:
        raise UnreadableImage(f"damaged header: {width} x {height} pixels", cause="truncated")
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise too_large(f"{width} x {height} pixels, at most {max_pixels:,} in all and {MAX_SIDE:,} a side")


def _check_memory(needed: int) -> None:
    if needed > MAX_MEMORY:
        raise too_large(f"decoding takes {needed >> 20:,} MiB of memory, at most {MAX_MEMORY >> 20:,}")


# ---- JPEG -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Component:
    blocks: int
    missing_bits: list[int]  # by coefficient, the bits that no scan has sent yet


class _JpegReader:
    """One walk over the markers of a JPEG, from its start to the end of its first image."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.kept: list[tuple[int, int]] = []  # ranges of bytes without metadata
        self.components: dict[int, _Component] = {}
        self.frame = 0
        self.width = self.height = 0
        self.scanned: set[int] = set()
        self.visits = self.num_scans = 0
        self.exif = self.xmp = self.mpf = b""

    def read(self) -> ImageHeader:
        """Return the header. Its data end with an EOI marker, where the image is complete without one."""
        whole = self._walk()
        if not self.frame:
            raise UnreadableImage("the image ends within its header", cause="truncated")
        if not self.num_scans:
            raise UnreadableImage("damaged JPEG: it has no scan", cause="truncated")
        if not whole and not self._has_all_scans():
            raise UnreadableImage("damaged JPEG: it ends before its last scan", cause="truncated")
        images = _tiff_value(self.mpf.removeprefix(b"MPF\0"), _MPF_NUM_IMAGES)
        return ImageHeader(
            format="JPEG",
            width=self.width,
            height=self.height,
            data=self._clean(whole),
            orientation=exif_orientation(self.exif, self.xmp),
            components=len(self.components),
            multi_picture=images is not None and images > 1,
            has_end=whole,
        )

    def _clean(self, whole: bool) -> bytes:
        merged: list[tuple[int, int]] = []
        for start, end in self.kept:
            if merged and merged[-1][1] == start:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        if merged == [(0, len(self.data))] and whole:
            return self.data
        parts = [self.data[start:end] for start, end in merged]
        return b"".join([*parts, b"" if whole else b"\xff\xd9"])

    def _walk(self) -> bool:
        """Walk from marker to marker; return whether the image ends with EOI."""
        data, position = self.data, 2
        self.kept.append((0, 2))
        for _ in range(MAX_SEGMENTS):
            position = data.find(b"\xff", position)  # skips stray bytes
            if position < 0:
                return False
            start = position
            while data[position : position + 1] == b"\xff":  # fill bytes
                position += 1
            if position >= len(data):
                return False
            marker = data[position]
            position += 1
            if marker == _EOI:
                self.kept.append((position - 2, position))
                return True
            if marker == 0 or marker in _WITHOUT_LENGTH:
                continue
            if marker == _SOI or not 0xC0 <= marker <= _COM or self._has_all_scans():
                return False  # another image, or what a vendor wrote behind this one
            (length,) = struct.unpack_from(">H", data, position)
            body = data[position + 2 : position + length]
            if length < 2 or len(body) < length - 2:
                raise UnreadableImage("the image ends within a segment", cause="truncated")
            position += length
            self._segment(marker, body)
            if marker == _SOS:
                found = _END_OF_SCAN.search(data, position)
                position = found.start() if found else len(data)
            if not self._is_metadata(marker, body):
                self.kept.append((start, position))
        raise too_large(f"a JPEG of more than {MAX_SEGMENTS:,} segments")

    def _segment(self, marker: int, body: bytes) -> None:
        if marker in _FRAMES:
            self._read_frame(marker, body)
        elif marker == _SOS:
            self._read_scan(body)
        elif marker == _APP1 and body.startswith(b"Exif\0") and not self.exif:
            self.exif = body
        elif marker == _APP1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0") and not self.xmp:
            self.xmp = body
        elif marker == _APP2 and body.startswith(b"MPF\0") and not self.mpf:
            self.mpf = body

    @staticmethod
    def _is_metadata(marker: int, body: bytes) -> bool:
        """Whether no pixel depends on a segment: all but those that tell the colour space (JFIF, Adobe)."""
        if marker == _APP0:
            return not body.startswith(b"JFIF\0")
        return marker == _COM or (_APP1 <= marker <= _APP15 and marker != _APP14)

    def _read_frame(self, marker: int, body: bytes) -> None:
        if self.frame:
            raise UnreadableImage("damaged JPEG: it has two frames", cause="truncated")
        self.height, self.width, count = struct.unpack_from(">xHHB", body)
        _check_size(self.width, self.height)
        shapes = [struct.unpack_from(">BB", body, 6 + 3 * number) for number in range(count)]
        samplings = [(max(1, sampling >> 4), max(1, sampling & 15)) for _, sampling in shapes]
        if not 1 <= count <= 4 or len({name for name, _ in shapes}) < count:
            raise UnreadableImage(f"{count} colour channels are not supported", cause="unsupported")
        widest, highest = (max(sampling[axis] for sampling in samplings) for axis in (0, 1))
        for (name, _), (across, down) in zip(shapes, samplings, strict=True):
            columns = -(-self.width * across // (8 * widest)) + across
            rows = -(-self.height * down // (8 * highest)) + down
            self.components[name] = _Component(columns * rows, [99] * 64)
        self.frame = marker
        coefficients = 128 * sum(component.blocks for component in self.components.values())
        needs_buffer = marker in _PROGRESSIVE or count > 1
        planes = 3 if count in (1, 3) else 11  # simplejpeg, or Pillow with two conversions
        _check_memory(coefficients * needs_buffer + planes * self.width * self.height)

    def _read_scan(self, body: bytes) -> None:
        names = body[1 : 1 + 2 * body[0] : 2]
        first, last, bits = struct.unpack_from(">BBB", body, 1 + 2 * body[0])
        self.num_scans += 1
        if self.num_scans > MAX_SCANS:
            raise too_large(f"a JPEG of more than {MAX_SCANS} scans")
        if not self.frame:
            raise UnreadableImage("damaged JPEG: a scan comes before the frame", cause="truncated")
        for name in names:
            component = self.components.get(name)
            if component is None:
                raise UnreadableImage("damaged JPEG: a scan of an unknown channel", cause="truncated")
            self.scanned.add(name)
            self.visits += component.blocks * (8 if self.frame in _ARITHMETIC else 1)
            for coefficient in range(first, min(last, 63) + 1):
                component.missing_bits[coefficient] = bits & 15
        if self.visits > MAX_BLOCK_VISITS:
            raise too_large(
                f"a JPEG whose {self.num_scans} or more scans visit {self.visits:,} blocks, "
                f"at most {MAX_BLOCK_VISITS:,}"
            )

    def _has_all_scans(self) -> bool:
        """Whether every bit of every channel has come, so that no further scan can follow."""
        if not self.frame or len(self.scanned) < len(self.components):
            return False
        if self.frame not in _PROGRESSIVE:
            return True
        return not any(any(component.missing_bits) for component in self.components.values())


# ---- PNG ------------------------------------------------------------------------------------------------


def _read_png(data: bytes) -> ImageHeader:
    if data[8:16] != b"\0\0\0\x0dIHDR":
        raise UnreadableImage("damaged PNG: it does not start with its header", cause="truncated")
    width, height, depth, color = struct.unpack_from(">IIBB", data, 16)
    _check_size(width, height)
    channels = _PNG_CHANNELS.get(color)
    if channels is None or depth not in (1, 2, 4, 8, 16) or (depth == 16 and color == 3):
        raise UnreadableImage(f"damaged PNG: colour type {color} of {depth} bits", cause="truncated")
    row_data = height * (1 + -(-width * channels * depth // 8))
    if row_data > MAX_ROW_DATA:
        raise too_large(f"a PNG of {row_data >> 20:,} MiB of rows, at most {MAX_ROW_DATA >> 20:,}")
    # Pillow holds 1, 2 or 4 bytes a pixel and a pointer for each row; the result has 3.
    _check_memory(width * height * (4 if channels > 1 else 2) + 16 * height + 3 * width * height + len(data))
    head, pixels, exif, xmp = data[:33], [], b"", b""
    for kind, start, end in _png_chunks(data):
        if kind == b"IDAT":
            pixels.append(data[start:end])
        elif kind == b"PLTE" and not pixels:
            head += data[start - 8 : end + 4]
        elif kind == b"eXIf":
            exif = exif or data[start : min(end, start + _MAX_EXIF)]
        elif kind in (b"iTXt", b"tEXt", b"zTXt"):
            exif, xmp = _png_text(kind, data[start : min(end, start + _MAX_XMP)], exif, xmp)
        elif kind == b"IEND":
            break
    body = b"".join(pixels)
    # Deflate cannot expand more than 1,032 times. Interlaced rows add a filter byte for each of 7 passes.
    if row_data > 1_032 * len(body) + 8 * height + 64:
        raise UnreadableImage("damaged PNG: it has too few bytes for its size", cause="truncated")
    clean = b"".join([head, _png_chunk(b"IDAT", body), _png_chunk(b"IEND", b"")])
    return ImageHeader("PNG", width, height, clean, exif_orientation(exif, xmp))


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of the body of each chunk; the last one may be cut off."""
    position = 8
    for _ in range(MAX_PARTS):
        if position + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, position)
        yield kind, position + 8, min(position + 8 + length, len(data))
        position += 12 + length
    raise too_large(f"a PNG of more than {MAX_PARTS:,} chunks")


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return b"".join(
        [struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))]
    )


def _png_text(kind: bytes, body: bytes, exif: bytes, xmp: bytes) -> tuple[bytes, bytes]:
    """Take an XMP packet, or the EXIF block that ImageMagick writes as hexadecimal text."""
    keyword, _, text = body.partition(b"\0")
    if keyword == b"XML:com.adobe.xmp" and kind == b"iTXt" and text[:1] == b"\0":
        xmp = xmp or text
    elif keyword in (b"Raw profile type exif", b"Raw profile type APP1") and not exif:
        if kind == b"zTXt":
            try:
                text = zlib.decompressobj().decompress(text[1:], 4 * _MAX_EXIF)
            except zlib.error:
                return exif, xmp
        try:
            exif = bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
        except ValueError:
            return exif, xmp
    return exif, xmp


# ---- WebP and BMP ---------------------------------------------------------------------------------------


def _read_webp(data: bytes) -> ImageHeader:
    width = height = 0
    exif = xmp = b""
    is_lossless, position = False, 12
    for _ in range(MAX_PARTS):
        if position + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, position)
        start = position + 8
        if kind == b"VP8X" and not width:
            width = 1 + int.from_bytes(data[start + 4 : start + 7], "little")
            height = 1 + int.from_bytes(data[start + 7 : start + 10], "little")
        elif kind == b"VP8 " and not width:
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, start + 6))
        elif kind == b"VP8L" and not width:
            (bits,) = struct.unpack_from("<I", data, start + 1)
            width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        elif kind == b"EXIF":
            exif = exif or data[start : start + min(length, _MAX_EXIF)]
        elif kind == b"XMP ":
            xmp = xmp or data[start : start + min(length, _MAX_XMP)]
        is_lossless |= kind in (b"VP8L", b"ALPH", b"ANMF")
        position = start + length + (length & 1)
    else:
        raise too_large(f"a WebP of more than {MAX_PARTS:,} chunks")
    if not width:
        raise UnreadableImage("damaged WebP: it has no image", cause="truncated")
    _check_size(width, height, max_pixels=MAX_WEBP_PIXELS)
    # Lossless images may have a set of code tables, 6 KB each, for every 4 x 4 pixels or 6 bytes.
    tables = 6_000 * min(65_536, width * height // 16, len(data) // 6) if is_lossless else 0
    _check_memory(16 * width * height + tables)
    return ImageHeader("WEBP", width, height, data, exif_orientation(exif, xmp))


def _read_bmp(data: bytes) -> ImageHeader:
    offset, header_size = struct.unpack_from("<II", data, 10)
    if header_size == 12:
        width, height, bits = struct.unpack_from("<HHxxH", data, 18)
        compression = 0
    else:
        width, height, bits, compression = struct.unpack_from("<iixxHI", data, 18)
        height = abs(height)
    _check_size(width, height)
    if compression in (1, 2):
        if len(data) > MAX_RLE_BYTES:
            raise too_large(f"a run-length BMP of {len(data):,} bytes, at most {MAX_RLE_BYTES:,}")
    elif (width * bits + 31) // 32 * 4 * height > len(data) - min(offset, len(data)) + 3:
        raise UnreadableImage("damaged BMP: it has too few bytes for its size", cause="truncated")
    _check_memory(width * height * 7 + len(data))
    return ImageHeader("BMP", width, height, data)


# ---- metadata -------------------------------------------------------------------------------------------


def _tiff_value(block: bytes, tag: int) -> int | None:
    """Return the first value of a SHORT or LONG tag of the first directory of a TIFF block, else None."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    try:
        (offset,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, offset)
        for number in range(min(count, _MAX_TAGS)):
            entry = offset + 2 + 12 * number
            name, kind, _ = struct.unpack_from(f"{order}HHI", block, entry)
            if name == tag and kind in (3, 4):
                (value,) = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", block, entry + 8)
                return int(value)
    except struct.error:
        return None
    return None
