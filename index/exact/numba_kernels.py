"""Compiled loops: exact distances, the nearest rows of a product, and the negatives ahead of each positive.

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

TIE_RULE = "equal distances rank by the order of the shards"
BF16_UNIT_ROUNDOFF = 2.0**-8
MAX_FLOAT32 = np.finfo(np.float32).max

_LINEAR_SEARCH_MAX = 32  # targets; up to so many, comparing a score with each is faster than a binary search
# Sums may use vector registers; NaN and infinity keep their meaning.
_REORDER = {"reassoc", "contract", "nsz"}

_compile_lock = threading.Lock()


def njit_cached(
    *signature: Any, fastmath: set[str] | bool = False
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Compile for arguments of these numba types at the first call; calls release the GIL.

    The types are fixed, so another memory layout of an array is a TypeError and not a new compilation.
    """

    def wrap(function: Callable[_P, _R]) -> Callable[_P, _R]:
        compiled: list[Callable[_P, _R]] = []

        @wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with _compile_lock:
                if not compiled:
                    compiled.append(_compile(function, signature, fastmath))
            return compiled[0](*args, **kwargs)

        return call

    return wrap


def njit_inline(fastmath: set[str] | bool = False) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Compile as part of the calling kernel."""
    wrap: Callable[[Callable[_P, _R]], Callable[_P, _R]] = numba.njit(nogil=True, fastmath=fastmath)
    return wrap


def _for_either_type(function: Callable[..., _R], *signature: Any) -> Callable[..., _R]:
    """Compile for a product (p, n) in float32 and for the bits of one in bfloat16, each at its first call."""
    float32 = njit_cached(_MATRIX, *signature)(function)
    bf16 = njit_cached(_BF16_MATRIX, *signature)(function)

    @wraps(function)
    def call(product: NDArray[Any], *args: Any) -> _R:
        return (bf16 if product.itemsize == 2 else float32)(product, *args)

    return call


def _compile(function: Callable[_P, _R], signature: tuple[Any, ...], fastmath: Any) -> Callable[_P, _R]:
    options = {"nogil": True, "fastmath": fastmath}
    try:
        compiled: Callable[_P, _R] = numba.njit(signature, cache=True, **options)(function)
    except RuntimeError:  # neither the folder of the source nor the user's cache folder is writable
        compiled = numba.njit(signature, **options)(function)
    return compiled


def ranks_ahead(sq_dist: float, row: int, target_sq_dist: float, target_row: int) -> bool:
    """Return whether a gallery entry ranks ahead of a target: by squared distance, equal ones by row."""
    return sq_dist < target_sq_dist or (sq_dist == target_sq_dist and row < target_row)


def rank_order(sq_dist: Float64Array, row: Int64Array, *groups: NDArray[Any]) -> NDArray[np.int64]:
    """Indices (m,) that sort entries by `groups` (the last one first) and then as `ranks_ahead` does."""
    return np.lexsort((row, sq_dist, *groups))


_ranks_ahead = njit_inline()(ranks_ahead)


class Targets(NamedTuple):
    """Trials (v,), each a probe in one repeat, and the positives (m,) whose ranks are counted, by trial."""

    probe: Int64Array  # (v,) row of the product
    repeat: Int64Array  # (v,)
    start: Int64Array  # (v + 1,) first target of each trial
    low: Float32Array  # (m,) a score that is less than `low` is nearer for certain; ascends in a trial
    high: Float32Array  # (m,) a score that is more than `high` is farther for certain; ascends in a trial
    sq_dist: Float64Array  # (m,) exact squared distance
    row: Int64Array  # (m,) row in the feature table


def _readonly(dtype: Any, ndim: int) -> Any:
    return types.Array(dtype, ndim, "C", readonly=True)


_MATRIX, _VECTOR = _readonly(types.float32, 2), _readonly(types.float32, 1)
_VECTOR_64, _INDEX = _readonly(types.float64, 1), _readonly(types.int64, 1)
_BF16_MATRIX = _readonly(types.uint16, 2)  # the bits of bfloat16
_TARGETS = types.NamedTuple(
    (*(types.int64[::1],) * 3, *(types.float32[::1],) * 2, types.float64[::1], types.int64[::1]), Targets
)


@njit_inline(_REORDER)
def _sq_distance(x: Float32Array, y: Float32Array) -> float:
    total = 0.0
    for i in range(len(x)):
        difference = np.float64(x[i]) - np.float64(y[i])
        total += difference * difference
    return total


@njit_cached(_MATRIX, _MATRIX, _INDEX, _INDEX)
def pair_sq_distances(
    left: Float32Array, right: Float32Array, left_row: Int64Array, right_row: Int64Array
) -> Float64Array:
    """|left[left_row] - right[right_row]|² (m,) of pairs, by differences in float64.

    left, right: C-contiguous (p, d), (n, d). Equal rows give equal values to the last bit. Every exact
    distance is computed by the same loop, because a sum in another order could break a tie.
    """
    sq_dist = np.empty(len(left_row))
    for pair in range(len(left_row)):
        sq_dist[pair] = _sq_distance(left[left_row[pair]], right[right_row[pair]])
    return sq_dist


def sq_distance_matrix(left: Float32Array, right: Float32Array) -> Float64Array:
    """|left - right|² (p, n) of all pairs of rows (p, d) and (n, d), each as `pair_sq_distances` has it."""
    rows = np.indices((len(left), len(right))).reshape(2, -1)
    return pair_sq_distances(left, right, *rows).reshape(len(left), len(right))


@njit_cached(_MATRIX, _MATRIX, types.float32[:, ::1], fastmath=_REORDER)
def write_negated_sq_distances(probes: Float32Array, rows: Float32Array, out: Float32Array) -> None:
    """Write -|x - y|² (p, n) of probes (p, d) and rows (n, d) by float32 differences, at least -MAX_FLOAT32.

    Four rows at a time keep more loads from memory in flight than one.
    """
    for last in range(4, len(rows) + 4, 4):
        j = max(min(last, len(rows)) - 4, 0)
        b, c, e = min(j + 1, len(rows) - 1), min(j + 2, len(rows) - 1), min(j + 3, len(rows) - 1)
        for p in range(len(probes)):
            sum_0 = sum_1 = sum_2 = sum_3 = np.float32(0)
            for i in range(probes.shape[1]):
                x = probes[p, i]
                d_0, d_1, d_2, d_3 = rows[j, i] - x, rows[b, i] - x, rows[c, i] - x, rows[e, i] - x
                sum_0 += d_0 * d_0
                sum_1 += d_1 * d_1
                sum_2 += d_2 * d_2
                sum_3 += d_3 * d_3
            out[p, j], out[p, b] = max(-sum_0, -MAX_FLOAT32), max(-sum_1, -MAX_FLOAT32)
            out[p, c], out[p, e] = max(-sum_2, -MAX_FLOAT32), max(-sum_3, -MAX_FLOAT32)


@njit_inline()
def _bounds(
    product: NDArray[Any], p: int, j: int, bias: Float32Array, slack: Float32Array
) -> tuple[float, float]:
    """Bounds of a score by a product in float32, or by the bits of bfloat16, the upper half of a float32."""
    if product.itemsize == 2:
        value = np.uint32(np.uint32(product[p, j]) << np.uint32(16)).view(np.float32)
        rounding = np.float32(1.01 * BF16_UNIT_ROUNDOFF) * abs(value)
        return bias[j] - (value + rounding), bias[j] - (value - rounding) + slack[j]
    return bias[j] - np.float32(product[p, j]), bias[j] - np.float32(product[p, j]) + slack[j]


@njit_inline()
def _replace_farthest(sq_dists: Float64Array, ids: Int64Array, sq_dist: float, new_id: int) -> None:
    """Put a nearer row in the place of the farthest one, which is at the top of the heap (k,)."""
    place, size = 0, len(ids)
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        other = child + 1
        if other < size and _ranks_ahead(sq_dists[child], ids[child], sq_dists[other], ids[other]):
            child = other
        if _ranks_ahead(sq_dists[child], ids[child], sq_dist, new_id):
            break
        sq_dists[place], ids[place] = sq_dists[child], ids[child]
        place = child
    sq_dists[place], ids[place] = sq_dist, new_id


def _group_minima(product: NDArray[Any], bias: Float32Array, num_groups: int) -> Float32Array:
    """Return the least lower bound, bias (n,) - product (p, n), of each group of rows: (p, num_groups).

    A group has every so many-th row: adjacent rows of an archive often show one vehicle.
    """
    n = len(bias)
    lower, minima = np.empty(n, np.float32), np.empty((len(product), num_groups), np.float32)
    for p in range(len(product)):
        for j in range(n):
            lower[j] = _bounds(product, p, j, bias, bias)[0]
        for group in range(num_groups):
            minima[p, group] = lower[group]
        for start in range(num_groups, n, num_groups):
            for group in range(min(num_groups, n - start)):
                minima[p, group] = min(minima[p, group], lower[start + group])
    return minima


def _keep_nearest(
    product: NDArray[Any],
    bias: Float32Array,
    minima: Float32Array,
    floor: Float32Array,
    limit: Float32Array,
    probes: Float32Array,
    rows: Float32Array,
    ids: Int64Array,
    sq_dist: Float64Array,
    nearest_ids: Int64Array,
) -> None:
    """Measure the rows whose lower bounds are in (floor, limit], both (p,), and keep the k nearest.

    minima: of `_group_minima`. probes: (p, d). rows, ids: (n, d), (n,). The k nearest of each probe are heaps
    (p, k) with the farthest first. Rows are measured in their order, because each may be near to many probes.
    """
    n, num_groups = len(rows), minima.shape[1]
    # Pages that no candidate reaches take no memory.
    found_probe, found_row = np.empty(len(probes) * n + 1, np.int32), np.empty(len(probes) * n + 1, np.int32)
    start, num_found = np.zeros(n + 2, np.int64), 0
    open_groups = np.empty(num_groups, np.int32)
    for p in range(len(probes)):
        num_open = 0
        for group in range(num_groups):  # branch-free, as open groups are at random
            open_groups[num_open] = group
            num_open += minima[p, group] <= limit[p]
        for i in range(num_open):
            for j in range(open_groups[i], n, num_groups):
                lower = _bounds(product, p, j, bias, bias)[0]
                found_probe[num_found], found_row[num_found] = p, j
                num_found += (lower > floor[p]) & (lower <= limit[p])
    for i in range(num_found):
        start[found_row[i] + 2] += 1
    for j in range(n):
        start[j + 2] += start[j + 1]
    probe = np.empty(num_found, np.int32)
    for i in range(num_found):
        place = found_row[i] + 1
        probe[start[place]] = found_probe[i]
        start[place] += 1
    for j in range(n):
        for i in range(start[j], start[j + 1]):
            p = probe[i]
            distance = _sq_distance(probes[p], rows[j])
            if _ranks_ahead(distance, ids[j], sq_dist[p, 0], nearest_ids[p, 0]):
                _replace_farthest(sq_dist[p], nearest_ids[p], distance, ids[j])


_GROUP_ARGS = (_VECTOR, types.int64)
_KEEP_ARGS = (
    *(_VECTOR, _MATRIX, _VECTOR, _VECTOR, _MATRIX, _MATRIX, _INDEX),
    *(types.float64[:, ::1], types.int64[:, ::1]),
)
group_minima = _for_either_type(_group_minima, *_GROUP_ARGS)
keep_nearest = _for_either_type(_keep_nearest, *_KEEP_ARGS)


def _count_ahead(
    product: NDArray[Any],
    bias: Float32Array,
    slack: Float32Array,
    columns: Int64Array,
    column_start: Int64Array,
    targets: Targets,
    probes: Float32Array,
    gallery: Float32Array,
    gallery_rows: Int64Array,
    num_ahead: Int64Array,
) -> int:
    """Add to `num_ahead` (m,) how many gallery entries rank ahead of each target.

    bias, slack: (n,) of `_bounds`. columns (c,): those in each repeat's gallery, from column_start
    (repeats + 1,). gallery_rows: (n,) rows in the feature table. Returns how many entries were ambiguous by
    their score: these were decided by their exact squared distance, from probes (p, d) and gallery (n, d).
    """
    n, total = len(gallery_rows), 0
    lower_of, upper_of = np.empty(n, np.float32), np.empty(n, np.float32)  # of the probe and all rows
    lower_buffer, upper_buffer = np.empty(n, np.float32), np.empty(n, np.float32)
    ambiguous_buffer, index, sq_dist = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n)
    last_probe = -1
    for trial in range(len(targets.probe)):
        first, last = targets.start[trial], targets.start[trial + 1]
        if first == last:
            continue
        low, high, counts = targets.low[first:last], targets.high[first:last], num_ahead[first:last]
        probe, repeat = targets.probe[trial], targets.repeat[trial]
        used = columns[column_start[repeat] : column_start[repeat + 1]]
        size = len(used)
        if probe != last_probe:
            for j in range(n):
                lower_of[j], upper_of[j] = _bounds(product, probe, j, bias, slack)
            last_probe = probe
        lower, upper, ambiguous = lower_of, upper_of, ambiguous_buffer[:size]
        if size < n:
            lower, upper = lower_buffer[:size], upper_buffer[:size]
            for i in range(size):
                lower[i], upper[i] = lower_of[used[i]], upper_of[used[i]]
        if len(low) <= _LINEAR_SEARCH_MAX:
            _count_linear(lower, upper, low, high, counts, ambiguous)
        else:
            _count_binary_search(lower, upper, low, high, counts, ambiguous)
        num_ambiguous = 0
        for i in range(size):  # branch-free, as marks are at random
            index[num_ambiguous] = i
            num_ambiguous += ambiguous[i] > 0
        # Compute all distances before comparing: a branch per distance stalls the following loads.
        for i in range(num_ambiguous):
            sq_dist[i] = _sq_distance(probes[probe], gallery[used[index[i]]])
        for i in range(num_ambiguous):
            j = index[i]
            for t in range(len(low)):
                if lower[j] <= high[t] and not upper[j] < low[t]:
                    counts[t] += _ranks_ahead(
                        sq_dist[i], gallery_rows[used[j]], targets.sq_dist[first + t], targets.row[first + t]
                    )
        total += num_ambiguous
    return total


_COUNT_ARGS = (_VECTOR, _VECTOR, _INDEX, _INDEX, _TARGETS, _MATRIX, _MATRIX, _INDEX, types.int64[::1])
count_ahead = _for_either_type(_count_ahead, *_COUNT_ARGS)


@njit_inline()
def _count_linear(
    lower: Float32Array,
    upper: Float32Array,
    low: Float32Array,
    high: Float32Array,
    counts: Int64Array,
    ambiguous: NDArray[np.int32],
) -> None:
    """Add the number of entries nearer than each target for certain; mark those nearer than any perhaps."""
    ambiguous[:] = 0
    for t in range(len(low)):
        num_below = np.int32(0)
        for j in range(len(lower)):
            below = np.int32(upper[j] < low[t])
            num_below += below
            ambiguous[j] += np.int32(lower[j] <= high[t]) - below
        counts[t] += num_below


@njit_inline()
def _count_binary_search(
    lower: Float32Array,
    upper: Float32Array,
    low: Float32Array,
    high: Float32Array,
    counts: Int64Array,
    ambiguous: NDArray[np.int32],
) -> None:
    """Do the same by the number of `low` that each score reaches, without a branch per entry."""
    size = 1
    while size <= len(low):
        size *= 2
    low_padded = np.full(size, np.inf, np.float32)
    low_padded[: len(low)] = low
    reached = ambiguous
    reached[:] = 0
    step = size // 2
    while step:
        for j in range(len(lower)):
            reached[j] += step * np.int32(not upper[j] < low_padded[reached[j] + step - 1])
        step //= 2
    histogram = np.zeros(size + 1, np.int64)
    for j in range(len(lower)):
        count = min(reached[j], len(low))
        histogram[count] += 1
        ambiguous[j] = count > 0 and lower[j] <= high[count - 1]
    num_below = 0
    for t in range(len(low)):
        num_below += histogram[t]
        counts[t] += num_below
