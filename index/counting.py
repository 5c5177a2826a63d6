"""The engine of CMC: how many other vehicles' pictures precede each true match, counted and never sorted.

A *trial* is one probe in one repeat of a protocol. Repeats share their pictures, so every pair of blocks is
scored once for all trials, and where pictures are probes and gallery alike one product serves both ways.
Entries too close to call in float32 are decided in float64.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from index.distances import (
    PAIRS_AT_ONCE,
    Frame,
    Kernel,
    choose_kernel,
    error_bound,
    exact_squared,
    outward,
)

_SORT_FROM = 24  # true matches of a probe, from which one sort of a row is cheaper than a comparison for each
_KEPT_BLOCKS = 48  # blocks kept ready for products: 200 MiB at 1024 rows of 1024 dimensions
_RECHECKED_ROWS = 512  # rows of scores that are searched at a time for entries too close to call


@dataclass(frozen=True, slots=True)
class Pool:
    """All pictures of an evaluation as one numbered list of rows, in one or several arrays or memory maps."""

    parts: tuple[NDArray[np.float32], ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows (n,) as float32 (n, d); a run of rows in one part is a view."""
        starts = np.cumsum([0, *(len(part) for part in self.parts)])
        owner = np.searchsorted(starts, rows, side="right") - 1
        if not len(rows) or owner.min() == owner.max():
            number = int(owner[0]) if len(rows) else 0
            within = rows - starts[number]
            if len(rows) and within[-1] - within[0] == len(rows) - 1 and (np.diff(within) == 1).all():
                return self.parts[number][within[0] : within[-1] + 1]
            return np.asarray(self.parts[number][within])
        taken = np.empty((len(rows), self.parts[0].shape[1]), dtype=np.float32)
        for number, part in enumerate(self.parts):
            taken[owner == number] = part[rows[owner == number] - starts[number]]
        return taken

    def squared(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
        """Exact squared distances between the rows of pairs, two arrays (m,)."""
        squared = np.empty(len(left))
        for start in range(0, len(left), PAIRS_AT_ONCE):
            part = slice(start, start + PAIRS_AT_ONCE)
            squared[part] = exact_squared(self.take(left[part]), self.take(right[part]))
        return squared


@dataclass(frozen=True, slots=True)
class Trials:
    """Trials (v,), and flat over their true matches (m,), by trial and nearest first."""

    probe: NDArray[np.int64]  # (v,) row in the pool
    repeat: NDArray[np.int64]  # (v,)
    matches: NDArray[np.int64]  # (v,) how many true matches
    entry: NDArray[np.int64]  # (m,) row of each
    limit: NDArray[np.float64]  # (m,) its exact squared distance


def others_before(
    pool: Pool,
    in_gallery: NDArray[np.bool_],
    trials: Trials,
    same_vehicle: tuple[NDArray[np.int64], NDArray[np.int64]],
    *,
    block: int = 1024,
    device: str = "cpu",
) -> NDArray[np.int64]:
    """For each true match, how many pictures of other vehicles precede it in its repeat's gallery: (m,).

    in_gallery: bool (repeats, n), who is in each repeat's gallery. same_vehicle: probe rows and gallery rows
    of every pair that must not count as others. Equal distances stand by ascending row.
    Memory: `_KEPT_BLOCKS` blocks of features, one block of scores, and 32 bytes a true match.
    """
    is_probe = np.zeros(len(pool), dtype=np.bool_)
    is_probe[trials.probe] = True
    is_gallery = np.asarray(in_gallery.any(axis=0))
    used = [np.flatnonzero(is_probe), np.flatnonzero(is_gallery)]
    frame = Frame.around(*(pool.take(_strided(rows)) for rows in used))
    work = float(is_probe.sum()) * float(is_gallery.sum()) * pool.parts[0].shape[1]
    kernel = choose_kernel(device, work=work)
    blocks = _blocks(pool, is_probe, is_gallery, trials, block)
    panels = _Panels(blocks, trials, in_gallery.shape[0], len(pool))
    counter = _Counter(pool, frame, kernel, blocks, panels, in_gallery, _OwnPairs(same_vehicle, blocks, pool))
    # Blocks of probes come first, so they stay ready while each block of the gallery passes by once.
    for second in range(len(blocks)):
        for first in range(second + 1):
            counter.count(first, second)
    return panels.collect(len(trials.limit))


@dataclass(frozen=True, slots=True)
class _Block:
    rows: NDArray[np.int64]
    probes: bool
    gallery: bool


def _blocks(
    pool: Pool, is_probe: NDArray[np.bool_], is_gallery: NDArray[np.bool_], trials: Trials, block: int
) -> list[_Block]:
    """Rows of one role side by side; probes of about equally many true matches, so that few wait for many."""
    many = np.zeros(len(pool), dtype=np.int64)
    many[trials.probe] = trials.matches
    blocks = []
    for probes, gallery in ((True, False), (True, True), (False, True)):
        rows = np.flatnonzero((is_probe == probes) & (is_gallery == gallery))
        if probes:
            rows = rows[np.argsort(-many[rows], kind="stable")]
        pieces = [rows[start : start + block] for start in range(0, len(rows), block)]
        blocks += [_Block(piece, probes, gallery) for piece in pieces]
    return blocks


@dataclass(slots=True)
class _Panel:
    """The trials of one block of probes in one repeat, by descending number of true matches."""

    at: NDArray[np.int64]  # (p,) place of the probe in its block
    active: list[int]  # the first active[k] trials have a true match number k
    limit: NDArray[np.float64]  # (p, t) exact squared distances; infinite where there is no such match
    entry: NDArray[np.int64]  # (p, t) gallery rows
    flat: NDArray[np.int64]  # (p, t) place in the flat list, -1 for none
    closer: NDArray[np.int64]  # (p, t) what was counted


class _Panels:
    """All panels, by block and repeat."""

    def __init__(self, blocks: list[_Block], trials: Trials, repeats: int, rows: int) -> None:
        block_of, place = np.full(rows, -1), np.zeros(rows, dtype=np.int64)
        for number, block in enumerate(blocks):
            block_of[block.rows], place[block.rows] = number, np.arange(len(block.rows))
        start = np.cumsum(trials.matches) - trials.matches
        group = block_of[trials.probe] * repeats + trials.repeat
        order = np.lexsort((place[trials.probe], -trials.matches, group))
        order = order[trials.matches[order] > 0]
        edges = np.searchsorted(group[order], np.arange(len(blocks) * repeats + 1))
        self._panels: dict[tuple[int, int], _Panel] = {}
        for number in np.flatnonzero(np.diff(edges)).tolist():
            some = order[edges[number] : edges[number + 1]]
            many = trials.matches[some]
            nth = np.arange(int(many[0]))
            has = nth < many[:, None]
            flat = np.where(has, start[some][:, None] + nth, -1)
            self._panels[divmod(number, repeats)] = _Panel(
                at=place[trials.probe[some]],
                active=[int(n) for n in has.sum(axis=0)],
                limit=np.where(has, trials.limit[flat], np.inf),
                entry=np.where(has, trials.entry[flat], -1),
                flat=flat,
                closer=np.zeros(flat.shape, dtype=np.int64),
            )

    def of(self, block: int, repeats: int) -> Iterator[tuple[int, _Panel]]:
        for repeat in range(repeats):
            panel = self._panels.get((block, repeat))
            if panel is not None:
                yield repeat, panel

    def collect(self, matches: int) -> NDArray[np.int64]:
        closer = np.zeros(matches, dtype=np.int64)
        for panel in self._panels.values():
            has = panel.flat >= 0
            closer[panel.flat[has]] = panel.closer[has]
        return closer


class _OwnPairs:
    """Pairs of one vehicle, looked up by their two blocks."""

    def __init__(
        self, pairs: tuple[NDArray[np.int64], NDArray[np.int64]], blocks: list[_Block], pool: Pool
    ) -> None:
        block_of, place = np.zeros(len(pool), dtype=np.int64), np.zeros(len(pool), dtype=np.int64)
        for number, block in enumerate(blocks):
            block_of[block.rows], place[block.rows] = number, np.arange(len(block.rows))
        key = block_of[pairs[0]] * len(blocks) + block_of[pairs[1]]
        order = np.argsort(key, kind="stable")
        self._edges = np.searchsorted(key[order], np.arange(len(blocks) ** 2 + 1))
        self._places = place[pairs[0]][order], place[pairs[1]][order]
        self._blocks = len(blocks)

    def between(self, probes: int, gallery: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        number = probes * self._blocks + gallery
        part = slice(self._edges[number], self._edges[number + 1])
        return self._places[0][part], self._places[1][part]


@dataclass(frozen=True, slots=True)
class _Ready:
    """A block as the kernel takes it."""

    squares: NDArray[np.float64]  # (n,) squared norms in the frame
    probes: Any
    gallery: Any


class _Counter:
    """Scores pairs of blocks and counts them for the panels concerned."""

    def __init__(
        self,
        pool: Pool,
        frame: Frame,
        kernel: Kernel,
        blocks: list[_Block],
        panels: _Panels,
        in_gallery: NDArray[np.bool_],
        own: _OwnPairs,
    ) -> None:
        self.pool, self.frame, self.kernel = pool, frame, kernel
        self.dimension = pool.parts[0].shape[1]
        self.blocks, self.panels, self.in_gallery, self.own = blocks, panels, in_gallery, own
        self.kept: OrderedDict[int, _Ready] = OrderedDict()
        most = max((len(block.rows) for block in blocks), default=0)
        # Scores and comparisons get room once: fresh arrays would cost their page faults each time.
        self.rooms = torch.empty(4, most * most, device=kernel.device)

    def count(self, first: int, second: int) -> None:
        """Score blocks `first` and `second` (first <= second) once, and count both ways where that is due."""
        a, b = self.blocks[first], self.blocks[second]
        forth = a.probes and b.gallery
        back = b.probes and a.gallery and first != second
        if not forth and not back:
            return
        ready_a, ready_b = self._ready(first), self._ready(second)
        shape = len(a.rows), len(b.rows)
        scores = self.kernel.scores(ready_a.probes, ready_b.gallery, self._room(0, shape))
        mirror = None
        if back:
            half = [torch.from_numpy(p.squares / 2).float().to(scores.device) for p in (ready_a, ready_b)]
            mirror = torch.sub(scores.T, half[1][:, None], out=self._room(1, shape[::-1])).add_(half[0])
        if forth:
            error = error_bound(ready_a.squares, ready_b.squares, self.dimension)
            self._count_way(first, second, scores, ready_a.squares, error)
        if mirror is not None:
            error = error_bound(ready_b.squares, ready_a.squares, self.dimension, mirrored=True)
            self._count_way(second, first, mirror, ready_b.squares, error)

    def _ready(self, number: int) -> _Ready:
        if number in self.kept:
            self.kept.move_to_end(number)
            return self.kept[number]
        block = self.blocks[number]
        placed = self.frame.place(self.pool.take(block.rows))
        ready = _Ready(
            placed.squares,
            self.kernel.probes(placed) if block.probes else None,
            self.kernel.gallery(placed) if block.gallery else None,
        )
        self.kept[number] = ready
        if len(self.kept) > _KEPT_BLOCKS:
            self.kept.popitem(last=False)
        return ready

    def _room(self, number: int, shape: tuple[int, int]) -> torch.Tensor:
        return self.rooms[number][: shape[0] * shape[1]].view(shape)

    def _count_way(
        self,
        probes: int,
        gallery: int,
        scores: torch.Tensor,
        squares: NDArray[np.float64],
        error: NDArray[np.float64],
    ) -> None:
        own = self.own.between(probes, gallery)
        scores[*(torch.from_numpy(place).to(scores.device) for place in own)] = torch.inf
        rows = self.blocks[gallery].rows
        for repeat, panel in self.panels.of(probes, len(self.in_gallery)):
            there = self.in_gallery[repeat, rows]
            if not there.any():
                continue
            some = _select(scores, panel.at, there, self._room(2, (scores.shape[0], scores.shape[1])))
            entries = rows if some.shape[1] == len(rows) else rows[there]
            self._count_panel(probes, panel, some, entries, squares[panel.at], error[panel.at])

    def _count_panel(
        self,
        block: int,
        panel: _Panel,
        scores: torch.Tensor,
        entries: NDArray[np.int64],
        squares: NDArray[np.float64],
        error: NDArray[np.float64],
    ) -> None:
        """Add to `panel.closer` the entries that stand before each true match."""
        scaled = (panel.limit * float(self.frame.scale) ** 2 - squares[:, None]) / 2
        low, high = (
            bound.to(scores.device) for bound in outward(scaled - error[:, None], scaled + error[:, None])
        )
        hit = self._room(3, (scores.shape[0], scores.shape[1]))
        below, within = _tally(scores, hit, low, high, panel.active)
        panel.closer += np.where(panel.flat >= 0, below, 0)
        trial, nth = np.nonzero((below != within) & (panel.flat >= 0))
        probe_rows = self.blocks[block].rows[panel.at]
        for start in range(0, len(trial), _RECHECKED_ROWS):
            some, match = trial[start : start + _RECHECKED_ROWS], nth[start : start + _RECHECKED_ROWS]
            near = scores[torch.from_numpy(some).to(scores.device)]
            bounds = (x[some, match][:, None] for x in (low, high))
            here, at = _between(near, *bounds)
            entry, here_trial, here_match = entries[at], some[here], match[here]
            squared = self.pool.squared(probe_rows[here_trial], entry)
            limit = panel.limit[here_trial, here_match]
            tied = (squared == limit) & (entry < panel.entry[here_trial, here_match])
            before = (squared < limit) | tied
            np.add.at(panel.closer, (here_trial[before], here_match[before]), 1)


def _select(
    scores: torch.Tensor, at: NDArray[np.int64], there: NDArray[np.bool_], room: torch.Tensor
) -> torch.Tensor:
    """The probes `at` against the entries that are `there`: absent ones are taken out or set to infinity."""
    share = there.mean()
    everyone = len(at) == len(scores) and (at == np.arange(len(at))).all()
    if share < 0.5:
        columns = torch.from_numpy(np.flatnonzero(there)).to(scores.device)
        scores = scores.index_select(1, columns)
        return scores if everyone else scores.index_select(0, torch.from_numpy(at).to(scores.device))
    if not everyone:
        out = room.view(-1)[: len(at) * scores.shape[1]].view(len(at), -1)
        scores = torch.index_select(scores, 0, torch.from_numpy(at).to(scores.device), out=out)
    if share < 1:
        absent = torch.from_numpy(np.where(there, 0, np.inf).astype(np.float32)).to(scores.device)
        return torch.add(scores, absent) if everyone else scores.add_(absent)
    return scores


def _between(
    near: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    inside = (near >= low) & (near <= high)
    row, column = inside.nonzero(as_tuple=True)
    return row.cpu().numpy(), column.cpu().numpy()


def _tally(
    scores: torch.Tensor, hit: torch.Tensor, low: torch.Tensor, high: torch.Tensor, active: list[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many scores of each row lie under `low`, and at or under `high`: two arrays (p, t).

    `hit` (p, n) is room for the comparisons.
    """
    if len(active) >= _SORT_FROM:
        ordered = torch.sort(scores, dim=1).values
        below = torch.searchsorted(ordered, low.contiguous(), side="left").cpu().numpy()
        return below, torch.searchsorted(ordered, high.contiguous(), side="right").cpu().numpy()
    # Comparing into floats and summing those is three to eight times faster than through booleans.
    counts = torch.zeros(2, len(active), len(scores), device=scores.device)
    for nth, rows in enumerate(active):
        at = slice(0, rows), slice(nth, nth + 1)
        torch.sum(torch.lt(scores[:rows], low[at], out=hit[:rows]), 1, out=counts[0, nth, :rows])
        torch.sum(torch.le(scores[:rows], high[at], out=hit[:rows]), 1, out=counts[1, nth, :rows])
    below, within = counts.transpose(1, 2).cpu().numpy().astype(np.int64)
    return below, within


def _strided(rows: NDArray[np.int64], most: int = 2048) -> NDArray[np.int64]:
    return rows[:: max(1, -(-len(rows) // most))]
