"""Scores from features rounded to bfloat16: half the price of float32 where the processor has such products.

With x = x' + dx and y = y' + dy, primes rounded, x·y = x'·y' + dx·y + x'·dy, and Cauchy and Schwarz bound
what is left out by |dx| |y| + |x'| |dy|. These lengths are measured, not assumed, so no data can make the
bound wrong, only wide.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from index.distances import UNIT, Placed, error_bound
from index.races import least_seconds

HALF_UNIT = 2.0**-8  # unit roundoff of bfloat16
_LEAST = 2.0**-126  # smaller values may be taken for zero
_MEASURE_FROM = 1e10  # multiply-adds; below it the measurement would cost more than it can save
_WORTH = 0.7  # of the float32 product's time


@dataclass(frozen=True, slots=True)
class Rounded:
    """Rows rounded to bfloat16, with the lengths that bound what this changes."""

    values: torch.Tensor  # (n, d) bfloat16
    squares: NDArray[np.float64]  # (n,) squared lengths before rounding
    lengths: NDArray[np.float64]  # (n,) after it
    lost: NDArray[np.float64]  # (n,) lengths of what was rounded off

    @classmethod
    def of(cls, placed: Placed) -> "Rounded":
        """Round rows that are in a frame."""
        values = placed.values.bfloat16()
        rounded = values.float()
        lengths, lost = (
            torch.linalg.vector_norm(some, dim=1).double().numpy() * (1 + 2 * UNIT * some.shape[1])
            for some in (rounded, placed.values - rounded)
        )
        return cls(values, placed.squares, lengths, lost)


def rounded_bound(probes: Rounded, gallery: Rounded, dimension: int) -> NDArray[np.float64]:
    """How far x'·y' can lie from x·y, for each probe against any row of the block: (p,).

    Twice the float32 bound stands for the sums, because processors differ in how they round inside of a
    bfloat16 product. That the product is rounded to bfloat16 in turn comes on top: `HALF_UNIT` of it.
    """
    longest = float(np.sqrt(gallery.squares.max(initial=0.0)))
    sums = 2 * error_bound(probes.squares, gallery.squares, dimension)
    left_out = probes.lost * longest + probes.lengths * float(gallery.lost.max(initial=0.0))
    vanished = dimension * _LEAST * (np.sqrt(probes.squares) + longest + 1)
    return np.asarray(sums + left_out + vanished)


def bf16_pays(device: str, *, work: float) -> bool:
    """Whether `work` multiply-adds are for products of bfloat16: on CPUs that have them, and enough of it."""
    return torch.device(device).type == "cpu" and work >= _MEASURE_FROM and _bf16_is_faster()


@lru_cache(maxsize=1)
def _bf16_is_faster() -> bool:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    wide = torch.rand(512, 1024)
    half = wide.bfloat16()
    seconds = least_seconds(
        {"bfloat16": lambda: torch.mm(half, half.T), "float32": lambda: torch.mm(wide, wide.T)}, turns=4
    )
    return seconds["bfloat16"] < _WORTH * seconds["float32"]
