"""Which rows meet in a block, and what is counted there: the trials of a block of probes."""

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.loops import Sought
from index.pool import Trials

_SCORED_FIRST = 1 << 16  # scores, before it is said what share of them is near


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


class Panel:
    """The trials of one block of probes, by repeat, and what was counted for them by any thread."""

    def __init__(self, sought: Sought, flat: NDArray[np.int64]) -> None:
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
        return self._near / max(self._scored, _SCORED_FIRST)


class Panels:
    """All panels, by block."""

    def __init__(self, blocks: list[Block], trials: Trials, rows: int) -> None:
        block_of, place = places_of(blocks, rows)
        start = np.cumsum(trials.matches) - trials.matches
        block = block_of[trials.probe]
        order = np.lexsort((place[trials.probe], trials.repeat, block))
        order = order[trials.matches[order] > 0]
        edges = np.searchsorted(block[order], np.arange(len(blocks) + 1))
        self._panels: dict[int, Panel] = {}
        for number in np.flatnonzero(np.diff(edges)).tolist():
            some = order[edges[number] : edges[number + 1]]
            matches = trials.matches[some]
            nth = np.arange(int(matches.max()))
            has = nth < matches[:, None]
            flat = np.where(has, start[some][:, None] + nth, -1)
            sought = Sought(
                at=place[trials.probe[some]],
                repeat=trials.repeat[some],
                matches=matches,
                limit=np.where(has, trials.limit[flat], np.inf),
                match=np.where(has, trials.entry[flat], -1),
            )
            self._panels[number] = Panel(sought, flat)

    def of(self, block: int) -> Panel | None:
        """The block's panel, if any of its probes has a match."""
        return self._panels.get(block)

    def collect(self, matches: int) -> NDArray[np.int64]:
        """What was counted for each true match of the flat list (m,)."""
        closer = np.zeros(matches, dtype=np.int64)
        for panel in self._panels.values():
            has = panel.flat >= 0
            closer[panel.flat[has]] = panel.closer[has]
        return closer


class OwnPairs:
    """Pairs of one vehicle, looked up by their two blocks."""

    def __init__(
        self, pairs: tuple[NDArray[np.int64], NDArray[np.int64]], blocks: list[Block], rows: int
    ) -> None:
        block_of, place = places_of(blocks, rows)
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


def places_of(blocks: list[Block], rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each of the pool's rows its block, -1 for none, and its place in there."""
    block_of, place = np.full(rows, -1), np.zeros(rows, dtype=np.int64)
    for number, block in enumerate(blocks):
        block_of[block.rows], place[block.rows] = number, np.arange(len(block.rows))
    return block_of, place
