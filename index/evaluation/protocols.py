"""Named evaluation protocols: the probes, the gallery and the number of repeats; all seeded.

    name              probes                             gallery                       repeats
    vehicleid-paper   one random image per vehicle       all its other images          10
    vehicleid-common  all other images                   one random image per vehicle  10
    veri              one image per vehicle and camera   all images, without junk      10 (lists: 1)
    veri-wild         one random image per vehicle       all other images without junk 10 (lists: 1)
    vric              one random image per vehicle       one of it by another camera   10 (lists: 1)
    leave-one-out     every image                        all other images              1 (nothing is random)
    listed            as a dataset lists them            as a dataset lists them       1 (nothing is random)
    cross-camera      one random image per vehicle       all images by other cameras   10
    within-model      one random image per vehicle       other images of its model     10
    within-model-color  the same                         of its model and color        10
    unseen-models     as vehicleid-paper, with models alone that the network was not trained on

The first is the text of the paper, the second the rule of nearly all public code. They give very different
figures on the same features, so every figure names its protocol. Junk (VeRi-776) is an image of the probe's
vehicle by the probe's camera: it is not ranked, and counts neither as a match nor as a miss.
The datasets of the same names publish lists of probes and gallery; if available, these are used.
Otherwise the same rule draws from any labelled images. Vehicles that cannot have a positive are excluded and
counted. `cross-camera` is what a search sees: no image by the probe's camera, and every other vehicle.
`within-model` and its variants are explained in `index.evaluation.model_groups`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from index.evaluation.cmc import Cmc, LabeledFeatures, Split, cmc_of_splits
from index.evaluation.metrics import COMPUTED, Ranking
from index.evaluation.model_groups import ModelLabels, has_rivals, pair_numbers, split_by_group
from index.exact.numba_kernels import TIE_RULE
from infra.errors import BadLabels, BadSetting

RULES = {
    "vehicleid-paper": "one random image of each vehicle is the probe, all other images are the gallery",
    "vehicleid-common": "one random image of each vehicle is the gallery, all other images are probes",
    "veri": "one image of each vehicle and camera is the probe, all images are the gallery, "
    "without those of the probe's vehicle by the probe's camera",
    "veri-wild": "one random image of each vehicle is the probe, all other images are the gallery, "
    "without those of the probe's vehicle by the probe's camera",
    "vric": "one random image of each vehicle is the probe, one of it by another camera is in the gallery",
    "leave-one-out": "each image is the probe once, all other images are the gallery",
    "listed": "the probes and the gallery are those of the dataset's lists; no image is junk",
    "cross-camera": "one random image of each vehicle is the probe, all images by other cameras are the "
    "gallery, as in a search",
    "within-model": "one random image of each vehicle is the probe, the other images of its vehicle model "
    "are the gallery",
    "within-model-color": "one random image of each vehicle is the probe, the other images of its vehicle "
    "model and color are the gallery",
    "unseen-models": "one random image of each vehicle is the probe, all other images are the gallery, with "
    "vehicle models alone that the network was not trained on",
}
EXCLUSION = "vehicles with a single image are excluded: they cannot have a true match"
CAMERA_EXCLUSION = "vehicles seen by a single camera are excluded: they cannot have a true match"
ONE_CAMERA = "vehicles seen by a single camera: they cannot have a true match"
MODEL_EXCLUSION = (
    "vehicles with a single image, or of a group that is unknown or has no second such vehicle, are excluded"
)
UNSEEN_EXCLUSION = "vehicles of trained or unknown models, or with a single image, are excluded"
BY_CAMERA = ("veri", "veri-wild", "vric", "cross-camera")
BY_MODEL = ("within-model", "within-model-color")
JUNK = ("veri", "veri-wild")
AS_EMBEDDED = "as embedded"
IMAGE = "image"
MAX_GALLERY_ROWS = 1 << 27  # of the galleries of all cameras and repeats, 8 bytes each


@dataclass(frozen=True, slots=True)
class ProtocolResult:
    """The figures of one protocol: each repeat, and mean and sample standard deviation over repeats."""

    name: str
    rule: str
    seed: int
    curves: NDArray[np.float64]  # (repeats, max_rank)
    means: Mapping[str, NDArray[np.float64]]  # each of `COMPUTED` by its name: (repeats,)
    chance: NDArray[np.float64]  # (max_rank,) mean over repeats
    rankings: list[Ranking]  # for each repeat, of each probe in the order of the split
    splits: list[Split]
    vehicles: int  # that take part
    images: int  # that take part
    excluded_vehicles: int  # that cannot have a positive
    without_positive: int = 0  # probes of user splits, over all repeats; they are not counted
    has_user_splits: bool = False  # the splits are given and not drawn
    features: str = AS_EMBEDDED  # or 'L2-normalised', 're-ranked', …
    unit: str = IMAGE  # or 'track'

    @property
    def first_ranks(self) -> list[NDArray[np.int64]]:
        """For each repeat, the rank of each probe's first positive; 0 for none."""
        return [ranking.first_ranks for ranking in self.rankings]

    @property
    def repeats(self) -> int:
        """Number of repeats."""
        return len(self.curves)

    @property
    def mean(self) -> NDArray[np.float64]:
        """(max_rank,) mean curve."""
        return np.asarray(self.curves.mean(axis=0))

    @property
    def std(self) -> NDArray[np.float64]:
        """(max_rank,) sample standard deviation of the curve; 0 for a single repeat."""
        return _std(self.curves)

    def figure(self, metric: str) -> tuple[float, float]:
        """Mean and sample standard deviation over repeats of one of `COMPUTED`, by its name."""
        values = self.means[metric]
        return float(values.mean()), float(_std(values))

    @property
    def probes(self) -> int:
        """Probes in each repeat."""
        return len(self.splits[0].probes)

    @property
    def gallery(self) -> int:
        """Gallery entries in each repeat (for leave-one-out without the probe itself), or their mean."""
        if self.splits[0].parts or self.unit != IMAGE:
            return round(float(self.rankings[0].gallery_sizes.mean()))
        return len(self.splits[0].gallery) - (self.name == "leave-one-out")

    @property
    def title(self) -> str:
        """The protocol, and how the features were changed."""
        return self.name if self.features == AS_EMBEDDED else f"{self.name}, {self.features}"

    def summary(self) -> str:
        """The protocol and its numbers in one line."""
        times = "once" if self.repeats == 1 else f"{self.repeats} times"
        source = "from given lists" if self.has_user_splits else f"seed {self.seed}"
        reason = EXCLUSION
        if self.name in BY_CAMERA:
            reason = CAMERA_EXCLUSION
        elif self.name in BY_MODEL:
            reason = MODEL_EXCLUSION
        elif self.name == "unseen-models":
            reason = UNSEEN_EXCLUSION
        mean = "on average " if self.splits[0].parts else ""
        vehicles, excluded = self.vehicles, "no vehicle excluded"
        if self.name == "cross-camera" and not self.has_user_splits:
            vehicles += self.excluded_vehicles
            excluded = f"{self.excluded_vehicles:,} in the gallery alone ({ONE_CAMERA})"
        elif self.excluded_vehicles:
            excluded = f"{self.excluded_vehicles:,} excluded ({reason})"
        skipped = (
            f"; {self.without_positive:,} probes without a true match not counted"
            if self.without_positive
            else ""
        )
        return (
            f"{self.title}: {self.rule}; {self.probes:,} probes against {mean}{self.gallery:,} images of "
            f"{vehicles:,} vehicles, {times}, {source}; {excluded}{skipped}; {TIE_RULE}"
        )


