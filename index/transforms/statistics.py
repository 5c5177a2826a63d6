"""What a transform is fitted to: moments of a sample of crops, and tracks that are held out from them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.runs.shards import vectors_of
from index.transforms.moments import Moments, groups_of
from index.transforms.tracks import TrackEnds, track_hashes
from index.transforms.transform import normalized

MAX_ROWS = 262_144
"""Crops that are sampled: 256 for each of 1,024 dimensions. The error of a variance is then below a tenth."""

COLUMNS = ("crop_id", "embedding", "camera_id", "captured_at", "track_id")


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which crops take part.

    share: of the crops, drawn by a hash of their crop_id, so that the sample does not depend on shards.
    groups: keep the means of cameras, by_hour: of cameras at hours. hold_out: keep every second track apart.
    """

    share: float = 1.0
    groups: bool = False
    by_hour: bool = False
    hold_out: bool = False

    @classmethod
    def of(cls, rows: int, max_rows: int = MAX_ROWS, **options: bool) -> "Sampling":
        """Return the sampling of at most about `max_rows` of some rows: all of them if there are no more."""
        return cls(min(1.0, max_rows / max(rows, 1)), **options)


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """The moments of the crops to fit to, those of crops on tracks that are held out, and these tracks."""

    fitted: Moments
    held_out: Moments
    tracks: TrackEnds

    @classmethod
    def empty(cls, dimension: int) -> "Statistics":
        """Return the statistics of no crop."""
        return cls(Moments.empty(dimension), Moments.empty(dimension), TrackEnds.empty(dimension))

    def merge(self, other: "Statistics") -> "Statistics":
        """Return the statistics of the crops of both."""
        return Statistics(
            self.fitted.merge(other.fitted),
            self.held_out.merge(other.held_out),
            self.tracks.merge(other.tracks),
        )


def collect(batches: Iterable[pa.RecordBatch], sampling: Sampling, dimension: int) -> Statistics:
    """Return the statistics of batches of shard rows that have the columns `COLUMNS`.

    Features are L2-normalised in float64 before their moments are taken. Memory for one batch.
    """
    total = Statistics.empty(dimension)
    for batch in batches:
        crop_ids = batch.column("crop_id").to_numpy()
        sampled = np.flatnonzero(is_sampled(crop_ids, sampling.share))
        if not len(sampled):
            continue
        rows = batch.take(pa.array(sampled))
        total = total.merge(_of_rows(rows, sampling, dimension))
    return total


def is_sampled(crop_ids: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Return which crops (n,) are in a sample of this share, by the SplitMix64 hash of their id."""
    if share >= 1:
        return np.ones(len(crop_ids), bool)
    number = crop_ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    number ^= number >> np.uint64(31)
    return np.asarray(number.astype(np.float64) < share * 2.0**64)


def _of_rows(rows: pa.RecordBatch, sampling: Sampling, dimension: int) -> Statistics:
    vectors = vectors_of(rows, dimension)
    features = normalized(vectors.astype(np.float64))
    cameras: list[str] = rows.column("camera_id").to_pylist()
    times = np.asarray(rows.column("captured_at").to_numpy(), np.int64)
    groups = groups_of(cameras, times, by_hour=sampling.by_hour) if sampling.groups else None
    if not sampling.hold_out:
        return Statistics(Moments.of(features, groups), Moments.empty(dimension), TrackEnds.empty(dimension))
    tracks = track_hashes(cameras, rows.column("track_id").to_pylist())
    is_held_out = tracks % np.uint64(2) == 1
    moments = []
    for mask in (~is_held_out, is_held_out):
        chosen = np.flatnonzero(mask)
        own = None if groups is None else [groups[row] for row in chosen.tolist()]
        moments.append(Moments.of(features[chosen], own))
    held = np.flatnonzero(is_held_out)
    ends = TrackEnds(
        tracks[held],
        times[held],
        rows.column("crop_id").to_numpy()[held],
        np.asarray(cameras, np.str_)[held],
        vectors[held],
    )
    return Statistics(moments[0], moments[1], TrackEnds.empty(dimension).merge(ends))
