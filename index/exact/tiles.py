"""Blocks of rows, the tile of scores between two blocks, and counting within one tile."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from index.exact.bf16 import BF16_UNIT_ROUNDOFF, BF16Rows, bf16_error_bound
from index.exact.features import ProbeTrials
from index.exact.numba_kernels import (
    Bounds,
    GalleryColumns,
    Targets,
    count_ahead,
    count_ahead_bf16,
    pair_sq_distances,
    resolve_ambiguous,
    score_intervals,
)
from index.exact.products import Kernel, Normalization, NormalizedRows, error_bound

_MIN_SCORED = 1 << 16  # scores, before the ambiguous share is trusted


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of the feature table that are scored together: probes, gallery images, or both."""

    rows: NDArray[np.int64]  # (n,)
    has_probes: bool
    has_gallery: bool


def make_blocks(
    is_probe: NDArray[np.bool_],
    is_gallery: NDArray[np.bool_],
    norms: NDArray[np.float32],
    block_size: int,
) -> list[Block]:
    """Cut the rows (n,) into blocks of one role and similar norms, blocks with probes first.

    Similar norms keep error bounds tight: the bound of a block is that of its longest row.
    """
    blocks = []
    for has_probes, has_gallery in ((True, False), (True, True), (False, True)):
        rows = np.flatnonzero((is_probe == has_probes) & (is_gallery == has_gallery))
        rows = rows[np.argsort(norms[rows], kind="stable")]
        blocks += [
            Block(rows[start : start + block_size], has_probes, has_gallery)
            for start in range(0, len(rows), block_size)
        ]
    return blocks


