"""The engine of CMC: how many other vehicles' pictures precede each true match, counted and never sorted.

A *trial* is one probe in one repeat of a protocol. Repeats share their pictures, so every pair of blocks is
multiplied once for all trials, and where pictures are probes and gallery alike one product serves both ways.
Products are of bfloat16 where that pays; entries too close to call are decided by float64 distances.
"""

import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from index.exact.features import FeatureTable, ProbeTrials
from index.exact.products import Kernel, Normalization, choose_kernel, should_use_bf16, subsample
from index.exact.tiles import (
    Block,
    PositivePairs,
    PreparedBlock,
    ProbeBlock,
    ProbeBlocks,
    ScoreTile,
    blocks_of,
    count_tile,
)

_CACHE_BLOCKS = 48  # blocks of probes kept ready: 600 MiB at most at 1024 rows of 1024 dimensions
_MAX_AMBIGUOUS_SHARE = 0.05  # of a product's pairs; measuring so many costs what the cheaper product saves
_MIN_MACS_FOR_THREADS = (
    1e9  # multiply-adds, a hundredth of a second; below it threads cost more than they save
)
_NORM_CHUNK = 1024
_ORIGIN_SAMPLE = 2048  # rows of probes and of the gallery, to centre the frame on


def count_negatives_ahead(
    pool: FeatureTable,
    in_gallery: NDArray[np.bool_],
    trials: ProbeTrials,
    same_vehicle: tuple[NDArray[np.int64], NDArray[np.int64]],
    *,
    block: int = 1024,
    device: str = "cpu",
) -> NDArray[np.int64]:
    """For each true match, how many pictures of other vehicles precede it in its repeat's gallery: (m,).

    in_gallery: bool (repeats, n), who is in each repeat's gallery. same_vehicle: probe rows and gallery rows
    of every pair that must not count as others. Equal distances stand by ascending row.
    Memory: `_KEPT_BLOCKS` blocks of features, two blocks of scores a thread, and 32 bytes a true match.
    """
    is_probe = np.zeros(len(pool), dtype=np.bool_)
    is_probe[trials.probe] = True
    is_gallery = np.asarray(in_gallery.any(axis=0))
    used = [np.flatnonzero(is_probe), np.flatnonzero(is_gallery)]
    frame = Normalization.around(*(pool.take(subsample(rows, _ORIGIN_SAMPLE)) for rows in used))
    work = float(is_probe.sum()) * float(is_gallery.sum()) * pool.parts[0].shape[1]
    kernel = choose_kernel(device, work=work)
    blocks = blocks_of(is_probe, is_gallery, _lengths(pool, frame), block)
    panels = ProbeBlocks(blocks, trials, len(pool))
    own = PositivePairs(same_vehicle, blocks, len(pool))
    rough = should_use_bf16(device, work=work)
    counter = _TileCounter(pool, frame, kernel, blocks, panels, in_gallery, own, rough=rough)
    # Blocks of probes come first, so they stay ready while each block of the gallery passes by once.
    pairs = [(first, second) for second in range(len(blocks)) for first in range(second + 1)]
    shared = kernel.device.type == "cpu" and work >= _MIN_MACS_FOR_THREADS
    counter.count_all(pairs, threads=min(torch.get_num_threads(), len(pairs)) if shared else 1)
    return panels.collect(len(trials.limit))


