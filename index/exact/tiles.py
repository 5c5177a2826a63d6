"""Which rows meet in a block, and what is counted there: the trials of a block of probes."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from index.exact.features import ProbeTrials
from index.exact.numba_kernels import (
    Bounds,
    GalleryColumns,
    Targets,
    count_closer,
    count_closer_rounded,
    pair_sq_distances,
    resolve_ambiguous,
    score_intervals,
)
from index.exact.products import (
    BF16_UNIT_ROUNDOFF,
    BF16Rows,
    Kernel,
    Normalization,
    NormalizedRows,
    bf16_error_bound,
    error_bound,
)

_MIN_SCORED = 1 << 16  # scores, before it is said what share of them is near


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of the pool that are scored together; they are probes, gallery, or both."""

    rows: NDArray[np.int64]  # (n,)
    probes: bool
    gallery: bool


def blocks_of(
    is_probe: NDArray[np.bool_],
    is_gallery: NDArray[np.bool_],
    lengths: NDArray[np.float32],
    block: int,
) -> list[Block]:
    """Rows of one role and of about equal length side by side, blocks of probes first.

    Of equal length because a block's bound is that of its longest row.
    """
    blocks = []
    for probes, gallery in ((True, False), (True, True), (False, True)):
        rows = np.flatnonzero((is_probe == probes) & (is_gallery == gallery))
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        blocks += [Block(rows[at : at + block], probes, gallery) for at in range(0, len(rows), block)]
    return blocks


class ProbeBlock:
    """The trials of one block of probes, by repeat, and what was counted for them by any thread."""

    def __init__(self, sought: Targets, flat: NDArray[np.int64]) -> None:
        self.sought = sought
        self.flat = flat  # (v, t) place in the flat list, -1 for none
        self.closer = np.zeros(flat.shape, dtype=np.int64)
        self._scored = self._near = 0
        self._lock = threading.Lock()

    def add(self, counted: NDArray[np.int64]) -> None:
        """Take in what one block of the gallery holds (v, t)."""
        with self._lock:
            self.closer += counted

    def note(self, *, scored: int, near: int) -> None:
        """Remember how many of so many scores by bfloat16 were too close to call."""
        with self._lock:
            self._scored, self._near = self._scored + scored, self._near + near

    @property
    def near_share(self) -> float:
        """About what share of the scores by bfloat16 was too close to call so far; 0 at first."""
        return self._near / max(self._scored, _MIN_SCORED)


class ProbeBlocks:
    """All panels, by block."""

    def __init__(self, blocks: list[Block], trials: ProbeTrials, rows: int) -> None:
        block_of, place = block_positions(blocks, rows)
        start = np.cumsum(trials.matches) - trials.matches
        block = block_of[trials.probe]
        order = np.lexsort((place[trials.probe], trials.repeat, block))
        order = order[trials.matches[order] > 0]
        edges = np.searchsorted(block[order], np.arange(len(blocks) + 1))
        self._panels: dict[int, ProbeBlock] = {}
        for number in np.flatnonzero(np.diff(edges)).tolist():
            some = order[edges[number] : edges[number + 1]]
            matches = trials.matches[some]
            nth = np.arange(int(matches.max()))
            has = nth < matches[:, None]
            flat = np.where(has, start[some][:, None] + nth, -1)
            sought = Targets(
                at=place[trials.probe[some]],
                repeat=trials.repeat[some],
                matches=matches,
                limit=np.where(has, trials.limit[flat], np.inf),
                match=np.where(has, trials.entry[flat], -1),
            )
            self._panels[number] = ProbeBlock(sought, flat)

    def of(self, block: int) -> ProbeBlock | None:
        """The block's panel, if any of its probes has a match."""
        return self._panels.get(block)

    def collect(self, matches: int) -> NDArray[np.int64]:
        """What was counted for each true match of the flat list (m,)."""
        closer = np.zeros(matches, dtype=np.int64)
        for panel in self._panels.values():
            has = panel.flat >= 0
            closer[panel.flat[has]] = panel.closer[has]
        return closer


