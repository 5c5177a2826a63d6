"""Compressed features: bytes, rounding, and what is fitted."""

import numpy as np
import pytest

from index.transforms.compression import FORMATS, bytes_per_row, fit_compression
from infra.errors import BadInput, BadSetting

FEATURES = np.random.default_rng(0).standard_normal((50, 12)).astype(np.float32)


def test_bytes_of_a_row_follow_from_dimension_and_format() -> None:
    assert [bytes_per_row(1001, name) for name in ("", *FORMATS)] == [4004, 2002, 1001, 126]


def test_float16_rounds_to_half_precision_and_clips_what_it_cannot_hold() -> None:
    values = np.array([[1 + 2**-12, 1e6, -1e6]], np.float32)
    assert fit_compression(values, "float16")(values).tolist() == [[1.0, 65504.0, -65504.0]]


def test_int8_has_a_scale_a_dimension_and_errors_of_at_most_half_a_step() -> None:
    wide = FEATURES * np.logspace(-3, 3, 12, dtype=np.float32)
    step = np.abs(wide).max(axis=0) / 127
    decoded = fit_compression(wide, "int8")(wide)
    assert (np.abs(decoded - wide) <= step / 2 * 1.001).all()
    assert max(len(np.unique(column)) for column in decoded.T) <= 255
    assert np.allclose(fit_compression(wide, "int8")(10 * wide).max(axis=0), step * 127)  # clipped


def test_int8_keeps_a_dimension_of_zeros() -> None:
    assert not fit_compression(np.zeros((3, 4), np.float32), "int8")(np.zeros((3, 4), np.float32)).any()


def test_binary_distances_are_hamming_distances_of_bits_above_the_mean() -> None:
    shifted = FEATURES + 5
    decoded = fit_compression(shifted, "binary")(shifted)
    bits = shifted > shifted.mean(axis=0)
    hamming = (bits[:, None] != bits[None]).sum(axis=2)
    assert np.array_equal(((decoded[:, None] - decoded[None]) ** 2).sum(axis=2), 4 * hamming)


def test_unknown_formats_and_no_features_are_refused() -> None:
    with pytest.raises(BadSetting, match="int4"):
        fit_compression(FEATURES, "int4")
    with pytest.raises(BadInput, match="no features"):
        fit_compression(FEATURES[:0], "int8")
