"""Named evaluation protocols: who is the probe, who the gallery, how often that is drawn; all seeded.

    name              probes                             gallery                       repeats
    vehicleid-paper   one random picture a vehicle       all its other pictures        10
    vehicleid-common  all other pictures                 one random picture a vehicle  10
    veri              one picture a vehicle and camera   all pictures, less junk       10 (lists: 1)
    veri-wild         one random picture a vehicle       all other pictures, less junk 10 (lists: 1)
    vric              one random picture a vehicle       one of it by another camera   10 (lists: 1)
    leave-one-out     every picture                      all other pictures            1 (nothing is random)

The first is what the paper's text describes, the second what nearly every public code does. They give very
different figures on the same features, so no figure goes without its protocol's name. Junk is what VeRi-776
calls the probe's own vehicle seen by the probe's own camera: it is no match and no miss, it is not there.
The datasets of the same names come with lists of probes and gallery; where those are at hand, they are taken
(`role`), and otherwise the same rule draws from any labelled pictures. Vehicles that can have no true match
are left out, and counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from index.evaluation.cmc import Cmc, LabeledFeatures, Ranking, Split, cmc_of_splits
from infra.errors import BadLabels, BadSetting

RULES = {
    "vehicleid-paper": "one random picture of each vehicle is the probe, all other pictures are the gallery",
    "vehicleid-common": "one random picture of each vehicle is the gallery, all other pictures are probes",
    "veri": "one picture of each vehicle and camera is the probe, all pictures are the gallery, "
    "without those of the probe's vehicle by the probe's camera",
    "veri-wild": "one random picture of each vehicle is the probe, all other pictures are the gallery, "
    "without those of the probe's vehicle by the probe's camera",
    "vric": "one random picture of each vehicle is the probe, one of it by another camera is in the gallery",
    "leave-one-out": "each picture is the probe once, all other pictures are the gallery",
}
EXCLUSION = "vehicles with a single picture are left out: they can have no true match"
CAMERA_EXCLUSION = "vehicles seen by a single camera are left out: they can have no true match"
BY_CAMERA = ("veri", "veri-wild", "vric")
JUNK = ("veri", "veri-wild")


@dataclass(frozen=True, slots=True)
class ProtocolResult:
    """One protocol's figures: every repeat's curve, and mean and sample standard deviation over repeats."""

    name: str
    rule: str
    seed: int
    curves: NDArray[np.float64]  # (repeats, max_rank)
    maps: NDArray[np.float64]  # (repeats,)
    minps: NDArray[np.float64]  # (repeats,)
    chance: NDArray[np.float64]  # (max_rank,) mean over repeats
    rankings: list[Ranking]  # for each repeat, of each probe in the split's order
    splits: list[Split]
    vehicles: int  # that take part
    pictures: int  # that take part
    excluded_vehicles: int  # that can have no true match
    unmatched: int = 0  # probes of given lists without a true match, over all repeats; they are not counted
    given: bool = False  # the splits were given, not drawn
    features: str = "as embedded"  # or 'L2-normalised', 're-ranked', …

    @property
    def ranks(self) -> list[NDArray[np.int64]]:
        """For each repeat, the rank of each probe's first true match."""
        return [ranking.ranks for ranking in self.rankings]

    @property
    def repeats(self) -> int:
        """How often the protocol was drawn."""
        return len(self.curves)

    @property
    def mean(self) -> NDArray[np.float64]:
        """(max_rank,) mean curve."""
        return np.asarray(self.curves.mean(axis=0))

    @property
    def std(self) -> NDArray[np.float64]:
        """(max_rank,) sample standard deviation of the curve; 0 for a single repeat."""
        return _std(self.curves)

    @property
    def map(self) -> tuple[float, float]:
        """Mean average precision: mean and sample standard deviation over repeats."""
        return float(self.maps.mean()), float(_std(self.maps))

    @property
    def minp(self) -> tuple[float, float]:
        """Mean inverse negative penalty: mean and sample standard deviation over repeats."""
        return float(self.minps.mean()), float(_std(self.minps))

    @property
    def probes(self) -> int:
        """Probes in each repeat."""
        return len(self.splits[0].probes)

    @property
    def gallery(self) -> int:
        """Gallery entries in each repeat (for leave-one-out the probe itself is not counted)."""
        return len(self.splits[0].gallery) - (self.name == "leave-one-out")

    @property
    def title(self) -> str:
        """The protocol, and what was done to the features where anything was."""
        return self.name if self.features == "as embedded" else f"{self.name}, {self.features}"

    def summary(self) -> str:
        """What was done, in one line."""
        times = "once" if self.repeats == 1 else f"{self.repeats} times"
        drawn = "from given lists" if self.given else f"seed {self.seed}"
        alone = self.excluded_vehicles
        why = CAMERA_EXCLUSION if self.name in BY_CAMERA else EXCLUSION
        left_out = f"{alone:,} left out ({why})" if alone else "no vehicle left out"
        unmatched = f"; {self.unmatched:,} probes without a true match not counted" if self.unmatched else ""
        return (
            f"{self.title}: {self.rule}; {self.probes:,} probes against {self.gallery:,} pictures of "
            f"{self.vehicles:,} vehicles, {times}, {drawn}; {left_out}{unmatched}; equal distances rank by "
            f"the order of the shards"
        )