class PositivePairs:
    """Pairs of one vehicle, looked up by their two blocks."""

    def __init__(
        self, pairs: tuple[NDArray[np.int64], NDArray[np.int64]], blocks: list[Block], rows: int
    ) -> None:
        block_of, place = block_positions(blocks, rows)
        key = block_of[pairs[0]] * len(blocks) + block_of[pairs[1]]
        order = np.argsort(key, kind="stable")
        self._edges = np.searchsorted(key[order], np.arange(len(blocks) ** 2 + 1))
        self._places = place[pairs[0]][order], place[pairs[1]][order]
        self._blocks = len(blocks)

    def between(self, probes: int, gallery: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places in the block of probes and in the gallery's of the pairs between these two."""
        number = probes * self._blocks + gallery
        part = slice(self._edges[number], self._edges[number + 1])
        return self._places[0][part], self._places[1][part]


def block_positions(blocks: list[Block], rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each of the pool's rows its block, -1 for none, and its place in there."""
    block_of, place = np.full(rows, -1), np.zeros(rows, dtype=np.int64)
    for number, block in enumerate(blocks):
        block_of[block.rows], place[block.rows] = number, np.arange(len(block.rows))
    return block_of, place


class PreparedBlock:
    """Rows of the pool in the frame; the form for either product is made when it is first asked for."""

    def __init__(
        self, rows: NDArray[np.int64], features: NDArray[np.float32], frame: Normalization, kernel: Kernel
    ) -> None:
        self.rows = rows  # (n,) in the pool
        self.features = features  # (n, d) as they were given
        self._placed: NormalizedRows | None = frame.place(features)  # until it has a form
        self.squares = self._placed.squares  # (n,)
        self.halves = (self.squares / 2).astype(np.float32)
        self._frame, self._kernel = frame, kernel
        self._forms: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def probes(self) -> Any:
        """The rows as the kernel takes probes."""
        return self._form("probes", self._kernel.probes)

    @property
    def gallery(self) -> Any:
        """The rows as the kernel takes the gallery."""
        return self._form("gallery", self._kernel.gallery)

    @property
    def rounded(self) -> BF16Rows:
        """The rows rounded to bfloat16."""
        form: BF16Rows = self._form("rounded", BF16Rows.of)
        return form

    def _form(self, name: str, make: Callable[[Any], Any]) -> Any:
        with self._lock:
            if name not in self._forms:
                self._forms[name] = make(self._placed or self._frame.place(self.features))
                self._placed = None
            return self._forms[name]


class ScoreTile:
    """Two blocks and their product (p, n) of float32 or bfloat16, on any device; own pairs are -inf."""

    def __init__(
        self, probes: PreparedBlock, gallery: PreparedBlock, product: torch.Tensor, frame: Normalization
    ) -> None:
        self.probes, self.gallery, self.product = probes, gallery, product
        self.rough = product.dtype == torch.bfloat16
        dimension = probes.features.shape[1]
        if self.rough:
            inner = bf16_error_bound(probes.rounded, gallery.rounded, dimension)
        else:
            inner = error_bound(probes.squares, gallery.squares, dimension)
        halves = gallery.squares / 2
        self.bounds = Bounds(
            squares=probes.squares,
            inner=inner,
            relative=BF16_UNIT_ROUNDOFF if self.rough else 0.0,
            scale=float(frame.scale) ** 2,
            least=float(halves.min()),
            most=float(halves.max()),
        )


def count_tile(meeting: ScoreTile, panel: ProbeBlock, there: NDArray[np.bool_]) -> int:
    """Add to `panel.closer` the entries that are `there` (repeats, n) and precede each match of a trial.

    Returns how many were too close to call by their score and were decided by their float64 distance.
    """
    if meeting.product.device.type == "cpu":
        return _count_cpu(meeting, panel, there)
    return _count_torch(meeting, panel, there)


def _count_cpu(meeting: ScoreTile, panel: ProbeBlock, there: NDArray[np.bool_]) -> int:
    """On the processor: by compiled loops."""
    probes, gallery, product = meeting.probes, meeting.gallery, meeting.product
    entries = GalleryColumns(np.nonzero(there)[1].copy(), np.cumsum([0, *there.sum(axis=1)]))
    values = product.view(torch.uint16).numpy() if meeting.rough else product.numpy()
    count = count_closer_rounded if meeting.rough else count_closer
    counted = np.zeros_like(panel.closer)
    near = count(
        values,
        gallery.halves,
        entries,
        panel.sought,
        meeting.bounds,
        probes.features,
        gallery.features,
        gallery.rows,
        counted,
    )
    panel.add(counted)
    return near


def _count_torch(meeting: ScoreTile, panel: ProbeBlock, there: NDArray[np.bool_]) -> int:
    """On another device, repeat by repeat; what is too close to call comes back to the processor."""
    near, counted = 0, np.zeros_like(panel.closer)
    for repeat in np.unique(panel.sought.repeat):
        first, end = np.searchsorted(panel.sought.repeat, [repeat, repeat + 1])
        some = slice(int(first), int(end))
        near += _count_torch_repeat(
            meeting, panel.sought.part(some), np.flatnonzero(there[repeat]), counted[some]
        )
    panel.add(counted)
    return near


def _count_torch_repeat(
    meeting: ScoreTile, sought: Targets, columns: NDArray[np.int64], closer: NDArray[np.int64]
) -> int:
    device, gallery = meeting.product.device, meeting.gallery
    low, high = score_intervals(sought, meeting.bounds)
    at, those, halves, lows, highs = (
        torch.from_numpy(some).to(device) for some in (sought.at, columns, gallery.halves[columns], low, high)
    )
    scores = halves - meeting.product.index_select(0, at).index_select(1, those)
    counts, row, place = _count_by_searchsorted(scores, lows, highs)
    closer += counts.cpu().numpy()
    score, trial = scores[row, place].cpu().numpy(), row.cpu().numpy()
    column = columns[place.cpu().numpy()]
    squared = pair_sq_distances(meeting.probes.features, gallery.features, sought.at[trial], column)
    resolve_ambiguous(trial, score, squared, gallery.rows[column], sought, low, high, closer)
    return len(trial)


def _count_by_searchsorted(
    scores: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How many scores (p, n) of a row lie under each `low` (p, t); row and column of those near a limit."""
    reached = torch.searchsorted(low, scores, right=True)  # so many `low` are not above the score
    counts = torch.zeros(len(low), low.shape[1] + 1, dtype=torch.int64, device=low.device)
    counts.scatter_add_(1, reached, torch.ones_like(reached))
    last = high.gather(1, (reached - 1).clamp_min(0))
    row, column = ((reached > 0) & (scores <= last)).nonzero(as_tuple=True)
    return counts.cumsum(1)[:, :-1], row, column
