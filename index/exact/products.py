"""Squared L2 distances in blocks, by one matrix product and a proven error bound.

Features x and y are normalized: moved by a common origin and scaled by a power of two. Their score is

    s(x, y) = |y|²/2 - x·y        and        |x - y|² = |x|² + 2 s(x, y)

Scores order a gallery for a probe as the distances do, up to `error_bound`. A caller that counts or selects
by score decides the pairs inside that bound by exact distances (`numba_kernels.pair_sq_distances`). The
result is that of float64 distances at the cost of a float32 product.
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

FP32_UNIT_ROUNDOFF = 2.0**-24
_MAX_SQ_NORM = 2.0**80  # up to this value no float32 score overflows
_MAX_NONZERO_SHARE = 0.9  # of a coordinate's values, for an origin that is rounded to bfloat16
_MIN_MACS_TO_BENCHMARK = 5e10  # multiply-adds; below, the benchmark would cost more than it can save

_Name = TypeVar("_Name", bound=Hashable)
_Row = TypeVar("_Row", bound=np.generic)


def pairwise_sq_distances(
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    x_sq_norms: NDArray[np.float64] | None = None,
    y_sq_norms: NDArray[np.float64] | None = None,
) -> NDArray[Any]:
    """|x|² + |y|² - 2 x·y, not below 0, of float32 rows (p, d) and (n, d): (p, n).

    float32, or float64 with squared norms (p,), (n,) in float64. Good for distributions and thresholds; ranks
    need the exact distances of `numba_kernels`.
    """
    x_sq = np.square(x).sum(axis=1) if x_sq_norms is None else x_sq_norms
    y_sq = np.square(y).sum(axis=1) if y_sq_norms is None else y_sq_norms
    return np.asarray(np.maximum(x_sq[:, None] + y_sq - 2 * x @ y.T, 0))


@dataclass(frozen=True, slots=True)
class Normalization:
    """A common origin and scale of features. Any choice is correct; a good one keeps error bounds small."""

    origin: NDArray[np.float32]  # (d,)
    scale: np.float32  # a power of two, so scaling is exact

    @classmethod
    def fit(cls, *samples: NDArray[np.float32], max_rows: int = 2048) -> "Normalization":
        """Centre on the mean of up to `max_rows` rows of each sample; scale the largest value to about 1.

        Raises BadInput for samples without rows, or with values that are not finite.
        """
        sample = np.concatenate([subsample(rows, max_rows) for rows in samples], dtype=np.float32)
        if not len(sample):
            raise BadInput("no features to compare")
        mean = torch.from_numpy(sample.mean(0, dtype=np.float64).astype(np.float32))
        # After a ReLU many values are zero. They lose nothing in bfloat16 if the origin loses nothing in it.
        # Elsewhere a rounded origin could be far from the values.
        is_often_zero = np.count_nonzero(sample, axis=0) <= _MAX_NONZERO_SHARE * len(sample)
        origin = np.where(is_often_zero, mean.bfloat16().float().numpy(), mean.numpy())
        largest = float(np.abs(sample.astype(np.float64) - origin).max(initial=0.0))
        if not np.isfinite(largest):
            raise BadInput("a feature holds NaN or infinity", remedy="embed again, or check the shards")
        exponent = np.frexp(largest)[1] if largest > 0 else 0
        return cls(origin, np.float32(2.0 ** float(np.clip(-exponent, -120, 120))))

    def apply(self, features: NDArray[np.float32]) -> "NormalizedRows":
        """Move and scale rows (n, d). Raises BadInput as `check_sq_norms` does."""
        values = self.move(np.asarray(features, dtype=np.float32))
        wide = values.astype(np.float64)
        sq_norms = np.einsum("ij,ij->i", wide, wide)
        check_sq_norms(sq_norms)
        return NormalizedRows(torch.from_numpy(values), sq_norms)

    def move(
        self, features: NDArray[np.float32], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Move and scale rows (n, d) without a check, into `out` if given."""
        values = np.subtract(features, self.origin, out=out)
        if self.scale != 1:
            values *= self.scale
        return values


@dataclass(frozen=True, slots=True)
class NormalizedRows:
    """Normalized rows with their squared norms."""

    values: torch.Tensor  # (n, d) float32
    sq_norms: NDArray[np.float64]  # (n,)