def vehicleid_paper(vehicle_ids: NDArray[np.int64], seed: int, repeat: int = 0) -> Split:
    """One random picture a vehicle is the probe. Source: the paper, section 4, "Evaluation Protocol"."""
    chosen = _sample_one_per_vehicle(vehicle_ids, seed, repeat)
    return Split(np.flatnonzero(chosen), np.flatnonzero(~chosen & _has_partner(vehicle_ids)))


def vehicleid_common(vehicle_ids: NDArray[np.int64], seed: int, repeat: int = 0) -> Split:
    """One random picture a vehicle is the gallery: the reverse, as in most public code."""
    split = vehicleid_paper(vehicle_ids, seed, repeat)
    return Split(probes=split.gallery, gallery=split.probes)


def leave_one_out(vehicle_ids: NDArray[np.int64]) -> Split:
    """Every picture against all others."""
    rows = np.flatnonzero(_has_partner(vehicle_ids))
    return Split(rows, rows)


def veri(vehicle_ids: NDArray[np.int64], cameras: NDArray[np.int64], seed: int, repeat: int = 0) -> Split:
    """One picture a vehicle and camera is the probe, all pictures are the gallery.

    Source: Liu et al., "A deep learning-based approach to progressive vehicle re-identification", ECCV 2016.
    """
    usable = _seen_by_two(vehicle_ids, cameras)
    _, sighting = np.unique(np.stack([vehicle_ids, cameras]), axis=1, return_inverse=True)
    return Split(
        np.flatnonzero(_sample_one_per_group(sighting, seed, repeat) & usable), np.flatnonzero(usable)
    )


def veri_wild(
    vehicle_ids: NDArray[np.int64], cameras: NDArray[np.int64], seed: int, repeat: int = 0
) -> Split:
    """One picture a vehicle is the probe. Source: Lou et al., "VERI-Wild", CVPR 2019."""
    usable = _seen_by_two(vehicle_ids, cameras)
    chosen = _sample_one_per_group(vehicle_ids, seed, repeat) & usable
    return Split(np.flatnonzero(chosen), np.flatnonzero(~chosen & usable))


