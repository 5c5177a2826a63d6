"""Exact nearest neighbours by a scan over blocks of vectors: no index, memory bounded, each row read once."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from index.distances import (
    PAIRS_AT_ONCE,
    Frame,
    Kernel,
    Placed,
    choose_kernel,
    error_bound,
    exact_squared,
    outward,
)
from infra.errors import BadInput, BadSetting

NOBODY = -1  # stands where fewer than k rows could be found, at infinite distance
_QUERIES_AT_ONCE = 512
_ROWS_AT_ONCE = 4096
_MANY = 4  # candidates per wanted neighbour, from which a partial sort is cheaper than rechecking them all


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
    best = _Best.empty(len(queries), k + banned.shape[1])
    if len(queries):
        _scan(queries, blocks, best, device)
    return _without(banned, best, k)


class _Best:
    """The nearest rows so far of each query, sorted by (squared distance, id)."""

    def __init__(self, ids: NDArray[np.int64], squared: NDArray[np.float64]) -> None:
        self.ids = ids  # (q, k)
        self.squared = squared  # (q, k)

    @classmethod
    def empty(cls, queries: int, k: int) -> "_Best":
        return cls(np.full((queries, k), NOBODY, dtype=np.int64), np.full((queries, k), np.inf))

    def merge(self, queries: NDArray[np.int64], ids: NDArray[np.int64], squared: NDArray[np.float64]) -> None:
        """Take in candidates: three arrays (m,)."""
        touched = np.unique(queries)
        k = self.ids.shape[1]
        owner = np.concatenate([np.repeat(touched, k), queries])
        ids = np.concatenate([self.ids[touched].ravel(), ids])
        squared = np.concatenate([self.squared[touched].ravel(), squared])
        order = np.lexsort((ids, squared, owner))
        first = np.searchsorted(owner[order], touched)
        keep = order[first[:, None] + np.arange(k)]
        self.ids[touched], self.squared[touched] = ids[keep], squared[keep]


def _scan(
    queries: NDArray[np.float32],
    blocks: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]],
    best: _Best,
    device: str,
) -> None:
    frame: Frame | None = None
    kernel = Kernel(device)
    loaded: list[tuple[slice, Placed, object]] = []
    for ids, vectors in blocks:
        if vectors.ndim != 2 or vectors.shape[1] != queries.shape[1] or len(ids) != len(vectors):
            raise BadInput(
                f"a block of {len(ids)} ids and vectors of shape {vectors.shape} "
                f"for queries of {queries.shape[1]} dimensions"
            )
        if not len(ids):
            continue
        if frame is None:
            frame = Frame.around(queries, vectors)
            kernel = choose_kernel(device, work=float(queries.size) * len(vectors))
            for start in range(0, len(queries), _QUERIES_AT_ONCE):
                part = slice(start, min(start + _QUERIES_AT_ONCE, len(queries)))
                placed = frame.place(queries[part])
                loaded.append((part, placed, kernel.probes(placed)))
        for start in range(0, len(ids), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            gallery = frame.place(vectors[rows])
            ready = kernel.gallery(gallery)
            for part, placed, probes in loaded:
                scores = kernel.scores(probes, ready)
                query, row = _candidates(scores, placed, gallery, best.squared[part], frame)
                query = query + part.start
                squared = _squared(queries, vectors[rows], query, row)
                closer = squared <= best.squared[query, -1]
                best.merge(query[closer], ids[rows][row[closer]], squared[closer])


def _squared(
    queries: NDArray[np.float32],
    vectors: NDArray[np.float32],
    query: NDArray[np.int64],
    row: NDArray[np.int64],
) -> NDArray[np.float64]:
    squared = np.empty(len(query))
    for start in range(0, len(query), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        squared[part] = exact_squared(queries[query[part]], vectors[row[part]])
    return squared


def _candidates(
    scores: torch.Tensor, placed: Placed, gallery: Placed, best: NDArray[np.float64], frame: Frame
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (query, row) of this block that may be among the k nearest; `best` (q, k) are those so far."""
    error = error_bound(placed.squares, gallery.squares, gallery.values.shape[1])
    scaled = (best[:, -1] * float(frame.scale) ** 2 - placed.squares) / 2
    _, limit = outward(scaled, scaled + error)
    limit = limit.to(scores.device)
    k = best.shape[1]
    hit = torch.empty_like(scores)
    many = torch.le(scores, limit[:, None], out=hit).sum(1) > _MANY * k
    if bool(many.any()):
        # The k-th smallest score bounds the k-th true one from above, within one error each way.
        smallest = scores[many].topk(k, dim=1, largest=False).values[:, -1].double()
        _, tighter = outward(smallest.cpu().numpy(), smallest.cpu().numpy() + 2 * error[many.cpu().numpy()])
        limit[many] = torch.minimum(limit[many], tighter.to(scores.device))
    query, row = (scores <= limit[:, None]).nonzero(as_tuple=True)
    return query.cpu().numpy(), row.cpu().numpy()


def _without(banned: NDArray[np.int64], best: _Best, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    drop = (best.ids[:, :, None] == banned[:, None, :]).any(axis=2) & (best.ids != NOBODY)
    order = np.argsort(drop, axis=1, kind="stable")[:, :k]
    ids = np.take_along_axis(best.ids, order, axis=1)
    distances = np.sqrt(np.take_along_axis(best.squared, order, axis=1)).astype(np.float32)
    gone = np.take_along_axis(drop, order, axis=1)
    ids[gone], distances[gone] = NOBODY, np.inf
    return ids, distances
