"""Loops over rows of scores and over single pairs, for the processor.

What whole-array operations do in several passes through memory, these do while a row is in the nearest cache.
"""

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

_P = ParamSpec("_P")
_R = TypeVar("_R")

_one_at_a_time = threading.Lock()


def njit_cached(*given: Any) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Compile for arguments of the numba types `given`; calls do not hold Python's lock.

    The types are said beforehand so that nothing is compiled anew because of an array's layout: TypeError.
    """

    def wrap(function: Callable[_P, _R]) -> Callable[_P, _R]:
        made: list[Callable[_P, _R]] = []

        @wraps(function)
        def call(*args: _P.args, **named: _P.kwargs) -> _R:
            if not made:
                with _one_at_a_time:
                    if not made:
                        made.append(_compile(function, given))
            return made[0](*args, **named)

        return call

    return wrap


def njit_inline(*, any_order: bool = False) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Compile together with whoever calls it. any_order: sums are taken as vector registers like them."""

    def wrap(function: Callable[_P, _R]) -> Callable[_P, _R]:
        how = {"reassoc", "contract", "nsz"} if any_order else False  # NaN and infinity keep their meaning
        within: Callable[_P, _R] = numba.njit(nogil=True, fastmath=how)(function)
        return within

    return wrap


def _compile(function: Callable[_P, _R], given: tuple[Any, ...]) -> Callable[_P, _R]:
    try:
        kept: Callable[_P, _R] = numba.njit(given, nogil=True, cache=True)(function)
    except RuntimeError:  # nowhere to keep it: neither beside the source nor in the user's cache
        kept = numba.njit(given, nogil=True)(function)
    return kept


Floats = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Int32Array = NDArray[np.int32]

_LINEAR_SEARCH_MAX = (
    32  # limits of a row, up to which comparing with each costs less than searching among them
)


class Targets(NamedTuple):
    """Trials, and the true matches whose places are counted. What is behind `matches` in a row is unused."""

    at: Ints  # (v,) place of each trial's probe in its block
    repeat: Ints  # (v,)
    matches: Ints  # (v,) how many true matches
    limit: Float64Array  # (v, t) their exact squared distances, ascending
    match: Ints  # (v, t) their rows in the pool

    def part(self, some: slice) -> "Targets":
        """Some of the trials."""
        at, repeat, matches, limit, match = (each[some] for each in self)
        return Targets(at, repeat, matches, limit, match)  # type: ignore[arg-type]


class GalleryColumns(NamedTuple):
    """Which columns of a block are in the gallery of each repeat."""

    columns: Ints  # (m,) by repeat, ascending
    start: Ints  # (repeats + 1,) where those of each repeat begin


class Bounds(NamedTuple):
    """What says how far a score can lie from the true one, for the probes of a block against a gallery block.

    A score is |y|²/2 - x·y in the frame, and so far off at most: inner + relative * (|x·y| + inner).
    """

    squares: Float64Array  # (p,) of the probes, in the frame
    inner: Float64Array  # (p,)
    relative: float
    scale: float  # of squared distances in the frame
    least: float  # of the gallery's |y|²/2
    most: float


def _readonly_array_type(kind: Any, dimensions: int) -> Any:
    return types.Array(kind, dimensions, "C", readonly=True)


_ROWS, _FLOATS, _INTS = (
    _readonly_array_type(types.float32, 2),
    _readonly_array_type(types.float32, 1),
    _readonly_array_type(types.int64, 1),
)
_SOUGHT = types.NamedTuple((*(types.int64[::1],) * 3, types.float64[:, ::1], types.int64[:, ::1]), Targets)
_ENTRIES = types.NamedUniTuple(types.int64[::1], 2, GalleryColumns)
_BOUNDS = types.NamedTuple((types.float64[::1],) * 2 + (types.float64,) * 4, Bounds)
_COUNTED = (_FLOATS, _ENTRIES, _SOUGHT, _BOUNDS, _ROWS, _ROWS, _INTS, types.int64[:, ::1])


