"""What an image may cost is known before it is decoded, and a whole image is not called truncated."""

import io
import itertools
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from hostile_images import chunk, encoded, png, progressive_jpeg, scene
from PIL import Image, ImageOps

from clvr_model import image_headers
from clvr_model.image_headers import exif_orientation, read_header
from clvr_model.preprocessing import IMAGE_SIZE, decode, decode_within
from infra.errors import UnreadableImage
from jobs.pages.thumbnail import thumbnail

SQUARE = (IMAGE_SIZE, IMAGE_SIZE, 3)
MIB = 1 << 20


def _cause(data: bytes) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode(data)
    with pytest.raises(UnreadableImage) as again:
        thumbnail(data)
    assert caught.value.cause == again.value.cause
    return caught.value.cause


def _rle_bmp(size: int) -> bytes:
    header = struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54 + 1024, 40, 7000, 7000, 1, 8, 1, 0, 0, 0, 0, 0)
    return b"BM" + header + bytes(1024) + bytes(size)


def _exif(entries: list[tuple[int, int, int, bytes]], tail: bytes = b"") -> bytes:
    body = struct.pack("<H", len(entries))
    body += b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"II*\0\x08\0\0\0" + body + bytes(4) + tail


# ---- costly images --------------------------------------------------------------------------------------

COSTLY: dict[str, Callable[[], bytes]] = {
    "880 empty scans": lambda: progressive_jpeg(7000, 880),
    "300 scans of a small image": lambda: progressive_jpeg(64, 300),
    "a tall PNG": lambda: png(1, 50_000_000),
    "a wide PNG": lambda: png(50_000_000, 1),
    "a PNG of 16 bits in four channels": lambda: png(7071, 7071, 16, 6),
    "a WebP of one colour": lambda: encoded(Image.new("RGB", (7000, 7100)), "WEBP"),
    "eight million JPEG segments": lambda: b"\xff\xd8" + b"\xff\xe1\0\2" * (7 << 20),
    "stray bytes before the frame": lambda: b"\xff\xd8\xff" + b"\xff\0" * (15 << 20),
    "a million PNG chunks": lambda: png(64, 64).replace(chunk(b"IEND", b""), chunk(b"IDAT", b"") * 1_000_000),
    "a million WebP chunks": lambda: b"RIFF\0\0\0\0WEBP" + b"ABCD\0\0\0\0" * 1_000_000,
    "a long run-length BMP": lambda: _rle_bmp(2 << 20),
    "50 megapixels of CMYK": lambda: encoded(Image.new("CMYK", (7071, 7071)), progressive=True),
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_costly_image_is_refused_by_its_header(name: str) -> None:
    assert _cause(COSTLY[name]()) == "too-large"


@pytest.mark.parametrize(
    "data",
    [
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 7000, 7000, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b""),
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 7000, 7000, 1, 32, 0, 0, 0, 0, 0, 0),
    ],
    ids=["PNG", "BMP"],
)
def test_a_size_that_the_bytes_cannot_fill_is_refused_before_memory_is_taken(data: bytes) -> None:
    with pytest.raises(UnreadableImage, match="too few bytes"):
        read_header(data)


