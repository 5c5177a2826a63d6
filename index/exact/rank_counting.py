"""The engine of CMC: count the negatives that rank ahead of each positive, without sorting the gallery.

A *trial* is one probe in one repeat of a protocol; its *targets* are the positives of the probe. Repeats
share their images, so each pair of blocks is multiplied once for all trials. A block that has both probes and
gallery images is multiplied once and counted in both directions. Products are bfloat16 where that is faster;
ambiguous entries are decided by float64 distances. `numba_kernels.ranks_ahead` is the rule of ties.
"""

import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from index.exact.bf16 import should_use_bf16
from index.exact.features import FeatureTable, ProbeTrials
from index.exact.numba_kernels import rank_order
from index.exact.products import Kernel, Normalization, choose_kernel, subsample
from index.exact.tiles import (
    Block,
    PositivePairs,
    PreparedBlock,
    ProbeBlock,
    ProbeBlocks,
    ScoreTile,
    count_tile,
    make_blocks,
)

_CACHE_BLOCKS = 48  # prepared blocks of probes: 600 MiB at most at 1024 rows of 1024 dimensions
_MAX_AMBIGUOUS_SHARE = 0.05  # of bfloat16 scores; above, resolving them costs more than bfloat16 saves
_MIN_MACS_FOR_THREADS = 1e9  # multiply-adds below which one thread is faster (about 10 ms of work)
_NORM_CHUNK = 1024
_ORIGIN_SAMPLE = 2048  # rows of probes and of the gallery, to fit the normalization
_MAX_COST_RATIO = 0.9  # use the shared count only below this share of the direct cost


def count_negatives_ahead_shared(
    table: FeatureTable,
    in_gallery: NDArray[np.bool_],
    trials: ProbeTrials,
    positive_pairs: tuple[NDArray[np.int64], NDArray[np.int64]],
    *,
    block_size: int = 1024,
    device: str = "cpu",
) -> NDArray[np.int64]:
    """`count_negatives_ahead` with equal results (m,), cheaper where repeats share most of their galleries.

    One count over the union of the galleries serves all repeats; from it each repeat subtracts the negatives
    that are not in its own gallery.
    """
    in_any = in_gallery.any(axis=0)
    not_in_repeat = in_any & ~in_gallery
    unique_probes = np.unique(trials.probe_row)
    probes_per_repeat = np.bincount(trials.repeat, minlength=len(in_gallery))
    direct_cost = int(probes_per_repeat @ in_gallery.sum(axis=1))
    shared_cost = len(unique_probes) * int(in_any.sum()) + int(probes_per_repeat @ not_in_repeat.sum(axis=1))
    if shared_cost > _MAX_COST_RATIO * direct_cost:
        return count_negatives_ahead(
            table, in_gallery, trials, positive_pairs, block_size=block_size, device=device
        )
    shared_trials, inverse = _merge_repeats(trials, unique_probes, repeat=len(in_gallery))
    num_ahead = count_negatives_ahead(
        table,
        np.vstack([not_in_repeat, in_any]),
        _concatenate(trials, shared_trials),
        positive_pairs,
        block_size=block_size,
        device=device,
    )
    num_targets = len(trials.target_row)
    return np.asarray(num_ahead[num_targets:][inverse] - num_ahead[:num_targets])


