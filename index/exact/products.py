"""Squared L2 distances in blocks: a fast float32 score with a proven error bound.

For features x and y, moved by one common origin and scaled by one power of two, the score is

    s(x, y) = |y|² / 2 - x·y        so that        |x - y|² = |x|² + 2 s(x, y)

One matrix product gives the scores of a block. They order a gallery for a probe as the distances do, up to
`error_bound`. Whoever counts or picks by score decides the pairs inside that bound by exact distances
(`index.loops`), so the outcome is that of float64 distances at the price of a float32 product.
"""

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import mkldnn

from infra.errors import BadInput

Name = TypeVar("Name", bound=Hashable)


def min_cpu_seconds(ways: Mapping[Name, Callable[[], object]], turns: int) -> dict[Name, float]:
    """The least CPU seconds that each way took.

    In turns, by CPU time, the best of each: a neighbour's burst of work must not decide.
    """
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(turns):
        for name, way in ways.items():
            started = time.process_time()
            way()
            seconds[name] = min(seconds[name], time.process_time() - started)
    return seconds


_Row = TypeVar("_Row", bound=np.generic)

FP32_UNIT_ROUNDOFF = 2.0**-24  # unit roundoff of float32
_MAX_NONZERO_SHARE = 0.9  # at most so many are not: elsewhere a rounded origin may lie far off the values
_MIN_MACS_TO_BENCHMARK = 5e10  # multiply-adds; below it the measurement would cost more than it can save


@dataclass(frozen=True, slots=True)
class Normalization:
    """The common origin and scale. Any choice is correct; a good one keeps the error bound small."""

    origin: NDArray[np.float32]  # (d,)
    scale: np.float32  # a power of two: scaling is exact

    @classmethod
    def around(cls, *samples: NDArray[np.float32], rows: int = 2048) -> "Normalization":
        """Centre on the mean of up to `rows` rows of each sample, and scale the largest value to about 1."""
        some = np.concatenate([subsample(sample, rows) for sample in samples], dtype=np.float32)
        if not len(some):
            raise BadInput("no features to compare")
        mean = torch.from_numpy(some.mean(0, dtype=np.float64).astype(np.float32))
        # Where many are zero, as behind a ReLU, an origin that bfloat16 holds lets these lose nothing in it.
        often_zero = np.count_nonzero(some, axis=0) <= _MAX_NONZERO_SHARE * len(some)
        origin = np.where(often_zero, mean.bfloat16().float().numpy(), mean.numpy())
        largest = float(np.abs(some.astype(np.float64) - origin).max(initial=0.0))
        if not np.isfinite(largest):
            raise BadInput("a feature holds NaN or infinity", remedy="embed again, or check the shards")
        exponent = np.frexp(largest)[1] if largest > 0 else 0
        return cls(origin, np.float32(2.0 ** float(np.clip(-exponent, -120, 120))))

    def place(self, features: NDArray[np.float32]) -> "NormalizedRows":
        """Move and scale rows (n, d). Raises BadInput for values that are not finite or absurdly large."""
        values = (np.asarray(features, dtype=np.float32) - self.origin) * self.scale
        wide = values.astype(np.float64)
        squares = np.einsum("ij,ij->i", wide, wide)
        # Up to 2^80 no float32 score can overflow, and NaN fails the comparison too.
        bad = np.flatnonzero(~(squares < 2.0**80))
        if len(bad):
            raise BadInput(
                f"{len(bad)} of {len(values)} features hold NaN, infinity or values out of all proportion",
                remedy="embed again, or check the shards",
            )
        return NormalizedRows(torch.from_numpy(values), squares)


@dataclass(frozen=True, slots=True)
class NormalizedRows:
    """Rows in a frame, with their squared norms there."""

    values: torch.Tensor  # (n, d) float32
    squares: NDArray[np.float64]  # (n,)


def error_bound(
    probe_squares: NDArray[np.float64], gallery_squares: NDArray[np.float64], dimension: int
) -> NDArray[np.float64]:
    """How far a float32 score can lie from the true one, for each probe against any row of the block: (p,).

    The worst case over all orders of summation: d roundings of the product, one each of |y|²/2 and of the
    difference, and one of each feature when it was moved to the origin
    (Higham, "Accuracy and Stability of Numerical Algorithms", 3.1).
    """
    x = np.sqrt(probe_squares)
    y = float(np.sqrt(gallery_squares.max(initial=0.0)))
    bound = 1.01 * FP32_UNIT_ROUNDOFF * ((dimension + 4) * x * y + 2 * y * y + 2 * (x + y) ** 2) + 1e-30
    return np.asarray(bound, dtype=np.float64)


class Kernel:
    """Products of blocks by `torch.mm`, on any device."""

    name = "torch.mm"

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)

    def probes(self, placed: NormalizedRows) -> Any:
        """Load probe rows once."""
        return placed.values.to(self.device)

    def gallery(self, placed: NormalizedRows) -> Any:
        """Load one gallery block; it then meets every block of probes."""
        return placed.values.to(self.device).T

    def product(self, probes: Any, gallery: Any, out: torch.Tensor | None = None) -> torch.Tensor:
        """(p, n) float32 x·y on the kernel's device; `out` is used where that saves memory traffic."""
        return torch.mm(probes, gallery, out=out)


