"""Images that are small as files and costly to decode, or odd but whole. Made here, byte by byte."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int = 8, color: int = 0, *, extra: bytes = b"") -> bytes:
    """A PNG of zeros; `extra` chunks stand before its pixels."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    row = 1 + -(-width * channels * depth // 8)
    packer = zlib.compressobj(1)
    parts, left = [], row * height
    while left:
        size = min(left, 1 << 24)
        parts.append(packer.compress(bytes(size)))
        left -= size
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(768)) if color == 3 else b""
    body = chunk(b"IDAT", b"".join(parts) + packer.flush())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + palette + body + chunk(b"IEND", b"")


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def _table(kind: int, symbols: bytes) -> bytes:
    """A Huffman table of up to two one-bit codes; a second symbol gets the code 10."""
    counts = bytes([1, len(symbols) - 1]) + bytes(14)
    return _segment(0xC4, bytes([kind]) + counts + symbols)


def _bits(text: str) -> bytes:
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")


def progressive_jpeg(side: int, scans: int) -> bytes:
    """A legal grey progressive JPEG: a scan of the mean, then scans that send one bit of one coefficient.

    All of them are empty: runs of 32,767 blocks that end at once.
    """
    blocks = (-(-side // 8)) ** 2
    parts = [b"\xff\xd8", _segment(0xDB, b"\0" + b"\1" * 64)]
    parts.append(_segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0"))
    parts += [_table(0x00, b"\0"), _table(0x10, b"\xe0\0")]
    parts.append(_segment(0xDA, b"\1\1\0" + bytes([0, 0, 0])) + _bits("0" * blocks))
    # A run has 16,384 to 32,767 blocks; the last one may reach over the end of the image.
    full, rest = divmod(blocks, 32_767)
    runs = ("0" + "1" * 14) * full + (f"0{max(rest - 16_384, 0):014b}" if rest else "")
    empty = _bits(runs)
    order = [(k, bit) for bit in range(13, -1, -1) for k in range(1, 64)]
    for coefficient, bit in order[: scans - 1]:
        high = 0 if bit == 13 else bit + 1
        spectral = bytes([coefficient, coefficient, high << 4 | bit])
        parts.append(_segment(0xDA, b"\1\1\0" + spectral) + empty)
    return b"".join([*parts, b"\xff\xd9"])


def scene(width: int = 160, height: int = 120) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    channels = [255 * x / width, 255 * y / height, 255 * (x / width) * (y / height)]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))
