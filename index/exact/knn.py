"""Exact nearest neighbours by a scan over blocks of vectors: no index, bounded memory, each row read once."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.exact import NO_ID
from index.exact.numba_kernels import group_minima, keep_nearest
from index.exact.products import Screen, choose_screen, for_slices
from infra.errors import BadInput, BadSetting

_GROUP = 16  # rows whose least lower bound decides whether they are looked at
_ROW_CHUNK = 8192  # a larger chunk measures fewer rows before the limit is tight


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
    best = NearestRows(len(probes), k + excluded.shape[1])
    screen: Screen | None = None
    for ids, vectors in blocks if len(probes) else ():
        if vectors.ndim != 2 or vectors.shape[1] != probes.shape[1] or len(ids) != len(vectors):
            raise BadInput(
                f"a block of {len(ids)} ids and vectors of shape {vectors.shape} "
                f"for probes of {probes.shape[1]} dimensions"
            )
        for start in range(0, len(ids), _ROW_CHUNK):
            rows = slice(start, start + _ROW_CHUNK)
            chunk = np.ascontiguousarray(vectors[rows], dtype=np.float32)
            screen = screen or choose_screen(probes, chunk, device=device)
            screen.load(chunk)
            best.update(screen, probes, chunk, np.ascontiguousarray(ids[rows], dtype=np.int64))
    nearest_ids, sq_dist = best.sorted()
    with np.errstate(over="ignore"):  # a distance beyond float32 is infinite, its id stays
        distances = np.sqrt(sq_dist).astype(np.float32)
    return _without_excluded(nearest_ids, distances, excluded, k)


class NearestRows:
    """The k nearest rows of each probe so far."""

    def __init__(self, num_probes: int, k: int) -> None:
        self._ids = np.full((num_probes, k), NO_ID, dtype=np.int64)
        self._sq_dist = np.full((num_probes, k), np.inf)

    def update(
        self, screen: Screen, probes: NDArray[np.float32], rows: NDArray[np.float32], ids: NDArray[np.int64]
    ) -> None:
        """Compare the probes (q, d) with rows (n, d), which the screen has loaded."""

        def update_slice(part: slice) -> None:
            product = screen.product(part)
            self.update_slice(screen, part, product, probes[part], rows, ids)

        for_slices(update_slice, len(probes), macs=float(probes.size) * len(rows))

    def update_slice(
        self,
        screen: Screen,
        part: slice,
        product: NDArray[Any],
        probes: NDArray[np.float32],
        rows: NDArray[np.float32],
        ids: NDArray[np.int64],
    ) -> None:
        """Update some of the probes (p, d) by their product (p, n), in two rounds.

        A probe with few neighbours so far would have to measure most of a block. The first round measures
        about k rows with the smallest lower bounds; their distances give the limit of the second round.
        """
        sq_dist, nearest_ids = self._sq_dist[part], self._ids[part]
        k = sq_dist.shape[1]
        group_size = max(1, min(_GROUP, len(rows) // (16 * k)))
        minima = group_minima(product, screen.bias, -(-len(rows) // group_size))

        def keep(floor: NDArray[np.float32], limit: NDArray[np.float32]) -> None:
            keep_nearest(product, screen.bias, minima, floor, limit, probes, rows, ids, sq_dist, nearest_ids)

        floor = np.full(len(probes), -np.inf, np.float32)
        limit = screen.interval(sq_dist[:, 0], part)[1]
        has_many = np.flatnonzero((minima <= limit[:, None]).sum(axis=1) > k)
        if len(has_many):
            first = np.where(np.isin(np.arange(len(probes)), has_many), limit, floor)
            # The k-th smallest minimum of a group is at least the k-th smallest of all lower bounds.
            smallest = np.partition(minima[has_many], k - 1, axis=1)[:, k - 1]
            first[has_many] = np.minimum(first[has_many], smallest)
            keep(floor, first)
            floor, limit = first, screen.interval(sq_dist[:, 0], part)[1]
        keep(floor, limit)

    def sorted(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return ids and squared distances (q, k) by ascending (distance, id)."""
        order = np.argsort(self._sq_dist, axis=1)
        sq_dist = np.take_along_axis(self._sq_dist, order, axis=1)
        has_ties = ((sq_dist[:, 1:] == sq_dist[:, :-1]) & (sq_dist[:, 1:] < np.inf)).any(axis=1)
        order[has_ties] = np.lexsort((self._ids[has_ties], self._sq_dist[has_ties]), axis=1)
        return np.take_along_axis(self._ids, order, axis=1), sq_dist


def _without_excluded(
    ids: NDArray[np.int64], distances: NDArray[np.float32], excluded: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    if not excluded.shape[1]:
        return ids, distances
    drop = (ids[:, :, None] == excluded[:, None, :]).any(axis=2) & (ids != NO_ID)
    order = np.argsort(drop, axis=1, kind="stable")[:, :k]
    ids, distances, dropped = (np.take_along_axis(array, order, axis=1) for array in (ids, distances, drop))
    ids[dropped], distances[dropped] = NO_ID, np.inf
    return ids, distances
