"""The engine of CMC: how many other vehicles' pictures precede each true match, counted and never sorted.

A *trial* is one probe in one repeat of a protocol. Repeats share their pictures, so every pair of blocks is
multiplied once for all trials, and where pictures are probes and gallery alike one product serves both ways.
Products are of bfloat16 where that pays; entries too close to call are decided by float64 distances.
"""

from collections import OrderedDict

import numpy as np
import torch
from numpy.typing import NDArray

from index.bf16 import bf16_pays
from index.distances import Frame, Kernel, choose_kernel
from index.panels import Block, OwnPairs, Panels, blocks_of
from index.pool import Pool, Trials
from index.ready import Ready
from index.tally import Meeting, tally

_KEPT_BLOCKS = 48  # blocks of probes kept ready: 600 MiB at most at 1024 rows of 1024 dimensions
_MANY_NEAR = 0.05  # of a product's pairs; measuring so many costs what the cheaper product saves
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
    blocks = blocks_of(is_probe, is_gallery, _lengths(pool, frame), block)
    panels = Panels(blocks, trials, len(pool))
    own = OwnPairs(same_vehicle, blocks, len(pool))
    rough = bf16_pays(device, work=work)
    counter = _Counter(pool, frame, kernel, blocks, panels, in_gallery, own, rough=rough)
    # Blocks of probes come first, so they stay ready while each block of the gallery passes by once.
    for second in range(len(blocks)):
        for first in range(second + 1):
            counter.count(first, second)
    return panels.collect(len(trials.limit))


class _Counter:
    """Multiplies pairs of blocks and counts for the panels concerned."""

    def __init__(
        self,
        pool: Pool,
        frame: Frame,
        kernel: Kernel,
        blocks: list[Block],
        panels: Panels,
        in_gallery: NDArray[np.bool_],
        own: OwnPairs,
        *,
        rough: bool,
    ) -> None:
        self.pool, self.frame, self.kernel = pool, frame, kernel
        self.blocks, self.panels, self.in_gallery, self.own = blocks, panels, in_gallery, own
        self.rough = rough
        self.kept: OrderedDict[int, Ready] = OrderedDict()
        self.scored, self.near = np.zeros((2, len(blocks)), dtype=np.int64)
        most = max((len(block.rows) for block in blocks), default=0)
        # Products get room once: fresh arrays would cost their page faults each time.
        self.rooms = torch.empty(2, most * most, device=kernel.device)

    def count(self, first: int, second: int) -> None:
        """Multiply blocks `first` and `second` (first <= second), and count both ways where that is due."""
        a, b = self.blocks[first], self.blocks[second]
        forth = a.probes and b.gallery
        back = b.probes and a.gallery and first != second
        if not forth and not back:
            return
        probes = [number for number, due in ((first, forth), (second, back)) if due]
        product = self._product(first, second, rough=self.rough and self._few_are_near(probes))
        mirror = self._room(1, product.T.shape, product.dtype).copy_(product.T) if back else None
        if forth:
            self._count_way(first, second, product)
        if mirror is not None:
            self._count_way(second, first, mirror)

    def _few_are_near(self, probes: list[int]) -> bool:
        """Whether few scores of these blocks were too close to call by bfloat16, by what was seen so far."""
        return float((self.near / np.maximum(self.scored, _SCORED_FIRST))[probes].sum()) <= _MANY_NEAR

    def _product(self, first: int, second: int, *, rough: bool) -> torch.Tensor:
        a, b = self._ready(first), self._ready(second)
        shape = len(a.rows), len(b.rows)
        if rough:
            room = self._room(0, shape, torch.bfloat16)
            return torch.mm(a.rounded.values, b.rounded.values.T, out=room)
        return self.kernel.product(a.probes, b.gallery, self._room(0, shape, torch.float32))

    def _ready(self, number: int) -> Ready:
        if number in self.kept:
            self.kept.move_to_end(number)
            return self.kept[number]
        # A block that is gallery alone passes by once.
        for passed in [other for other in self.kept if not self.blocks[other].probes]:
            del self.kept[passed]
        if len(self.kept) == _KEPT_BLOCKS:
            self.kept.popitem(last=False)
        rows = self.blocks[number].rows
        self.kept[number] = ready = Ready(rows, self.pool.take(rows), self.frame, self.kernel)
        return ready

    def _room(self, number: int, shape: tuple[int, ...], kind: torch.dtype) -> torch.Tensor:
        return self.rooms[number].view(kind)[: shape[0] * shape[1]].view(shape)

    def _count_way(self, probes: int, gallery: int, product: torch.Tensor) -> None:
        """Count what the block `gallery` holds before the matches of the block `probes`."""
        own = self.own.between(probes, gallery)
        product[*(torch.from_numpy(place).to(product.device) for place in own)] = -torch.inf
        panel = self.panels.of(probes)
        if panel is None:
            return
        meeting = Meeting(self._ready(probes), self._ready(gallery), product, self.frame)
        there = self.in_gallery[:, meeting.gallery.rows]
        near = tally(meeting, panel, there)
        if meeting.rough:
            self.scored[probes] += int(there.sum(axis=1)[panel.sought.repeat].sum())
            self.near[probes] += near


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