def vehicleid_paper(vehicle_ids: NDArray[np.int64], seed: int, repeat: int = 0) -> Split:
    """One random image per vehicle is the probe. Source: the paper, section 4, "Evaluation Protocol"."""
    is_probe = _sample_one_per_vehicle(vehicle_ids, seed, repeat)
    return Split(np.flatnonzero(is_probe), np.flatnonzero(~is_probe & _has_partner(vehicle_ids)))


def vehicleid_common(vehicle_ids: NDArray[np.int64], seed: int, repeat: int = 0) -> Split:
    """One random image per vehicle is the gallery: the reverse, as in most public code."""
    split = vehicleid_paper(vehicle_ids, seed, repeat)
    return Split(probes=split.gallery, gallery=split.probes)


def leave_one_out(vehicle_ids: NDArray[np.int64]) -> Split:
    """Every image is a probe against all others."""
    rows = np.flatnonzero(_has_partner(vehicle_ids))
    return Split(rows, rows)


def veri(vehicle_ids: NDArray[np.int64], cameras: NDArray[np.int64], seed: int, repeat: int = 0) -> Split:
    """One image per vehicle and camera is the probe, all images are the gallery.

    Source: Liu et al., "A deep learning-based approach to progressive vehicle re-identification", ECCV 2016.
    """
    usable = _seen_by_two(vehicle_ids, cameras)
    _, group = np.unique(np.stack([vehicle_ids, cameras]), axis=1, return_inverse=True)
    is_probe = _sample_one_per_group(group, seed, repeat) & usable
    return Split(np.flatnonzero(is_probe), np.flatnonzero(usable))


