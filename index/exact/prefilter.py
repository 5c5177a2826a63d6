"""Coarse scores of blocks: one fast product that says, with a proven bound, which rows cannot be near.

Features are moved by one origin. For a probe x and a row y the score is

    s(x, y) = |y|²/2 - x·y        so that        |x - y|² = |x|² + 2 s(x, y)

A screen gives for a whole block `low(x, y)`, which lies below the score, and for each probe a limit: a row
whose `low` is over the limit is farther than a given distance, for certain. Whoever passes is measured.

`Float32Screen` rounds only as a float32 product does. `Int8Screen` rounds the features themselves, to t times
an integer of 8 bits, because processors multiply these three to four times as fast. With x = t a + dx and
y = t b + dy the product is x·y = t² a·b + dx·y + (t a)·dy, where a·b is exact in integers, and Cauchy and
Schwarz bound the rest by the lengths of what was rounded off: |dx| |y| + |t a| |dy|. These are measured, not
assumed, so no scale and no data can make the bound wrong, only wide.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from index.exact.products import Normalization, min_cpu_seconds
from infra.errors import BadInput

Floats = NDArray[np.float32]
Wide = NDArray[np.float64]

_UNIT = 2.0**-24  # unit roundoff of float32
_CHUNK_ROWS = 256  # rows prepared at a time: 1 MiB at 1024-D stays in the second-level cache
_INT8_MAX = 127
PAD_ROWS = 16  # blocks are filled up to a multiple of this with rows that are nowhere near
_FEW = 32  # probes, below which preparing a row for the integer product costs more than the product saves
_NARROW = (
    64  # dimensions, below which nothing is gained; torch 2.13 multiplies wrongly where there is but one
)


class LowerBoundFilter(Protocol):
    """Loads one block at a time; then every part of the probes is held against it."""

    def load(self, vectors: Floats) -> None:
        """Prepare a block of at most `rows` rows. Raises BadInput for values that are not finite."""
        ...

    def low(self, part: slice) -> torch.Tensor:
        """(p, n) float32, in units of the screen, of the rows loaded, n filled up to a multiple of GROUP.

        What stands for no row is infinite. The tensor is used again by the next call.
        """
        ...

    def limits(self, part: slice, squared: Wide) -> Floats:
        """The limit (p,) of each probe, finite, in units of the screen, for squared distances (p,)."""
        ...


def screen_for(queries: Floats, first: Floats, *, rows: int, device: str = "cpu") -> LowerBoundFilter:
    """The fastest screen for these probes (q, d); `first` is the first block, `rows` the most of any."""
    wide = len(queries) >= _FEW and queries.shape[1] >= _NARROW
    if device == "cpu" and wide and _integers_are_faster():
        return Int8Screen(queries, first, rows)
    return Float32Screen(queries, first, rows, device)


@dataclass(frozen=True, slots=True)
class _Moved:
    """Origin and scale of all features, and the probes there. The scale is 1 for features of usual size."""

    origin: Floats  # (d,)
    scale: np.float32
    probes: Floats  # (q, d)
    squares: Wide  # (q,) of the probes
    slack: float  # relative rounding of a float32 product, of sums of squares and of the move

    @classmethod
    def around(cls, queries: Floats, first: Floats) -> "_Moved":
        frame = Normalization.around(queries, first)
        usual = 2.0**-30 < float(frame.scale) < 2.0**30
        scale = np.float32(1) if usual else frame.scale
        probes = (queries - frame.origin) * scale
        squares = np.einsum("ij,ij->i", probes, probes, dtype=np.float64)
        # The worst case over all orders of summation (Higham, "Accuracy and Stability of Numerical
        # Algorithms", 3.1): d roundings of the product, d of |y|²/2, two of each moved feature.
        return cls(frame.origin, scale, probes, squares, 1.01 * _UNIT * (queries.shape[1] + 32))

    def move(self, vectors: Floats, out: Floats) -> None:
        np.subtract(vectors, self.origin, out=out)
        if self.scale != 1:
            out *= self.scale

    def limits(self, part: slice, squared: Wide) -> Wide:
        away = squared * float(self.scale) ** 2
        own = self.squares[part]
        return np.asarray((away - own) / 2 + self.slack * (own + away) + 1e-30)


def _checked(squares: torch.Tensor) -> None:
    # NaN fails the comparison too, and up to 2^80 no float32 score can overflow.
    bad = int((~(squares < 2.0**80)).sum())
    if bad:
        raise BadInput(
            f"{bad} of {len(squares)} features hold NaN, infinity or values out of all proportion",
            remedy="embed again, or check the shards",
        )


def _round_outward(values: Wide) -> Floats:
    return np.minimum(np.nextafter(values.astype(np.float32), np.float32(np.inf)), np.finfo(np.float32).max)


def _round_up(count: int) -> int:
    return -(-count // PAD_ROWS) * PAD_ROWS


class Float32Screen:
    """Scores by `torch.addmm`, on any device."""

    def __init__(self, queries: Floats, first: Floats, rows: int, device: str) -> None:
        self._moved = _Moved.around(queries, first)
        self._probes = torch.from_numpy(-self._moved.probes).to(device)
        self._host = np.zeros((_round_up(rows), queries.shape[1]), np.float32)
        self._rows = torch.from_numpy(self._host)
        self._halves = torch.empty(_round_up(rows))
        self._device = torch.device(device)
        self._loaded = (self._rows, self._halves)

    def load(self, vectors: Floats) -> None:
        """See LowerBoundFilter."""
        for start in range(0, len(vectors), _CHUNK_ROWS):
            piece = slice(start, min(start + _CHUNK_ROWS, len(vectors)))
            self._moved.move(vectors[piece], self._host[piece])
            squares = torch.linalg.vector_norm(self._rows[piece], dim=1).square_()
            _checked(squares)
            self._halves[piece] = squares * (0.5 - self._moved.slack)
        full = _round_up(len(vectors))
        self._halves[len(vectors) : full] = torch.inf
        self._loaded = (self._rows[:full].to(self._device), self._halves[:full].to(self._device))

    def low(self, part: slice) -> torch.Tensor:
        """See LowerBoundFilter."""
        rows, halves = self._loaded
        return torch.addmm(halves, self._probes[part], rows.T)

    def limits(self, part: slice, squared: Wide) -> Floats:
        """See LowerBoundFilter."""
        return _round_outward(self._moved.limits(part, squared))


class Int8Screen:
    """Scores from integers of 8 bits; units are t², so that the integer product stands in them as it is."""

    def __init__(self, queries: Floats, first: Floats, rows: int) -> None:
        self._moved = moved = _Moved.around(queries, first)
        dimension = queries.shape[1]
        self._room = np.zeros((2, _CHUNK_ROWS, dimension), np.float32)
        sample = moved.probes[:: max(1, len(queries) // 256)]
        some = np.empty((min(len(first), 256), dimension), np.float32)
        moved.move(first[:: max(1, len(first) // 256)][: len(some)], some)
        self._step = _best_scale(np.concatenate([sample, some]))
        whole = np.clip(np.rint(moved.probes / self._step), -_INT8_MAX, _INT8_MAX)
        # In float64, where these roundings vanish beside the slack.
        off = moved.probes - whole * np.float64(self._step)
        self._rest = np.sqrt(np.einsum("ij,ij->i", off, off))
        self._usual_rest = float(np.quantile(self._rest, 0.9))
        self._lengths = np.sqrt(np.einsum("ij,ij->i", whole, whole, dtype=np.float64)) * float(self._step)
        self._probes = torch.from_numpy(whole.astype(np.int8))
        self._rows = torch.zeros((_round_up(rows), dimension), dtype=torch.int8)
        self._halves = torch.empty(_round_up(rows))
        self._row_lengths = torch.empty(rows)
        self._row_rest = torch.empty(rows)
        self._count, self._spread, self._longest = 0, 0.0, 0.0
        self._product, self._low = torch.empty(0, dtype=torch.int32), torch.empty(0)

    def load(self, vectors: Floats) -> None:
        """See LowerBoundFilter."""
        slack, step, count = self._moved.slack, float(self._step), len(vectors)
        for start in range(0, count, _CHUNK_ROWS):
            piece = slice(start, min(start + _CHUNK_ROWS, count))
            moved, whole = (torch.from_numpy(room[: piece.stop - start]) for room in self._room)
            self._moved.move(vectors[piece], self._room[0][: piece.stop - start])
            torch.linalg.vector_norm(moved, dim=1, out=self._row_lengths[piece])
            moved *= 1 / step
            torch.round(moved, out=whole).clamp_(-_INT8_MAX, _INT8_MAX)
            self._rows[piece] = whole
            moved -= whole
            torch.linalg.vector_norm(moved, dim=1, out=self._row_rest[piece])
        lengths = self._row_lengths[:count].double()
        _checked(lengths.square())
        rest = self._row_rest[:count].double() * step * (1 + slack) + 4 * _UNIT * lengths
        # One number a row and one a probe: what the bound says of a pair, with the usual and the largest
        # of either standing for the pair's own, so that the block needs a single subtraction.
        self._longest = float(lengths.max()) * (1 + slack)
        self._spread = float(torch.quantile(rest, 0.9))
        longest_probe = float(self._lengths.max())
        low = (
            lengths.square() * (0.5 - slack)
            - self._usual_rest * lengths * (1 + slack)
            - longest_probe * (rest - self._spread).clamp_(min=0)
        )
        self._halves[:count] = (low / step**2 * (1 - 4 * _UNIT * low.sign())).float()
        self._count = _round_up(count)
        self._halves[count : self._count] = torch.inf

    def low(self, part: slice) -> torch.Tensor:
        """See LowerBoundFilter."""
        probes = self._probes[part]
        shape, size = (len(probes), self._count), len(probes) * self._count
        if len(self._product) < size:
            # Fresh pages for every block would cost as much as half the product.
            self._product, self._low = torch.empty(size, dtype=torch.int32), torch.empty(size)
        product, low = self._product[:size].view(shape), self._low[:size].view(shape)
        torch._int_mm(probes, self._rows[: self._count].T, out=product)
        return torch.sub(self._halves[: self._count], product, out=low)

    def limits(self, part: slice, squared: Wide) -> Floats:
        """See LowerBoundFilter."""
        more = np.maximum(self._rest[part] - self._usual_rest, 0) * self._longest
        limits = self._moved.limits(part, squared) + self._lengths[part] * self._spread + more
        # The subtraction of `low` rounds once more, by a part of whichever of the two is the larger.
        return _round_outward((limits + self._moved.slack * np.abs(limits)) / float(self._step) ** 2)


def _best_scale(sample: Floats) -> np.float32:
    """The step that rounds off least of a sample (n, d): rare large values are better clipped."""
    largest = float(np.abs(sample).max(initial=0.0))
    if not largest:
        return np.float32(1)
    steps = [largest / _INT8_MAX * share for share in (1.0, 0.7, 0.5, 0.35, 0.25, 0.18)]

    def lost(step: float) -> float:
        off = sample - np.clip(np.rint(sample / step), -_INT8_MAX, _INT8_MAX) * step
        return float(np.sqrt(np.einsum("ij,ij->i", off, off, dtype=np.float64)).mean())

    return np.float32(min(steps, key=lost))


@lru_cache(maxsize=1)
def _integers_are_faster() -> bool:
    """Whether this processor multiplies integers of 8 bits much faster than float32, measured once."""
    whole = torch.randint(-_INT8_MAX, _INT8_MAX, (256, 1024), dtype=torch.int8)
    wide = whole.float()
    seconds = min_cpu_seconds(
        {"int8": lambda: torch._int_mm(whole, whole.T), "float32": lambda: torch.mm(wide, wide.T)}, turns=3
    )
    return seconds["int8"] < 0.6 * seconds["float32"]