@njit_cached(_ROWS, _ROWS, _INTS, _INTS)
def pair_sq_distances(left: Floats, right: Floats, row: Ints, column: Ints) -> Float64Array:
    """|left[row] - right[column]|² (m,) of pairs, by differences in float64: equal rows, equal values.

    left, right: C-contiguous (p, d), (n, d). All exact distances come from here: a sum taken in another order
    could break a tie.
    """
    squared = np.empty(len(row))
    for pair in range(len(row)):
        squared[pair] = _squared(left[row[pair]], right[column[pair]])
    return squared


@njit_cached(_SOUGHT, _BOUNDS)
def score_intervals(sought: Targets, bounds: Bounds) -> tuple[Floats, Floats]:
    """Scores between which each limit lies for certain, (v, t) ascending; infinity where there is no match.

    A score under the first is before the match, one over the second is not; where there is no match, the
    first is infinite and the second its negative.
    """
    low, high = np.empty(sought.limit.shape, np.float32), np.empty(sought.limit.shape, np.float32)
    low[:], high[:] = np.inf, -np.inf
    for trial in range(len(low)):
        _score_interval(sought, trial, bounds, low[trial], high[trial])
    return low, high


def _count_closer(
    product: NDArray[Any],
    halves: Floats,
    entries: GalleryColumns,
    sought: Targets,
    bounds: Bounds,
    probes: Floats,
    gallery: Floats,
    rows: Ints,
    closer: Ints,
) -> int:
    """Add to `closer` (v, t) how many entries precede each match of each trial; returns how many were near.

    product: (p, n) of probes (p, d) and gallery (n, d), whose rows in the pool are `rows` (n,), with `halves`
    (n,) of their squared lengths. Near ones are decided by their exact squared distance, equal ones by row.
    """
    most, size = sought.limit.shape[1], len(rows)
    low, high = np.empty(most, np.float32), np.empty(most, np.float32)
    all_scores, squared = np.empty(size, np.float32), np.empty(size)
    all_marks, all_places = np.empty(size, np.int32), np.empty(size, np.int32)
    all_near = 0
    for trial in range(len(closer)):
        probe, repeat = sought.at[trial], sought.repeat[trial]
        columns = entries.columns[entries.start[repeat] : entries.start[repeat + 1]]
        here, some = slice(0, len(columns)), slice(0, sought.matches[trial])
        scores, near, places = all_scores[here], all_marks[here], all_places[here]
        lows, highs, counts = low[some], high[some], closer[trial, some]
        _score_interval(sought, trial, bounds, low, high)
        _score(product[probe], columns, halves, scores)
        if len(counts) <= _LINEAR_SEARCH_MAX:
            _count_linear(scores, lows, highs, counts, near)
        else:
            _count_binary_search(scores, lows, highs, counts, near, places)
        found = _nonzero(near, places)
        # Measured first, judged afterwards: a branch on each sum in turn would hold up the next one's loads.
        for nth in range(found):
            squared[nth] = _squared(probes[probe], gallery[columns[places[nth]]])
        for nth in range(found):
            row = rows[columns[places[nth]]]
            _resolve_one(scores[places[nth]], squared[nth], row, sought, trial, lows, highs, counts)
        all_near += found
    return all_near


count_closer = njit_cached(_ROWS, *_COUNTED)(_count_closer)
count_closer_rounded = njit_cached(_readonly_array_type(types.uint16, 2), *_COUNTED)(
    _count_closer
)  # bits of bfloat16


@njit_cached(
    _INTS, _FLOATS, _readonly_array_type(types.float64, 1), _INTS, _SOUGHT, _ROWS, _ROWS, types.int64[:, ::1]
)
def resolve_ambiguous(
    trial: Ints,
    score: Floats,
    squared: Float64Array,
    row: Ints,
    sought: Targets,
    low: Floats,
    high: Floats,
    closer: Ints,
) -> None:
    """Add near pairs (m,) of a trial and a row of the pool to `closer`, by their exact squared distances."""
    for pair in range(len(trial)):
        at, some = trial[pair], slice(0, sought.matches[trial[pair]])
        _resolve_one(
            score[pair],
            squared[pair],
            row[pair],
            sought,
            at,
            low[at, some],
            high[at, some],
            closer[at, some],
        )