def veri_wild(
    vehicle_ids: NDArray[np.int64], cameras: NDArray[np.int64], seed: int, repeat: int = 0
) -> Split:
    """One image per vehicle is the probe. Source: Lou et al., "VERI-Wild", CVPR 2019."""
    usable = _seen_by_two(vehicle_ids, cameras)
    is_probe = _sample_one_per_group(vehicle_ids, seed, repeat) & usable
    return Split(np.flatnonzero(is_probe), np.flatnonzero(~is_probe & usable))


def vric(vehicle_ids: NDArray[np.int64], cameras: NDArray[np.int64], seed: int, repeat: int = 0) -> Split:
    """One image per vehicle is the probe, one by another camera the gallery.

    Source: Kanaci et al., "Vehicle Re-Identification in Context", GCPR 2018.
    """
    usable = _seen_by_two(vehicle_ids, cameras)
    is_probe = _sample_one_per_group(vehicle_ids, seed, repeat) & usable
    probe_camera = dict(zip(vehicle_ids[is_probe].tolist(), cameras[is_probe].tolist(), strict=True))
    is_other_camera = usable & np.array(
        [probe_camera.get(v) != c for v, c in zip(vehicle_ids.tolist(), cameras.tolist(), strict=True)]
    )
    rows = np.flatnonzero(is_other_camera)
    gallery = rows[_sample_one_per_group(vehicle_ids[rows], seed, repeat)]
    return Split(np.flatnonzero(is_probe), gallery)


def cross_camera(
    vehicle_ids: NDArray[np.int64], cameras: NDArray[np.int64], seed: int, repeat: int = 0
) -> Split:
    """One random image per vehicle is the probe, all images by other cameras are the gallery."""
    is_probe = _sample_one_per_group(vehicle_ids, seed, repeat) & _seen_by_two(vehicle_ids, cameras)
    return split_by_camera(Split(np.flatnonzero(is_probe), np.arange(len(vehicle_ids))), cameras)


def split_by_camera(split: Split, cameras: NDArray[np.int64]) -> Split:
    """Take the images by its own camera out of the gallery of each probe."""
    probe_cameras, gallery_cameras = cameras[split.probes], cameras[split.gallery]
    parts = [
        Split(split.probes[probe_cameras == camera], split.gallery[gallery_cameras != camera])
        for camera in np.unique(probe_cameras)
    ]
    return Split.of_parts(parts)


