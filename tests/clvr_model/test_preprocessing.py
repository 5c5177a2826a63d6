"""One path from bytes to pixels: upright, square, deterministic, and never a crash on hostile bytes."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from clvr_model import image_headers, preprocessing
from clvr_model.normalization import to_input
from clvr_model.preprocessing import IMAGE_SIZE, decode
from infra.errors import UnreadableImage

SQUARE = (IMAGE_SIZE, IMAGE_SIZE, 3)


def _scene(width: int = 160, height: int = 120) -> Image.Image:
    """Smooth, and different in all four corners, so that JPEG keeps it and a wrong rotation shows."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [255 * x / width, 255 * y / height, 255 * (x / width) * (y / height)]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def _bytes(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _cause(data: bytes) -> str:
    with pytest.raises(UnreadableImage) as caught:
        decode(data)
    return caught.value.cause


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        ("JPEG", "RGB", {"quality": 95}),
        ("JPEG", "RGB", {"quality": 95, "progressive": True}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("BMP", "RGB", {}),
        ("JPEG", "CMYK", {"quality": 95}),
    ],
)
def test_every_format_gives_the_same_scene(form: str, mode: str, options: dict[str, object]) -> None:
    reference = decode(_bytes(_scene(), "PNG"))
    pixels = decode(_bytes(_scene().convert(mode), form, **options))
    assert pixels.shape == SQUARE
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert _difference(pixels, reference) < 4


def test_grey_becomes_three_equal_channels() -> None:
    for form in ("JPEG", "PNG"):
        pixels = decode(_bytes(_scene().convert("L"), form))
        assert (pixels[..., 0] == pixels[..., 1]).all()
        assert (pixels[..., 0] == pixels[..., 2]).all()


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.tile(np.linspace(0, 65535, 300).astype(np.uint16), (300, 1))
    pixels = decode(_bytes(Image.fromarray(ramp), "PNG"))
    assert 126 <= pixels[150, 150, 0] <= 129


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (299, 299), (100, 1000), (1300, 1250)])
def test_any_shape_is_resized_to_the_square(size: tuple[int, int]) -> None:
    assert decode(_bytes(_scene(*size), "PNG")).shape == SQUARE
    assert decode(_bytes(_scene(*size), "JPEG")).shape == SQUARE


def test_an_image_of_the_right_size_is_unchanged() -> None:
    scene = _scene(IMAGE_SIZE, IMAGE_SIZE)
    assert (decode(_bytes(scene, "PNG")) == np.asarray(scene)).all()


