"""Exact nearest neighbours by a scan over blocks of vectors: no index, bounded memory, each row read once."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from index.exact.prefilter import PAD_ROWS, LowerBoundFilter, choose_filter
from infra.errors import BadInput, BadSetting

NO_ID = -1  # pads results with fewer than k rows, at infinite distance
_PROBE_CHUNK = 512
_ROW_CHUNK = 8192  # a larger chunk measures fewer rows before the threshold is tight


def nearest(
    probes: NDArray[np.float32],
    blocks: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]],
    k: int,
    *,
    exclude_ids: NDArray[np.int64] | None = None,
    device: str = "cpu",
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k nearest rows of all blocks for each probe, by ascending L2 distance.

    probes: float32 (q, d). blocks: pairs of ids (n,) and float32 vectors (n, d), with ids unique over all
    blocks. exclude_ids: ids (q,) or (q, m) that a probe must not get, such as its own. Returns ids (q, k)
    int64 and distances (q, k) float32, padded with `NO_ID` and infinity where fewer than k rows remain.
    The order is that of float64 distances. Equal distances rank by ascending id and not by position, as CMC
    does (`numba_kernels.ranks_ahead`), so neither the blocks nor their order affect the result.
    Raises BadSetting for k < 1, BadInput for vectors of another dimension or that are not finite.
    """
    probes = np.ascontiguousarray(probes, dtype=np.float32)
    if k < 1:
        raise BadSetting(f"k is {k}", remedy="ask for at least one neighbour")
    if probes.ndim != 2 or not np.isfinite(probes).all():
        raise BadInput("probes must be finite rows of one length", remedy="embed the probes again")
    excluded = (
        np.empty((len(probes), 0), np.int64)
        if exclude_ids is None
        else exclude_ids.reshape(len(probes), -1 if len(probes) else 0)
    )
    # Each excluded id takes at most one place: search that much deeper and drop it at the end.
    best = _TopK.empty(len(probes), k + excluded.shape[1])
    if len(probes):
        _scan(probes, blocks, best, device)
    return _drop_excluded(excluded, best, k)


class _TopK:
    """The nearest rows of each probe so far, sorted by (squared distance, id)."""

    def __init__(self, ids: NDArray[np.int64], sq_dist: NDArray[np.float64]) -> None:
        self.ids = ids  # (q, k)
        self.sq_dist = sq_dist  # (q, k)

    @classmethod
    def empty(cls, probes: int, k: int) -> "_TopK":
        return cls(np.full((probes, k), NO_ID, dtype=np.int64), np.full((probes, k), np.inf))

    @property
    def kth_sq_distance(self) -> NDArray[np.float64]:
        """The k-th smallest squared distance (q,): an upper bound for new rows; inf below k rows."""
        return self.sq_dist[:, -1]

    def merge(self, probe: NDArray[np.int64], ids: NDArray[np.int64], sq_dist: NDArray[np.float64]) -> None:
        """Insert candidates: three arrays (m,), with ascending probes."""
        is_near = sq_dist <= self.kth_sq_distance[probe]
        probe, ids, sq_dist = probe[is_near], ids[is_near], sq_dist[is_near]
        if not len(probe):
            return
        changed, first, counts = np.unique(probe, return_index=True, return_counts=True)
        k = self.ids.shape[1]
        row = np.repeat(np.arange(len(changed)), counts)
        column = k + np.arange(len(probe)) - np.repeat(first, counts)
        all_ids = np.full((len(changed), k + int(counts.max())), NO_ID)
        all_sq_dist = np.full(all_ids.shape, np.inf)
        all_ids[:, :k], all_sq_dist[:, :k] = self.ids[changed], self.sq_dist[changed]
        all_ids[row, column], all_sq_dist[row, column] = ids, sq_dist
        order = np.lexsort((all_ids, all_sq_dist), axis=1)[:, :k]
        self.ids[changed] = np.take_along_axis(all_ids, order, axis=1)
        self.sq_dist[changed] = np.take_along_axis(all_sq_dist, order, axis=1)