def count_negatives_ahead(
    table: FeatureTable,
    in_gallery: NDArray[np.bool_],
    trials: ProbeTrials,
    positive_pairs: tuple[NDArray[np.int64], NDArray[np.int64]],
    *,
    block_size: int = 1024,
    device: str = "cpu",
) -> NDArray[np.int64]:
    """For each target, the number of negatives in its repeat's gallery that rank ahead of it: (m,).

    in_gallery: bool (repeats, n), the gallery of each repeat. positive_pairs: probe rows and gallery rows of
    all pairs of one vehicle, which are not negatives.
    Memory: `_CACHE_BLOCKS` blocks of features, two tiles per thread, and 32 bytes per target.
    """
    is_probe = np.zeros(len(table), dtype=np.bool_)
    is_probe[trials.probe_row] = True
    is_gallery = np.asarray(in_gallery.any(axis=0))
    samples = (subsample(np.flatnonzero(used), _ORIGIN_SAMPLE) for used in (is_probe, is_gallery))
    normalization = Normalization.fit(*(table.gather(rows) for rows in samples))
    macs = float(is_probe.sum()) * float(is_gallery.sum()) * table.arrays[0].shape[1]
    kernel = choose_kernel(device, macs=macs)
    blocks = make_blocks(is_probe, is_gallery, _norms(table, normalization), block_size)
    probe_blocks = ProbeBlocks(blocks, trials, len(table))
    positives = PositivePairs(positive_pairs, blocks, len(table))
    use_bf16 = should_use_bf16(device, macs=macs)
    counter = _TileCounter(
        table, normalization, kernel, blocks, probe_blocks, in_gallery, positives, use_bf16=use_bf16
    )
    # Blocks of probes come first and stay in the cache; each block of the gallery alone is used in one run.
    tiles = [(i, j) for j in range(len(blocks)) for i in range(j + 1)]
    use_threads = kernel.device.type == "cpu" and macs >= _MIN_MACS_FOR_THREADS
    counter.count_all(tiles, threads=min(torch.get_num_threads(), len(tiles)) if use_threads else 1)
    return probe_blocks.gather_counts(len(trials.target_row))


