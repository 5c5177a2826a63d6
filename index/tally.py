"""Counting in one product: how many of a block's entries precede each true match of a panel's trials."""

import numpy as np
import torch
from numpy.typing import NDArray

from index.bf16 import HALF_UNIT, rounded_bound
from index.distances import Frame, error_bound
from index.loops import (
    Bounds,
    Entries,
    Sought,
    bounds_of,
    count_closer,
    count_closer_rounded,
    decide,
    squared_pairs,
)
from index.panels import Panel
from index.ready import Ready


class Meeting:
    """Two blocks and their product (p, n) of float32 or bfloat16, on any device; own pairs are -inf."""

    def __init__(self, probes: Ready, gallery: Ready, product: torch.Tensor, frame: Frame) -> None:
        self.probes, self.gallery, self.product = probes, gallery, product
        self.rough = product.dtype == torch.bfloat16
        dimension = probes.features.shape[1]
        if self.rough:
            inner = rounded_bound(probes.rounded, gallery.rounded, dimension)
        else:
            inner = error_bound(probes.squares, gallery.squares, dimension)
        halves = gallery.squares / 2
        self.bounds = Bounds(
            squares=probes.squares,
            inner=inner,
            relative=HALF_UNIT if self.rough else 0.0,
            scale=float(frame.scale) ** 2,
            least=float(halves.min()),
            most=float(halves.max()),
        )


def tally(meeting: Meeting, panel: Panel, there: NDArray[np.bool_]) -> int:
    """Add to `panel.closer` the entries that are `there` (repeats, n) and precede each match of a trial.

    Returns how many were too close to call by their score and were decided by their float64 distance.
    """
    if meeting.product.device.type == "cpu":
        return _here(meeting, panel, there)
    return _elsewhere(meeting, panel, there)


def _here(meeting: Meeting, panel: Panel, there: NDArray[np.bool_]) -> int:
    """On the processor: by compiled loops."""
    probes, gallery, product = meeting.probes, meeting.gallery, meeting.product
    entries = Entries(np.nonzero(there)[1].copy(), np.cumsum([0, *there.sum(axis=1)]))
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


def _elsewhere(meeting: Meeting, panel: Panel, there: NDArray[np.bool_]) -> int:
    """On another device, repeat by repeat; what is too close to call comes back to the processor."""
    near, counted = 0, np.zeros_like(panel.closer)
    for repeat in np.unique(panel.sought.repeat):
        first, end = np.searchsorted(panel.sought.repeat, [repeat, repeat + 1])
        some = slice(int(first), int(end))
        near += _one_repeat(meeting, panel.sought.part(some), np.flatnonzero(there[repeat]), counted[some])
    panel.add(counted)
    return near


def _one_repeat(
    meeting: Meeting, sought: Sought, columns: NDArray[np.int64], closer: NDArray[np.int64]
) -> int:
    device, gallery = meeting.product.device, meeting.gallery
    low, high = bounds_of(sought, meeting.bounds)
    at, those, halves, lows, highs = (
        torch.from_numpy(some).to(device) for some in (sought.at, columns, gallery.halves[columns], low, high)
    )
    scores = halves - meeting.product.index_select(0, at).index_select(1, those)
    counts, row, place = _search(scores, lows, highs)
    closer += counts.cpu().numpy()
    score, trial = scores[row, place].cpu().numpy(), row.cpu().numpy()
    column = columns[place.cpu().numpy()]
    squared = squared_pairs(meeting.probes.features, gallery.features, sought.at[trial], column)
    decide(trial, score, squared, gallery.rows[column], sought, low, high, closer)
    return len(trial)


def _search(
    scores: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How many scores (p, n) of a row lie under each `low` (p, t); row and column of those near a limit."""
    reached = torch.searchsorted(low, scores, right=True)  # so many `low` are not above the score
    counts = torch.zeros(len(low), low.shape[1] + 1, dtype=torch.int64, device=low.device)
    counts.scatter_add_(1, reached, torch.ones_like(reached))
    last = high.gather(1, (reached - 1).clamp_min(0))
    row, column = ((reached > 0) & (scores <= last)).nonzero(as_tuple=True)
    return counts.cumsum(1)[:, :-1], row, column
