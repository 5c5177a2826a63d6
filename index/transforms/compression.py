"""Compressed features: fewer bytes a row, and the features that remain of them.

Ranking the decoded features by exact L2 shows what a compression costs without an index that stores it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from infra.errors import BadInput, BadSetting

Format = Literal["float16", "int8", "binary"]
FORMATS: tuple[Format, ...] = get_args(Format)

FLOAT32_BYTES = 4
_INT8_MAX = 127
_FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True, eq=False)
class Compression:
    """Encodes and decodes features (n, d); made by `fit_compression`.

    float16 rounds each value. int8 divides by a scale of the dimension (d,), the largest absolute value over
    127, and rounds; larger values are clipped. binary keeps whether a value exceeds the mean of its dimension
    (d,) as 1 or -1, so that L2 ranks as the Hamming distance does. Scales and means are stored once.
    """

    format: Format
    scale: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    mean: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the decoded features (n, d)."""
        if self.format == "float16":
            return features.clip(-_FLOAT16_MAX, _FLOAT16_MAX).astype(np.float16).astype(np.float32)
        if self.format == "int8":
            codes = np.rint(features / self.scale).clip(-_INT8_MAX, _INT8_MAX)
            return np.asarray(codes * self.scale, np.float32)
        return np.where(features > self.mean, np.float32(1), np.float32(-1))


def fit_compression(features: NDArray[np.float32], format: str) -> Compression:
    """Fit a compression, one of FORMATS, to features (n, d) of a gallery.

    Raises BadSetting for another format, BadInput for no features.
    """
    known = next((name for name in FORMATS if name == format), None)
    if known is None:
        raise BadSetting(f"unknown compression '{format}'", remedy=f"use one of: {', '.join(FORMATS)}")
    if not features.size:
        raise BadInput("a compression of no features")
    if format == "int8":
        largest = np.abs(features).max(axis=0)
        return Compression(known, scale=np.where(largest > 0, largest / _INT8_MAX, 1).astype(np.float32))
    if format == "binary":
        return Compression(known, mean=features.mean(axis=0, dtype=np.float64).astype(np.float32))
    return Compression(known)


_BYTES: Mapping[str, Callable[[int], int]] = {
    "": lambda dimension: FLOAT32_BYTES * dimension,
    "float16": lambda dimension: 2 * dimension,
    "int8": lambda dimension: dimension,
    "binary": lambda dimension: -(-dimension // 8),
}


def bytes_per_row(dimension: int, format: str = "") -> int:
    """Return the bytes of one feature in this format; "" is float32, which shards and the index store."""
    return _BYTES[format](dimension)