def within_groups(
    vehicle_ids: NDArray[np.int64], groups: NDArray[np.int64], seed: int, repeat: int = 0
) -> Split:
    """One random image per vehicle is the probe, all other images of its group are the gallery."""
    usable = has_rivals(vehicle_ids, groups)
    is_probe = _sample_one_per_group(pair_numbers(vehicle_ids, groups), seed, repeat) & usable
    return split_by_group(Split(np.flatnonzero(is_probe), np.flatnonzero(~is_probe & usable)), groups)


_CAMERA_PROTOCOLS: dict[str, Callable[[NDArray[np.int64], NDArray[np.int64], int, int], Split]] = {
    "veri": veri,
    "veri-wild": veri_wild,
    "vric": vric,
    "cross-camera": cross_camera,
}


def draw_splits(
    name: str,
    vehicle_ids: NDArray[np.int64],
    camera_ids: NDArray[np.str_] | None = None,
    *,
    models: ModelLabels | None = None,
    repeats: int = 10,
    seed: int = 0,
) -> list[Split]:
    """Draw all repeats of a protocol.

    Raises BadSetting for an unknown name, BadLabels if no vehicle is usable, or a camera or the models that
    the protocol needs are unknown.
    """
    if name not in RULES:
        raise BadSetting(f"unknown protocol '{name}'", remedy=f"use one of: {', '.join(RULES)}")
    if repeats < 1:
        raise BadSetting(f"repeats is {repeats}", remedy="give at least 1")
    if not _has_partner(vehicle_ids).any():
        raise BadLabels(
            f"none of {len(np.unique(vehicle_ids)):,} vehicles has two images",
            remedy="label at least two images of some vehicles",
        )
    usable = usable_images(name, vehicle_ids, camera_ids, models)
    if not usable.any():
        raise BadLabels(f"protocol {name}: {_UNUSABLE.get(name, 'no vehicle was seen by two cameras')}")
    if name in _CAMERA_PROTOCOLS:
        cameras = _camera_numbers(name, camera_ids)
        return [_CAMERA_PROTOCOLS[name](vehicle_ids, cameras, seed, repeat) for repeat in range(repeats)]
    if name in BY_MODEL:
        groups = _groups(name, models)
        return [within_groups(vehicle_ids, groups, seed, repeat) for repeat in range(repeats)]
    if name == "leave-one-out":
        return [leave_one_out(vehicle_ids)]
    if name == "listed":
        raise BadLabels(
            "protocol listed: the labels have no list of probes and gallery", remedy="use another protocol"
        )
    if name == "unseen-models":
        rows = np.flatnonzero(usable)
        drawn = [vehicleid_paper(vehicle_ids[rows], seed, repeat) for repeat in range(repeats)]
        return [Split(rows[split.probes], rows[split.gallery]) for split in drawn]
    split = vehicleid_common if name == "vehicleid-common" else vehicleid_paper
    return [split(vehicle_ids, seed, repeat) for repeat in range(repeats)]


_UNUSABLE = {
    "within-model": "no vehicle model has two vehicles with two images each",
    "within-model-color": "no vehicle model and color has two vehicles with two images each",
    "unseen-models": "no vehicle with two images is of a known model that the network was not trained on",
}


def usable_images(
    name: str,
    vehicle_ids: NDArray[np.int64],
    camera_ids: NDArray[np.str_] | None = None,
    models: ModelLabels | None = None,
) -> NDArray[np.bool_]:
    """Return which images (n,) are of vehicles that a protocol can draw as probes.

    Raises BadLabels if a camera or the models that the protocol needs are unknown.
    """
    if name in BY_CAMERA:
        return _seen_by_two(vehicle_ids, _camera_numbers(name, camera_ids))
    if name in BY_MODEL:
        return has_rivals(vehicle_ids, _groups(name, models))
    if name != "unseen-models":
        return _has_partner(vehicle_ids)
    if models is None or models.trained is None:
        raise BadLabels(
            "protocol unseen-models needs the true model of the images, and the models of the training",
            remedy="give labels with model_id, and a run by a checkpoint of clvr train",
        )
    rows = np.flatnonzero(models.is_unseen)
    usable = np.zeros(len(vehicle_ids), dtype=np.bool_)
    usable[rows] = _has_partner(vehicle_ids[rows])
    return usable


