"""bfloat16 products of blocks: the error bound, and whether this processor gains by them."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from index.exact.products import FP32_UNIT_ROUNDOFF, NormalizedRows, error_bound, min_cpu_seconds

BF16_UNIT_ROUNDOFF = 2.0**-8
_BF16_MIN_NORMAL = 2.0**-126  # processors may flush smaller values to zero
_MIN_MACS_TO_BENCHMARK = 1e10  # multiply-adds; below, the benchmark would cost more than it can save
_MIN_SPEEDUP = 0.7  # of the time of a float32 product


@dataclass(frozen=True, slots=True)
class BF16Rows:
    """Normalized rows rounded to bfloat16, with the norms that bound the rounding error."""

    values: torch.Tensor  # (n, d) bfloat16
    sq_norms: NDArray[np.float64]  # (n,) before rounding
    norms: NDArray[np.float64]  # (n,) after rounding
    residual_norms: NDArray[np.float64]  # (n,) of the rounding errors

    @classmethod
    def of(cls, normalized: NormalizedRows) -> "BF16Rows":
        """Round normalized rows."""
        values = normalized.values.bfloat16()
        rounded = values.float()
        norms, residual_norms = (
            torch.linalg.vector_norm(rows, dim=1).double().numpy()
            * (1 + 2 * FP32_UNIT_ROUNDOFF * rows.shape[1])
            for rows in (rounded, normalized.values - rounded)
        )
        return cls(values=values, sq_norms=normalized.sq_norms, norms=norms, residual_norms=residual_norms)


def bf16_error_bound(probes: BF16Rows, gallery: BF16Rows, dimension: int) -> NDArray[np.float64]:
    """Bound |x'·y' - x·y| for each probe against any row of a gallery block: (p,).

    x' and y' are the rounded rows. The float32 bound counts twice, because processors differ in how they
    round inside of a bfloat16 product. The result is rounded to bfloat16 too, which adds
    `BF16_UNIT_ROUNDOFF` times its value; the caller adds that part.
    """
    max_norm = float(np.sqrt(gallery.sq_norms.max(initial=0.0)))
    sums = 2 * error_bound(probes.sq_norms, gallery.sq_norms, dimension)
    residuals = probes.residual_norms * max_norm + probes.norms * float(
        gallery.residual_norms.max(initial=0.0)
    )
    flushed = dimension * _BF16_MIN_NORMAL * (np.sqrt(probes.sq_norms) + max_norm + 1)
    return np.asarray(sums + residuals + flushed)


def should_use_bf16(device: str, *, macs: float) -> bool:
    """Return whether `macs` multiply-adds are faster in bfloat16: on a CPU that supports it, if large."""
    return torch.device(device).type == "cpu" and macs >= _MIN_MACS_TO_BENCHMARK and _bf16_is_faster()


@lru_cache(maxsize=1)
def _bf16_is_faster() -> bool:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    fp32 = torch.rand(512, 1024)
    bf16 = fp32.bfloat16()
    seconds = min_cpu_seconds(
        {"bfloat16": lambda: torch.mm(bf16, bf16.T), "float32": lambda: torch.mm(fp32, fp32.T)}, rounds=4
    )
    return seconds["bfloat16"] < _MIN_SPEEDUP * seconds["float32"]
