"""How many scores of a row lie under each of its limits, and which lie too close to one to say."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

SORT_FROM = 24  # limits of a row, from which one sort of it is cheaper than a comparison for each
_ROWS_AT_ONCE = 512  # rows of scores that are searched at a time


@dataclass(frozen=True, slots=True)
class Near:
    """Scores that lie within the bounds of one of their trial's limits: one entry for each such limit."""

    trial: NDArray[np.int64]  # (m,) ascending
    column: NDArray[np.int64]  # (m,)
    nth: NDArray[np.int64]  # (m,) number of the limit
    pair: NDArray[np.int64]  # (m,) number of the score: those of one score stand side by side

    def take(self, some: NDArray[np.bool_]) -> "Near":
        """The entries marked."""
        return Near(self.trial[some], self.column[some], self.nth[some], self.pair[some])


def tally(
    scores: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    active: list[int],
    rooms: tuple[torch.Tensor, ...],
) -> tuple[NDArray[np.int64], Near]:
    """How many scores (p, n) of each row lie under `low` (p, t), as (p, t), and those from there to `high`.

    The first active[k] rows have a limit number k; what is counted elsewhere means nothing. rooms: three
    arrays (p, n) for the comparisons.
    """
    low, high = low.to(scores.device), high.to(scores.device)
    if len(active) >= SORT_FROM:
        return _sorted_tally(scores, low, high, active)
    under, up_to, near = rooms
    near.zero_()
    counts = torch.zeros(len(active), len(scores), device=scores.device)
    # Comparing into floats and summing those is three to eight times faster than through booleans.
    for nth, rows in enumerate(active):
        at = slice(0, rows), slice(nth, nth + 1)
        torch.lt(scores[:rows], low[at], out=under[:rows])
        torch.le(scores[:rows], high[at], out=up_to[:rows])
        torch.sum(under[:rows], 1, out=counts[nth, :rows])
        near[:rows].add_(up_to[:rows]).sub_(under[:rows])
    trial, column = divmod(_marked(near), scores.shape[1])
    return counts.T.cpu().numpy().astype(np.int64), _near(scores, low, high, trial, column)


def entries_there(
    scores: torch.Tensor, at: NDArray[np.int64], there: NDArray[np.bool_], room: torch.Tensor
) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """The probes `at` against the entries that are `there`, and which column each of those had.

    Absent ones are taken out where they are many, else set to infinity. room: an array of the scores' size.
    """
    share = there.mean()
    everyone = are_all(at, len(scores))
    if share < 0.5:
        columns = np.flatnonzero(there)
        scores = scores.index_select(1, torch.from_numpy(columns).to(scores.device))
        if not everyone:
            scores = scores.index_select(0, torch.from_numpy(at).to(scores.device))
        return scores, columns
    if not everyone:
        out = room.view(-1)[: len(at) * scores.shape[1]].view(len(at), -1)
        scores = torch.index_select(scores, 0, torch.from_numpy(at).to(scores.device), out=out)
    if share < 1:
        absent = torch.from_numpy(np.where(there, 0, np.inf).astype(np.float32)).to(scores.device)
        scores = torch.add(scores, absent) if everyone else scores.add_(absent)
    return scores, np.arange(len(there))


def are_all(at: NDArray[np.int64], count: int) -> bool:
    """Whether the rows `at` are just 0 to count - 1, so that nothing need be picked."""
    return len(at) == count and bool((at == np.arange(count)).all())


def _sorted_tally(
    scores: torch.Tensor, low: torch.Tensor, high: torch.Tensor, active: list[int]
) -> tuple[NDArray[np.int64], Near]:
    ordered = _sorted(scores)
    below = torch.searchsorted(ordered, low.contiguous(), side="left")
    within = torch.searchsorted(ordered, high.contiguous(), side="right")
    has = torch.arange(len(scores))[:, None] < torch.tensor(active)
    trial, nth = ((below != within) & has.to(scores.device)).nonzero(as_tuple=True)
    found = [np.empty(0, np.int64)]
    for start in range(0, len(trial), _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        rows, bound = scores[trial[some]], (trial[some], nth[some])
        row, column = ((rows >= low[bound][:, None]) & (rows <= high[bound][:, None])).nonzero(as_tuple=True)
        found.append((trial[some][row] * scores.shape[1] + column).cpu().numpy())
    trials, columns = divmod(np.unique(np.concatenate(found)), scores.shape[1])
    return below.cpu().numpy(), _near(scores, low, high, trials, columns)


def _sorted(scores: torch.Tensor) -> torch.Tensor:
    if scores.device.type != "cpu":
        return torch.sort(scores, dim=1).values
    return torch.from_numpy(np.sort(scores.numpy(), axis=1))  # six times as fast as torch's


def _marked(near: torch.Tensor) -> NDArray[np.int64]:
    if near.device.type == "cpu":
        return np.flatnonzero(near.numpy() > 0)  # four times as fast as torch's
    return np.asarray(near.flatten().nonzero()[:, 0].cpu().numpy())


def _near(
    scores: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    trial: NDArray[np.int64],
    column: NDArray[np.int64],
) -> Near:
    rows, columns = (torch.from_numpy(place).to(scores.device) for place in (trial, column))
    near = scores[rows, columns][:, None]
    inside = ((near >= low[rows]) & (near <= high[rows])).cpu().numpy()
    pair, nth = np.divmod(np.flatnonzero(inside), max(inside.shape[1], 1))
    return Near(trial[pair], column[pair], nth, pair)