def cross_camera_rows(camera_ids: NDArray[np.str_] | None, repeats: int) -> int:
    """Return the rows of the galleries that cross-camera draws, 8 bytes each; 0 without cameras (n,)."""
    return 0 if camera_ids is None else len(np.unique(camera_ids)) * len(camera_ids) * repeats


def applicable_protocols(
    vehicle_ids: NDArray[np.int64],
    camera_ids: NDArray[np.str_] | None,
    models: ModelLabels | None,
    repeats: int = 10,
) -> list[str]:
    """Return which of cross-camera, within-model, within-model-color and unseen-models the labels allow.

    cross-camera is left out above MAX_GALLERY_ROWS.
    """
    gallery_rows = cross_camera_rows(camera_ids, repeats)
    return [
        name
        for name, is_known in (
            ("cross-camera", 0 < gallery_rows <= MAX_GALLERY_ROWS),
            ("within-model", models is not None),
            ("within-model-color", models is not None and models.colors is not None),
            ("unseen-models", models is not None and models.trained is not None),
        )
        if is_known and usable_images(name, vehicle_ids, camera_ids, models).any()
    ]


def _groups(name: str, models: ModelLabels | None) -> NDArray[np.int64]:
    by_color = name == "within-model-color"
    if models is None or (by_color and models.colors is None):
        raise BadLabels(
            f"protocol {name} needs the true model{' and the color' if by_color else ''} of the images",
            remedy=f"give labels with model_id{' and color' if by_color else ''}",
        )
    return models.groups(by_color=by_color)


class Ranker(Protocol):
    """Ranks splits of images, as `cmc_of_splits` does."""

    def __call__(
        self,
        images: LabeledFeatures,
        splits: Sequence[Split],
        *,
        max_rank: int,
        same_camera_is_junk: bool,
        skip_unmatched: bool,
    ) -> list[Cmc]:
        """Return the figures of each split."""
        ...


def make_ranker(device: str) -> Ranker:
    """Return a ranker that works in this process, on any device that torch knows."""
    return partial(cmc_of_splits, device=device)


cpu_ranker = make_ranker("cpu")


def evaluate_protocol(
    name: str,
    features: NDArray[np.float32],
    vehicle_ids: NDArray[np.int64],
    *,
    camera_ids: NDArray[np.str_] | None = None,
    models: ModelLabels | None = None,
    repeats: int = 10,
    seed: int = 0,
    max_rank: int = 50,
    splits: Sequence[Split] | None = None,
    rank: Ranker = cpu_ranker,
    label: str = AS_EMBEDDED,
) -> ProtocolResult:
    """Draw a protocol, or take the splits of the user, and rank every repeat.

    features: float32 (n, d); vehicle_ids: int64 (n,); camera_ids: (n,), needed by the protocols by camera.
    models: the true models of the images, needed by within-model, within-model-color and unseen-models.
    Probes of user splits without a positive are skipped and counted.
    Raises the errors of `draw_splits` and `cmc_of_splits`.
    """
    vehicle_ids = np.asarray(vehicle_ids, dtype=np.int64)
    images = LabeledFeatures(
        features=features,
        vehicle_ids=vehicle_ids,
        camera_ids=camera_ids,
        crop_ids=np.arange(len(features)),
    )
    used_splits = (
        draw_splits(name, vehicle_ids, camera_ids, models=models, repeats=repeats, seed=seed)
        if splits is None
        else [_with_parts(name, split, camera_ids, models) for split in splits]
    )
    results = rank(
        images,
        used_splits,
        max_rank=max_rank,
        same_camera_is_junk=name in JUNK,
        skip_unmatched=splits is not None,
    )
    if splits is None:
        usable = usable_images(name, vehicle_ids, camera_ids, models)
    else:
        usable = np.zeros(len(vehicle_ids), dtype=np.bool_)
        rows = [rows for split in used_splits for rows in (split.probes, split.gallery)]
        usable[np.concatenate(rows)] = True
    num_vehicles = len(np.unique(vehicle_ids[usable]))
    return ProtocolResult(
        name=name,
        rule=RULES[name],
        seed=seed,
        **_figures(results),
        chance=np.mean([result.chance for result in results], axis=0),
        splits=used_splits,
        vehicles=num_vehicles,
        images=int(usable.sum()),
        excluded_vehicles=len(np.unique(vehicle_ids)) - num_vehicles,
        without_positive=sum(result.skipped for result in results),
        has_user_splits=splits is not None,
        features=label,
    )


