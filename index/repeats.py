"""Repeats of a protocol, counted together: what their galleries share is counted once, not once a repeat.

Ten draws of `vehicleid-paper` take the same pictures as probes again and again, against galleries that differ
by a tenth. So each distinct probe is counted against all pictures of all galleries, and of each repeat only
what stands outside its gallery is counted and taken off again.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.counting import others_before
from index.pool import Pool, Trials

_WORTH = 0.9  # of the direct count; above it the second list of trials costs what it saves


def others_before_in_repeats(
    pool: Pool,
    in_gallery: NDArray[np.bool_],
    trials: Trials,
    same_vehicle: tuple[NDArray[np.int64], NDArray[np.int64]],
    **how: Any,
) -> NDArray[np.int64]:
    """`others_before`, with equal results (m,); cheaper where repeats share most of their galleries."""
    anywhere = in_gallery.any(axis=0)
    absent = anywhere & ~in_gallery
    distinct = np.unique(trials.probe)
    probes = np.bincount(trials.repeat, minlength=len(in_gallery))
    direct = int(probes @ in_gallery.sum(axis=1))
    together = len(distinct) * int(anywhere.sum()) + int(probes @ absent.sum(axis=1))
    if together > _WORTH * direct:
        return others_before(pool, in_gallery, trials, same_vehicle, **how)
    shared, place = _shared(trials, distinct, repeat=len(in_gallery))
    closer = others_before(pool, np.vstack([absent, anywhere]), _joined(trials, shared), same_vehicle, **how)
    own = len(trials.limit)
    return np.asarray(closer[own:][place] - closer[:own])


def _shared(trials: Trials, distinct: NDArray[np.int64], *, repeat: int) -> tuple[Trials, NDArray[np.int64]]:
    """One trial for each distinct probe, true matches of all repeats; and where each match went (m,)."""
    probe = np.repeat(trials.probe, trials.matches)
    order = np.lexsort((trials.entry, trials.limit, probe))
    probe, entry = probe[order], trials.entry[order]
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = (probe[1:] != probe[:-1]) | (entry[1:] != entry[:-1])
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.cumsum(first) - 1
    matches = np.bincount(np.searchsorted(distinct, probe[first]), minlength=len(distinct))
    limit = trials.limit[order][first]
    return Trials(distinct, np.full(len(distinct), repeat), matches, entry[first], limit), place


def _joined(left: Trials, right: Trials) -> Trials:
    return Trials(
        *(
            np.concatenate([getattr(left, name), getattr(right, name)])
            for name in ("probe", "repeat", "matches", "entry", "limit")
        )
    )
