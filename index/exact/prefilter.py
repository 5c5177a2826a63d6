"""Lower bounds of scores: one fast product per block that rules out the rows that cannot be near.

The score s(x, y) of a probe x and a row y is that of `products`. For a block, a filter computes
`lower_bounds`, which do not exceed the scores, and for each probe a threshold: a row whose lower bound
exceeds the threshold is farther than a given distance for certain. The caller measures the other rows.

`Float32Filter` has the rounding error of a float32 product only. `Int8Filter` rounds the features to t times
an 8-bit integer, because processors multiply these three to four times as fast. With x = t a + dx and
y = t b + dy the product is x·y = t² a·b + dx·y + (t a)·dy. The integer product a·b is exact, and the
Cauchy-Schwarz inequality bounds the rest by the norms of the rounding errors: |dx| |y| + |t a| |dy|. These
norms are measured and not assumed, so no scale and no data can make the bound wrong, only wide.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from index.exact.products import (
    FP32_UNIT_ROUNDOFF,
    Normalization,
    check_sq_norms,
    min_cpu_seconds,
    rel_error_bound,
)

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]

PAD_ROWS = 16  # blocks are padded to a multiple of this with rows at infinite distance
_CHUNK_ROWS = 256  # rows prepared at a time: 1 MiB at 1024-D stays in the second-level cache
_SAMPLE_ROWS = 256  # of the probes and of the first block, to choose the step of 8-bit integers
_INT8_MAX = 127
_MIN_PROBES_FOR_INT8 = 32  # below, preparing a row costs more than the integer product saves
_MIN_DIMENSION_FOR_INT8 = 64  # below, nothing is gained; torch 2.13 multiplies wrongly in one dimension
_MIN_SPEEDUP = 0.6  # of the time of a float32 product


class LowerBoundFilter(Protocol):
    """Loads one block at a time and compares it with ranges of the probes."""

    def load(self, vectors: Float32Array) -> None:
        """Prepare a block of at most `max_rows` rows. Raises BadInput for values that are not finite."""
        ...

    def lower_bounds(self, probes: slice) -> torch.Tensor:
        """Lower bounds (p, n) of the scores of the block, float32 in the filter's unit.

        n is the number of rows padded to a multiple of `PAD_ROWS`; padding is infinite. The next call
        overwrites the tensor.
        """
        ...

    def thresholds(self, probes: slice, sq_dist: Float64Array) -> Float32Array:
        """Finite thresholds (p,) in the filter's unit, for squared distances (p,)."""
        ...


def choose_filter(
    probes: Float32Array, first_block: Float32Array, *, max_rows: int, device: str = "cpu"
) -> LowerBoundFilter:
    """The fastest filter for these probes (q, d) and blocks of at most `max_rows` rows."""
    is_large = len(probes) >= _MIN_PROBES_FOR_INT8 and probes.shape[1] >= _MIN_DIMENSION_FOR_INT8
    if device == "cpu" and is_large and _int8_is_faster():
        return Int8Filter(probes, first_block, max_rows)
    return Float32Filter(probes, first_block, max_rows, device)


class _NormalizedProbes:
    """The probes, normalized, and the thresholds of an exact float32 product."""

    def __init__(self, probes: Float32Array, first_block: Float32Array) -> None:
        normalization = Normalization.fit(probes, first_block)
        if 2.0**-30 < float(normalization.scale) < 2.0**30:
            # Features of usual size need no scaling, which saves a pass over each block.
            normalization = replace(normalization, scale=np.float32(1))
        self.normalization = normalization
        self.values = normalization.move(probes)  # (q, d)
        self.rel_error = rel_error_bound(probes.shape[1])
        self._sq_norms = np.einsum("ij,ij->i", self.values, self.values, dtype=np.float64)  # (q,)

    def thresholds(self, probes: slice, sq_dist: Float64Array) -> Float64Array:
        """Upper bounds (p,) of the scores of rows within these squared distances (p,)."""
        scaled = sq_dist * float(self.normalization.scale) ** 2
        sq_norms = self._sq_norms[probes]
        return np.asarray((scaled - sq_norms) / 2 + self.rel_error * (sq_norms + scaled) + 1e-30)