def _scan(
    probes: NDArray[np.float32],
    blocks: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]],
    best: _TopK,
    device: str,
) -> None:
    from index.exact.numba_kernels import pair_sq_distances

    lower_bound_filter: LowerBoundFilter | None = None
    for ids, vectors in blocks:
        if vectors.ndim != 2 or vectors.shape[1] != probes.shape[1] or len(ids) != len(vectors):
            raise BadInput(
                f"a block of {len(ids)} ids and vectors of shape {vectors.shape} "
                f"for probes of {probes.shape[1]} dimensions"
            )
        if not len(ids):
            continue
        lower_bound_filter = lower_bound_filter or choose_filter(
            probes, vectors, max_rows=_ROW_CHUNK, device=device
        )
        for start in range(0, len(ids), _ROW_CHUNK):
            rows = slice(start, start + _ROW_CHUNK)
            chunk = np.ascontiguousarray(vectors[rows], dtype=np.float32)
            lower_bound_filter.load(chunk)
            for first in range(0, len(probes), _PROBE_CHUNK):
                probe_slice = slice(first, min(first + _PROBE_CHUNK, len(probes)))
                for probe, row in _refine_candidates(lower_bound_filter, probe_slice, best):
                    best.merge(probe, ids[rows][row], pair_sq_distances(probes, chunk, probe, row))


def _refine_candidates(
    lower_bound_filter: LowerBoundFilter, probes: slice, best: _TopK
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield pairs (probe, row) of the loaded block that must be measured, in two rounds.

    A probe with few neighbours so far would have to measure most of a block. The first round measures about
    k rows with the smallest lower bounds; their distances give the threshold of the second round.
    """
    lower = lower_bound_filter.lower_bounds(probes)
    num_probes, num_rows = lower.shape
    k = best.ids.shape[1]
    # A group has rows from distant positions: adjacent rows of an archive often show one vehicle.
    group_min = lower.view(num_probes, PAD_ROWS, num_rows // PAD_ROWS).amin(1).cpu().numpy()
    thresholds = lower_bound_filter.thresholds(probes, best.kth_sq_distance[probes])
    no_floor = np.full(num_probes, -np.inf, np.float32)
    first_thresholds = no_floor.copy()
    # The k-th smallest group minimum is at least the k-th smallest of all lower bounds.
    smallest = group_min if k < num_rows // PAD_ROWS else lower.cpu().numpy()
    has_many = np.flatnonzero((smallest <= thresholds[:, None]).sum(1) > k)
    if len(has_many):
        first_thresholds[has_many] = np.partition(smallest[has_many], k - 1, axis=1)[:, k - 1]
        first_thresholds = np.minimum(first_thresholds, thresholds)
        yield _candidates_below(lower, group_min, first_thresholds, no_floor, probes.start)
        thresholds = lower_bound_filter.thresholds(probes, best.kth_sq_distance[probes])
    yield _candidates_below(lower, group_min, thresholds, first_thresholds, probes.start)


def _candidates_below(
    lower: torch.Tensor,
    group_min: NDArray[np.float32],
    thresholds: NDArray[np.float32],
    floor: NDArray[np.float32],
    first_probe: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (probe, row) whose lower bound is in (floor, threshold], by probe."""
    probe, group = np.nonzero(group_min <= thresholds[:, None])
    if not len(probe):
        return probe, group
    num_probes, num_rows = lower.shape
    index = torch.from_numpy(probe).to(lower.device), torch.from_numpy(group).to(lower.device)
    groups = lower.view(num_probes, PAD_ROWS, num_rows // PAD_ROWS)
    values = groups[index[0], :, index[1]].cpu().numpy()
    pair, member = np.nonzero((values <= thresholds[probe, None]) & (values > floor[probe, None]))
    return probe[pair] + first_probe, member * (num_rows // PAD_ROWS) + group[pair]


def _drop_excluded(
    excluded: NDArray[np.int64], best: _TopK, k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    drop = (best.ids[:, :, None] == excluded[:, None, :]).any(axis=2) & (best.ids != NO_ID)
    order = np.argsort(drop, axis=1, kind="stable")[:, :k]
    ids = np.take_along_axis(best.ids, order, axis=1)
    distances = np.sqrt(np.take_along_axis(best.sq_dist, order, axis=1)).astype(np.float32)
    dropped = np.take_along_axis(drop, order, axis=1)
    ids[dropped], distances[dropped] = NO_ID, np.inf
    return ids, distances
