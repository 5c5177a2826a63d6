"""Compiled loops: exact distances of pairs, and the negatives that rank ahead of each positive.

Array operations pass through memory several times. These loops handle a row of scores while it is in cache.

The rule of ties of CMC is here and nowhere else: `ranks_ahead` for one entry, `rank_order` for a sort, and
`TIE_RULE` in words. The kernels need it in this file, because numba's cache of compiled code notices changes
of the file that is compiled, and not of the files that it imports.
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

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]
Int32Array = NDArray[np.int32]

TIE_RULE = "equal distances rank by the order of the shards"

# Up to so many targets of a trial, comparing a score with each of them is faster than a binary search.
_LINEAR_SEARCH_MAX = 32

_compile_lock = threading.Lock()


def njit_cached(*signature: Any) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Compile for arguments of these numba types at the first call; calls release the GIL.

    The types are fixed, so another memory layout of an array is a TypeError and not a new compilation.
    """

    def wrap(function: Callable[_P, _R]) -> Callable[_P, _R]:
        compiled: list[Callable[_P, _R]] = []

        @wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            if not compiled:
                with _compile_lock:
                    if not compiled:
                        compiled.append(_compile(function, signature))
            return compiled[0](*args, **kwargs)

        return call

    return wrap


def njit_inline(*, allow_reordering: bool = False) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Compile as part of the calling kernel. `allow_reordering` lets sums use vector registers."""

    def wrap(function: Callable[_P, _R]) -> Callable[_P, _R]:
        # NaN and infinity keep their meaning.
        fastmath = {"reassoc", "contract", "nsz"} if allow_reordering else False
        dispatcher: Callable[_P, _R] = numba.njit(nogil=True, fastmath=fastmath)(function)
        return dispatcher

    return wrap


def _compile(function: Callable[_P, _R], signature: tuple[Any, ...]) -> Callable[_P, _R]:
    try:
        compiled: Callable[_P, _R] = numba.njit(signature, nogil=True, cache=True)(function)
    except RuntimeError:  # neither the folder of the source nor the user's cache folder is writable
        compiled = numba.njit(signature, nogil=True)(function)
    return compiled


def ranks_ahead(sq_dist: float, row: int, target_sq_dist: float, target_row: int) -> bool:
    """Return whether a gallery entry ranks ahead of a target: by squared distance, equal ones by row."""
    return sq_dist < target_sq_dist or (sq_dist == target_sq_dist and row < target_row)


def rank_order(sq_dist: Float64Array, row: Int64Array, *groups: NDArray[Any]) -> NDArray[np.int64]:
    """Indices (m,) that sort entries by `groups` (the last one first) and then as `ranks_ahead` does."""
    return np.lexsort((row, sq_dist, *groups))


_ranks_ahead = njit_inline()(ranks_ahead)


class Targets(NamedTuple):
    """The trials of a block of probes, and the positives (targets) whose ranks are counted, padded to t.

    Entries of a row from `num_targets` on are unused.
    """

    probe_row: Int64Array  # (v,) row of the trial's probe in its block
    repeat: Int64Array  # (v,)
    num_targets: Int64Array  # (v,)
    sq_dist: Float64Array  # (v, t) exact squared distances, ascending
    target_row: Int64Array  # (v, t) rows in the feature table

    def part(self, trials: slice) -> "Targets":
        """Return a range of the trials."""
        probe_row, repeat, num_targets, sq_dist, target_row = (array[trials] for array in self)
        return Targets(probe_row, repeat, num_targets, sq_dist, target_row)  # type: ignore[arg-type]


class GalleryColumns(NamedTuple):
    """The columns of a block that are in the gallery of each repeat, in the layout of CSR."""

    columns: Int64Array  # (m,) by repeat, ascending
    start: Int64Array  # (repeats + 1,) offset of each repeat


class Bounds(NamedTuple):
    """Error bound of the scores of a tile: a block of probes against a block of gallery images.

    A score is |y|²/2 - x·y of normalized rows. Its error is at most
    abs_error + rel_error * (|x·y| + abs_error).
    """

    sq_norms: Float64Array  # (p,) of the normalized probes
    abs_error: Float64Array  # (p,)
    rel_error: float
    scale: float  # factor from squared distances to those of normalized rows
    min_half_sq_norm: float  # of the gallery block
    max_half_sq_norm: float


def _readonly_array_type(dtype: Any, ndim: int) -> Any:
    return types.Array(dtype, ndim, "C", readonly=True)


_MATRIX = _readonly_array_type(types.float32, 2)
_VECTOR = _readonly_array_type(types.float32, 1)
_VECTOR_64 = _readonly_array_type(types.float64, 1)
_INDEX = _readonly_array_type(types.int64, 1)
_BF16_MATRIX = _readonly_array_type(types.uint16, 2)  # the bits of bfloat16
_TARGETS = types.NamedTuple((*(types.int64[::1],) * 3, types.float64[:, ::1], types.int64[:, ::1]), Targets)
_COLUMNS = types.NamedUniTuple(types.int64[::1], 2, GalleryColumns)
_BOUNDS = types.NamedTuple((types.float64[::1],) * 2 + (types.float64,) * 4, Bounds)
_COUNT_ARGS = (_VECTOR, _COLUMNS, _TARGETS, _BOUNDS, _MATRIX, _MATRIX, _INDEX, types.int64[:, ::1])


@njit_cached(_MATRIX, _MATRIX, _INDEX, _INDEX)
def pair_sq_distances(
    left: Float32Array, right: Float32Array, left_row: Int64Array, right_row: Int64Array
) -> Float64Array:
    """|left[left_row] - right[right_row]|² (m,) of pairs, by differences in float64.

    left, right: C-contiguous (p, d), (n, d). Equal rows give equal values to the last bit. Every exact
    distance is computed here, because a sum in another order could break a tie.
    """
    sq_dist = np.empty(len(left_row))
    for pair in range(len(left_row)):
        sq_dist[pair] = _sq_distance(left[left_row[pair]], right[right_row[pair]])
    return sq_dist


@njit_cached(_MATRIX, _MATRIX)
def sq_distance_matrix(left: Float32Array, right: Float32Array) -> Float64Array:
    """|left - right|² (p, n) of all pairs of rows (p, d) and (n, d), each as `pair_sq_distances` has it."""
    sq_dist = np.empty((len(left), len(right)))
    for i in range(len(left)):
        for j in range(len(right)):
            sq_dist[i, j] = _sq_distance(left[i], right[j])
    return sq_dist


@njit_cached(_TARGETS, _BOUNDS)
def score_intervals(targets: Targets, bounds: Bounds) -> tuple[Float32Array, Float32Array]:
    """Intervals [low, high], two arrays (v, t), that hold the score of each target for certain.

    An entry with a score below `low` ranks ahead of the target, one with a score above `high` does not.
    Both ascend along a row. An unused target has low = inf and high = -inf.
    """
    low, high = np.empty(targets.sq_dist.shape, np.float32), np.empty(targets.sq_dist.shape, np.float32)
    low[:], high[:] = np.inf, -np.inf
    for trial in range(len(low)):
        _score_interval(targets, trial, bounds, low[trial], high[trial])
    return low, high


def _count_ahead(
    product: NDArray[Any],
    half_sq_norms: Float32Array,
    gallery_columns: GalleryColumns,
    targets: Targets,
    bounds: Bounds,
    probes: Float32Array,
    gallery: Float32Array,
    gallery_rows: Int64Array,
    num_ahead: Int64Array,
) -> int:
    """Add to `num_ahead` (v, t) how many gallery entries rank ahead of each target.

    product: (p, n) of probes (p, d) and gallery (n, d). half_sq_norms: (n,) |y|²/2. gallery_rows: (n,) rows
    in the feature table. Returns how many entries were ambiguous by their score: these were decided by their
    exact squared distance.
    """
    max_targets, n = targets.sq_dist.shape[1], len(gallery_rows)
    low_buffer, high_buffer = np.empty(max_targets, np.float32), np.empty(max_targets, np.float32)
    score_buffer, sq_dist = np.empty(n, np.float32), np.empty(n)
    ambiguous_buffer, index_buffer = np.empty(n, np.int32), np.empty(n, np.int32)
    total_ambiguous = 0
    for trial in range(len(num_ahead)):
        probe_row, repeat = targets.probe_row[trial], targets.repeat[trial]
        columns = gallery_columns.columns[gallery_columns.start[repeat] : gallery_columns.start[repeat + 1]]
        n_columns, n_targets = len(columns), targets.num_targets[trial]
        scores, ambiguous = score_buffer[:n_columns], ambiguous_buffer[:n_columns]
        index = index_buffer[:n_columns]
        low, high = low_buffer[:n_targets], high_buffer[:n_targets]
        counts = num_ahead[trial, :n_targets]
        _score_interval(targets, trial, bounds, low_buffer, high_buffer)
        _score(product[probe_row], columns, half_sq_norms, scores)
        if n_targets <= _LINEAR_SEARCH_MAX:
            _count_linear(scores, low, high, counts, ambiguous)
        else:
            _count_binary_search(scores, low, high, counts, ambiguous, index)
        n_ambiguous = _nonzero(ambiguous, index)
        # Compute all distances before comparing: a branch per distance stalls the following loads.
        for i in range(n_ambiguous):
            sq_dist[i] = _sq_distance(probes[probe_row], gallery[columns[index[i]]])
        for i in range(n_ambiguous):
            row = gallery_rows[columns[index[i]]]
            _resolve_one(scores[index[i]], sq_dist[i], row, targets, trial, low, high, counts)
        total_ambiguous += n_ambiguous
    return total_ambiguous


count_ahead = njit_cached(_MATRIX, *_COUNT_ARGS)(_count_ahead)
count_ahead_bf16 = njit_cached(_BF16_MATRIX, *_COUNT_ARGS)(_count_ahead)


@njit_cached(_INDEX, _VECTOR, _VECTOR_64, _INDEX, _TARGETS, _MATRIX, _MATRIX, types.int64[:, ::1])
def resolve_ambiguous(
    trial: Int64Array,
    score: Float32Array,
    sq_dist: Float64Array,
    row: Int64Array,
    targets: Targets,
    low: Float32Array,
    high: Float32Array,
    num_ahead: Int64Array,
) -> None:
    """Add ambiguous pairs (m,) of a trial and a gallery row to `num_ahead` by their exact distances."""
    for pair in range(len(trial)):
        t = trial[pair]
        used = slice(0, targets.num_targets[t])
        _resolve_one(
            score[pair],
            sq_dist[pair],
            row[pair],
            targets,
            t,
            low[t, used],
            high[t, used],
            num_ahead[t, used],
        )


@njit_inline(allow_reordering=True)
def _sq_distance(x: Float32Array, y: Float32Array) -> float:
    total = 0.0
    for i in range(len(x)):
        difference = np.float64(x[i]) - np.float64(y[i])
        total += difference * difference
    return total


@njit_inline()
def _score_interval(
    targets: Targets, trial: int, bounds: Bounds, low: Float32Array, high: Float32Array
) -> None:
    """Write the intervals of one trial, rounded outward to float32 and widened until they ascend."""
    probe_row, n_targets = targets.probe_row[trial], targets.num_targets[trial]
    abs_error = bounds.abs_error[probe_row]
    for t in range(n_targets):
        score = (targets.sq_dist[trial, t] * bounds.scale - bounds.sq_norms[probe_row]) / 2
        product = max(abs(bounds.max_half_sq_norm - score), abs(bounds.min_half_sq_norm - score))
        error = 1.01 * (abs_error + bounds.rel_error * (product + abs_error)) + 2.0**-23 * abs(score) + 1e-37
        low[t] = score - error * (1 + 2.0**-22)
        high[t] = score + error * (1 + 2.0**-22)
    for t in range(1, n_targets):
        high[t] = max(high[t], high[t - 1])
        low[n_targets - 1 - t] = min(low[n_targets - 1 - t], low[n_targets - t])


@njit_inline()
def _score(
    product: NDArray[Any], columns: Int64Array, half_sq_norms: Float32Array, scores: Float32Array
) -> None:
    """Write |y|²/2 - x·y of one probe for the given columns."""
    bits = scores.view(np.uint32)
    is_bf16 = product.itemsize == 2  # bfloat16 is the upper half of a float32
    if len(columns) == len(product):
        for j in range(len(columns)):
            if is_bf16:
                bits[j] = np.uint32(product[j]) << np.uint32(16)
            else:
                scores[j] = product[j]
        for j in range(len(columns)):
            scores[j] = half_sq_norms[j] - scores[j]
    else:
        for j in range(len(columns)):
            if is_bf16:
                bits[j] = np.uint32(product[columns[j]]) << np.uint32(16)
            else:
                scores[j] = product[columns[j]]
        for j in range(len(columns)):
            scores[j] = half_sq_norms[columns[j]] - scores[j]


@njit_inline()
def _count_linear(
    scores: Float32Array, low: Float32Array, high: Float32Array, counts: Int64Array, ambiguous: Int32Array
) -> None:
    """Add the number of scores below each `low`; mark the scores that are in any interval."""
    ambiguous[:] = 0
    for t in range(len(low)):
        num_below = np.int32(0)
        for j in range(len(scores)):
            below = np.int32(scores[j] < low[t])
            num_below += below
            ambiguous[j] += np.int32(scores[j] <= high[t]) - below
        counts[t] += num_below


@njit_inline()
def _count_binary_search(
    scores: Float32Array,
    low: Float32Array,
    high: Float32Array,
    counts: Int64Array,
    ambiguous: Int32Array,
    num_reached: Int32Array,
) -> None:
    """Do the same by the number of `low` that each score reaches: one binary search for all scores."""
    size = 1
    while size <= len(low):
        size *= 2
    low_padded, high_padded = np.full(size, np.inf, np.float32), np.full(size, -np.inf, np.float32)
    low_padded[: len(low)], high_padded[: len(low)] = low, high
    num_reached[:] = 0
    step = size // 2
    while step:
        for j in range(len(scores)):
            is_reached = low_padded[num_reached[j] + step - 1] <= scores[j]
            num_reached[j] += step * np.int32(is_reached)
        step //= 2
    histogram = np.zeros(size, np.int64)
    for j in range(len(scores)):
        histogram[num_reached[j]] += 1
        last = max(num_reached[j], 1) - 1
        ambiguous[j] = (num_reached[j] > 0) & (scores[j] <= high_padded[last])
    num_below = 0
    for t in range(len(low)):
        num_below += histogram[t]
        counts[t] += num_below


@njit_inline()
def _nonzero(ambiguous: Int32Array, index: Int32Array) -> int:
    """Write the indices of nonzero marks and return their number; branch-free, as marks are at random."""
    count = 0
    for j in range(len(ambiguous)):
        index[count] = j
        count += ambiguous[j] > 0
    return count


@njit_inline()
def _resolve_one(
    score: float,
    sq_dist: float,
    row: int,
    targets: Targets,
    trial: int,
    low: Float32Array,
    high: Float32Array,
    counts: Int64Array,
) -> None:
    """Count one entry ahead of the targets whose interval holds its score, by its exact distance."""
    for t in range(len(counts)):
        if low[t] <= score <= high[t]:
            counts[t] += _ranks_ahead(sq_dist, row, targets.sq_dist[trial, t], targets.target_row[trial, t])
