"""Beyond the CMC: distance distributions, camera pairs, times of day and vehicle models."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.evaluation.cmc import LabeledFeatures, Split, cmc_from_ranking, cmc_of_splits
from index.evaluation.metrics import Ranking
from index.exact.numba_kernels import sq_distance_matrix
from index.exact.products import count_within, require_finite
from index.schema import UNKNOWN_TIME

FALSE_POSITIVE_RATES = (1e-2, 1e-3, 1e-4)
TIMES_OF_DAY = (("night", 0, 6), ("morning", 6, 12), ("afternoon", 12, 18), ("evening", 18, 24))
UNIT_LENGTH_TOLERANCE = 1e-5  # float32 rounds the length of a normalised row by about 1e-7
_MAX_CAMERAS = 12
_MAX_SAMPLED_PROBES = 500
_MAX_SAMPLED_PAIRS = 4_000_000
_GALLERY_CHUNK = 8192
_MS_PER_HOUR = 3_600_000


@dataclass(frozen=True, slots=True)
class Distances:
    """L2 distances of sampled probes of one split to gallery entries."""

    same: NDArray[np.floating]  # to images of the same vehicle
    different: NDArray[np.floating]
    probes: int  # sampled

    def tpr_at_fpr(self, rate: float) -> float | None:
        """Share of same-vehicle pairs nearer than all but `rate` of the different ones; None for too few.

        It is the largest true-positive rate whose false-positive rate is at most `rate`.
        """
        allowed = count_within(rate, len(self.different))
        if allowed < 1 or not len(self.same):
            return None
        threshold = np.partition(self.different, allowed)[allowed]
        return float((self.same < threshold).mean())


@dataclass(frozen=True, slots=True)
class CameraPair:
    """Probes of one camera against the gallery of another."""

    probe_camera: str
    gallery_camera: str
    probes: int  # with a positive in this gallery
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
    """One vehicle model: its share of the images, and the share of them that was predicted correctly."""

    model_id: int
    pictures: int  # images; the field is a JSON key
    share: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Classification:
    """Predicted vehicle models compared with the true ones."""

    micro: float  # share of images predicted correctly
    macro: float  # mean over models
    pictures: int  # images; the field is a JSON key
    chance: float  # share of the most frequent model
    classes: Sequence[ClassAccuracy]  # by descending share


@dataclass(frozen=True, slots=True)
class ValueAccuracy:
    """One value of an attribute: the images that show it, and the share of them predicted correctly."""

    value: str
    pictures: int  # images; the field is a JSON key
    accuracy: float


@dataclass(frozen=True, slots=True)
class AttributeAccuracy:
    """Predicted values of an attribute compared with the true ones."""

    name: str
    micro: float  # share of images predicted correctly
    macro: float  # mean over values
    pictures: int  # images whose value is known; the field is a JSON key
    chance: float  # share of the most frequent value
    values: Sequence[ValueAccuracy]  # most frequent first


@dataclass(frozen=True, slots=True)
class ValueRanks:
    """Probes of one true value of an attribute, such as a color, against the whole gallery."""

    value: str
    probes: int
    rank_1: float
    map: float


def sample_distances(
    images: LabeledFeatures, split: Split, *, junk: bool = False, seed: int = 0
) -> Distances:
    """Distances between sampled probes of a split and its gallery, at most `_MAX_SAMPLED_PAIRS` of them.

    Junk and the probe's own image are excluded. The distances are exact. Raises BadInput for NaN, infinity.
    """
    rng = np.random.default_rng(seed)
    num_probes = max(1, min(_MAX_SAMPLED_PROBES, _MAX_SAMPLED_PAIRS // len(split.gallery)))
    sampled = np.sort(rng.permutation(split.probes)[:num_probes])
    kept = split.gallery
    if len(kept) > _MAX_SAMPLED_PAIRS:
        kept = np.sort(rng.permutation(kept)[:_MAX_SAMPLED_PAIRS])
    same, different = [], []
    for part in split.one_gallery_each:
        probes = sampled[np.isin(sampled, part.probes)]
        gallery = part.gallery[np.isin(part.gallery, kept)]
        for start in range(0, len(gallery) if len(probes) else 0, _GALLERY_CHUNK):
            rows = gallery[start : start + _GALLERY_CHUNK]
            near, far = _distances(images, probes, rows, junk)
            same.append(near)
            different.append(far)
    return Distances(np.concatenate(same), np.concatenate(different), len(sampled))


def _distances(
    images: LabeledFeatures, probes: NDArray[np.int64], rows: NDArray[np.int64], junk: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the distances of ranked pairs of the same vehicle, and of pairs of different vehicles."""
    x, y = (np.ascontiguousarray(images.features[part], dtype=np.float32) for part in (probes, rows))
    require_finite(x)
    require_finite(y)
    distances = np.sqrt(sq_distance_matrix(x, y))
    is_positive = images.vehicle_ids[probes][:, None] == images.vehicle_ids[rows]
    is_ranked = probes[:, None] != rows
    if junk and images.camera_ids is not None:
        is_same_camera = images.camera_ids[probes][:, None] == images.camera_ids[rows]
        is_ranked &= ~(is_positive & is_same_camera)
    return distances[is_positive & is_ranked], distances[~is_positive]