def vric(vehicle_ids: NDArray[np.int64], cameras: NDArray[np.int64], seed: int, repeat: int = 0) -> Split:
    """One picture a vehicle is the probe, one by another camera the gallery.

    Source: Kanaci et al., "Vehicle Re-Identification in Context", GCPR 2018.
    """
    usable = _seen_by_two(vehicle_ids, cameras)
    probe = _sample_one_per_group(vehicle_ids, seed, repeat) & usable
    own_camera = dict(zip(vehicle_ids[probe].tolist(), cameras[probe].tolist(), strict=True))
    elsewhere = usable & np.array(
        [own_camera.get(v) != c for v, c in zip(vehicle_ids.tolist(), cameras.tolist(), strict=True)]
    )
    rows = np.flatnonzero(elsewhere)
    second = rows[_sample_one_per_group(vehicle_ids[rows], seed, repeat)]
    return Split(np.flatnonzero(probe), second)


_CAMERA_PROTOCOLS: dict[str, Callable[[NDArray[np.int64], NDArray[np.int64], int, int], Split]] = {
    "veri": veri,
    "veri-wild": veri_wild,
    "vric": vric,
}


def draw_splits(
    name: str,
    vehicle_ids: NDArray[np.int64],
    camera_ids: NDArray[np.str_] | None = None,
    *,
    repeats: int = 10,
    seed: int = 0,
) -> list[Split]:
    """All repeats of a protocol.

    Raises BadSetting for an unknown name, BadLabels if no vehicle is usable or a camera is unknown.
    """
    if name not in RULES:
        raise BadSetting(f"unknown protocol '{name}'", remedy=f"use one of: {', '.join(RULES)}")
    if repeats < 1:
        raise BadSetting(f"repeats is {repeats}", remedy="give at least 1")
    if not _has_partner(vehicle_ids).any():
        raise BadLabels(
            f"none of {len(np.unique(vehicle_ids)):,} vehicles has two pictures",
            remedy="label at least two pictures of some vehicles",
        )
    if name in _CAMERA_PROTOCOLS:
        cameras = _camera_numbers(name, camera_ids)
        if not _seen_by_two(vehicle_ids, cameras).any():
            raise BadLabels(f"protocol {name}: no vehicle was seen by two cameras")
        return [_CAMERA_PROTOCOLS[name](vehicle_ids, cameras, seed, repeat) for repeat in range(repeats)]
    if name == "leave-one-out":
        return [leave_one_out(vehicle_ids)]
    split = vehicleid_paper if name == "vehicleid-paper" else vehicleid_common
    return [split(vehicle_ids, seed, repeat) for repeat in range(repeats)]


Ranker = Callable[[LabeledFeatures, Sequence[Split], int, bool, bool], list[Cmc]]
"""Ranks splits: pictures, splits, max_rank, same_camera_is_junk, skip_unmatched."""


def make_ranker(device: str) -> Ranker:
    """The ranker that works in this process, on any device that torch knows."""

    def rank(
        pictures: LabeledFeatures, splits: Sequence[Split], max_rank: int, junk: bool, skip_unmatched: bool
    ) -> list[Cmc]:
        return cmc_of_splits(
            pictures,
            splits,
            max_rank=max_rank,
            same_camera_is_junk=junk,
            skip_unmatched=skip_unmatched,
            device=device,
        )

    return rank


cpu_ranker = make_ranker("cpu")