@pytest.mark.parametrize("size", [(160, 120), (1600, 1400)])
def test_a_box_is_decoded_as_the_image_cut_before(size: tuple[int, int]) -> None:
    scene = _scene(*size)
    width, height = size
    box = (width // 4, height // 3, width // 2, height)
    cut = decode(_bytes(scene.crop(box), "PNG"))
    assert (decode(_bytes(scene, "PNG"), box=box) == cut).all()
    assert _difference(decode(_bytes(scene, "JPEG", quality=95), box=box), cut) < 2
    assert (
        decode(_bytes(scene, "PNG"), box=(*box[:2], 9 * width, 9 * height))
        == decode(_bytes(scene.crop((*box[:2], width, height)), "PNG"))
    ).all()


def test_a_box_is_of_the_image_as_stored_and_an_orientation_follows() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(_bytes(_scene(), "PNG", exif=exif), box=(40, 30, 120, 90))
    assert (turned == np.rot90(decode(_bytes(_scene(), "PNG"), box=(40, 30, 120, 90)), -1)).all()


def test_a_box_outside_of_the_image_is_its_fault() -> None:
    with pytest.raises(UnreadableImage, match="outside of the image of 160 x 120") as caught:
        decode(_bytes(_scene(), "PNG"), box=(160, 0, 200, 50))
    assert caught.value.cause == "outside"


def test_scaled_decoding_of_a_large_jpeg_is_close_to_full_decoding() -> None:
    large = _scene(1600, 1400)
    whole = decode(_bytes(large, "PNG"))
    assert _difference(decode(_bytes(large, "JPEG", quality=95)), whole) < 2


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [(160, 120), (400, 120), (400, 600), (1300, 1400), (IMAGE_SIZE, IMAGE_SIZE)])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_given_array_gets_the_same_pixels(size: tuple[int, int], orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _bytes(_scene(*size), form, exif=exif)
    batch = np.zeros((3, *SQUARE), np.uint8)
    out = batch[1]
    assert decode(data, out=out) is out
    assert np.array_equal(out, decode(data))
    assert not batch[[0, 2]].any()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _bytes(_scene(), form, exif=exif.tobytes())
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert _difference(decode(data), decode(_bytes(upright, "PNG"))) < 3


def test_a_broken_exif_block_is_ignored() -> None:
    data = _bytes(_scene(), exif=b"Exif\0\0garbage that is no TIFF header")
    assert decode(data).shape == SQUARE


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("form", ["JPEG", "MPO"])
def test_a_jpeg_decodes_the_same_with_either_parser_of_its_header(form: str, mode: str) -> None:
    image = Image.effect_noise((320, 200), 90).convert(mode)
    more = {"save_all": True, "append_images": [image.rotate(180)]} if form == "MPO" else {}
    image.save(buffer := io.BytesIO(), form, **more)
    quickly = decode(buffer.getvalue())
    # A comment that looks like an EXIF block sends the file to Pillow's parser of headers.
    data = buffer.getvalue()
    commented = data[:2] + b"\xff\xfe\x00\x08Exif\0\0" + data[2:]
    assert np.array_equal(quickly, decode(commented))


def test_stray_bytes_between_markers_are_ignored_but_a_missing_end_is_refused() -> None:
    data = _bytes(_scene())
    stray = data[:-2] + b"\x00\x01\x02" + data[-2:]
    assert (decode(stray) == decode(data)).all()
    assert _cause(data[:2] + b"\x00\x01\x02" + data[2 : len(data) // 2]) in ("truncated", "not-a-picture")


def test_an_empty_file_is_refused() -> None:
    assert _cause(b"") == "empty"


@pytest.mark.parametrize("data", [b"hello, world", b"\x00" * 1000, b"<html></html>", b"P6 1 1 255\nabc"])
def test_bytes_that_are_not_an_image_are_refused(data: bytes) -> None:
    assert _cause(data) == "not-a-picture"


@pytest.mark.parametrize("form", ["GIF", "TIFF"])
def test_unsupported_formats_are_refused(form: str) -> None:
    assert _cause(_bytes(_scene(), form)) == "unsupported"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
def test_truncated_images_are_refused(form: str, share: float) -> None:
    data = _bytes(_scene(), form)
    assert _cause(data[: int(share * len(data))]) in ("truncated", "not-a-picture")
    assert _cause(data[: int(0.9 * len(data))]) == "truncated"


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    for side in (8_000, 60_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        bomb = (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(b"\0"))
            + chunk(b"IEND", b"")
        )
        assert _cause(bomb) == "too-large"


def test_too_many_bytes_are_refused_before_they_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_headers, "MAX_BYTES", 100)
    assert _cause(_bytes(_scene())) == "too-large"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "BMP"]), st.data())
def test_flipped_bytes_give_an_image_or_an_unreadable_error(form: str, data: st.DataObject) -> None:
    damaged = bytearray(_bytes(_scene(40, 30), form))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        first = decode(bytes(damaged))
    except UnreadableImage as error:
        assert error.cause in {"truncated", "not-a-picture", "unsupported", "too-large"}
    else:
        assert first.shape == SQUARE
        assert (decode(bytes(damaged)) == first).all()


def test_pixels_without_the_fast_libraries_are_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = _bytes(_scene(400, 200), quality=95)
    fast = decode(data)
    monkeypatch.setattr(preprocessing, "simplejpeg", None)
    monkeypatch.setattr(preprocessing, "cv2", None)
    assert _difference(decode(data), fast) < 1.5


def test_input_is_channels_last_between_minus_one_and_one() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 4, 5, 3)
    ready = to_input(images)
    assert ready.shape == (2, 3, 4, 5)
    assert ready.dtype == torch.float32
    assert ready.is_contiguous(memory_format=torch.channels_last)
    assert (ready[0] == -1).all()
    assert (ready[1] == 1).all()