def by_camera_pair(images: LabeledFeatures, *, max_images: int = 20_000, seed: int = 0) -> list[CameraPair]:
    """Rank each camera's images against those of each other camera, all pairs of cameras in one pass.

    Every image with a positive in the other camera is a probe. Above `max_images` a sample is ranked, and
    above `_MAX_CAMERAS` those with most images. A pair of cameras without such a probe is not reported.
    """
    if images.camera_ids is None:
        return []
    rows = np.sort(np.random.default_rng(seed).permutation(len(images.features))[:max_images])
    camera_of, vehicle_of = images.camera_ids[rows], images.vehicle_ids[rows]
    cameras, counts = np.unique(camera_of, return_counts=True)
    cameras = np.sort(cameras[np.argsort(-counts, kind="stable")][:_MAX_CAMERAS])
    names, splits = [], []
    for gallery_camera in cameras:
        gallery = rows[camera_of == gallery_camera]
        has_positive = np.isin(vehicle_of, images.vehicle_ids[gallery])
        for probe_camera in cameras[cameras != gallery_camera]:
            probes = rows[has_positive & (camera_of == probe_camera)]
            if len(probes):
                names.append((str(probe_camera), str(gallery_camera)))
                splits.append(Split(probes, gallery))
    if not splits:
        return []
    results = cmc_of_splits(images, splits, max_rank=1)
    pairs = [
        CameraPair(
            probe_camera=probe_camera,
            gallery_camera=gallery_camera,
            probes=result.probes,
            rank_1=float(result.curve[0]),
            map=result.mean_ap,
        )
        for (probe_camera, gallery_camera), result in zip(names, results, strict=True)
    ]
    return sorted(pairs, key=lambda pair: (pair.probe_camera, pair.gallery_camera))


def by_day_part(split: Split, ranking: Ranking, captured_at: NDArray[np.int64]) -> list[TimeOfDay]:
    """Metrics of the probes by the hours in which they were taken (ms since 1970, UTC)."""
    times = captured_at[split.probes]
    hour = times // _MS_PER_HOUR % 24
    parts = []
    for name, start, end in TIMES_OF_DAY:
        probes = np.flatnonzero(
            (times != UNKNOWN_TIME) & (hour >= start) & (hour < end) & ranking.has_positive
        )
        if len(probes):
            result = cmc_from_ranking(ranking.take(probes), 1)
            parts.append(
                TimeOfDay(
                    name=name,
                    hours=f"{start:02d}-{end:02d} h",
                    probes=len(probes),
                    rank_1=float(result.curve[0]),
                    map=result.mean_ap,
                )
            )
    return parts


def by_value(split: Split, ranking: Ranking, values: NDArray[np.str_]) -> list[ValueRanks]:
    """Metrics of the probes by a true value of theirs, (n,) and '' if unknown; most probes first."""
    of_probes = values[split.probes]
    parts = []
    for value in np.unique(of_probes[of_probes != ""]):
        probes = np.flatnonzero((of_probes == value) & ranking.has_positive)
        if len(probes):
            result = cmc_from_ranking(ranking.take(probes), 1)
            parts.append(
                ValueRanks(
                    value=str(value), probes=len(probes), rank_1=float(result.curve[0]), map=result.mean_ap
                )
            )
    return sorted(parts, key=lambda part: (-part.probes, part.value))


def attribute_accuracy(
    name: str, predicted: NDArray[np.str_], true: NDArray[np.str_]
) -> AttributeAccuracy | None:
    """Accuracy over images whose true value is known, both (n,); '' is unknown. None without such images."""
    rows = np.flatnonzero(true != "")
    if not len(rows) or (predicted[rows] == "").all():
        return None
    values, inverse, counts = np.unique(true[rows], return_inverse=True, return_counts=True)
    is_correct = predicted[rows] == true[rows]
    accuracy = np.bincount(inverse, is_correct, minlength=len(values)) / counts
    return AttributeAccuracy(
        name=name,
        micro=float(is_correct.mean()),
        macro=float(accuracy.mean()),
        pictures=len(rows),
        chance=float(counts.max() / len(rows)),
        values=[
            ValueAccuracy(str(values[i]), int(counts[i]), float(accuracy[i]))
            for i in np.lexsort((values, -counts))
        ],
    )


def classification(
    predicted: NDArray[np.int64], true: NDArray[np.int64], known: NDArray[np.int64] | None = None
) -> Classification | None:
    """Accuracy over images whose true model is in `known`, or not negative.

    None without such images, and for a network without a classifier, all of whose predictions are negative.
    """
    rows = np.flatnonzero(true >= 0 if known is None else np.isin(true, known))
    if not len(rows) or (predicted[rows] < 0).all():
        return None
    models, inverse, counts = np.unique(true[rows], return_inverse=True, return_counts=True)
    is_correct = predicted[rows] == true[rows]
    accuracy = np.bincount(inverse, is_correct, minlength=len(models)) / counts
    order = np.lexsort((models, -counts))
    return Classification(
        micro=float(is_correct.mean()),
        macro=float(accuracy.mean()),
        pictures=len(rows),
        chance=float(counts.max() / len(rows)),
        classes=[
            ClassAccuracy(
                model_id=int(models[i]),
                pictures=int(counts[i]),
                share=float(counts[i] / len(rows)),
                accuracy=float(accuracy[i]),
            )
            for i in order
        ],
    )


def l2_normalized(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows (n, d) divided by their norms; a row of zeros stays."""
    norms = np.sqrt(np.einsum("ij,ij->i", features, features, dtype=np.float64)).astype(np.float32)
    return np.asarray(features / np.where(norms > 0, norms, 1)[:, None], dtype=np.float32)


def is_unit_length(features: NDArray[np.float32]) -> bool:
    """Whether all rows (n, d) have length 1, within UNIT_LENGTH_TOLERANCE."""
    lengths = np.sqrt(np.einsum("ij,ij->i", features, features, dtype=np.float64))
    return bool(np.allclose(lengths, 1, rtol=0, atol=UNIT_LENGTH_TOLERANCE))