def block_positions(blocks: list[Block], table_rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each row of the feature table, its block (-1 for none) and its position in that block."""
    block_of, position = np.full(table_rows, -1), np.zeros(table_rows, dtype=np.int64)
    for number, block in enumerate(blocks):
        block_of[block.rows], position[block.rows] = number, np.arange(len(block.rows))
    return block_of, position


class ProbeBlock:
    """The trials of one block's probes, by repeat, and the counts of all threads."""

    def __init__(self, targets: Targets, flat_index: NDArray[np.int64]) -> None:
        self.targets = targets
        self.flat_index = flat_index  # (v, t) index of the target in ProbeTrials, -1 for padding
        self.num_ahead = np.zeros(flat_index.shape, dtype=np.int64)
        self._num_scored = self._num_ambiguous = 0
        self._lock = threading.Lock()

    def add_counts(self, num_ahead: NDArray[np.int64]) -> None:
        """Add the counts (v, t) of one gallery block."""
        with self._lock:
            self.num_ahead += num_ahead

    def record_ambiguous(self, *, scored: int, ambiguous: int) -> None:
        """Record how many of the bfloat16 scores of a tile were ambiguous."""
        with self._lock:
            self._num_scored += scored
            self._num_ambiguous += ambiguous

    @property
    def ambiguous_share(self) -> float:
        """Estimated share of bfloat16 scores that are ambiguous; 0 at first."""
        return self._num_ambiguous / max(self._num_scored, _MIN_SCORED)


class ProbeBlocks:
    """The trials of all blocks with probes, by the number of the block."""

    def __init__(self, blocks: list[Block], trials: ProbeTrials, table_rows: int) -> None:
        block_of, position = block_positions(blocks, table_rows)
        start = np.cumsum(trials.num_targets) - trials.num_targets
        block = block_of[trials.probe_row]
        order = np.lexsort((position[trials.probe_row], trials.repeat, block))
        order = order[trials.num_targets[order] > 0]
        edges = np.searchsorted(block[order], np.arange(len(blocks) + 1))
        self._by_block: dict[int, ProbeBlock] = {}
        for number in np.flatnonzero(np.diff(edges)).tolist():
            part = order[edges[number] : edges[number + 1]]  # (v,) trials of this block
            num_targets = trials.num_targets[part]
            column = np.arange(int(num_targets.max()))
            is_target = column < num_targets[:, None]  # (v, t)
            flat_index = np.where(is_target, start[part][:, None] + column, -1)
            targets = Targets(
                probe_row=position[trials.probe_row[part]],
                repeat=trials.repeat[part],
                num_targets=num_targets,
                sq_dist=np.where(is_target, trials.target_sq_dist[flat_index], np.inf),
                target_row=np.where(is_target, trials.target_row[flat_index], -1),
            )
            self._by_block[number] = ProbeBlock(targets, flat_index)

    def get(self, block: int) -> ProbeBlock | None:
        """Return the trials of a block; None if no probe of the block has a target."""
        return self._by_block.get(block)

    def gather_counts(self, total_targets: int) -> NDArray[np.int64]:
        """Return the count of each target in the order of ProbeTrials: (m,)."""
        num_ahead = np.zeros(total_targets, dtype=np.int64)
        for probe_block in self._by_block.values():
            is_target = probe_block.flat_index >= 0
            num_ahead[probe_block.flat_index[is_target]] = probe_block.num_ahead[is_target]
        return num_ahead


class PositivePairs:
    """Pairs of images of one vehicle, looked up by tile."""

    def __init__(
        self, pairs: tuple[NDArray[np.int64], NDArray[np.int64]], blocks: list[Block], table_rows: int
    ) -> None:
        block_of, position = block_positions(blocks, table_rows)
        key = block_of[pairs[0]] * len(blocks) + block_of[pairs[1]]
        order = np.argsort(key, kind="stable")
        self._edges = np.searchsorted(key[order], np.arange(len(blocks) ** 2 + 1))
        self._positions = position[pairs[0]][order], position[pairs[1]][order]
        self._num_blocks = len(blocks)

    def for_tile(self, probe_block: int, gallery_block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return row and column indices of the positives of a tile."""
        key = probe_block * self._num_blocks + gallery_block
        part = slice(self._edges[key], self._edges[key + 1])
        return self._positions[0][part], self._positions[1][part]


class PreparedBlock:
    """Normalized rows of a block; the operands of each product are made on first use and cached."""

    def __init__(
        self,
        rows: NDArray[np.int64],
        features: NDArray[np.float32],
        normalization: Normalization,
        kernel: Kernel,
    ) -> None:
        self.rows = rows  # (n,) in the feature table
        self.features = features  # (n, d) not normalized
        # Kept until the first operand is made: most blocks need one kind only.
        self._normalized: NormalizedRows | None = normalization.apply(features)
        self.sq_norms = self._normalized.sq_norms  # (n,)
        self.half_sq_norms = (self.sq_norms / 2).astype(np.float32)
        self._normalization, self._kernel = normalization, kernel
        self._cache: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def probes(self) -> Any:
        """The rows as the kernel's probes."""
        return self._cached("probes", self._kernel.probes)

    @property
    def gallery(self) -> Any:
        """The rows as the kernel's gallery."""
        return self._cached("gallery", self._kernel.gallery)

    @property
    def bf16(self) -> BF16Rows:
        """The rows rounded to bfloat16."""
        rows: BF16Rows = self._cached("bf16", BF16Rows.of)
        return rows

    def _cached(self, name: str, make: Callable[[NormalizedRows], Any]) -> Any:
        with self._lock:
            if name not in self._cache:
                self._cache[name] = make(self._normalized or self._normalization.apply(self.features))
                self._normalized = None
            return self._cache[name]


class ScoreTile:
    """Two blocks and their product (p, n), float32 or bfloat16, on any device; positives are -inf."""

    def __init__(
        self,
        probes: PreparedBlock,
        gallery: PreparedBlock,
        product: torch.Tensor,
        normalization: Normalization,
    ) -> None:
        self.probes, self.gallery, self.product = probes, gallery, product
        self.is_bf16 = product.dtype == torch.bfloat16
        dimension = probes.features.shape[1]
        if self.is_bf16:
            abs_error = bf16_error_bound(probes.bf16, gallery.bf16, dimension)
        else:
            abs_error = error_bound(probes.sq_norms, gallery.sq_norms, dimension)
        half_sq_norms = gallery.sq_norms / 2
        self.bounds = Bounds(
            sq_norms=probes.sq_norms,
            abs_error=abs_error,
            rel_error=BF16_UNIT_ROUNDOFF if self.is_bf16 else 0.0,
            scale=float(normalization.scale) ** 2,
            min_half_sq_norm=float(half_sq_norms.min()),
            max_half_sq_norm=float(half_sq_norms.max()),
        )


def count_tile(tile: ScoreTile, probe_block: ProbeBlock, in_gallery: NDArray[np.bool_]) -> int:
    """Count, in one score tile, how many gallery images rank ahead of each target.

    in_gallery: bool (repeats, n) for the columns of the tile. Adds to `probe_block.num_ahead`. Returns how
    many entries were ambiguous by their score and were decided by their float64 distance.
    """
    if tile.product.device.type == "cpu":
        return count_tile_cpu(tile, probe_block, in_gallery)
    return count_tile_torch(tile, probe_block, in_gallery)


def count_tile_cpu(tile: ScoreTile, probe_block: ProbeBlock, in_gallery: NDArray[np.bool_]) -> int:
    """`count_tile` by compiled loops."""
    gallery_columns = GalleryColumns(
        np.nonzero(in_gallery)[1].copy(), np.cumsum([0, *in_gallery.sum(axis=1)])
    )
    product = tile.product.view(torch.uint16).numpy() if tile.is_bf16 else tile.product.numpy()
    count = count_ahead_bf16 if tile.is_bf16 else count_ahead
    num_ahead = np.zeros_like(probe_block.num_ahead)
    num_ambiguous = count(
        product,
        tile.gallery.half_sq_norms,
        gallery_columns,
        probe_block.targets,
        tile.bounds,
        tile.probes.features,
        tile.gallery.features,
        tile.gallery.rows,
        num_ahead,
    )
    probe_block.add_counts(num_ahead)
    return num_ambiguous


def count_tile_torch(tile: ScoreTile, probe_block: ProbeBlock, in_gallery: NDArray[np.bool_]) -> int:
    """`count_tile` by torch operations on the device of the product, one repeat at a time.

    Ambiguous pairs return to the CPU.
    """
    num_ambiguous, num_ahead = 0, np.zeros_like(probe_block.num_ahead)
    targets = probe_block.targets
    for repeat in np.unique(targets.repeat):
        first, end = np.searchsorted(targets.repeat, [repeat, repeat + 1])
        part = slice(int(first), int(end))
        columns = np.flatnonzero(in_gallery[repeat])
        num_ambiguous += _count_torch_repeat(tile, targets.part(part), columns, num_ahead[part])
    probe_block.add_counts(num_ahead)
    return num_ambiguous


def _count_torch_repeat(
    tile: ScoreTile, targets: Targets, columns: NDArray[np.int64], num_ahead: NDArray[np.int64]
) -> int:
    device, gallery = tile.product.device, tile.gallery
    low, high = score_intervals(targets, tile.bounds)  # (v, t)
    probe_row, column_index, half_sq_norms, low_d, high_d = (
        torch.from_numpy(array).to(device)
        for array in (targets.probe_row, columns, gallery.half_sq_norms[columns], low, high)
    )
    # (v, n): score = |y|²/2 - x·y
    scores = half_sq_norms - tile.product.index_select(0, probe_row).index_select(1, column_index)
    counts, trial, column = _count_by_searchsorted(scores, low_d, high_d)
    num_ahead += counts.cpu().numpy()
    ambiguous_scores = scores[trial, column].cpu().numpy()
    trial_index, gallery_index = trial.cpu().numpy(), columns[column.cpu().numpy()]
    sq_dist = pair_sq_distances(
        tile.probes.features, gallery.features, targets.probe_row[trial_index], gallery_index
    )
    resolve_ambiguous(
        trial_index, ambiguous_scores, sq_dist, gallery.rows[gallery_index], targets, low, high, num_ahead
    )
    return len(trial_index)


def _count_by_searchsorted(
    scores: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Counts (v, t) of scores (v, n) below each `low`; row and column of each score in an interval."""
    num_reached = torch.searchsorted(low, scores, right=True)  # (v, n) number of `low` <= score
    counts = torch.zeros(len(low), low.shape[1] + 1, dtype=torch.int64, device=low.device)
    counts.scatter_add_(1, num_reached, torch.ones_like(num_reached))
    last_high = high.gather(1, (num_reached - 1).clamp_min(0))
    row, column = ((num_reached > 0) & (scores <= last_high)).nonzero(as_tuple=True)
    return counts.cumsum(1)[:, :-1], row, column