@njit_inline(any_order=True)
def _squared(x: Floats, y: Floats) -> float:
    total = 0.0
    for place in range(len(x)):
        difference = np.float64(x[place]) - np.float64(y[place])
        total += difference * difference
    return total


@njit_inline()
def _score_interval(sought: Targets, trial: int, bounds: Bounds, low: Floats, high: Floats) -> None:
    """The bounds of one trial, rounded to float32 outward, and grown so far that they ascend."""
    probe, matches = sought.at[trial], sought.matches[trial]
    inner = bounds.inner[probe]
    for nth in range(matches):
        middle = (sought.limit[trial, nth] * bounds.scale - bounds.squares[probe]) / 2
        product = max(abs(bounds.most - middle), abs(bounds.least - middle))
        width = 1.01 * (inner + bounds.relative * (product + inner)) + 2.0**-23 * abs(middle) + 1e-37
        low[nth] = middle - width * (1 + 2.0**-22)
        high[nth] = middle + width * (1 + 2.0**-22)
    for nth in range(1, matches):
        high[nth] = max(high[nth], high[nth - 1])
        low[matches - 1 - nth] = min(low[matches - 1 - nth], low[matches - nth])


@njit_inline()
def _score(product: NDArray[Any], columns: Ints, halves: Floats, scores: Floats) -> None:
    """|y|²/2 - x·y of one probe, for the columns that count."""
    bits = scores.view(np.uint32)
    rounded = product.itemsize == 2  # bfloat16 is the upper half of a float32
    if len(columns) == len(product):
        for place in range(len(columns)):
            if rounded:
                bits[place] = np.uint32(product[place]) << np.uint32(16)
            else:
                scores[place] = product[place]
        for place in range(len(columns)):
            scores[place] = halves[place] - scores[place]
    else:
        for place in range(len(columns)):
            if rounded:
                bits[place] = np.uint32(product[columns[place]]) << np.uint32(16)
            else:
                scores[place] = product[columns[place]]
        for place in range(len(columns)):
            scores[place] = halves[columns[place]] - scores[place]


@njit_inline()
def _count_linear(scores: Floats, low: Floats, high: Floats, counts: Ints, near: Int32Array) -> None:
    """How many scores lie under each `low`, and whether each lies between it and `high`."""
    near[:] = 0
    for nth in range(len(low)):
        below = np.int32(0)
        for place in range(len(scores)):
            under = np.int32(scores[place] < low[nth])
            below += under
            near[place] += np.int32(scores[place] <= high[nth]) - under
        counts[nth] += below


@njit_inline()
def _count_binary_search(
    scores: Floats, low: Floats, high: Floats, counts: Ints, near: Int32Array, places: Int32Array
) -> None:
    """The same, by how many `low` are not above each score: a binary search of all scores at once."""
    size = 1
    while size <= len(low):
        size *= 2
    lows, highs = np.full(size, np.inf, np.float32), np.full(size, -np.inf, np.float32)
    lows[: len(low)], highs[: len(low)] = low, high
    places[:] = 0
    step = size // 2
    while step:
        for place in range(len(scores)):
            further = lows[places[place] + step - 1] <= scores[place]
            places[place] += step * np.int32(further)
        step //= 2
    histogram = np.zeros(size, np.int64)
    for place in range(len(scores)):
        histogram[places[place]] += 1
        before = max(places[place], 1) - 1
        near[place] = (places[place] > 0) & (scores[place] <= highs[before])
    below = 0
    for nth in range(len(low)):
        below += histogram[nth]
        counts[nth] += below


@njit_inline()
def _nonzero(near: Int32Array, places: Int32Array) -> int:
    """Where `near` is not zero; without a branch, for these come at random."""
    found = 0
    for place in range(len(near)):
        places[found] = place
        found += near[place] > 0
    return found


@njit_inline()
def _resolve_one(
    score: float,
    squared: float,
    row: int,
    sought: Targets,
    trial: int,
    low: Floats,
    high: Floats,
    counts: Ints,
) -> None:
    """Count one entry before the matches for which its score leaves that open; equal ones stand by row."""
    for nth in range(len(counts)):
        if low[nth] <= score <= high[nth]:
            limit = sought.limit[trial, nth]
            counts[nth] += squared < limit or (squared == limit and row < sought.match[trial, nth])