def evaluate_protocol(
    name: str,
    features: NDArray[np.float32],
    vehicle_ids: NDArray[np.int64],
    *,
    camera_ids: NDArray[np.str_] | None = None,
    repeats: int = 10,
    seed: int = 0,
    max_rank: int = 50,
    splits: Sequence[Split] | None = None,
    rank: Ranker = cpu_ranker,
    label: str = "as embedded",
) -> ProtocolResult:
    """Draw a protocol (or take `splits` that were drawn before) and rank every repeat.

    features: float32 (n, d); vehicle_ids: int64 (n,); camera_ids: (n,), needed by veri, veri-wild and vric.
    Probes of given splits that have no true match are skipped and counted.
    Raises what `draw` and `cmc_of_splits` raise.
    """
    vehicle_ids = np.asarray(vehicle_ids, dtype=np.int64)
    pictures = LabeledFeatures(features, vehicle_ids, camera_ids, np.arange(len(features)))
    chosen = (
        draw_splits(name, vehicle_ids, camera_ids, repeats=repeats, seed=seed)
        if splits is None
        else list(splits)
    )
    results = rank(pictures, chosen, max_rank, name in JUNK, splits is not None)
    if name in BY_CAMERA and splits is None:
        usable = _seen_by_two(vehicle_ids, _camera_numbers(name, camera_ids))
    elif splits is None:
        usable = _has_partner(vehicle_ids)
    else:
        usable = np.zeros(len(vehicle_ids), dtype=np.bool_)
        usable[np.concatenate([rows for split in chosen for rows in (split.probes, split.gallery)])] = True
    excluded = len(np.unique(vehicle_ids)) - len(np.unique(vehicle_ids[usable]))
    return ProtocolResult(
        name=name,
        rule=RULES[name],
        seed=seed,
        curves=np.stack([result.curve for result in results]),
        maps=np.array([result.map for result in results]),
        minps=np.array([result.minp for result in results]),
        chance=np.mean([result.chance for result in results], axis=0),
        rankings=[result.ranking for result in results],
        splits=chosen,
        vehicles=len(np.unique(vehicle_ids[usable])),
        pictures=int(usable.sum()),
        excluded_vehicles=excluded,
        unmatched=sum(result.skipped for result in results),
        given=splits is not None,
        features=label,
    )


def with_rankings(result: ProtocolResult, ranked: Sequence[Cmc], features: str) -> ProtocolResult:
    """The protocol's figures when its first splits were ranked again in another way."""
    return replace(
        result,
        curves=np.stack([one.curve for one in ranked]),
        maps=np.array([one.map for one in ranked]),
        minps=np.array([one.minp for one in ranked]),
        rankings=[one.ranking for one in ranked],
        splits=result.splits[: len(ranked)],
        features=features,
    )


def _has_partner(vehicle_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    _, inverse, counts = np.unique(vehicle_ids, return_inverse=True, return_counts=True)
    return np.asarray(counts[inverse] > 1)


def _seen_by_two(vehicle_ids: NDArray[np.int64], cameras: NDArray[np.int64]) -> NDArray[np.bool_]:
    pairs = np.unique(np.stack([vehicle_ids, cameras]), axis=1)
    vehicles, many = np.unique(pairs[0], return_counts=True)
    return np.isin(vehicle_ids, vehicles[many > 1])


def _camera_numbers(name: str, camera_ids: NDArray[np.str_] | None) -> NDArray[np.int64]:
    unknown = 0 if camera_ids is None else int((np.asarray(camera_ids) == "").sum())
    if camera_ids is None or unknown:
        many = f"{unknown:,}" if unknown else "all"
        raise BadLabels(
            f"protocol {name} needs the camera of every picture, {many} are unknown",
            remedy="embed with a --key-pattern that has {camera_id}, or give labels with camera_id",
        )
    return np.unique(camera_ids, return_inverse=True)[1]


def _sample_one_per_vehicle(vehicle_ids: NDArray[np.int64], seed: int, repeat: int) -> NDArray[np.bool_]:
    return np.asarray(_sample_one_per_group(vehicle_ids, seed, repeat) & _has_partner(vehicle_ids))


def _sample_one_per_group(groups: NDArray[np.int64], seed: int, repeat: int) -> NDArray[np.bool_]:
    """Each repeat has a stream of its own, so that repeat 7 is the same whether ten are drawn or twenty."""
    key = np.random.default_rng([seed, repeat]).random(len(groups))
    order = np.lexsort((key, groups))
    _, first = np.unique(groups[order], return_index=True)
    chosen = np.zeros(len(groups), dtype=np.bool_)
    chosen[order[first]] = True
    return chosen


def _std(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:]))