class Float32Filter:
    """Scores by `torch.addmm`, on any device."""

    def __init__(
        self, probes: Float32Array, first_block: Float32Array, max_rows: int, device: str = "cpu"
    ) -> None:
        self._normalized = _NormalizedProbes(probes, first_block)
        self._negated_probes = torch.from_numpy(-self._normalized.values).to(device)
        self._host = np.zeros((_round_up(max_rows), probes.shape[1]), np.float32)
        self._rows = torch.from_numpy(self._host)
        self._half_sq_norms = torch.empty(_round_up(max_rows))
        self._device = torch.device(device)
        self._loaded = (self._rows, self._half_sq_norms)

    def load(self, vectors: Float32Array) -> None:
        """See LowerBoundFilter."""
        for start in range(0, len(vectors), _CHUNK_ROWS):
            chunk = slice(start, min(start + _CHUNK_ROWS, len(vectors)))
            self._normalized.normalization.move(vectors[chunk], out=self._host[chunk])
            sq_norms = torch.linalg.vector_norm(self._rows[chunk], dim=1).square_()
            check_sq_norms(sq_norms)
            self._half_sq_norms[chunk] = sq_norms * (0.5 - self._normalized.rel_error)
        padded = _round_up(len(vectors))
        self._half_sq_norms[len(vectors) : padded] = torch.inf
        self._loaded = (
            self._rows[:padded].to(self._device),
            self._half_sq_norms[:padded].to(self._device),
        )

    def lower_bounds(self, probes: slice) -> torch.Tensor:
        """See LowerBoundFilter."""
        rows, half_sq_norms = self._loaded
        return torch.addmm(half_sq_norms, self._negated_probes[probes], rows.T)

    def thresholds(self, probes: slice, sq_dist: Float64Array) -> Float32Array:
        """See LowerBoundFilter."""
        return _round_outward(self._normalized.thresholds(probes, sq_dist))