class _TileCounter:
    """Multiplies pairs of blocks and counts their tiles."""

    def __init__(
        self,
        table: FeatureTable,
        normalization: Normalization,
        kernel: Kernel,
        blocks: list[Block],
        probe_blocks: ProbeBlocks,
        in_gallery: NDArray[np.bool_],
        positives: PositivePairs,
        *,
        use_bf16: bool,
    ) -> None:
        self.table, self.normalization, self.kernel = table, normalization, kernel
        self.blocks, self.probe_blocks = blocks, probe_blocks
        self.in_gallery, self.positives = in_gallery, positives
        self.use_bf16 = use_bf16
        self.block_cache: OrderedDict[int, PreparedBlock] = OrderedDict()
        self.cache_lock = threading.Lock()
        self.max_block = max((len(block.rows) for block in blocks), default=0)
        self.workspaces = threading.local()

    def count_all(self, tiles: list[tuple[int, int]], *, threads: int) -> None:
        """`count` each tile. Each thread gives torch one core: whole tiles share the work best."""
        if threads < 2:
            for tile in tiles:
                self.count(*tile)
            return
        torch_threads = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as executor:
                for _ in executor.map(self.count, *zip(*tiles, strict=True)):
                    pass
        finally:
            torch.set_num_threads(torch_threads)

    def count(self, i: int, j: int) -> None:
        """Score blocks i and j (i <= j) and count in each direction that has probes."""
        block_i, block_j = self.blocks[i], self.blocks[j]
        forward = self.probe_blocks.get(i) if block_j.has_gallery else None
        reverse = self.probe_blocks.get(j) if block_i.has_gallery and i != j else None
        active = [probe_block for probe_block in (forward, reverse) if probe_block]
        if not active:
            return
        use_bf16 = (
            self.use_bf16
            and sum(probe_block.ambiguous_share for probe_block in active) <= _MAX_AMBIGUOUS_SHARE
        )
        x, y = self._prepared(i), self._prepared(j)
        product = self._multiply(x, y, use_bf16=use_bf16)
        # Counting overwrites the positives with -inf, so the reverse direction needs its own copy.
        product_t = (
            self._workspace("transposed", product.T.shape, product.dtype).copy_(product.T)
            if reverse
            else None
        )
        if forward:
            tile = ScoreTile(x, y, product, self.normalization)
            self._count_direction(tile, forward, self.positives.for_tile(i, j))
        if reverse and product_t is not None:
            tile = ScoreTile(y, x, product_t, self.normalization)
            self._count_direction(tile, reverse, self.positives.for_tile(j, i))

    def _multiply(self, x: PreparedBlock, y: PreparedBlock, *, use_bf16: bool) -> torch.Tensor:
        shape = len(x.rows), len(y.rows)
        if use_bf16:
            out = self._workspace("product", shape, torch.bfloat16)
            return torch.mm(x.bf16.values, y.bf16.values.T, out=out)
        return self.kernel.product(x.probes, y.gallery, self._workspace("product", shape, torch.float32))

    def _count_direction(
        self,
        tile: ScoreTile,
        probe_block: ProbeBlock,
        positives: tuple[NDArray[np.int64], NDArray[np.int64]],
    ) -> None:
        """Count the gallery of a tile for its probes, without the positives."""
        product = tile.product
        product[*(torch.from_numpy(index).to(product.device) for index in positives)] = -torch.inf
        in_gallery = self.in_gallery[:, tile.gallery.rows]
        num_ambiguous = count_tile(tile, probe_block, in_gallery)
        if tile.is_bf16:
            num_scored = int(in_gallery.sum(axis=1)[probe_block.targets.repeat].sum())
            probe_block.record_ambiguous(scored=num_scored, ambiguous=num_ambiguous)

    def _prepared(self, number: int) -> PreparedBlock:
        with self.cache_lock:
            if number in self.block_cache:
                self.block_cache.move_to_end(number)
                return self.block_cache[number]
            # A block of the gallery alone is not used again after the next one has been requested.
            for old in [old for old in self.block_cache if not self.blocks[old].has_probes]:
                del self.block_cache[old]
            if len(self.block_cache) == _CACHE_BLOCKS:
                self.block_cache.popitem(last=False)
            rows = self.blocks[number].rows
            prepared = PreparedBlock(rows, self.table.gather(rows), self.normalization, self.kernel)
            self.block_cache[number] = prepared
            return prepared

    def _workspace(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Per-thread output buffer, reused: allocating one per tile costs page faults."""
        buffer = getattr(self.workspaces, name, None)
        if buffer is None:
            buffer = torch.empty(self.max_block**2, device=self.kernel.device)
            setattr(self.workspaces, name, buffer)
        return buffer.view(dtype)[: shape[0] * shape[1]].view(shape)


def _norms(table: FeatureTable, normalization: Normalization) -> NDArray[np.float32]:
    """Norms (n,) of all rows after the move to the origin, without scale, in float32."""
    norms = np.empty(len(table), dtype=np.float32)
    for start in range(0, len(table), _NORM_CHUNK):
        rows = np.arange(start, min(start + _NORM_CHUNK, len(table)))
        moved = torch.from_numpy(table.gather(rows) - normalization.origin)
        norms[rows] = torch.linalg.vector_norm(moved, dim=1).numpy()
    return norms


def _merge_repeats(
    trials: ProbeTrials, unique_probes: NDArray[np.int64], *, repeat: int
) -> tuple[ProbeTrials, NDArray[np.int64]]:
    """One trial per distinct probe with the targets of all its repeats, and the inverse index (m,)."""
    probe_row = np.repeat(trials.probe_row, trials.num_targets)
    order = rank_order(trials.target_sq_dist, trials.target_row, probe_row)
    probe_row, target_row = probe_row[order], trials.target_row[order]
    is_first = np.ones(len(order), dtype=np.bool_)
    is_first[1:] = (probe_row[1:] != probe_row[:-1]) | (target_row[1:] != target_row[:-1])
    inverse = np.empty(len(order), dtype=np.int64)
    inverse[order] = np.cumsum(is_first) - 1
    num_targets = np.bincount(
        np.searchsorted(unique_probes, probe_row[is_first]), minlength=len(unique_probes)
    )
    merged = ProbeTrials(
        probe_row=unique_probes,
        repeat=np.full(len(unique_probes), repeat),
        num_targets=num_targets,
        target_row=target_row[is_first],
        target_sq_dist=trials.target_sq_dist[order][is_first],
    )
    return merged, inverse


def _concatenate(left: ProbeTrials, right: ProbeTrials) -> ProbeTrials:
    return ProbeTrials(
        probe_row=np.concatenate([left.probe_row, right.probe_row]),
        repeat=np.concatenate([left.repeat, right.repeat]),
        num_targets=np.concatenate([left.num_targets, right.num_targets]),
        target_row=np.concatenate([left.target_row, right.target_row]),
        target_sq_dist=np.concatenate([left.target_sq_dist, right.target_sq_dist]),
    )
