"""Squared L2 distances in blocks: a fast float32 score with a proven error bound, and an exact recheck.

For features x and y, moved by one common origin and scaled by one power of two, the score is

    s(x, y) = |y|² / 2 - x·y        so that        |x - y|² = |x|² + 2 s(x, y)

One matrix product gives the scores of a block. They order a gallery for a probe as the distances do, up to
`error_bound`. Whoever counts or picks by score decides the pairs inside that bound by `exact_squared`, so the
outcome is that of float64 distances at the price of a float32 product.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import mkldnn

from index.races import least_seconds
from infra.errors import BadInput

UNIT = 2.0**-24  # unit roundoff of float32
PAIRS_AT_ONCE = 64  # 1.5 MiB at 1024-D with the float64 differences: stays in the second-level cache
_MEASURE_FROM = 5e10  # multiply-adds; below it the measurement would cost more than it can save


@dataclass(frozen=True, slots=True)
class Frame:
    """The common origin and scale. Any choice is correct; a good one keeps the error bound small."""

    origin: NDArray[np.float32]  # (d,)
    scale: np.float32  # a power of two: scaling is exact

    @classmethod
    def around(cls, *samples: NDArray[np.float32], rows: int = 2048) -> "Frame":
        """Centre on the mean of up to `rows` rows of each sample, and scale the largest value to about 1."""
        some = np.concatenate([_strided(sample, rows) for sample in samples])
        if not len(some):
            raise BadInput("no features to compare")
        origin = some.mean(0, dtype=np.float64).astype(np.float32)
        largest = float(np.abs(some.astype(np.float64) - origin).max(initial=0.0))
        if not np.isfinite(largest):
            raise BadInput("a feature holds NaN or infinity", remedy="embed again, or check the shards")
        exponent = np.frexp(largest)[1] if largest > 0 else 0
        return cls(origin, np.float32(2.0 ** float(np.clip(-exponent, -120, 120))))

    def place(self, features: NDArray[np.float32]) -> "Placed":
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
        return Placed(torch.from_numpy(values), squares)


@dataclass(frozen=True, slots=True)
class Placed:
    """Rows in a frame, with their squared norms there."""

    values: torch.Tensor  # (n, d) float32
    squares: NDArray[np.float64]  # (n,)


def error_bound(
    probe_squares: NDArray[np.float64],
    gallery_squares: NDArray[np.float64],
    dimension: int,
    *,
    mirrored: bool = False,
) -> NDArray[np.float64]:
    """How far a float32 score can lie from the true one, for each probe against any row of the block: (p,).

    The worst case over all orders of summation: (d + 4) roundings of the product and of |y|²/2, and one of
    each feature when it was moved to the origin
    (Higham, "Accuracy and Stability of Numerical Algorithms", 3.1). `mirrored`: the scores were made from
    those of the gallery's rows against the probes, by exchanging |x|²/2 for |y|²/2: a few roundings more.
    """
    x = np.sqrt(probe_squares)
    y = float(np.sqrt(gallery_squares.max(initial=0.0)))
    halves, more = (np.maximum(x * x, y * y) / 2, 8) if mirrored else (y * y / 2, 0)
    bound = 1.01 * UNIT * ((dimension + 4) * (x * y + halves) + (1 + more) * (x + y) ** 2) + 1e-30
    return np.asarray(bound, dtype=np.float64)


def pair_error_bound(
    probe_squares: NDArray[np.float64], gallery_squares: NDArray[np.float64], dimension: int
) -> NDArray[np.float64]:
    """`error_bound` of single pairs (m,), |y|²/2 having been added to the finished product."""
    x, y = np.sqrt(probe_squares), np.sqrt(gallery_squares)
    bound = 1.01 * UNIT * ((dimension + 4) * x * y + 2 * y * y + 2 * (x + y) ** 2) + 1e-30
    return np.asarray(bound, dtype=np.float64)


def outward(middle: NDArray[np.float64], width: NDArray[np.float64]) -> tuple[torch.Tensor, torch.Tensor]:
    """The intervals `width` to either side, rounded to float32 so that they can only grow."""
    low, high = (middle - width).astype(np.float32), (middle + width).astype(np.float32)
    return (
        torch.from_numpy(np.nextafter(low, np.float32(-np.inf))),
        torch.from_numpy(np.nextafter(high, np.float32(np.inf))),
    )


def exact_squared(
    left: NDArray[np.float32], right: NDArray[np.float32], room: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """|left[i] - right[i]|² of two arrays (m, d), by differences in float64: equal rows, equal values.

    Give at most `PAIRS_AT_ONCE` pairs at a time: the differences then stay in cache. room: a float64 array
    (m, d) to work in, where fresh pages for every few pairs would cost as much as the arithmetic.
    """
    difference = np.empty(left.shape) if room is None else room
    difference[:] = left
    difference -= right
    return np.asarray(np.vecdot(difference, difference))


class Kernel:
    """Scores of blocks by `torch.addmm`, on any device."""

    name = "torch.addmm"

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)

    def probes(self, placed: Placed) -> Any:
        """Load probe rows once; the sign of the product is folded in here."""
        return placed.values.neg().to(self.device)

    def gallery(self, placed: Placed) -> Any:
        """Load one gallery block; it then meets every block of probes."""
        half = torch.from_numpy((placed.squares / 2).astype(np.float32))
        return placed.values.to(self.device).T, half.to(self.device)

    def scores(self, probes: Any, gallery: Any, out: torch.Tensor | None = None) -> torch.Tensor:
        """(p, n) float32 scores on the kernel's device; `out` is used where that saves memory traffic."""
        return torch.addmm(gallery[1], probes, gallery[0], out=out)


