"""Screens: cheap scores of probes against blocks of rows, with a proven error bound.

Features x and y are normalized: moved by a common origin and scaled by a power of two. Their score is

    s(x, y) = |y|²/2 - x·y        and        |x - y|² = |x|² + 2 s(x, y)

Scores order a gallery for a probe as distances do. The product x·y is by the fastest library and type of this
machine. Its error is at most ε (|x|² + |y|²), a part of the probe and one of the row. So `bias - product`
is a lower bound of the score, that plus `slack` an upper bound, and `Screen.interval` has the scores of a
squared distance. A caller decides pairs whose intervals overlap by the float64 distances of `numba_kernels`:
the result is that of float64 at the cost of a cheaper product.

ε for d dimensions in float32: d roundings of the product, d of |y|², and those of the moved features. Source:
Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1. In bfloat16 the measured length of what
rounding takes from each feature is added, and the sums count twice, because processors differ in how they
round inside of a product. The kernels add the rounding of the result (`numba_kernels._bounds`).
"""

import ctypes
import os
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import mkldnn

from index.exact.numba_kernels import write_negated_sq_distances
from infra.errors import BadInput

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]

FP32_UNIT_ROUNDOFF = 2.0**-24
BF16_MIN_SPEEDUP = 1.3  # over a float32 product
_CLEAR_SPEEDUP = 3  # over torch's float32 product, which no other one beats by so much
PROBE_SLICE = 512  # probes of one product
_MAX_SQ_NORM = 2.0**80  # up to this value no float32 score overflows; longer rows are measured
_LARGEST = float(np.finfo(np.float32).max)
_BF16_MINUS_INFINITY = 0xFF80
_TINY = 1e-30  # products below the smallest normal number may be flushed to zero
_SAMPLE_ROWS = 32  # of the probes and of the first block, for the origin
_CHUNK_ROWS = 256  # rows prepared at a time: 1 MiB at 1024-D stays in the second-level cache
_MIN_SHIFT_GAIN = 16  # of the squared norms, for a copy of each block in float32
_MIN_MACS_TO_RACE = 1e9  # multiply-adds of a block; below, no product is much faster than torch's
_MIN_MACS_FOR_THREADS = 1e9  # multiply-adds below which one thread is faster (about 10 ms of work)
_FEW_PROBES = 20  # up to so many, differences are as fast as a product, and need no norms

