"""What the true vehicle models of images tell: galleries of one model, unseen models, perfect recognisers.

CLVR learns vehicle models. A rank-1 over all vehicles mixes two achievements: finding the model, and finding
the vehicle among those of its model. The protocols `within-model` and `within-model-color` show the second
alone, and an oracle shows how far the first alone would get.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.evaluation.cmc import Split, chance_curve

UNKNOWN_GROUP = -1


@dataclass(frozen=True, slots=True)
class ModelLabels:
    """The true vehicle models of n images, and their colors, where they are known."""

    model_ids: NDArray[np.int64]  # (n,), negative if unknown
    colors: NDArray[np.str_] | None = None  # (n,), '' if unknown
    trained: frozenset[int] | None = None  # the models that the network was trained on; None if unknown

    def groups(self, *, by_color: bool = False) -> NDArray[np.int64]:
        """Return a number for each model, or model and color, of the images: (n,), -1 if unknown."""
        groups = np.where(self.model_ids >= 0, self.model_ids, UNKNOWN_GROUP)
        if not by_color:
            return groups
        if self.colors is None:
            return np.full(len(groups), UNKNOWN_GROUP)
        colors = np.unique(self.colors, return_inverse=True)[1]
        _, numbers = np.unique(np.stack([groups, colors]), axis=1, return_inverse=True)
        is_known = (groups >= 0) & (self.colors != "")
        return np.where(is_known, numbers.ravel(), UNKNOWN_GROUP).astype(np.int64)

    def take(self, rows: NDArray[np.int64]) -> "ModelLabels":
        """Return the labels of the given rows, in the given order."""
        colors = None if self.colors is None else self.colors[rows]
        return ModelLabels(self.model_ids[rows], colors, self.trained)

    @property
    def is_unseen(self) -> NDArray[np.bool_]:
        """Which images are of a known model that the network was not trained on: (n,)."""
        trained = sorted(self.trained or ())
        return np.asarray((self.model_ids >= 0) & ~np.isin(self.model_ids, trained))


@dataclass(frozen=True, slots=True)
class Oracle:
    """Somebody who names the model (or model and color) of each image rightly, and guesses the vehicle."""

    name: str  # 'model' or 'model and color'
    curve: NDArray[np.float64]  # (max_rank,) the expected CMC, mean over repeats
    known: float  # share of the images whose model (and color) is known; probes of the others are left out


def split_by_group(split: Split, groups: NDArray[np.int64]) -> Split:
    """Give each probe the gallery of its own group; probes without a known group or a gallery leave."""
    parts = []
    for group in np.unique(groups[split.probes]):
        part = Split(
            split.probes[groups[split.probes] == group], split.gallery[groups[split.gallery] == group]
        )
        if group != UNKNOWN_GROUP and len(part.gallery):
            parts.append(part)
    return Split.of_parts(parts) if parts else Split(split.probes[:0], split.gallery[:0])


def has_rivals(vehicle_ids: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which images are of a vehicle with another image in its group, and of a group with such vehicles: (n,).

    A group of one vehicle is left out, because it has nothing to confuse the vehicle with.
    """
    pair = pair_numbers(vehicle_ids, groups)
    is_matched = (np.bincount(pair)[pair] > 1) & (groups != UNKNOWN_GROUP)
    pairs = np.unique(np.stack([groups, vehicle_ids])[:, is_matched], axis=1)
    several, vehicles = np.unique(pairs[0], return_counts=True)
    return np.asarray(is_matched & np.isin(groups, several[vehicles > 1]))


def pair_numbers(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the distinct pairs of two columns (n,) from 0: (n,)."""
    inverse = np.unique(np.stack([left, right]), axis=1, return_inverse=True)[1]
    return np.asarray(inverse.ravel(), dtype=np.int64)


def oracles(
    splits: Sequence[Split],
    vehicle_ids: NDArray[np.int64],
    labels: ModelLabels,
    *,
    junk_cameras: NDArray[np.str_] | None = None,
    max_rank: int = 50,
) -> list[Oracle]:
    """Return what perfect recognisers of the model, and of model and color, reach on the same splits.

    Such a recogniser ranks all gallery images of the probe's group first, in random order, so its expected
    CMC is the chance curve of that group alone. junk_cameras: the cameras (n,) if images of the probe's
    vehicle by its own camera are not ranked. A recogniser is left out if no probe's group is known.
    """
    found = []
    for name, by_color in (("model", False), ("model and color", True)):
        groups = labels.groups(by_color=by_color)
        counts = [_group_counts(split, vehicle_ids, groups, junk_cameras) for split in splits]
        if any(not len(positives) for positives, _ in counts):
            continue
        curves = [chance_curve(positives, sizes, max_rank) for positives, sizes in counts]
        rows = np.concatenate([rows for split in splits for rows in (split.probes, split.gallery)])
        known = float((groups[np.unique(rows)] != UNKNOWN_GROUP).mean())
        found.append(Oracle(name, np.mean(curves, axis=0), known))
    return found


def _group_counts(
    split: Split,
    vehicle_ids: NDArray[np.int64],
    groups: NDArray[np.int64],
    junk_cameras: NDArray[np.str_] | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positives and the gallery images in the group of each probe that has a positive there."""
    vehicle = pair_numbers(vehicle_ids, groups)
    camera = np.zeros(len(vehicle), np.int64)
    if junk_cameras is not None:
        camera = np.unique(junk_cameras, return_inverse=True)[1].astype(np.int64)
    at_camera = pair_numbers(vehicle, camera)
    _, group = np.unique(groups, return_inverse=True)
    positives, sizes = [], []
    for part in split.one_gallery_each:
        probes = part.probes[groups[part.probes] != UNKNOWN_GROUP]
        in_vehicle, in_camera, in_group = (
            np.bincount(column[part.gallery], minlength=column.max() + 1)[column[probes]]
            for column in (vehicle, at_camera, group)
        )
        excluded = np.isin(probes, part.gallery).astype(np.int64) if junk_cameras is None else in_camera
        positives.append(in_vehicle - excluded)
        sizes.append(in_group - excluded)
    all_positives, all_sizes = np.concatenate(positives), np.concatenate(sizes)
    return all_positives[all_positives > 0], all_sizes[all_positives > 0]