class _TileCounter:
    """Multiplies pairs of blocks and counts for the panels concerned."""

    def __init__(
        self,
        pool: FeatureTable,
        frame: Normalization,
        kernel: Kernel,
        blocks: list[Block],
        panels: ProbeBlocks,
        in_gallery: NDArray[np.bool_],
        own: PositivePairs,
        *,
        rough: bool,
    ) -> None:
        self.pool, self.frame, self.kernel = pool, frame, kernel
        self.blocks, self.panels, self.in_gallery, self.own = blocks, panels, in_gallery, own
        self.rough = rough
        self.kept: OrderedDict[int, PreparedBlock] = OrderedDict()
        self.keeping = threading.Lock()
        self.most = max((len(block.rows) for block in blocks), default=0)
        self.rooms = threading.local()

    def count_all(self, pairs: list[tuple[int, int]], *, threads: int) -> None:
        """`count` each pair of blocks; torch gets one thread in each, for whole pairs share out best."""
        if threads < 2:
            for pair in pairs:
                self.count(*pair)
            return
        before = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                for _ in pool.map(self.count, *zip(*pairs, strict=True)):
                    pass
        finally:
            torch.set_num_threads(before)

    def count(self, first: int, second: int) -> None:
        """Multiply blocks `first` and `second` (first <= second), and count both ways where that is due."""
        a, b = self.blocks[first], self.blocks[second]
        forth = self.panels.of(first) if b.gallery else None
        back = self.panels.of(second) if a.gallery and first != second else None
        due = [panel for panel in (forth, back) if panel]
        if not due:
            return
        rough = self.rough and sum(panel.near_share for panel in due) <= _MAX_AMBIGUOUS_SHARE
        x, y = self._ready(first), self._ready(second)
        product = self._product(x, y, rough=rough)
        mirror = self._room("mirror", product.T.shape, product.dtype).copy_(product.T) if back else None
        if forth:
            self._count_way(ScoreTile(x, y, product, self.frame), forth, self.own.between(first, second))
        if back and mirror is not None:
            self._count_way(ScoreTile(y, x, mirror, self.frame), back, self.own.between(second, first))

    def _product(self, x: PreparedBlock, y: PreparedBlock, *, rough: bool) -> torch.Tensor:
        shape = len(x.rows), len(y.rows)
        if rough:
            room = self._room("product", shape, torch.bfloat16)
            return torch.mm(x.rounded.values, y.rounded.values.T, out=room)
        return self.kernel.product(x.probes, y.gallery, self._room("product", shape, torch.float32))

    def _ready(self, number: int) -> PreparedBlock:
        with self.keeping:
            if number in self.kept:
                self.kept.move_to_end(number)
                return self.kept[number]
            # A block that is gallery alone passes by once.
            for passed in [other for other in self.kept if not self.blocks[other].probes]:
                del self.kept[passed]
            if len(self.kept) == _CACHE_BLOCKS:
                self.kept.popitem(last=False)
            rows = self.blocks[number].rows
            self.kept[number] = ready = PreparedBlock(rows, self.pool.take(rows), self.frame, self.kernel)
            return ready

    def _room(self, name: str, shape: tuple[int, ...], kind: torch.dtype) -> torch.Tensor:
        """Room for a product, once for each thread: fresh arrays would cost their page faults each time."""
        room = getattr(self.rooms, name, None)
        if room is None:
            room = torch.empty(self.most**2, device=self.kernel.device)
            setattr(self.rooms, name, room)
        return room.view(kind)[: shape[0] * shape[1]].view(shape)

    def _count_way(
        self, meeting: ScoreTile, panel: ProbeBlock, own: tuple[NDArray[np.int64], NDArray[np.int64]]
    ) -> None:
        """Count what the gallery of a meeting holds before the matches of its probes."""
        product = meeting.product
        product[*(torch.from_numpy(place).to(product.device) for place in own)] = -torch.inf
        there = self.in_gallery[:, meeting.gallery.rows]
        near = count_tile(meeting, panel, there)
        if meeting.rough:
            panel.note(scored=int(there.sum(axis=1)[panel.sought.repeat].sum()), near=near)


def _lengths(pool: FeatureTable, frame: Normalization) -> NDArray[np.float32]:
    """About how long each row is in the frame: (n,)."""
    lengths = np.empty(len(pool), dtype=np.float32)
    for start in range(0, len(pool), _NORM_CHUNK):
        rows = np.arange(start, min(start + _NORM_CHUNK, len(pool)))
        moved = torch.from_numpy(pool.take(rows) - frame.origin)
        lengths[rows] = torch.linalg.vector_norm(moved, dim=1).numpy()
    return lengths


_MAX_COST_RATIO = 0.9  # of the direct count; above it the second list of trials costs what it saves


def count_negatives_ahead_shared(
    pool: FeatureTable,
    in_gallery: NDArray[np.bool_],
    trials: ProbeTrials,
    same_vehicle: tuple[NDArray[np.int64], NDArray[np.int64]],
    **how: Any,
) -> NDArray[np.int64]:
    """`others_before`, with equal results (m,); cheaper where repeats share most of their galleries."""
    anywhere = in_gallery.any(axis=0)
    absent = anywhere & ~in_gallery
    distinct = np.unique(trials.probe)
    probes = np.bincount(trials.repeat, minlength=len(in_gallery))
    direct = int(probes @ in_gallery.sum(axis=1))
    together = len(distinct) * int(anywhere.sum()) + int(probes @ absent.sum(axis=1))
    if together > _MAX_COST_RATIO * direct:
        return count_negatives_ahead(pool, in_gallery, trials, same_vehicle, **how)
    shared, place = _shared(trials, distinct, repeat=len(in_gallery))
    closer = count_negatives_ahead(
        pool, np.vstack([absent, anywhere]), _joined(trials, shared), same_vehicle, **how
    )
    own = len(trials.limit)
    return np.asarray(closer[own:][place] - closer[:own])


def _shared(
    trials: ProbeTrials, distinct: NDArray[np.int64], *, repeat: int
) -> tuple[ProbeTrials, NDArray[np.int64]]:
    """One trial for each distinct probe, true matches of all repeats; and where each match went (m,)."""
    probe = np.repeat(trials.probe, trials.matches)
    order = np.lexsort((trials.entry, trials.limit, probe))
    probe, entry = probe[order], trials.entry[order]
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = (probe[1:] != probe[:-1]) | (entry[1:] != entry[:-1])
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.cumsum(first) - 1
    matches = np.bincount(np.searchsorted(distinct, probe[first]), minlength=len(distinct))
    limit = trials.limit[order][first]
    return ProbeTrials(distinct, np.full(len(distinct), repeat), matches, entry[first], limit), place


def _joined(left: ProbeTrials, right: ProbeTrials) -> ProbeTrials:
    return ProbeTrials(
        *(
            np.concatenate([getattr(left, name), getattr(right, name)])
            for name in ("probe", "repeat", "matches", "entry", "limit")
        )
    )
