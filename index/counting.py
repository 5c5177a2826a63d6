"""The engine of CMC: how many other vehicles' pictures precede each true match, counted and never sorted.

A *trial* is one probe in one repeat of a protocol. Repeats share their pictures, so every pair of blocks is
scored once for all trials, and where pictures are probes and gallery alike one product serves both ways.
Products are of bfloat16 where that pays; entries too close to call by them are scored in float32, and those
too close to call by that are decided in float64.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from index.bf16 import Rounded, bf16_pays, dots, rounded_width
from index.distances import (
    Frame,
    Kernel,
    choose_kernel,
    error_bound,
    outward,
    pair_error_bound,
)
from index.panels import Block, OwnPairs, Panel, Panels, blocks_of
from index.pool import Pool, Trials
from index.tally import SORT_FROM, Near, are_all, entries_there, tally

_KEPT_BLOCKS = 48  # blocks of probes kept ready: 600 MiB at most at 1024 rows of 1024 dimensions
_MANY_NEAR = 0.05  # of a product's pairs; scoring so many again costs what the cheaper product saves
_SCORED_FIRST = 1 << 16  # pairs of a block of probes, before it is said what is many
_LENGTHS_AT_ONCE = 1024


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
    blocks = blocks_of(is_probe, is_gallery, _lengths(pool, frame), trials, block)
    panels = Panels(blocks, trials, in_gallery.shape[0], len(pool))
    own = OwnPairs(same_vehicle, blocks, len(pool))
    counter = _Counter(pool, frame, kernel, blocks, panels, in_gallery, own)
    counter.rough = bf16_pays(device, work=work)
    # Blocks of probes come first, so they stay ready while each block of the gallery passes by once.
    for second in range(len(blocks)):
        for first in range(second + 1):
            counter.count(first, second)
    return panels.collect(len(trials.limit))


class _Ready:
    """A block in the frame; its forms for either product are made when they are first asked for."""

    def __init__(self, pool: Pool, frame: Frame, kernel: Kernel, block: Block) -> None:
        self.placed = frame.place(pool.take(block.rows))
        self.squares = self.placed.squares
        self.halves = torch.from_numpy((self.squares / 2).astype(np.float32)).to(kernel.device)
        self._kernel = kernel
        self._forms: dict[str, Any] = {}

    @property
    def probes(self) -> Any:
        """The rows as the kernel takes probes."""
        return self._form("probes", self._kernel.probes)

    @property
    def gallery(self) -> Any:
        """The rows as the kernel takes the gallery."""
        return self._form("gallery", self._kernel.gallery)

    @property
    def rounded(self) -> Rounded:
        """The rows rounded to bfloat16."""
        form: Rounded = self._form("rounded", Rounded.of)
        return form

    def _form(self, name: str, make: Any) -> Any:
        if name not in self._forms:
            self._forms[name] = make(self.placed)
        return self._forms[name]


@dataclass(frozen=True, slots=True)
class _Way:
    """One direction between two blocks: what is a probe, what is gallery, and their scores (p, n)."""

    probes: int
    gallery: int
    scores: torch.Tensor
    rough: bool  # from the rounded features
    mirrored: bool  # made from the scores of the other direction


class _Counter:
    """Scores pairs of blocks and counts them for the panels concerned."""

    def __init__(
        self,
        pool: Pool,
        frame: Frame,
        kernel: Kernel,
        blocks: list[Block],
        panels: Panels,
        in_gallery: NDArray[np.bool_],
        own: OwnPairs,
    ) -> None:
        self.pool, self.frame, self.kernel = pool, frame, kernel
        self.dimension = pool.parts[0].shape[1]
        self.blocks, self.panels, self.in_gallery, self.own = blocks, panels, in_gallery, own
        self.kept: OrderedDict[int, _Ready] = OrderedDict()
        self.rough = False
        self.scored, self.near = np.zeros((2, len(blocks)))
        most = max((len(block.rows) for block in blocks), default=0)
        # Scores and comparisons get room once: fresh arrays would cost their page faults each time.
        self.rooms = torch.empty(6, most * most, device=kernel.device)
        self.product = torch.empty(most * most, dtype=torch.bfloat16)

    def count(self, first: int, second: int) -> None:
        """Score blocks `first` and `second` (first <= second) once, and count both ways where that is due."""
        a, b = self.blocks[first], self.blocks[second]
        forth = a.probes and b.gallery
        back = b.probes and a.gallery and first != second
        if not forth and not back:
            return
        # Where one product serves both ways, what is too close to call would be scored again for both:
        # a cheaper product was seen to save nothing there.
        if self.rough and forth != back and self._few_are_near(first if forth else second):
            self._count_way(self._roughly(*((first, second) if forth else (second, first))))
        else:
            for way in self._plainly(first, second, forth, back):
                self._count_way(way)

    def _few_are_near(self, probes: int) -> bool:
        """Whether few scores of these probes are too close to call by bfloat16, by what was seen so far."""
        if self.blocks[probes].most_matches >= SORT_FROM:
            return False  # where scores are sorted, those too close to call are looked for one by one
        return bool(self.near[probes] <= _MANY_NEAR * max(self.scored[probes], _SCORED_FIRST))

    def _plainly(self, first: int, second: int, forth: bool, back: bool) -> list[_Way]:
        a, b = self._ready(first), self._ready(second)
        shape = len(a.squares), len(b.squares)
        scores = self.kernel.scores(a.probes, b.gallery, self._room(0, shape))
        ways = [_Way(first, second, scores, rough=False, mirrored=False)] if forth else []
        if back:
            mirror = torch.sub(scores.T, b.halves[:, None], out=self._room(1, shape[::-1])).add_(a.halves)
            ways.append(_Way(second, first, mirror, rough=False, mirrored=True))
        return ways

    def _roughly(self, probes: int, gallery: int) -> _Way:
        a, b = self._ready(probes), self._ready(gallery)
        shape = len(a.squares), len(b.squares)
        product = self.product[: shape[0] * shape[1]].view(shape)
        torch.mm(a.rounded.values, b.rounded.values.T, out=product)
        scores = self._room(0, shape).copy_(product)
        return _Way(probes, gallery, torch.sub(b.halves, scores, out=scores), rough=True, mirrored=False)

    def _ready(self, number: int) -> _Ready:
        if number in self.kept:
            self.kept.move_to_end(number)
            return self.kept[number]
        # A block that is gallery alone passes by once.
        for passed in [other for other in self.kept if not self.blocks[other].probes]:
            del self.kept[passed]
        if len(self.kept) == _KEPT_BLOCKS:
            self.kept.popitem(last=False)
        self.kept[number] = ready = _Ready(self.pool, self.frame, self.kernel, self.blocks[number])
        return ready

    def _room(self, number: int, shape: tuple[int, int]) -> torch.Tensor:
        return self.rooms[number][: shape[0] * shape[1]].view(shape)

    def _count_way(self, way: _Way) -> None:
        own = self.own.between(way.probes, way.gallery)
        way.scores[*(torch.from_numpy(place).to(way.scores.device) for place in own)] = torch.inf
        rows = self.blocks[way.gallery].rows
        for repeat, panel in self.panels.of(way.probes, len(self.in_gallery)):
            there = self.in_gallery[repeat, rows]
            if there.any():
                self._count_panel(way, panel, there)

    def _count_panel(self, way: _Way, panel: Panel, there: NDArray[np.bool_]) -> None:
        """Add to `panel.closer` the entries of the way's gallery that are `there` and precede each match."""
        shape = len(way.scores), way.scores.shape[1]
        scores, places = entries_there(way.scores, panel.at, there, self._room(2, shape))
        limits = panel.limit * float(self.frame.scale) ** 2
        limits = (limits - self._ready(way.probes).squares[panel.at][:, None]) / 2
        rooms = tuple(self._room(number, (len(scores), scores.shape[1])) for number in (3, 4, 5))
        low, high = outward(limits, self._widths(way, panel, limits))
        below, near = tally(scores, low, high, panel.active, rooms)
        panel.closer += np.where(panel.flat >= 0, below, 0)
        if way.rough:
            self.scored[way.probes] += scores.numel()
            self.near[way.probes] += len(near.trial)
            near = self._score_again(way, panel, near, places, limits)
        self._decide(way, panel, near, places)

    def _widths(self, way: _Way, panel: Panel, limits: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far from each limit (p, t) a score must be, to say for certain on which side it lies."""
        probes, gallery = self._ready(way.probes), self._ready(way.gallery)
        if way.rough:
            return rounded_width(probes.rounded, panel.at, gallery.rounded, limits, self.dimension)
        width = error_bound(probes.squares, gallery.squares, self.dimension, mirrored=way.mirrored)
        return width[panel.at][:, None]

    def _score_again(
        self,
        way: _Way,
        panel: Panel,
        near: Near,
        places: NDArray[np.int64],
        limits: NDArray[np.float64],
    ) -> Near:
        """Score in float32 and count what for certain stands before its match; returns what is open still."""
        probes, gallery = self._ready(way.probes), self._ready(way.gallery)
        begins = np.diff(near.pair, prepend=-1) > 0
        trial, column, pair = near.trial[begins], places[near.column[begins]], np.cumsum(begins) - 1
        values = probes.placed.values
        left = values if are_all(panel.at, len(values)) else values[torch.from_numpy(panel.at)]
        product = dots(left, gallery.placed.values, trial, column).double().numpy()
        error = pair_error_bound(probes.squares[panel.at[trial]], gallery.squares[column], self.dimension)
        over = (gallery.squares[column] / 2 - product)[pair] - limits[near.trial, near.nth]
        self._add(panel, near.take(over < -error[pair]))
        return near.take(np.abs(over) <= error[pair])

    def _decide(self, way: _Way, panel: Panel, near: Near, places: NDArray[np.int64]) -> None:
        """Count by float64 distances what stands before its match."""
        probe = self.blocks[way.probes].rows[panel.at[near.trial]]
        entry = self.blocks[way.gallery].rows[places[near.column]]
        squared = self.pool.squared(probe, entry)
        limit, match = (each[near.trial, near.nth] for each in (panel.limit, panel.entry))
        self._add(panel, near.take((squared < limit) | ((squared == limit) & (entry < match))))

    def _add(self, panel: Panel, near: Near) -> None:
        flat = near.trial * panel.closer.shape[1] + near.nth
        panel.closer += np.bincount(flat, minlength=panel.closer.size).reshape(panel.closer.shape)


def _lengths(pool: Pool, frame: Frame) -> NDArray[np.float32]:
    """About how long each row is in the frame: (n,)."""
    lengths = np.empty(len(pool), dtype=np.float32)
    for start in range(0, len(pool), _LENGTHS_AT_ONCE):
        rows = np.arange(start, min(start + _LENGTHS_AT_ONCE, len(pool)))
        moved = torch.from_numpy(pool.take(rows) - frame.origin)
        lengths[rows] = torch.linalg.vector_norm(moved, dim=1).numpy()
    return lengths


def _strided(rows: NDArray[np.int64], most: int = 2048) -> NDArray[np.int64]:
    return rows[:: max(1, -(-len(rows) // most))]