def _with_parts(
    name: str, split: Split, camera_ids: NDArray[np.str_] | None, models: ModelLabels | None
) -> Split:
    """Divide a given split by the rule of its protocol, if that gives its probes different galleries."""
    if name == "cross-camera":
        return split_by_camera(split, _camera_numbers(name, camera_ids))
    return split_by_group(split, _groups(name, models)) if name in BY_MODEL else split


def with_rankings(result: ProtocolResult, ranked: Sequence[Cmc], features: str) -> ProtocolResult:
    """Return the protocol with the figures of its first splits, ranked again in another way."""
    return replace(result, **_figures(ranked), splits=result.splits[: len(ranked)], features=features)


def _figures(results: Sequence[Cmc]) -> dict[str, Any]:
    return {
        "curves": np.stack([result.curve for result in results]),
        "means": {
            metric.name: np.array([result.means[metric.name] for result in results]) for metric in COMPUTED
        },
        "rankings": [result.ranking for result in results],
    }


def _has_partner(vehicle_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    _, inverse, counts = np.unique(vehicle_ids, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse] > 1)


def _seen_by_two(vehicle_ids: NDArray[np.int64], cameras: NDArray[np.int64]) -> NDArray[np.bool_]:
    pairs = np.unique(np.stack([vehicle_ids, cameras]), axis=1)
    vehicles, num_cameras = np.unique(pairs[0], return_counts=True)
    return np.isin(vehicle_ids, vehicles[num_cameras > 1])


def _camera_numbers(name: str, camera_ids: NDArray[np.str_] | None) -> NDArray[np.int64]:
    num_unknown = 0 if camera_ids is None else int((np.asarray(camera_ids) == "").sum())
    if camera_ids is None or num_unknown:
        raise BadLabels(
            f"protocol {name} needs the camera of every image, "
            f"{f'{num_unknown:,}' if num_unknown else 'all'} are unknown",
            remedy="embed with a --key-pattern that has {camera_id}, or give labels with camera_id",
        )
    return np.unique(camera_ids, return_inverse=True)[1]


def _sample_one_per_vehicle(vehicle_ids: NDArray[np.int64], seed: int, repeat: int) -> NDArray[np.bool_]:
    return np.asarray(_sample_one_per_group(vehicle_ids, seed, repeat) & _has_partner(vehicle_ids))


def _sample_one_per_group(groups: NDArray[np.int64], seed: int, repeat: int) -> NDArray[np.bool_]:
    """Mark one random row of each group. Each repeat has its own stream, whatever the number of repeats."""
    key = np.random.default_rng([seed, repeat]).random(len(groups))
    order = np.lexsort((key, groups))
    _, first = np.unique(groups[order], return_index=True)
    is_sampled = np.zeros(len(groups), dtype=np.bool_)
    is_sampled[order[first]] = True
    return is_sampled


def _std(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:]))
