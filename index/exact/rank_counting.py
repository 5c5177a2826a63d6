"""The engine of CMC: count the negatives that rank ahead of each positive, without sorting the gallery.

A *trial* is one probe in one repeat of a protocol; its *targets* are the positives of the probe. Repeats
share their images, so a block of probes is multiplied once with each block of the gallery for all trials. A
score that cannot decide is replaced by the float64 distance. `numba_kernels.ranks_ahead` is the rule of ties.
"""

import threading

import numpy as np
from numpy.typing import NDArray

from index.exact.features import FeatureTable, ProbeTrials
from index.exact.numba_kernels import Targets, count_ahead
from index.exact.products import Screen, choose_screen, for_slices

_PROBE_BLOCK = 4096  # probes that one reading of the gallery serves
_MAX_AMBIGUOUS_SHARE = 0.05  # of bfloat16 scores; above, resolving them costs more than bfloat16 saves


def count_negatives_ahead(
    table: FeatureTable,
    in_gallery: NDArray[np.bool_],
    trials: ProbeTrials,
    positive_pairs: tuple[NDArray[np.int64], NDArray[np.int64]],
    *,
    block_size: int = 2048,
    device: str = "cpu",
) -> NDArray[np.int64]:
    """For each target, the number of negatives in its repeat's gallery that rank ahead of it: (m,).

    in_gallery: bool (repeats, n), the gallery of each repeat. positive_pairs: probe rows and gallery rows of
    all pairs of one vehicle, which are not negatives, by probe row.
    Memory: `_PROBE_BLOCK` probes, a block of the gallery, and a tile of scores per thread.
    """
    num_ahead = np.zeros(len(trials.target_row), dtype=np.int64)
    probe_rows = np.unique(trials.probe_row[trials.num_targets > 0])
    gallery_rows = np.flatnonzero(in_gallery.any(axis=0))
    for start in range(0, len(probe_rows), _PROBE_BLOCK):
        block = _ProbeBlock(table, probe_rows[start : start + _PROBE_BLOCK], trials, positive_pairs)
        sample = table.gather(gallery_rows[:: -(-len(gallery_rows) // block_size)])
        use_bf16, screen = True, choose_screen(block.features, sample, device=device, few_probes=0)
        for first in range(0, len(gallery_rows), block_size):
            rows = gallery_rows[first : first + block_size]
            if use_bf16 and block.ambiguous_share > _MAX_AMBIGUOUS_SHARE:
                use_bf16 = False
                screen = choose_screen(block.features, sample, device=device, few_probes=0, use_bf16=False)
            block.count(screen, rows, table.gather(rows), in_gallery[:, rows])
        num_ahead[block.target_index] = block.num_ahead
    return num_ahead


class _ProbeBlock:
    """Some probes with their trials, targets and counts."""

    def __init__(
        self,
        table: FeatureTable,
        rows: NDArray[np.int64],
        trials: ProbeTrials,
        positive_pairs: tuple[NDArray[np.int64], NDArray[np.int64]],
    ) -> None:
        self.features = np.ascontiguousarray(table.gather(rows))
        is_used = np.isin(trials.probe_row, rows) & (trials.num_targets > 0)
        used = np.flatnonzero(is_used)
        used = used[np.argsort(trials.probe_row[used], kind="stable")]
        self._probe = np.searchsorted(rows, trials.probe_row[used])  # (v,) ascending
        self._repeat, counts = trials.repeat[used], trials.num_targets[used]
        self._start = np.cumsum([0, *counts])
        first = np.cumsum(trials.num_targets) - trials.num_targets
        self.target_index = np.repeat(first[used] - self._start[:-1], counts) + np.arange(self._start[-1])
        self._sq_dist = trials.target_sq_dist[self.target_index]
        self._row = trials.target_row[self.target_index]
        self._target_probe = np.repeat(self._probe, counts)
        self.num_ahead = np.zeros(len(self.target_index), dtype=np.int64)
        of_probes = slice(*np.searchsorted(positive_pairs[0], [rows[0], rows[-1] + 1]))
        self._pair_rows = positive_pairs[1][of_probes]
        self._pair_probes = np.searchsorted(rows, positive_pairs[0][of_probes])
        is_probe = rows[np.minimum(self._pair_probes, len(rows) - 1)] == positive_pairs[0][of_probes]
        self._pair_rows, self._pair_probes = self._pair_rows[is_probe], self._pair_probes[is_probe]
        self._num_scored = self._num_ambiguous = 0
        self._lock = threading.Lock()

    @property
    def ambiguous_share(self) -> float:
        """Share of the scores so far that could not decide; 0 at first."""
        return self._num_ambiguous / max(self._num_scored, 1 << 16)

    def count(
        self,
        screen: Screen,
        rows: NDArray[np.int64],
        features: NDArray[np.float32],
        in_gallery: NDArray[np.bool_],
    ) -> None:
        """Add the gallery rows (n,) with features (n, d), which are in the galleries (repeats, n)."""
        screen.load(features)
        columns = np.nonzero(in_gallery)[1].copy()
        column_start = np.cumsum([0, *in_gallery.sum(axis=1)])
        low, high = screen.interval(self._sq_dist, self._target_probe)
        position = np.searchsorted(rows, self._pair_rows)
        is_here = rows[np.minimum(position, len(rows) - 1)] == self._pair_rows

        def count_slice(part: slice) -> None:
            product = screen.product(part)
            pairs = slice(*np.searchsorted(self._pair_probes, [part.start, part.stop]))
            pair_probes, pair_columns = (
                self._pair_probes[pairs][is_here[pairs]],
                position[pairs][is_here[pairs]],
            )
            product[pair_probes - part.start, pair_columns] = screen.minus_infinity
            used = slice(*np.searchsorted(self._probe, [part.start, part.stop]))
            of_targets = slice(self._start[used.start], self._start[used.stop])
            targets = Targets(
                probe=self._probe[used] - part.start,
                repeat=self._repeat[used],
                start=self._start[used.start : used.stop + 1] - of_targets.start,
                low=low[of_targets],
                high=high[of_targets],
                sq_dist=self._sq_dist[of_targets],
                row=self._row[of_targets],
            )
            counts = self.num_ahead[of_targets]
            num_ambiguous = count_ahead(
                product,
                screen.bias,
                screen.slack,
                columns,
                column_start,
                targets,
                self.features[part],
                features,
                rows,
                counts,
            )
            with self._lock:
                self._num_ambiguous += num_ambiguous
                self._num_scored += int(np.diff(column_start)[targets.repeat].sum())

        for_slices(count_slice, len(self.features), macs=float(self.features.size) * len(rows))
