"""What else a ranking tells: distances of same and different vehicles, cameras, hours, models."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.evaluation.cmc import LabeledFeatures, Ranking, Split, cmc_from_ranking, cmc_of_splits

FALSE_POSITIVE_RATES = (1e-2, 1e-3, 1e-4)
TIMES_OF_DAY = (("night", 0, 6), ("morning", 6, 12), ("afternoon", 12, 18), ("evening", 18, 24))
_MAX_CAMERAS = 12
_PROBES_SAMPLED = 500
_PAIRS_SAMPLED = 4_000_000
_UNKNOWN_TIME = -1


@dataclass(frozen=True, slots=True)
class Distances:
    """L2 distances of probes to gallery entries, of sampled probes of one split."""

    same: NDArray[np.float32]  # of the same vehicle
    different: NDArray[np.float32]
    probes: int  # that were sampled

    def tpr_at_fpr(self, rate: float) -> float | None:
        """Share of same-vehicle pairs nearer than all but `rate` of the different ones; None for too few."""
        allowed = int(rate * len(self.different))
        if allowed < 1 or not len(self.same):
            return None
        threshold = np.partition(self.different, allowed)[allowed]
        return float((self.same < threshold).mean())


@dataclass(frozen=True, slots=True)
class CameraPair:
    """Probes of one camera against the gallery of another."""

    probe_camera: str
    gallery_camera: str
    probes: int  # with a true match there
    rank_1: float
    map: float


@dataclass(frozen=True, slots=True)
class TimeOfDay:
    """Probes that were taken in these hours, UTC, against the whole gallery."""

    name: str
    hours: str
    probes: int
    rank_1: float
    map: float


@dataclass(frozen=True, slots=True)
class ClassAccuracy:
    """One vehicle model: its share of the pictures, and how many of them were named rightly."""

    model_id: int
    pictures: int
    share: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Classification:
    """Vehicle models as predicted beside the true ones."""

    micro: float  # share of pictures named rightly
    macro: float  # mean over models
    pictures: int
    chance: float  # share of the most frequent model
    classes: Sequence[ClassAccuracy]  # by descending share


def sample_distances(
    pictures: LabeledFeatures, split: Split, *, junk: bool = False, seed: int = 0
) -> Distances:
    """Distances between sampled probes of a split and its gallery, at most four million of them.

    Junk and a probe's own picture are left out. float32 arithmetic: good for distributions and thresholds.
    """
    rng = np.random.default_rng(seed)
    most = max(1, min(_PROBES_SAMPLED, _PAIRS_SAMPLED // len(split.gallery)))
    probes = np.sort(rng.permutation(split.probes)[:most])
    gallery = split.gallery
    if len(gallery) > _PAIRS_SAMPLED:
        gallery = np.sort(rng.permutation(gallery)[:_PAIRS_SAMPLED])
    same, different = [], []
    for start in range(0, len(gallery), 8192):
        rows = gallery[start : start + 8192]
        origin = pictures.features[probes].mean(axis=0)
        x, y = pictures.features[probes] - origin, pictures.features[rows] - origin
        squared = np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T
        distance = np.sqrt(np.maximum(squared, 0))
        own = pictures.vehicle_ids[probes][:, None] == pictures.vehicle_ids[rows]
        counts = probes[:, None] != rows
        if junk and pictures.camera_ids is not None:
            counts &= ~own | (pictures.camera_ids[probes][:, None] != pictures.camera_ids[rows])
        same.append(distance[own & counts])
        different.append(distance[~own])
    return Distances(np.concatenate(same), np.concatenate(different), len(probes))


def by_camera_pair(pictures: LabeledFeatures, *, most: int = 20_000, seed: int = 0) -> list[CameraPair]:
    """Rank each camera's pictures against those of each other camera, all pairs of cameras in one pass.

    Every picture is a probe that has a true match there; of more than `most` pictures a sample is taken. Of
    many cameras, the twelve with most pictures. Pairs in which no probe has a true match are left out.
    """
    everyone = np.sort(np.random.default_rng(seed).permutation(len(pictures.features))[:most])
    split = Split(everyone, everyone)
    if pictures.camera_ids is None:
        return []
    cameras, many = np.unique(pictures.camera_ids[split.probes], return_counts=True)
    cameras = np.sort(cameras[np.argsort(-many, kind="stable")][:_MAX_CAMERAS])
    names, splits = [], []
    for there in cameras:
        gallery = split.gallery[pictures.camera_ids[split.gallery] == there]
        seen = np.isin(pictures.vehicle_ids[split.probes], pictures.vehicle_ids[gallery])
        for here in cameras[cameras != there]:
            probes = split.probes[seen & (pictures.camera_ids[split.probes] == here)]
            if len(probes):
                names.append((str(here), str(there)))
                splits.append(Split(probes, gallery))
    if not splits:
        return []
    found = cmc_of_splits(pictures, splits, max_rank=1)
    pairs = [
        CameraPair(*name, one.probes, float(one.curve[0]), one.map)
        for name, one in zip(names, found, strict=True)
    ]
    return sorted(pairs, key=lambda pair: (pair.probe_camera, pair.gallery_camera))


def by_day_part(split: Split, ranking: Ranking, captured_at: NDArray[np.int64]) -> list[TimeOfDay]:
    """Figures of the probes by the hours in which they were taken (ms since 1970, UTC; -1 is unknown)."""
    times = captured_at[split.probes]
    hour = times // 3_600_000 % 24
    parts = []
    for name, start, end in TIMES_OF_DAY:
        rows = np.flatnonzero(
            (times != _UNKNOWN_TIME) & (hour >= start) & (hour < end) & (ranking.matches > 0)
        )
        if len(rows):
            some = cmc_from_ranking(ranking.take(rows), 1)
            parts.append(
                TimeOfDay(name, f"{start:02d}-{end:02d} h", len(rows), float(some.curve[0]), some.map)
            )
    return parts


def classification(
    predicted: NDArray[np.int64], true: NDArray[np.int64], known: NDArray[np.int64] | None = None
) -> Classification | None:
    """Accuracy over pictures whose true model is not negative, or is one of `known`. None without such."""
    rows = np.flatnonzero(true >= 0 if known is None else np.isin(true, known))
    if not len(rows):
        return None
    models, inverse, many = np.unique(true[rows], return_inverse=True, return_counts=True)
    right = np.bincount(inverse, predicted[rows] == true[rows], minlength=len(models)) / many
    order = np.lexsort((models, -many))
    return Classification(
        micro=float((predicted[rows] == true[rows]).mean()),
        macro=float(right.mean()),
        pictures=len(rows),
        chance=float(many.max() / len(rows)),
        classes=[
            ClassAccuracy(int(models[i]), int(many[i]), float(many[i] / len(rows)), float(right[i]))
            for i in order
        ],
    )


def l2_normalized(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows (n, d) of length 1; a row of zeros stays."""
    length = np.sqrt(np.einsum("ij,ij->i", features, features, dtype=np.float64)).astype(np.float32)
    return np.asarray(features / np.where(length > 0, length, 1)[:, None], dtype=np.float32)