def _peak_of(function: Callable[[], object]) -> int:
    """Bytes by which the resident memory of this process rises at most while a function runs."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    function()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


@pytest.mark.parametrize(
    "make",
    [
        lambda: progressive_jpeg(7000, 25),
        lambda: png(7071, 7071, 16),
        lambda: png(7071, 7071, 8, 6),
        lambda: encoded(Image.new("RGB", (4096, 4096)), "WEBP"),
        lambda: encoded(Image.new("RGB", (763, 65_500)), progressive=True, subsampling=0),
        lambda: encoded(scene())[:-2] + b"\xff" * (31 << 20) + b"\xff\xd9",
        lambda: encoded(scene())[:-2] + b"\xff\0" * (15 << 20) + b"\xff\xd9",
        lambda: png(64, 64).replace(chunk(b"IEND", b""), chunk(b"IDAT", b"") * 60_000 + chunk(b"IEND", b"")),
    ],
    ids=["scans", "grey 16", "RGBA", "WebP", "narrow JPEG", "fill bytes", "stuffed bytes", "empty chunks"],
)
def test_the_most_costly_images_that_are_allowed_stay_within_the_budget(make: Callable[[], bytes]) -> None:
    data = make()
    started = resource.getrusage(resource.RUSAGE_THREAD).ru_utime
    assert _peak_of(lambda: decode(data)) < image_headers.MAX_MEMORY
    # CPU time of this thread, not the clock. The costs are below 2 s; a case without a budget took 13.
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_utime - started < 8


def test_a_photo_of_12_and_one_of_50_megapixels_are_decoded() -> None:
    small = scene(403, 302)
    for size, form, options in [
        ((4032, 3024), "JPEG", {"progressive": True}),
        ((4032, 3024), "PNG", {"compress_level": 1}),
        ((4032, 3024), "WEBP", {"method": 0}),
        ((8660, 5773), "JPEG", {"subsampling": 0, "progressive": True}),
    ]:
        assert decode(encoded(small.resize(size), form, **options)).shape == SQUARE


# ---- metadata -------------------------------------------------------------------------------------------


def test_an_exif_block_whose_tags_share_their_bytes_costs_nothing() -> None:
    """Each of 5,000 tags claims the same 60 KB; read one by one they are 300 MB."""
    block = _exif([(1000 + n, 7, 60_000, struct.pack("<I", 8)) for n in range(5_000)])
    data = encoded(scene(), "PNG", exif=block)
    bomb = encoded(scene(), "WEBP", exif=block + bytes(60_000), lossless=True)
    for image in (data, bomb):
        assert _peak_of(lambda image=image: decode(image)) < 32 * MIB


@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 300])
@pytest.mark.parametrize("order", ["II", "MM"])
def test_the_orientation_is_that_of_pillow(order: str, orientation: int) -> None:
    exif = Image.Exif()
    exif.endian = "<" if order == "II" else ">"
    exif[0x010F] = "camera"
    exif[0x0112] = orientation
    block = exif.tobytes()
    expected = orientation if 1 <= orientation <= 8 else 1
    assert exif_orientation(block) == expected
    for form in ("JPEG", "PNG", "WEBP"):
        data = encoded(scene(), form, exif=block)
        assert read_header(data).orientation == expected
        assert Image.open(io.BytesIO(data)).getexif()[0x0112] == orientation


def test_an_orientation_in_xmp_or_in_text_of_imagemagick_is_read() -> None:
    packet = b'<x:xmpmeta tiff:Orientation="6"/>'
    raw = chunk(
        b"tEXt",
        b"Raw profile type exif\0\nexif\n  26\n" + _exif([(0x0112, 3, 1, b"\3\0\0\0")]).hex().encode(),
    )
    for data, expected in [
        (encoded(scene(), "JPEG", xmp=packet), 6),
        (encoded(scene(), "WEBP", xmp=packet), 6),
        (png(8, 8, extra=chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)), 6),
        (png(8, 8, extra=raw), 3),
    ]:
        assert read_header(data).orientation == expected
        assert Image.open(io.BytesIO(data)).getexif()[0x0112] == expected


# ---- whole images that look cut off ---------------------------------------------------------------------

TRAILERS = {
    "nothing": b"",
    "a vendor's block": b"SEFH" + bytes(300),
    "bytes with markers": b"ab\xff\0cd\xff\xff\x07ef\xff\xe1\0\x04xy\xff",
    "another image": encoded(scene(30, 20)),
    "a video": b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 40,
}


@pytest.mark.parametrize("trailer", TRAILERS)
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_without_its_end_is_whole_if_all_its_scans_are(
    mode: str, progressive: bool, trailer: str
) -> None:
    data = encoded(scene().convert(mode), progressive=progressive, quality=92)
    reference = decode(data)
    assert (decode(data + TRAILERS[trailer]) == reference).all()
    assert (decode(data[:-2] + TRAILERS[trailer]) == reference).all()


CUT_TAILS = {name: TRAILERS[name] for name in ("nothing", "a vendor's block", "bytes with markers")} | {
    "zeros": bytes(60_000)
}


@pytest.mark.parametrize("tail", CUT_TAILS)
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_ends_within_a_scan_is_truncated(mode: str, progressive: bool, tail: str) -> None:
    """Other bytes behind the cut can be taken for the rest of the scan, by any decoder."""
    image = Image.effect_noise((320, 240), 60).convert(mode)
    data = encoded(image, progressive=progressive, quality=92)
    for share in (0.3, 0.6, 0.95):
        assert _cause(data[: int(share * len(data))] + CUT_TAILS[tail]) == "truncated"


def test_a_progressive_jpeg_without_its_last_scan_is_truncated() -> None:
    data = encoded(scene(), progressive=True)
    assert _cause(data[: data.rindex(b"\xff\xda")]) == "truncated"


def test_stray_bytes_behind_several_scans_are_ignored() -> None:
    data = encoded(scene(), progressive=True)
    reference = decode(data)
    last = data.rindex(b"\xff\xda")
    assert (decode(data[:last] + b"zz" + data[last:-2] + b"zzz" + data[-2:]) == reference).all()


def test_a_png_is_whole_whatever_its_text_says() -> None:
    texts = [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 * MIB))),
        chunk(b"iTXt", b"workflow\0\0\0\0\0" + b"x" * (2 * MIB)),
        chunk(b"tEXt", b"Software\0camera")[:-4] + b"\0\0\0\0",  # a wrong checksum
        chunk(b"iCCP", b"profile\0\0" + b"no deflate"),
        chunk(b"eXIf", b"garbage"),
        b"".join(chunk(b"tEXt", b"k\0v") for _ in range(3000)),
    ]
    plain = encoded(scene(), "PNG")
    reference = decode(plain)
    for text in texts:
        assert (decode(plain[:33] + text + plain[33:]) == reference).all()
        assert (decode(plain[:-12] + text + plain[-12:]) == reference).all()
    assert (decode(plain[:-12]) == reference).all()  # without IEND
    assert (decode(plain + b"trailing bytes") == reference).all()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
def test_trailing_bytes_are_ignored(form: str) -> None:
    data = encoded(scene(), form)
    assert (decode(data + b"\0" * 1000 + b"PK\3\4") == decode(data)).all()


# ---- what has not changed -------------------------------------------------------------------------------


def _reference(data: bytes) -> np.ndarray:
    """Decode by the libraries alone, as the first release did."""
    with Image.open(io.BytesIO(data)) as image:
        if image.format == "JPEG" and image.mode in ("RGB", "L"):
            pixels = simplejpeg.decode_jpeg(data, "RGB")
        elif image.mode.startswith("I"):
            pixels = np.repeat((np.asarray(image) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
        else:
            pixels = np.asarray(image.convert("RGB"))
        turned = Image.Exif()
        turned[0x0112] = image.getexif().get(0x0112, 1)
    height, width = pixels.shape[:2]
    shrunk = min(width, IMAGE_SIZE), min(height, IMAGE_SIZE)
    if shrunk != (width, height):
        pixels = cv2.resize(pixels, shrunk, interpolation=cv2.INTER_AREA)
    if shrunk != (IMAGE_SIZE, IMAGE_SIZE):
        pixels = cv2.resize(pixels, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_LINEAR)
    upright = Image.fromarray(pixels)
    upright.getexif()[0x0112] = turned[0x0112]
    return np.asarray(ImageOps.exif_transpose(upright))


def test_ordinary_crops_have_the_pixels_of_the_first_release() -> None:
    rng = np.random.default_rng(7)
    exif = Image.Exif()
    exif[0x0112] = 6
    compared = 0
    for mode, form in itertools.product(
        ("RGB", "L", "RGBA", "P", "LA", "CMYK", "I;16"), ("JPEG", "PNG", "WEBP", "BMP")
    ):
        for options in (
            {},
            {"progressive": True, "subsampling": 0},
            {"exif": exif.tobytes()},
            {"dpi": (72, 72)},
        ):
            width, height = (int(side) for side in rng.integers(20, 700, 2))
            image = scene(width, height)
            image = (
                Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 250)
                if mode == "I;16"
                else image.convert(mode)
            )
            try:
                data = encoded(image, form, **options)
            except OSError:  # the format does not have this mode
                continue
            assert (decode(data) == _reference(data)).all(), (mode, form, options)
            compared += 1
    assert compared > 60


def test_a_thumbnail_is_upright_and_in_proportion() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    small = decode_within(encoded(scene(400, 200), exif=exif.tobytes()), 240)
    assert small.shape == (240, 120, 3)
    assert decode_within(encoded(scene(30, 20), "PNG"), 240).shape == (20, 30, 3)
    assert Image.open(io.BytesIO(thumbnail(encoded(scene(2000, 1300))))).size == (240, 156)
