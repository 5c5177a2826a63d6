"""The compiled loops count what a plain loop in Python counts, whatever the scores' bounds leave open."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.exact import numba_kernels
from index.exact.numba_kernels import (
    Bounds,
    GalleryColumns,
    Targets,
    count_closer,
    count_closer_rounded,
    pair_sq_distances,
    score_intervals,
)


def test_pairs_are_measured_by_differences() -> None:
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((n, 37)).astype(np.float32) for n in (5, 6))
    row, column = np.array([0, 4, 4, 2]), np.array([5, 0, 1, 1])
    true = np.square(left[row].astype(np.float64) - right[column]).sum(1)
    assert pair_sq_distances(left, right, row, column) == pytest.approx(true, rel=1e-14)
    assert pair_sq_distances(left, left, row, row).tolist() == [0, 0, 0, 0]
    assert len(pair_sq_distances(left, right, row[:0], column[:0])) == 0


def test_the_distance_of_a_pair_is_the_same_both_ways_to_the_last_bit() -> None:
    rng = np.random.default_rng(1)
    left, right = (rng.standard_normal((50, 1021)).astype(np.float32) for _ in range(2))
    row, column = rng.integers(0, 50, (2, 300))
    forth, back = pair_sq_distances(left, right, row, column), pair_sq_distances(right, left, column, row)
    assert forth.tolist() == back.tolist()


def test_read_only_rows_are_taken_and_strided_ones_refused() -> None:
    rows = np.zeros((4, 8), np.float32)
    rows.flags.writeable = False
    some = np.arange(4)
    assert pair_sq_distances(rows, rows, some, some).tolist() == [0] * 4
    with pytest.raises(TypeError):
        pair_sq_distances(rows[:, ::2], rows[:, ::2], some, some)


def sought(limits: list[list[float]]) -> Targets:
    matches = np.array([len(some) for some in limits])
    padded = np.full((len(limits), int(matches.max())), np.inf)
    for line, some in zip(padded, limits, strict=True):
        line[: len(some)] = some
    at = np.arange(len(limits))
    return Targets(at, np.zeros_like(at), matches, padded, np.zeros(padded.shape, np.int64))


def test_bounds_enclose_each_limit_and_ascend() -> None:
    wanted = sought([[1.0, 1.5, 9.0], [4.0]])
    bounds = Bounds(np.array([2.0, 1.0]), np.array([0.5, 0.25]), 2.0**-8, 0.25, 1.0, 3.0)
    low, high = score_intervals(wanted, bounds)
    middle = (wanted.limit * bounds.scale - bounds.squares[:, None]) / 2
    there = np.isfinite(wanted.limit)
    product = np.maximum(np.abs(bounds.most - middle), np.abs(bounds.least - middle))
    width = bounds.inner[:, None] + bounds.relative * (product + bounds.inner[:, None])
    assert (low[there] <= middle[there] - width[there]).all()
    assert (high[there] >= middle[there] + width[there]).all()
    assert (np.diff(low[0]) >= 0).all() and (np.diff(high[0]) >= 0).all()
    assert low[1, 1:].tolist() == [np.inf] * 2 and high[1, 1:].tolist() == [-np.inf] * 2


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 70),
    matches=st.integers(1, 70),
    inner=st.sampled_from([0.0, 0.3, 50.0]),
    share=st.sampled_from([0.2, 1.0]),
)
def test_what_is_counted_does_not_depend_on_how_much_is_left_open(
    seed: int, rows: int, matches: int, inner: float, share: float
) -> None:
    """By score, by a search among many limits, or by exact distance: small whole numbers, many ties."""
    rng = np.random.default_rng(seed)
    probes, gallery = (rng.integers(-2, 3, (n, 4)).astype(np.float32) for n in (3, rows))
    exact = np.square(probes[:, None].astype(np.float64) - gallery).sum(-1)
    limit = np.sort(rng.integers(0, 40, (3, matches)).astype(np.float64), axis=1)
    match = rng.integers(0, rows, (3, matches))
    columns = np.sort(rng.permutation(rows)[: max(1, int(share * rows))])
    everyone = np.arange(rows)
    halves = (np.square(gallery).sum(1) / 2).astype(np.float32)
    bounds = Bounds(np.square(probes.astype(float)).sum(1), np.full(3, inner), 0.0, 1.0, 0.0, 20.0)
    closer = np.zeros((3, matches), np.int64)
    near = count_closer(
        probes @ gallery.T,
        halves,
        GalleryColumns(
            np.concatenate([columns, everyone]), np.array([0, 0, len(columns), len(columns) + rows])
        ),
        Targets(np.arange(3), np.array([0, 1, 2]), np.full(3, matches), limit, match),
        bounds,
        probes,
        gallery,
        everyone,
        closer,
    )
    # Three repeats: nobody is in the first one's gallery, some in the second's, everybody in the third's.
    exact[0], exact[1, np.setdiff1d(everyone, columns)] = np.inf, np.inf
    before = (exact[:, None] < limit[:, :, None]) | (
        (exact[:, None] == limit[:, :, None]) & (everyone < match[:, :, None])
    )
    assert closer.tolist() == before.sum(-1).tolist()
    assert inner < 50 or near == len(columns) + rows


@pytest.mark.parametrize("dimension", [1, 7, 16, 33, 127, 1000, 1021, 1024])
@pytest.mark.parametrize("rounded", [False, True])
def test_a_match_judged_by_its_own_distance_is_a_tie_to_the_last_bit(dimension: int, rounded: bool) -> None:
    """Limits are sums of one compiled loop and near entries of another: their order must be the same."""
    rng = np.random.default_rng(dimension)
    probes, gallery = (rng.standard_normal((64, dimension)).astype(np.float32) for _ in range(2))
    everyone, match = np.arange(64), rng.integers(0, 64, 64)
    limit = pair_sq_distances(probes, gallery, everyone, match)[:, None]
    product = np.zeros((64, 64), np.uint16 if rounded else np.float32)
    all_near = Bounds(np.zeros(64), np.full(64, 1e9), 0.0, 1.0, 0.0, 1.0)
    counts = []
    for row in (match, match + 1):  # an equal distance stands before the next row, and not before its own
        closer = np.zeros((64, 1), np.int64)
        (count_closer_rounded if rounded else count_closer)(
            product,
            np.zeros(64, np.float32),
            GalleryColumns(everyone, np.array([0, 64])),
            Targets(everyone, np.zeros(64, np.int64), np.ones(64, np.int64), limit, row[:, None].copy()),
            all_near,
            probes,
            gallery,
            everyone,
            closer,
        )
        counts.append(closer[:, 0])
    assert (counts[1] - counts[0]).tolist() == [1] * 64


def test_both_ways_of_comparing_are_tried_above() -> None:
    assert 1 < numba_kernels._LINEAR_SEARCH_MAX < 70