class OneDnnKernel(Kernel):
    """The same through oneDNN's linear layer: up to twice as fast on processors where MKL holds back."""

    name = "oneDNN linear"

    def probes(self, placed: Placed) -> Any:
        """Load probe rows in oneDNN's layout."""
        return placed.values.neg().to_mkldnn()

    def gallery(self, placed: Placed) -> Any:
        """Load the block as the weight and |y|²/2 as the bias of a linear layer."""
        rows, dimension = placed.values.shape
        layer = torch.nn.Linear(dimension, rows, device="meta")
        layer.weight = torch.nn.Parameter(placed.values, requires_grad=False)
        half = torch.from_numpy((placed.squares / 2).astype(np.float32))
        layer.bias = torch.nn.Parameter(half, requires_grad=False)
        return mkldnn.to_mkldnn(layer.eval())  # type: ignore[no-untyped-call]

    def scores(self, probes: Any, gallery: Any, out: torch.Tensor | None = None) -> torch.Tensor:
        """(p, n) float32 scores."""
        return torch.as_tensor(gallery(probes).to_dense())


def choose_kernel(device: str = "cpu", *, work: float = 0.0) -> Kernel:
    """The fastest exact float32 product of this machine for `work` multiply-adds, measured once a process."""
    if torch.device(device).type != "cpu" or work < _MEASURE_FROM:
        return Kernel(device)
    return _fastest()


@lru_cache(maxsize=1)
def _fastest() -> Kernel:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return Kernel()
    sample = np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32)
    placed = Frame.around(sample).place(sample)
    room = torch.empty(1024, 1024)

    def scoring(kernel: Kernel) -> Callable[[], object]:
        probes, gallery = kernel.probes(placed), kernel.gallery(placed)
        return lambda: kernel.scores(probes, gallery, room)

    seconds = least_seconds({kernel: scoring(kernel) for kernel in (OneDnnKernel(), Kernel())}, turns=5)
    return min(seconds, key=lambda kernel: seconds[kernel])


def _strided(rows: NDArray[np.float32], most: int) -> NDArray[np.float32]:
    return np.asarray(rows[:: max(1, -(-len(rows) // most))], dtype=np.float32)
