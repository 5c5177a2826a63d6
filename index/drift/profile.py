"""Weekly profiles of cameras: how many crops, where and how long their features are, and which models.

A profile names no crop: a camera's week with fewer than `MIN_CROPS` crops keeps their number only, because
the mean of a single feature is the feature.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.runs.shards import vectors_of
from index.schema import UNKNOWN_TIME

COLUMNS = ("camera_id", "captured_at", "model_id", "embedding")
MIN_CROPS = 10
UNKNOWN_WEEK = -1
_WEEK_MS = 7 * 86_400_000
_FIRST_MONDAY_MS = 4 * 86_400_000  # 1970-01-05

CameraWeek = tuple[str, int]
"""A camera and the number of a week since 1970-01-05, UTC; UNKNOWN_WEEK for crops without a time."""


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Sums over the features of some crops: float64, mergeable.

    scatter: the sum of the squared distances (L2) from the mean. length, length_sq: sums of the lengths and
    of their squares. models: crops of each predicted vehicle model.
    """

    crops: int
    mean: NDArray[np.float64]  # (d,)
    scatter: float
    length: float
    length_sq: float
    models: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, vectors: NDArray[np.float32], model_ids: NDArray[np.int32]) -> "Features":
        """Return the sums over features (n, d) and the models (n,) that were predicted for them."""
        rows = vectors.astype(np.float64)
        mean = rows.mean(axis=0)
        lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        known, counts = np.unique(model_ids, return_counts=True)
        return cls(
            len(rows),
            mean,
            float(np.square(rows - mean).sum()),
            float(lengths.sum()),
            float(np.square(lengths).sum()),
            dict(zip(known.tolist(), counts.tolist(), strict=True)),
        )

    def merge(self, other: "Features") -> "Features":
        """Return the sums over both (Chan, Golub, LeVeque 1982)."""
        crops = self.crops + other.crops
        difference = other.mean - self.mean
        between = float(difference @ difference) * self.crops * other.crops / crops
        models = dict(self.models)
        for model, count in other.models.items():
            models[model] = models.get(model, 0) + count
        return Features(
            crops,
            self.mean + difference * (other.crops / crops),
            self.scatter + other.scatter + between,
            self.length + other.length,
            self.length_sq + other.length_sq,
            models,
        )

    @property
    def mean_length(self) -> float:
        """The mean length of the features."""
        return self.length / self.crops

    @property
    def variance(self) -> float:
        """The mean squared distance of a feature from the mean."""
        return self.scatter / self.crops


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """Crops and features of each camera and week.

    features: of the weeks with at least MIN_CROPS crops, once `without_small_weeks` was called.
    """

    crops: Mapping[CameraWeek, int] = field(default_factory=dict)
    features: Mapping[CameraWeek, Features] = field(default_factory=dict)

    def merge(self, other: "Profile") -> "Profile":
        """Return the profile of the crops of both."""
        crops, features = dict(self.crops), dict(self.features)
        for key, count in other.crops.items():
            crops[key] = crops.get(key, 0) + count
        for key, sums in other.features.items():
            features[key] = features[key].merge(sums) if key in features else sums
        return Profile(crops, features)

    def without_small_weeks(self) -> "Profile":
        """Return the profile with only the number of crops for weeks of fewer than MIN_CROPS."""
        kept = {key: sums for key, sums in self.features.items() if sums.crops >= MIN_CROPS}
        return Profile(self.crops, kept)

    @property
    def cameras(self) -> list[str]:
        """All known cameras, ascending."""
        return sorted({camera for camera, _ in self.crops if camera})

    @property
    def last_week(self) -> int:
        """The last week with crops, UNKNOWN_WEEK without one."""
        return max((week for _, week in self.crops), default=UNKNOWN_WEEK)


def collect(batches: Iterable[pa.RecordBatch], dimension: int) -> Profile:
    """Return the profile of batches of shard rows with the columns COLUMNS. Memory for one batch."""
    total = Profile()
    for batch in batches:
        cameras = np.asarray(batch.column("camera_id").to_pylist(), np.str_)
        times = batch.column("captured_at").to_numpy()
        weeks = np.where(times == UNKNOWN_TIME, UNKNOWN_WEEK, (times - _FIRST_MONDAY_MS) // _WEEK_MS)
        vectors, models = vectors_of(batch, dimension), batch.column("model_id").to_numpy()
        names, camera_of = np.unique(cameras, return_inverse=True)
        groups, group_of = np.unique(np.stack([camera_of, weeks]), axis=1, return_inverse=True)
        for number, (camera, week) in enumerate(groups.T.tolist()):
            rows = np.flatnonzero(group_of.ravel() == number)
            key = (str(names[camera]), int(week))
            part = Profile({key: len(rows)}, {key: Features.of(vectors[rows], models[rows])})
            total = total.merge(part)
    return total


def monday_ms(week: int) -> int:
    """Return the start of a week, in ms since 1970, UTC."""
    return _FIRST_MONDAY_MS + week * _WEEK_MS
