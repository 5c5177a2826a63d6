"""Exact nearest neighbours by a scan over blocks of vectors: no index, memory bounded, each row read once."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from index.exact.prefilter import PAD_ROWS, LowerBoundFilter, screen_for
from infra.errors import BadInput, BadSetting

NO_ID = -1  # stands where fewer than k rows could be found, at infinite distance
_PROBE_CHUNK = 512
_ROW_CHUNK = 8192  # the more at once, the fewer are measured before the limit is tight


def nearest(
    queries: NDArray[np.float32],
    blocks: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]],
    k: int,
    *,
    forbidden: NDArray[np.int64] | None = None,
    device: str = "cpu",
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k nearest rows of all blocks for each query, by ascending L2 distance.

    queries: float32 (q, d). blocks: pairs of ids (n,) and float32 vectors (n, d), with ids unique over all
    blocks. forbidden: ids (q,) or (q, m) that a query must not get, its own for instance. Returns ids (q, k)
    int64 and distances (q, k) float32. The order is that of float64 distances, and equal distances stand by
    ascending id, so neither the blocks nor their order matter. Where fewer than k rows remain, the id is
    NOBODY (-1) and the distance infinite.
    Raises BadSetting for k < 1, BadInput for vectors of another dimension or that are not finite.
    """
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if k < 1:
        raise BadSetting(f"k is {k}", remedy="ask for at least one neighbour")
    if queries.ndim != 2 or not np.isfinite(queries).all():
        raise BadInput("queries must be finite rows of one length", remedy="embed the probes again")
    banned = (
        np.empty((len(queries), 0), np.int64) if forbidden is None else forbidden.reshape(len(queries), -1)
    )
    # A forbidden id takes up one place at most: look that much deeper, and drop it at the end.
    best = _TopK.empty(len(queries), k + banned.shape[1])
    if len(queries):
        _scan(queries, blocks, best, device)
    return _without(banned, best, k)


class _TopK:
    """The nearest rows so far of each query, sorted by (squared distance, id)."""

    def __init__(self, ids: NDArray[np.int64], squared: NDArray[np.float64]) -> None:
        self.ids = ids  # (q, k)
        self.squared = squared  # (q, k)

    @classmethod
    def empty(cls, queries: int, k: int) -> "_TopK":
        return cls(np.full((queries, k), NO_ID, dtype=np.int64), np.full((queries, k), np.inf))

    @property
    def farthest(self) -> NDArray[np.float64]:
        """Squared distance (q,) that no row may exceed to be among the k; infinite where there is room."""
        return self.squared[:, -1]

    def merge(self, owner: NDArray[np.int64], ids: NDArray[np.int64], squared: NDArray[np.float64]) -> None:
        """Take in candidates: three arrays (m,), owners ascending."""
        closer = squared <= self.farthest[owner]
        owner, ids, squared = owner[closer], ids[closer], squared[closer]
        if not len(owner):
            return
        touched, first, counts = np.unique(owner, return_index=True, return_counts=True)
        k = self.ids.shape[1]
        line = np.repeat(np.arange(len(touched)), counts)
        place = k + np.arange(len(owner)) - np.repeat(first, counts)
        all_ids = np.full((len(touched), k + int(counts.max())), NO_ID)
        all_squared = np.full(all_ids.shape, np.inf)
        all_ids[:, :k], all_squared[:, :k] = self.ids[touched], self.squared[touched]
        all_ids[line, place], all_squared[line, place] = ids, squared
        order = np.lexsort((all_ids, all_squared), axis=1)[:, :k]
        self.ids[touched] = np.take_along_axis(all_ids, order, axis=1)
        self.squared[touched] = np.take_along_axis(all_squared, order, axis=1)


def _scan(
    queries: NDArray[np.float32],
    blocks: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]],
    best: _TopK,
    device: str,
) -> None:
    from index.exact.numba_kernels import pair_sq_distances

    screen: LowerBoundFilter | None = None
    for ids, vectors in blocks:
        if vectors.ndim != 2 or vectors.shape[1] != queries.shape[1] or len(ids) != len(vectors):
            raise BadInput(
                f"a block of {len(ids)} ids and vectors of shape {vectors.shape} "
                f"for queries of {queries.shape[1]} dimensions"
            )
        if not len(ids):
            continue
        screen = screen or screen_for(queries, vectors, rows=_ROW_CHUNK, device=device)
        for start in range(0, len(ids), _ROW_CHUNK):
            rows = slice(start, start + _ROW_CHUNK)
            some = np.ascontiguousarray(vectors[rows], dtype=np.float32)
            screen.load(some)
            for first in range(0, len(queries), _PROBE_CHUNK):
                part = slice(first, min(first + _PROBE_CHUNK, len(queries)))
                for query, row in _refine_candidates(screen, part, best):
                    best.merge(query, ids[rows][row], pair_sq_distances(queries, some, query, row))


def _refine_candidates(
    screen: LowerBoundFilter, part: slice, best: _TopK
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs (query, row) of the loaded block that must be measured, in two rounds.

    A query with little found so far would have to measure most of a block. So those rows come first that
    look nearest, about k of them; what they turn out to be is the limit for the others.
    """
    low = screen.low(part)
    count, rows = low.shape
    k = best.ids.shape[1]
    # Rows that lie far apart share a group: neighbours in an archive are often pictures of one vehicle.
    least = low.view(count, PAD_ROWS, rows // PAD_ROWS).amin(1).cpu().numpy()
    limits = screen.limits(part, best.farthest[part])
    nowhere = np.full(count, -np.inf, np.float32)
    before = nowhere.copy()
    # The k-th smallest of the groups' least is at least the k-th smallest of all.
    some = least if k < rows // PAD_ROWS else low.cpu().numpy()
    many = np.flatnonzero((some <= limits[:, None]).sum(1) > k)
    if len(many):
        before[many] = np.partition(some[many], k - 1, axis=1)[:, k - 1]
        before = np.minimum(before, limits)
        yield _candidates_below(low, least, before, nowhere, part.start)
        limits = screen.limits(part, best.farthest[part])
    yield _candidates_below(low, least, limits, before, part.start)


def _candidates_below(
    low: torch.Tensor,
    least: NDArray[np.float32],
    limits: NDArray[np.float32],
    above: NDArray[np.float32],
    first: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs whose `low` is over `above` and not over `limits`, by query."""
    query, group = np.nonzero(least <= limits[:, None])
    if not len(query):
        return query, group
    count, rows = low.shape
    index = torch.from_numpy(query).to(low.device), torch.from_numpy(group).to(low.device)
    values = low.view(count, PAD_ROWS, rows // PAD_ROWS)[index[0], :, index[1]].cpu().numpy()
    pair, member = np.nonzero((values <= limits[query, None]) & (values > above[query, None]))
    query, row = query[pair] + first, member * (rows // PAD_ROWS) + group[pair]
    return query, row


def _without(banned: NDArray[np.int64], best: _TopK, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    drop = (best.ids[:, :, None] == banned[:, None, :]).any(axis=2) & (best.ids != NO_ID)
    order = np.argsort(drop, axis=1, kind="stable")[:, :k]
    ids = np.take_along_axis(best.ids, order, axis=1)
    distances = np.sqrt(np.take_along_axis(best.squared, order, axis=1)).astype(np.float32)
    gone = np.take_along_axis(drop, order, axis=1)
    ids[gone], distances[gone] = NO_ID, np.inf
    return ids, distances