_Name = TypeVar("_Name", bound=Hashable)
_Row = TypeVar("_Row", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Product:
    """A way to multiply: packs a block of rows once, then multiplies slices of probes (p, d) with it."""

    name: str
    pack: Callable[[torch.Tensor], Any]
    multiply: Callable[[torch.Tensor, Any, torch.Tensor], torch.Tensor]  # (p, n), in the last one if it can
    dtype: torch.dtype = torch.float32  # of probes, rows and product

    @property
    def is_bf16(self) -> bool:
        """Whether the product is rounded to bfloat16."""
        return self.dtype == torch.bfloat16

    def errors(self, dimension: int, residuals: Float64Array, usual_residual: float) -> Float64Array:
        """ε (n,) of rows: their share of the error of a score is at most ε times their squared norm.

        residuals: (n,) the share of its norm that rounding took from a row. Of features x + dx and y + dy,
        |dx| |y| + |x| |dy| is split in two by a b <= (a² / c + c b²) / 2, with the usual residual for c.
        """
        in_float32 = FP32_UNIT_ROUNDOFF * (dimension + 32)
        if not self.is_bf16:
            return np.full(len(residuals), 1.01 * in_float32)
        usual = max(usual_residual, in_float32)
        return np.asarray(1.01 * ((residuals**2 / usual + usual) / 2 + 3 * in_float32))


def _linear(rows: torch.Tensor) -> Any:
    layer = torch.nn.Linear(rows.shape[1], rows.shape[0], bias=False, device="meta")
    layer.weight = torch.nn.Parameter(rows, requires_grad=False)
    return mkldnn.to_mkldnn(layer.eval())  # type: ignore[no-untyped-call]


def _numpy(x: torch.Tensor, rows: Any, out: torch.Tensor) -> torch.Tensor:
    np.matmul(x.numpy(), rows, out=out.numpy())
    return out


TORCH = Product("torch.mm", torch.t, lambda x, rows, out: torch.mm(x, rows, out=out))
NUMPY = Product("numpy", lambda rows: rows.numpy().T, _numpy)
ONEDNN = Product("oneDNN", _linear, lambda x, rows, _: torch.as_tensor(rows(x.to_mkldnn()).to_dense()))
BF16 = Product("bfloat16", torch.t, TORCH.multiply, torch.bfloat16)


def fastest_product(*, use_bf16: bool = True) -> Product:
    """The fastest product of this machine, by one race of some 0.1 s; bfloat16 needs `BF16_MIN_SPEEDUP`."""
    entrants = [each for each in _race() if use_bf16 or not each.is_bf16]
    return min(entrants, key=lambda each: _race()[each] * (BF16_MIN_SPEEDUP if each.is_bf16 else 1))


@lru_cache(maxsize=1)
def _race() -> dict[Product, float]:
    """The CPU seconds of each product of this machine."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return {TORCH: 0.0}
    rows, probes = torch.rand(2048, 1024), torch.rand(512, 1024)

    def seconds_of(*products: Product) -> dict[Product, float]:
        return min_cpu_seconds({each: run(each) for each in products}, rounds=2)

    def run(product: Product) -> Callable[[], object]:
        x, packed = probes.to(product.dtype), product.pack(rows.to(product.dtype))
        out = torch.empty(len(probes), len(rows), dtype=product.dtype)
        return lambda: product.multiply(x, packed, out)

    seconds = seconds_of(TORCH, *([BF16] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else []))
    if seconds.get(BF16, np.inf) * _CLEAR_SPEEDUP > seconds[TORCH]:
        # OpenBLAS has threads of its own: it takes part where it may use one only.
        alone = "1" in (os.environ.get("OMP_NUM_THREADS"), os.environ.get("OPENBLAS_NUM_THREADS"))
        seconds |= seconds_of(ONEDNN, *([NUMPY] if alone and torch.get_num_threads() == 1 else []))
    return seconds


def _on_device(device: str) -> Product:
    def multiply(x: torch.Tensor, rows: Any, _: torch.Tensor) -> torch.Tensor:
        return torch.mm(x.to(device), rows).cpu()

    return Product(f"torch.mm on {device}", lambda rows: rows.to(device).T, multiply)


class Screen:
    """Probes, and one block of rows at a time, whose distances are to be bounded."""

    name: str
    minus_infinity: float = -np.inf  # as an element of a product: never near
    bias: Float32Array  # (n,) of the rows of the block
    slack: Float32Array  # (n,)

    def load(self, rows: Float32Array) -> None:
        """Prepare a block (n, d), C-contiguous. Raises BadInput for NaN and infinity."""
        raise NotImplementedError

    def product(self, probes: slice) -> NDArray[Any]:
        """Return the product (p, n), float32 or the bits of bfloat16; the next call overwrites it."""
        raise NotImplementedError

    def interval(self, sq_dist: Float64Array, probes: Any) -> tuple[Float32Array, Float32Array]:
        """Return the least and the greatest score (m,), finite, of squared distances (m,) of probes (m,)."""
        raise NotImplementedError


class DifferenceScreen(Screen):
    """|x - y|² in float32, by differences: one pass over the rows, for few probes."""

    name = "differences"

    def __init__(self, probes: Float32Array) -> None:
        self._probes, self._out = probes, np.empty((len(probes), 0), np.float32)

    def interval(self, sq_dist: Float64Array, probes: Any) -> tuple[Float32Array, Float32Array]:
        """See Screen."""
        terms = self._probes.shape[1] + 8
        return _rounded(sq_dist, 1.01 * FP32_UNIT_ROUNDOFF * terms * sq_dist + 2.0**-126 * terms)

    def load(self, rows: Float32Array) -> None:
        """See Screen."""
        if self._out.shape[1] != len(rows):
            self._out = np.empty((len(self._probes), len(rows)), np.float32)
            self.bias = np.zeros(len(rows), np.float32)
        write_negated_sq_distances(self._probes, rows, self._out)
        if not self._out[0].min(initial=0) > -_LARGEST:  # also for NaN
            require_finite(rows)

    def product(self, probes: slice) -> Float32Array:
        """See Screen."""
        return self._out[probes]


class ProductScreen(Screen):
    """Scores by a product."""

    def __init__(self, probes: Float32Array, sample: Float32Array, product: Product) -> None:
        self._product, self.name = product, product.name
        self._normalization = Normalization.fit(
            probes, sample, min_gain=1 if product.is_bf16 else _MIN_SHIFT_GAIN
        )
        self._work = np.empty((_CHUNK_ROWS, probes.shape[1]), np.float32)
        self._block = torch.empty(0, probes.shape[1], dtype=product.dtype)
        self._buffers = threading.local()
        # The probes are kept apart from the block, which the next rows overwrite.
        values, self._sq_norms, residuals = self._normalized(probes.copy())
        self._probes = values.clone()
        is_long = ~(self._sq_norms < _MAX_SQ_NORM)
        self._probes[torch.from_numpy(is_long)] = 0
        self._sq_norms[is_long] = 0
        self._usual_residual = float(np.median(residuals))
        errors = product.errors(probes.shape[1], residuals, self._usual_residual)
        self._margin = np.where(is_long, np.inf, errors * self._sq_norms + _TINY)
        self._scale = float(self._normalization.scale) ** 2 / 2
        self.minus_infinity = _BF16_MINUS_INFINITY if product.is_bf16 else -np.inf

    def load(self, rows: Float32Array) -> None:
        """See Screen."""
        block, sq_norms, residuals = self._normalized(rows)
        is_long = ~(sq_norms < _MAX_SQ_NORM)  # also for NaN
        if is_long.any():
            require_finite(rows)
            block = torch.where(torch.from_numpy(is_long)[:, None], torch.zeros((), dtype=block.dtype), block)
        error = self._product.errors(rows.shape[1], residuals, self._usual_residual)
        self.bias = np.where(is_long, -_LARGEST, (0.5 - error) * sq_norms).astype(np.float32)
        self.slack = np.where(is_long, np.inf, 2.01 * error * sq_norms).astype(np.float32)
        self._packed = self._product.pack(block)

    def interval(self, sq_dist: Float64Array, probes: Any) -> tuple[Float32Array, Float32Array]:
        """See Screen."""
        scaled, sq_norms = self._scale * sq_dist, self._sq_norms[probes]
        in_float32 = FP32_UNIT_ROUNDOFF * (self._probes.shape[1] + 32)
        margin = self._margin[probes] + in_float32 * (sq_norms + 2 * scaled)
        return _rounded(scaled - sq_norms / 2, margin)

    def _normalized(self, rows: Float32Array) -> tuple[torch.Tensor, Float64Array, Float64Array]:
        """Return normalized rows in the type of the product, their squared norms and residuals (n,).

        A residual is the norm of what rounding takes from a row, as a share of the row's norm.
        """
        if self._normalization.is_identity and not self._product.is_bf16:
            block = _tensor(rows)
            return block, torch.linalg.vector_norm(block, dim=1).double().numpy() ** 2, np.zeros(len(rows))
        if len(self._block) < len(rows):
            self._block = torch.empty(rows.shape, dtype=self._product.dtype)
        block, (norms, residuals) = self._block[: len(rows)], torch.zeros(2, len(rows))
        for start in range(0, len(rows), _CHUNK_ROWS):
            chunk = slice(start, min(start + _CHUNK_ROWS, len(rows)))
            values = torch.from_numpy(
                self._normalization.apply(rows[chunk], out=self._work[: chunk.stop - start])
            )
            torch.linalg.vector_norm(values, dim=1, out=norms[chunk])
            block[chunk].copy_(values)
            if self._product.is_bf16:
                torch.linalg.vector_norm(values.sub_(block[chunk]), dim=1, out=residuals[chunk])
        is_usual = (residuals > 0) & (norms < _MAX_SQ_NORM**0.5)
        residuals = torch.where(is_usual, residuals / norms, 0)
        return block, norms.double().numpy() ** 2, residuals.double().numpy()

    def product(self, probes: slice) -> NDArray[Any]:
        """See Screen."""
        x, columns = self._probes[probes], len(self.bias)
        # Reused by a thread: new pages for every block would cost time.
        out = getattr(self._buffers, "product", torch.empty(0))
        if len(out) < len(x) * columns:
            out = self._buffers.product = torch.empty(len(x) * columns, dtype=x.dtype)
        product = self._product.multiply(x, self._packed, out[: len(x) * columns].view(len(x), columns))
        return (product.view(torch.uint16) if self._product.is_bf16 else product).numpy()


def _rounded(score: Float64Array, margin: Float64Array) -> tuple[Float32Array, Float32Array]:
    """The interval of a score, rounded outward to finite values of float32."""
    margin = margin + 2.0**-22 * np.abs(score)
    with np.errstate(invalid="ignore"):
        low, high = np.fmax(score - margin, -_LARGEST), np.fmin(score + margin, _LARGEST)
    return np.minimum(low, _LARGEST).astype(np.float32), np.maximum(high, -_LARGEST).astype(np.float32)


def choose_screen(
    probes: Float32Array,
    sample: Float32Array,
    *,
    device: str = "cpu",
    few_probes: int = _FEW_PROBES,
    use_bf16: bool = True,
) -> Screen:
    """The fastest screen for probes (q, d) and blocks of rows like the sample (n, d)."""
    if torch.device(device).type != "cpu":
        return ProductScreen(probes, sample, _on_device(device))
    if len(probes) <= few_probes:
        return DifferenceScreen(probes)
    is_large = probes.size * float(len(sample)) >= _MIN_MACS_TO_RACE
    return ProductScreen(probes, sample, fastest_product(use_bf16=use_bf16) if is_large else TORCH)


def for_slices(function: Callable[[slice], object], count: int, *, macs: float) -> None:
    """Call a function for slices of `count` probes, in threads if all need many multiply-adds.

    Each thread gives torch one core: whole slices share the work best.
    """
    threads = torch.get_num_threads() if macs >= _MIN_MACS_FOR_THREADS else 1
    step = max(1, min(PROBE_SLICE, -(-count // threads)))
    slices = [slice(start, min(start + step, count)) for start in range(0, count, step)]
    if threads == 1 or len(slices) == 1:
        for each in slices:
            function(each)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as executor:
            for _ in executor.map(function, slices):
                pass
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, slots=True)
class Normalization:
    """A common origin and scale of features. Any choice is correct; a good one keeps error bounds small."""

    origin: Float32Array  # (d,)
    scale: np.float32  # a power of two, so scaling is exact

    @classmethod
    def fit(cls, *samples: Float32Array, min_gain: float = 1.0) -> "Normalization":
        """Centre on the median, if that divides squared norms by `min_gain`; scale unusual sizes to about 1.

        The median keeps the bounds small where a single outlier would move the mean.
        """
        sample = np.concatenate([subsample(rows, _SAMPLE_ROWS) for rows in samples], dtype=np.float64)
        origin = (
            np.median(sample, axis=0).astype(np.float32) if len(sample) else np.float32(0) * sample.sum(0)
        )
        sq_norms, moved_sq_norms = (
            float(np.median(np.einsum("ij,ij->i", rows, rows))) if len(rows) else 0.0
            for rows in (sample, sample - origin)
        )
        if not moved_sq_norms * min_gain < sq_norms:
            origin, moved_sq_norms = np.zeros_like(origin), sq_norms
        exponent = float(np.frexp(np.sqrt(moved_sq_norms))[1])
        return cls(origin, np.float32(2.0 ** -np.clip(exponent, -120, 120) if abs(exponent) > 30 else 1))

    @property
    def is_identity(self) -> bool:
        """Whether normalized rows are the rows themselves."""
        return bool(self.scale == 1 and not self.origin.any())

    def apply(self, rows: Float32Array, out: Float32Array | None = None) -> Float32Array:
        """Move and scale rows (n, d), into a new array or `out`."""
        with np.errstate(over="ignore"):
            values = np.subtract(rows, self.origin, out=out)
            if self.scale != 1:
                values *= self.scale
        return values


def require_finite(features: Float32Array) -> None:
    """Check features (n, d). Raises BadInput for NaN and infinity."""
    bad = sum(
        int((~np.isfinite(features[start : start + 8192])).any(axis=1).sum())
        for start in range(0, len(features), 8192)
    )
    if bad:
        raise BadInput(
            f"{bad} of {len(features)} features hold NaN or infinity",
            remedy="embed again, or check the shards",
        )


def min_cpu_seconds(
    candidates: Mapping[_Name, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[_Name, float]:
    """Run the candidates in turn for some rounds; return the least CPU seconds of each.

    CPU time and the minimum keep bursts of other processes out of the comparison.
    """
    seconds = dict.fromkeys(candidates, float("inf"))
    for _ in range(rounds):
        for name, run in candidates.items():
            started = clock()
            run()
            seconds[name] = min(seconds[name], clock() - started)
    return seconds


def subsample(rows: NDArray[_Row], max_rows: int) -> NDArray[_Row]:
    """Return at most `max_rows` rows, evenly spaced: a view."""
    return rows[:: max(1, -(-len(rows) // max_rows))]


def count_within(rate: float, total: int) -> int:
    """Return the largest count whose share of `total` is at most `rate`."""
    count = int(rate * total)
    # The product may be rounded to either side of a whole number.
    if total and (count + 1) / total <= rate:
        return count + 1
    return count - 1 if count and count / total > rate else count


def _tensor(array: Float32Array) -> torch.Tensor:
    """A tensor that shares the memory of an array, also of a read-only one, which nothing here writes to."""
    if array.flags.writeable or not array.size:
        return torch.from_numpy(array)
    pointer = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return torch.from_numpy(np.ctypeslib.as_array(pointer, shape=array.shape))