def check_sq_norms(sq_norms: NDArray[np.float64] | torch.Tensor) -> None:
    """Check the squared norms (n,) of normalized rows. Raises BadInput for NaN, infinity, absurd sizes."""
    bad = int((~(sq_norms < _MAX_SQ_NORM)).sum())  # NaN fails the comparison too
    if bad:
        raise BadInput(
            f"{bad} of {len(sq_norms)} features hold NaN, infinity or values out of all proportion",
            remedy="embed again, or check the shards",
        )


def error_bound(
    probe_sq_norms: NDArray[np.float64], gallery_sq_norms: NDArray[np.float64], dimension: int
) -> NDArray[np.float64]:
    """Bound the error of float32 scores, for each probe against any row of a gallery block: (p,).

    The worst case over all orders of summation: d roundings of the product, one each of |y|²/2 and of the
    difference, and one of each feature when it was moved to the origin.
    Source: Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1.
    """
    x = np.sqrt(probe_sq_norms)
    y = float(np.sqrt(gallery_sq_norms.max(initial=0.0)))
    bound = 1.01 * FP32_UNIT_ROUNDOFF * ((dimension + 4) * x * y + 2 * y * y + 2 * (x + y) ** 2) + 1e-30
    return np.asarray(bound, dtype=np.float64)


def rel_error_bound(dimension: int) -> float:
    """The same bound relative to |x|², |y|² and |x - y|² of a pair: simpler, and about twice as wide.

    It covers also a float32 |y|²/2, with d roundings more, and two roundings of each moved feature.
    """
    return 1.01 * FP32_UNIT_ROUNDOFF * (dimension + 32)


class Kernel:
    """Float32 products of blocks by `torch.mm`, on any device."""

    name = "torch.mm"

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)

    def probes(self, normalized: NormalizedRows) -> Any:
        """Load a block of probes; it is reused for every gallery block."""
        return normalized.values.to(self.device)

    def gallery(self, normalized: NormalizedRows) -> Any:
        """Load a gallery block; it is reused for every block of probes."""
        return normalized.values.to(self.device).T

    def product(self, probes: Any, gallery: Any, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return x·y (p, n), float32, on the kernel's device; `out` is used where that saves traffic."""
        return torch.mm(probes, gallery, out=out)


class OneDnnKernel(Kernel):
    """The same by oneDNN's linear layer: up to twice as fast on processors where MKL is slow."""

    name = "oneDNN linear"

    def probes(self, normalized: NormalizedRows) -> Any:
        """Load a block of probes in oneDNN's layout."""
        return normalized.values.to_mkldnn()

    def gallery(self, normalized: NormalizedRows) -> Any:
        """Load a gallery block as the weight of a linear layer."""
        rows, dimension = normalized.values.shape
        layer = torch.nn.Linear(dimension, rows, bias=False, device="meta")
        layer.weight = torch.nn.Parameter(normalized.values, requires_grad=False)
        return mkldnn.to_mkldnn(layer.eval())  # type: ignore[no-untyped-call]

    def product(self, probes: Any, gallery: Any, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return x·y (p, n), float32. `out` is ignored: the layer allocates its output."""
        return torch.as_tensor(gallery(probes).to_dense())


def choose_kernel(device: str = "cpu", *, macs: float = 0.0) -> Kernel:
    """The fastest float32 kernel for `macs` multiply-adds; benchmarked at most once in a process."""
    if torch.device(device).type != "cpu" or macs < _MIN_MACS_TO_BENCHMARK:
        return Kernel(device)
    return _benchmark_kernels()


@lru_cache(maxsize=1)
def _benchmark_kernels() -> Kernel:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return Kernel()
    sample = np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32)
    normalized = Normalization.fit(sample).apply(sample)
    out = torch.empty(1024, 1024)

    def run(kernel: Kernel) -> Callable[[], object]:
        probes, gallery = kernel.probes(normalized), kernel.gallery(normalized)
        return lambda: kernel.product(probes, gallery, out)

    seconds = min_cpu_seconds({kernel: run(kernel) for kernel in (OneDnnKernel(), Kernel())}, rounds=5)
    return min(seconds, key=lambda kernel: seconds[kernel])


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
