"""Free positives: the first and the last crop of a track show one vehicle, without anybody labelling it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_TRACKS = 2048
"""Tracks that are kept. Their crops and distances take 50 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class TrackEnds:
    """The first and the last crop of some tracks: one or two rows (n) a track.

    track: a hash of camera and track. Those with the smallest hashes are kept, which is a random sample that
    does not depend on how the crops are divided; tracks with two crops and those with one are kept apart.
    """

    track: NDArray[np.uint64]
    captured_at: NDArray[np.int64]  # ms since 1970, UTC, -1 if unknown
    crop_id: NDArray[np.int64]
    camera: NDArray[np.str_]
    features: NDArray[np.float32]  # (n, d), as the network gives them

    @classmethod
    def empty(cls, dimension: int) -> "TrackEnds":
        """Return the ends of no track."""
        return cls(
            np.empty(0, np.uint64),
            np.empty(0, np.int64),
            np.empty(0, np.int64),
            np.empty(0, np.str_),
            np.empty((0, dimension), np.float32),
        )

    def take(self, rows: NDArray[np.int64]) -> "TrackEnds":
        """Return some of the rows."""
        return TrackEnds(
            self.track[rows],
            self.captured_at[rows],
            self.crop_id[rows],
            self.camera[rows],
            self.features[rows],
        )

    def merge(self, other: "TrackEnds", limit: int = MAX_TRACKS) -> "TrackEnds":
        """Return the ends of the tracks of both, at most `limit` with one crop and `limit` with two."""
        both = TrackEnds(
            np.concatenate([self.track, other.track]),
            np.concatenate([self.captured_at, other.captured_at]),
            np.concatenate([self.crop_id, other.crop_id]),
            np.concatenate([self.camera, other.camera]),
            np.concatenate([self.features, other.features]),
        )
        first, last = both._first_and_last()
        is_pair = first != last
        kept = [np.flatnonzero(is_pair)[:limit], np.flatnonzero(~is_pair)[:limit]]  # by ascending hash
        tracks = np.concatenate(kept)
        return both.take(np.unique(np.concatenate([first[tracks], last[tracks]])))

    def pairs(self) -> "tuple[TrackEnds, TrackEnds]":
        """Return the first and the last crops (m) of the tracks that have two, in the same order."""
        first, last = self._first_and_last()
        is_pair = first != last
        return self.take(first[is_pair]), self.take(last[is_pair])

    def _first_and_last(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the row of the first and of the last crop of each track, by ascending hash."""
        order = np.lexsort((self.crop_id, self.captured_at, self.track))
        _, starts = np.unique(self.track[order], return_index=True)
        ends = np.append(starts[1:], len(order)) - 1
        return order[starts], order[ends] if len(order) else order[starts]


def track_hashes(cameras: Sequence[str], tracks: Sequence[str]) -> NDArray[np.uint64]:
    """Return a hash (n,) of camera and track; 0 for an unknown track."""
    known: dict[tuple[str, str], int] = {}
    for pair in set(zip(cameras, tracks, strict=True)):
        digest = hashlib.blake2b("\0".join(pair).encode(), digest_size=8).digest()
        known[pair] = int.from_bytes(digest, "big") or 1
    pairs = zip(cameras, tracks, strict=True)
    return np.fromiter((known[pair] if pair[1] else 0 for pair in pairs), np.uint64, len(tracks))
