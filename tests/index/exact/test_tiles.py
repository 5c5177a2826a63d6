"""A panel is counted alike by compiled loops, and by what another device than the processor runs."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from index.exact import tiles as module
from index.exact.numba_kernels import Targets
from index.exact.products import Kernel, Normalization
from index.exact.tiles import PreparedBlock, ProbeBlock, ScoreTile, count_tile


def met(*, rough: bool, own: bool = True) -> tuple[ScoreTile, NDArray[np.float64]]:
    """40 probes against 60 entries with many ties, and their exact squared distances."""
    rng = np.random.default_rng(2)
    x, y = (rng.integers(-3, 4, (n, 5)).astype(np.float32) for n in (40, 60))
    frame = Normalization.around(x, y)
    probes, gallery = (
        PreparedBlock(np.arange(40), x, frame, Kernel()),
        PreparedBlock(np.arange(60), y, frame, Kernel()),
    )
    if rough:
        product = torch.mm(probes.rounded.values, gallery.rounded.values.T)
    else:
        product = probes.probes @ gallery.gallery
    exact = np.square(x[:, None].astype(np.float64) - y).sum(-1)
    if own:
        product[torch.arange(40), torch.arange(40)] = -torch.inf
        exact[np.arange(40), np.arange(40)] = np.inf
    return ScoreTile(probes, gallery, product, frame), exact


def panel_of(exact: NDArray[np.float64], trials: int = 55, most: int = 9) -> ProbeBlock:
    rng = np.random.default_rng(3)
    matches = rng.integers(1, most + 1, trials)
    has = np.arange(most) < matches[:, None]
    limit = np.sort(np.where(has, rng.integers(0, 60, has.shape), np.inf), axis=1)
    repeat = np.sort(rng.integers(0, 3, trials))
    at = rng.integers(0, len(exact), trials)
    wanted = Targets(at, repeat, matches, limit, rng.integers(0, 60, has.shape))
    return ProbeBlock(wanted, np.where(has, 0, -1))


def true_counts(exact: NDArray[np.float64], panel: ProbeBlock, there: NDArray[np.bool_]) -> NDArray[np.int64]:
    away = np.where(there[panel.sought.repeat], exact[panel.sought.at], np.inf)[:, None]
    limit, match = panel.sought.limit[:, :, None], panel.sought.match[:, :, None]
    counts = ((away < limit) | ((away == limit) & (np.arange(60) < match))).sum(-1)
    return np.where(panel.flat >= 0, counts, 0)


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("share", [0.2, 0.8, 1.0])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_both_ways_count_what_is_nearer(rough: bool, share: float, elsewhere: bool) -> None:
    meeting, exact = met(rough=rough)
    panel = panel_of(exact)
    there = np.random.default_rng(4).random((3, 60)) < share
    if elsewhere:  # the torch operations that another device would run
        module._count_torch(meeting, panel, there)
    else:
        count_tile(meeting, panel, there)
    counted = np.where(panel.flat >= 0, panel.closer, 0)
    assert counted.tolist() == true_counts(exact, panel, there).tolist()


def test_it_says_how_many_were_too_close_to_call() -> None:
    meeting, exact = met(rough=True, own=False)
    panel = panel_of(exact)
    everyone = np.ones((3, 60), dtype=np.bool_)
    near = count_tile(meeting, panel, everyone)
    assert 0 < near <= 55 * 60
    assert module._count_torch(meeting, panel_of(exact), everyone) == near
