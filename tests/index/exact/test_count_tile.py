"""Counting within a tile equals a plain comparison of exact distances, whatever the bounds leave open."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.exact.numba_kernels import (
    Bounds,
    GalleryColumns,
    Targets,
    count_ahead,
    score_intervals,
)
from index.exact.products import Kernel, Normalization
from index.exact.tiles import (
    PreparedBlock,
    ProbeBlock,
    ScoreTile,
    count_tile,
    count_tile_cpu,
    count_tile_torch,
)

Count = Callable[[ScoreTile, ProbeBlock, NDArray[np.bool_]], int]


def make_tile(*, bf16: bool, positives: bool = True) -> tuple[ScoreTile, NDArray[np.float64]]:
    """40 probes against 60 gallery images with many ties, and their exact squared distances."""
    rng = np.random.default_rng(2)
    x, y = (rng.integers(-3, 4, (n, 5)).astype(np.float32) for n in (40, 60))
    normalization = Normalization.fit(x, y)
    probes, gallery = (
        PreparedBlock(np.arange(40), x, normalization, Kernel()),
        PreparedBlock(np.arange(60), y, normalization, Kernel()),
    )
    product = torch.mm(probes.bf16.values, gallery.bf16.values.T) if bf16 else probes.probes @ gallery.gallery
    exact = np.square(x[:, None].astype(np.float64) - y).sum(-1)
    if positives:
        product[torch.arange(40), torch.arange(40)] = -torch.inf
        exact[np.arange(40), np.arange(40)] = np.inf
    return ScoreTile(probes, gallery, product, normalization), exact


def make_probe_block(probes: int, trials: int = 55, max_targets: int = 9) -> ProbeBlock:
    rng = np.random.default_rng(3)
    num_targets = rng.integers(1, max_targets + 1, trials)
    is_target = np.arange(max_targets) < num_targets[:, None]
    sq_dist = np.sort(np.where(is_target, rng.integers(0, 60, is_target.shape), np.inf), axis=1)
    targets = Targets(
        probe_row=rng.integers(0, probes, trials),
        repeat=np.sort(rng.integers(0, 3, trials)),
        num_targets=num_targets,
        sq_dist=sq_dist,
        target_row=rng.integers(0, 60, is_target.shape),
    )
    return ProbeBlock(targets, np.where(is_target, 0, -1))


def true_counts(
    exact: NDArray[np.float64], probe_block: ProbeBlock, in_gallery: NDArray[np.bool_]
) -> list[list[int]]:
    targets = probe_block.targets
    distances = np.where(in_gallery[targets.repeat], exact[targets.probe_row], np.inf)[:, None]
    limit, target_row = targets.sq_dist[:, :, None], targets.target_row[:, :, None]
    row = np.arange(60)
    counts = ((distances < limit) | ((distances == limit) & (row < target_row))).sum(-1)
    return np.where(probe_block.flat_index >= 0, counts, 0).tolist()


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("share", [0.2, 0.8, 1.0])
@pytest.mark.parametrize("count", [count_tile, count_tile_cpu, count_tile_torch])
def test_counts_equal_those_by_exact_distances(bf16: bool, share: float, count: Count) -> None:
    tile, exact = make_tile(bf16=bf16)
    probe_block = make_probe_block(len(exact))
    in_gallery = np.random.default_rng(4).random((3, 60)) < share
    count(tile, probe_block, in_gallery)
    counts = np.where(probe_block.flat_index >= 0, probe_block.num_ahead, 0)
    assert counts.tolist() == true_counts(exact, probe_block, in_gallery)


def test_both_implementations_report_the_same_number_of_ambiguous_entries() -> None:
    tile, exact = make_tile(bf16=True, positives=False)
    everything = np.ones((3, 60), dtype=np.bool_)
    num_ambiguous = count_tile_cpu(tile, make_probe_block(len(exact)), everything)
    assert 0 < num_ambiguous <= 55 * 60
    assert count_tile_torch(tile, make_probe_block(len(exact)), everything) == num_ambiguous


def make_targets(sq_dists: list[list[float]]) -> Targets:
    num_targets = np.array([len(row) for row in sq_dists])
    padded = np.full((len(sq_dists), int(num_targets.max())), np.inf)
    for target, row in zip(padded, sq_dists, strict=True):
        target[: len(row)] = row
    probe_row = np.arange(len(sq_dists))
    return Targets(
        probe_row=probe_row,
        repeat=np.zeros_like(probe_row),
        num_targets=num_targets,
        sq_dist=padded,
        target_row=np.zeros(padded.shape, np.int64),
    )


def test_score_intervals_enclose_each_target_and_ascend() -> None:
    targets = make_targets([[1.0, 1.5, 9.0], [4.0]])
    bounds = Bounds(
        sq_norms=np.array([2.0, 1.0]),
        abs_error=np.array([0.5, 0.25]),
        rel_error=2.0**-8,
        scale=0.25,
        min_half_sq_norm=1.0,
        max_half_sq_norm=3.0,
    )
    low, high = score_intervals(targets, bounds)
    score = (targets.sq_dist * bounds.scale - bounds.sq_norms[:, None]) / 2
    used = np.isfinite(targets.sq_dist)
    product = np.maximum(np.abs(bounds.max_half_sq_norm - score), np.abs(bounds.min_half_sq_norm - score))
    error = bounds.abs_error[:, None] + bounds.rel_error * (product + bounds.abs_error[:, None])
    assert (low[used] <= score[used] - error[used]).all()
    assert (high[used] >= score[used] + error[used]).all()
    assert (np.diff(low[0]) >= 0).all() and (np.diff(high[0]) >= 0).all()
    assert low[1, 1:].tolist() == [np.inf] * 2 and high[1, 1:].tolist() == [-np.inf] * 2


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 70),
    num_targets=st.integers(1, 70),
    abs_error=st.sampled_from([0.0, 0.3, 50.0]),
    share=st.sampled_from([0.2, 1.0]),
)
def test_counts_do_not_depend_on_the_number_of_ambiguous_entries(
    seed: int, rows: int, num_targets: int, abs_error: float, share: float
) -> None:
    """By a scan or a binary search of the targets, or by exact distance: small integers, many ties."""
    rng = np.random.default_rng(seed)
    probes, gallery = (rng.integers(-2, 3, (n, 4)).astype(np.float32) for n in (3, rows))
    exact = np.square(probes[:, None].astype(np.float64) - gallery).sum(-1)
    sq_dist = np.sort(rng.integers(0, 40, (3, num_targets)).astype(np.float64), axis=1)
    target_row = rng.integers(0, rows, (3, num_targets))
    columns = np.sort(rng.permutation(rows)[: max(1, int(share * rows))])
    all_rows = np.arange(rows)
    half_sq_norms = (np.square(gallery).sum(1) / 2).astype(np.float32)
    bounds = Bounds(
        sq_norms=np.square(probes.astype(float)).sum(1),
        abs_error=np.full(3, abs_error),
        rel_error=0.0,
        scale=1.0,
        min_half_sq_norm=0.0,
        max_half_sq_norm=20.0,
    )
    num_ahead = np.zeros((3, num_targets), np.int64)
    num_ambiguous = count_ahead(
        probes @ gallery.T,
        half_sq_norms,
        GalleryColumns(
            np.concatenate([columns, all_rows]), np.array([0, 0, len(columns), len(columns) + rows])
        ),
        Targets(
            probe_row=np.arange(3),
            repeat=np.array([0, 1, 2]),
            num_targets=np.full(3, num_targets),
            sq_dist=sq_dist,
            target_row=target_row,
        ),
        bounds,
        probes,
        gallery,
        all_rows,
        num_ahead,
    )
    # Three repeats: an empty gallery, a part of the rows, and all rows.
    exact[0], exact[1, np.setdiff1d(all_rows, columns)] = np.inf, np.inf
    is_ahead = (exact[:, None] < sq_dist[:, :, None]) | (
        (exact[:, None] == sq_dist[:, :, None]) & (all_rows < target_row[:, :, None])
    )
    assert num_ahead.tolist() == is_ahead.sum(-1).tolist()
    assert abs_error < 50 or num_ambiguous == len(columns) + rows