class OneDnnKernel(Kernel):
    """The same through oneDNN's linear layer: up to twice as fast on processors where MKL holds back."""

    name = "oneDNN linear"

    def probes(self, placed: NormalizedRows) -> Any:
        """Load probe rows in oneDNN's layout."""
        return placed.values.to_mkldnn()

    def gallery(self, placed: NormalizedRows) -> Any:
        """Load the block as the weight of a linear layer."""
        rows, dimension = placed.values.shape
        layer = torch.nn.Linear(dimension, rows, bias=False, device="meta")
        layer.weight = torch.nn.Parameter(placed.values, requires_grad=False)
        return mkldnn.to_mkldnn(layer.eval())  # type: ignore[no-untyped-call]

    def product(self, probes: Any, gallery: Any, out: torch.Tensor | None = None) -> torch.Tensor:
        """(p, n) float32 x·y."""
        return torch.as_tensor(gallery(probes).to_dense())


def choose_kernel(device: str = "cpu", *, work: float = 0.0) -> Kernel:
    """The fastest exact float32 product of this machine for `work` multiply-adds, measured once a process."""
    if torch.device(device).type != "cpu" or work < _MIN_MACS_TO_BENCHMARK:
        return Kernel(device)
    return _benchmark_kernels()


@lru_cache(maxsize=1)
def _benchmark_kernels() -> Kernel:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return Kernel()
    sample = np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32)
    placed = Normalization.around(sample).place(sample)
    room = torch.empty(1024, 1024)

    def scoring(kernel: Kernel) -> Callable[[], object]:
        probes, gallery = kernel.probes(placed), kernel.gallery(placed)
        return lambda: kernel.product(probes, gallery, room)

    seconds = min_cpu_seconds({kernel: scoring(kernel) for kernel in (OneDnnKernel(), Kernel())}, turns=5)
    return min(seconds, key=lambda kernel: seconds[kernel])


def subsample(rows: NDArray[_Row], most: int) -> NDArray[_Row]:
    """At most so many rows, evenly spread over all: a view."""
    return rows[:: max(1, -(-len(rows) // most))]


BF16_UNIT_ROUNDOFF = 2.0**-8  # unit roundoff of bfloat16
_BF16_MIN_NORMAL = 2.0**-126  # smaller values may be taken for zero
_BF16_MIN_MACS_TO_BENCHMARK = 1e10  # multiply-adds; below it the measurement would cost more than it can save
_MIN_SPEEDUP = 0.7  # of the float32 product's time


@dataclass(frozen=True, slots=True)
class BF16Rows:
    """Rows rounded to bfloat16, with the lengths that bound what this changes."""

    values: torch.Tensor  # (n, d) bfloat16
    squares: NDArray[np.float64]  # (n,) squared lengths before rounding
    lengths: NDArray[np.float64]  # (n,) after it
    lost: NDArray[np.float64]  # (n,) lengths of what was rounded off

    @classmethod
    def of(cls, placed: NormalizedRows) -> "BF16Rows":
        """Round rows that are in a frame."""
        values = placed.values.bfloat16()
        rounded = values.float()
        lengths, lost = (
            torch.linalg.vector_norm(some, dim=1).double().numpy()
            * (1 + 2 * FP32_UNIT_ROUNDOFF * some.shape[1])
            for some in (rounded, placed.values - rounded)
        )
        return cls(values, placed.squares, lengths, lost)


def bf16_error_bound(probes: BF16Rows, gallery: BF16Rows, dimension: int) -> NDArray[np.float64]:
    """How far x'·y' can lie from x·y, for each probe against any row of the block: (p,).

    Twice the float32 bound stands for the sums, because processors differ in how they round inside of a
    bfloat16 product. That the product is rounded to bfloat16 in turn comes on top: `HALF_UNIT` of it.
    """
    longest = float(np.sqrt(gallery.squares.max(initial=0.0)))
    sums = 2 * error_bound(probes.squares, gallery.squares, dimension)
    left_out = probes.lost * longest + probes.lengths * float(gallery.lost.max(initial=0.0))
    vanished = dimension * _BF16_MIN_NORMAL * (np.sqrt(probes.squares) + longest + 1)
    return np.asarray(sums + left_out + vanished)


def should_use_bf16(device: str, *, work: float) -> bool:
    """Whether `work` multiply-adds are for products of bfloat16: on CPUs that have them, and enough of it."""
    return torch.device(device).type == "cpu" and work >= _BF16_MIN_MACS_TO_BENCHMARK and _bf16_is_faster()


@lru_cache(maxsize=1)
def _bf16_is_faster() -> bool:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    wide = torch.rand(512, 1024)
    half = wide.bfloat16()
    seconds = min_cpu_seconds(
        {"bfloat16": lambda: torch.mm(half, half.T), "float32": lambda: torch.mm(wide, wide.T)}, turns=4
    )
    return seconds["bfloat16"] < _MIN_SPEEDUP * seconds["float32"]
