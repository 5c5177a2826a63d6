"""What a training brings to tracks: the first crop of one finds its last crop, before and after."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.transforms.choice import has_rival, interval_of_mean, ranks
from index.transforms.tracks import TrackEnds


@dataclass(frozen=True, slots=True)
class TrackFigures:
    """How often a track is found before and after a training, and its mean reciprocal rank (MRR).

    Found is a track whose last crop is the nearest one to its first, among the last crops of its camera.
    tracks: those with another one at their camera. low, high: the 95 % interval of the difference in MRR by
    resampled tracks. Field names are keys of a card's metrics.
    """

    tracks: int
    rank1_before: float
    rank1: float
    mrr_before: float
    mrr: float
    low: float
    high: float

    def to_text(self) -> str:
        """Return the figures as a phrase."""
        return (
            f"of {self.tracks:,} held-out tracks, {self.rank1:.1%} found, {self.rank1_before:.1%} before; "
            f"MRR {self.mrr - self.mrr_before:+.3f} ({self.low:+.3f} to {self.high:+.3f})"
        )


def camera_ranks(features: NDArray[np.float32], cameras: NDArray[np.str_]) -> list[int]:
    """Return the rank of the last crop of each track that has a rival, by its first crop and exact L2.

    features: (2 m, d), the first crops of m tracks, then their last ones. cameras: (m,). Only tracks of the
    same camera compete, and a track alone at its camera is left out.
    """
    count = len(cameras)
    first, last = (_ends(features[start : start + count], cameras) for start in (0, count))
    own, _ = ranks(first, last, None)
    found: list[int] = own[has_rival(cameras)].tolist()
    return found


def figures_of(before: Sequence[int], after: Sequence[int]) -> TrackFigures | None:
    """Return the figures of the ranks of the same tracks before and after; None without a track."""
    if not len(before):
        return None
    old, new = (1 / np.asarray(found, np.float64) for found in (before, after))
    low, high = interval_of_mean(new - old)
    return TrackFigures(
        tracks=len(old),
        rank1_before=float((old == 1).mean()),
        rank1=float((new == 1).mean()),
        mrr_before=float(old.mean()),
        mrr=float(new.mean()),
        low=low,
        high=high,
    )


def _ends(features: NDArray[np.float32], cameras: NDArray[np.str_]) -> TrackEnds:
    rows = np.arange(len(cameras))
    return TrackEnds(rows.astype(np.uint64), rows, rows, cameras, features)