class Int8Filter:
    """Scores by products of 8-bit integers, in units of t², so the product needs no scaling."""

    def __init__(self, probes: Float32Array, first_block: Float32Array, max_rows: int) -> None:
        self._normalized = normalized = _NormalizedProbes(probes, first_block)
        dimension = probes.shape[1]
        self._workspace = np.zeros((2, _CHUNK_ROWS, dimension), np.float32)
        probe_sample = normalized.values[:: max(1, len(probes) // _SAMPLE_ROWS)]
        row_sample = first_block[:: max(1, len(first_block) // _SAMPLE_ROWS)][:_SAMPLE_ROWS]
        self._step = _best_scale(np.concatenate([probe_sample, normalized.normalization.move(row_sample)]))
        integers = np.clip(np.rint(normalized.values / self._step), -_INT8_MAX, _INT8_MAX)
        # In float64, where these roundings are negligible beside the relative error.
        residuals = normalized.values - integers * np.float64(self._step)
        self._probe_residuals = np.sqrt(np.einsum("ij,ij->i", residuals, residuals))
        self._usual_probe_residual = float(np.quantile(self._probe_residuals, 0.9))
        self._probe_norms = np.sqrt(np.einsum("ij,ij->i", integers, integers, dtype=np.float64)) * float(
            self._step
        )
        self._probes = torch.from_numpy(integers.astype(np.int8))
        self._rows = torch.zeros((_round_up(max_rows), dimension), dtype=torch.int8)
        self._half_sq_norms = torch.empty(_round_up(max_rows))
        self._row_norms = torch.empty(max_rows)
        self._row_residuals = torch.empty(max_rows)
        self._padded_rows, self._usual_row_residual, self._max_row_norm = 0, 0.0, 0.0
        self._product, self._lower_bounds = torch.empty(0, dtype=torch.int32), torch.empty(0)

    def load(self, vectors: Float32Array) -> None:
        """See LowerBoundFilter."""
        rel_error, step, count = self._normalized.rel_error, float(self._step), len(vectors)
        for start in range(0, count, _CHUNK_ROWS):
            chunk = slice(start, min(start + _CHUNK_ROWS, count))
            rows, integers = (torch.from_numpy(array[: chunk.stop - start]) for array in self._workspace)
            self._normalized.normalization.move(vectors[chunk], out=self._workspace[0][: chunk.stop - start])
            torch.linalg.vector_norm(rows, dim=1, out=self._row_norms[chunk])
            rows *= 1 / step
            torch.round(rows, out=integers).clamp_(-_INT8_MAX, _INT8_MAX)
            self._rows[chunk] = integers
            rows -= integers
            torch.linalg.vector_norm(rows, dim=1, out=self._row_residuals[chunk])
        norms = self._row_norms[:count].double()
        check_sq_norms(norms.square())
        residuals = (
            self._row_residuals[:count].double() * step * (1 + rel_error) + 4 * FP32_UNIT_ROUNDOFF * norms
        )
        # The bound of a pair has two factors of the probe and two of the row. Here it becomes one number per
        # row, and one per probe in `thresholds`: a usual or a maximum value replaces the pair's own one, so
        # the block needs a single subtraction.
        self._max_row_norm = float(norms.max()) * (1 + rel_error)
        self._usual_row_residual = float(torch.quantile(residuals, 0.9))
        max_probe_norm = float(self._probe_norms.max())
        lower = (
            norms.square() * (0.5 - rel_error)
            - self._usual_probe_residual * norms * (1 + rel_error)
            - max_probe_norm * (residuals - self._usual_row_residual).clamp_(min=0)
        )
        self._half_sq_norms[:count] = (lower / step**2 * (1 - 4 * FP32_UNIT_ROUNDOFF * lower.sign())).float()
        self._padded_rows = _round_up(count)
        self._half_sq_norms[count : self._padded_rows] = torch.inf

    def lower_bounds(self, probes: slice) -> torch.Tensor:
        """See LowerBoundFilter."""
        probe_rows = self._probes[probes]
        shape, size = (len(probe_rows), self._padded_rows), len(probe_rows) * self._padded_rows
        if len(self._product) < size:
            # Reused: new pages for every block would cost half as much as the product.
            self._product, self._lower_bounds = torch.empty(size, dtype=torch.int32), torch.empty(size)
        product, lower_bounds = self._product[:size].view(shape), self._lower_bounds[:size].view(shape)
        torch._int_mm(probe_rows, self._rows[: self._padded_rows].T, out=product)
        return torch.sub(self._half_sq_norms[: self._padded_rows], product, out=lower_bounds)

    def thresholds(self, probes: slice, sq_dist: Float64Array) -> Float32Array:
        """See LowerBoundFilter."""
        excess = np.maximum(self._probe_residuals[probes] - self._usual_probe_residual, 0)
        thresholds = (
            self._normalized.thresholds(probes, sq_dist)
            + self._probe_norms[probes] * self._usual_row_residual
            + excess * self._max_row_norm
        )
        # The subtraction of `lower_bounds` rounds once more, relative to the larger of its operands.
        widened = thresholds + self._normalized.rel_error * np.abs(thresholds)
        return _round_outward(widened / float(self._step) ** 2)


def _round_outward(values: Float64Array) -> Float32Array:
    return np.minimum(np.nextafter(values.astype(np.float32), np.float32(np.inf)), np.finfo(np.float32).max)


def _round_up(count: int) -> int:
    return -(-count // PAD_ROWS) * PAD_ROWS


def _best_scale(sample: Float32Array) -> np.float32:
    """The step of integers with the least rounding error over a sample (n, d); it may clip rare values."""
    largest = float(np.abs(sample).max(initial=0.0))
    if not largest:
        return np.float32(1)
    steps = [largest / _INT8_MAX * share for share in (1.0, 0.7, 0.5, 0.35, 0.25, 0.18)]

    def mean_residual(step: float) -> float:
        residuals = sample - np.clip(np.rint(sample / step), -_INT8_MAX, _INT8_MAX) * step
        return float(np.sqrt(np.einsum("ij,ij->i", residuals, residuals, dtype=np.float64)).mean())

    return np.float32(min(steps, key=mean_residual))


@lru_cache(maxsize=1)
def _int8_is_faster() -> bool:
    """Whether this processor multiplies 8-bit integers much faster than float32; benchmarked once."""
    int8 = torch.randint(-_INT8_MAX, _INT8_MAX, (256, 1024), dtype=torch.int8)
    fp32 = int8.float()
    seconds = min_cpu_seconds(
        {"int8": lambda: torch._int_mm(int8, int8.T), "float32": lambda: torch.mm(fp32, fp32.T)}, rounds=3
    )
    return seconds["int8"] < _MIN_SPEEDUP * seconds["float32"]
