"""What answers a probe: re-identification's rules on top of nearest neighbours, from an index or a scan.

A crop of the probe's own camera or own pass is no news, and ten crops of one pass are one answer.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from index.filters import Filters
from index.milvus.index_types import MAX_TOP
from index.milvus.search import Hit
from index.search.calibration import Calibration
from index.search.probe import Probe, Sighting
from index.search.travel_time import CameraMap, TravelCheck
from infra.errors import BadSetting

RERANK_HEAD = 100
_OVERFETCH = 4


class CropSource(Protocol):
    """Whatever can say which crops are nearest: a live generation, or shards that are read through."""

    name: str
    fingerprint: str

    def nearest(self, features: NDArray[np.float32], top: int, filters: Filters) -> list[list[Hit]]:
        """Return the nearest crops of each row of features (q, 1024), nearest first."""
        ...

    def vectors(self, crop_ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """Return the features (1024,) of those of the crops that are there."""
        ...

    def sightings(self, crop_ids: Sequence[int]) -> dict[int, Sighting]:
        """Return where and when those of the crops that are there were seen."""
        ...


@dataclass(frozen=True, slots=True)
class Rules:
    """Which crops may answer. `head`: how many answers are re-ranked by their neighbourhood, 0 for none."""

    top: int = 20
    filters: Filters = field(default_factory=Filters)
    same_camera: bool = False
    same_track: bool = False
    group_by_track: bool = True
    max_distance: float | None = None
    cameras: CameraMap | None = None
    drop_impossible: bool = False
    rerank_depth: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.top <= MAX_TOP:
            raise BadSetting(f"top {self.top} is not between 1 and {MAX_TOP:,}")
        if self.max_distance is not None and not self.max_distance > 0:
            raise BadSetting(f"a maximum distance of {self.max_distance} lets nothing through")
        if self.drop_impossible and self.cameras is None:
            raise BadSetting(
                "nothing says how far apart the cameras are", remedy="give --cameras cameras.csv"
            )
        self.filters.expression()


@dataclass(frozen=True, slots=True)
class Match:
    """One hit at its rank among the answers.

    crops: how many crops of the same pass were seen at least. likelihood: that it is the same vehicle,
    where the model is calibrated. journey: the hardest way from the probe's sightings, where cameras and
    times are known.
    """

    rank: int
    hit: Hit
    crops: int = 1
    likelihood: float | None = None
    travel: TravelCheck | None = None


def retrieve(
    source: CropSource, probes: Sequence[Probe], rules: Rules, calibration: Calibration | None = None
) -> list[list[Match]]:
    """Answer each probe, best first, at most `rules.top` answers.

    Probes are asked together with what their filters share, deeper than needed; whoever is left with too
    few answers after the rules is asked again, deeper and with its own cameras left out by the index
    itself. So an answer is missing only where the archive (or the first 16,384 crops) holds no other.
    Raises what the source's `nearest` raises.
    """
    wanted = replace(rules, top=max(rules.top, rules.rerank_depth)) if rules.rerank_depth else rules
    found: list[list[Match]] = [[] for _ in probes]
    alike = len({probe.cameras for probe in probes}) == 1
    depth = min(MAX_TOP, wanted.top * (1 if not rules.group_by_track else _OVERFETCH) + 16)
    waiting = list(range(len(probes)))
    narrow = alike
    while waiting:
        unsatisfied = []
        for group in _groups(probes, waiting, narrow=narrow and not rules.same_camera):
            filters = _filters(rules, probes[group[0]], narrow=narrow)
            hits = source.nearest(np.stack([probes[row].features for row in group]), depth, filters)
            for row, each in zip(group, hits, strict=True):
                found[row] = select(probes[row], each, wanted)
                beyond = rules.max_distance is not None and each and each[-1].distance > rules.max_distance
                if len(found[row]) < wanted.top and len(each) >= depth and not beyond:
                    unsatisfied.append(row)
        if depth >= MAX_TOP and narrow:
            break
        waiting, narrow, depth = unsatisfied, True, min(MAX_TOP, depth * _OVERFETCH)
    if rules.rerank_depth:
        found = [_reranked(source, probe, answers) for probe, answers in zip(probes, found, strict=True)]
    return [_with_likelihood(answers[: rules.top], calibration) for answers in found]


def select(probe: Probe, hits: Sequence[Hit], rules: Rules) -> list[Match]:
    """Apply the rules to hits, nearest first: what is left, at most `rules.top`, ranked from 1."""
    own_cameras = set() if rules.same_camera else set(probe.cameras)
    own_passes = frozenset() if rules.same_track else probe.tracks
    chosen: dict[object, Match] = {}
    for hit in hits:
        if rules.max_distance is not None and hit.distance > rules.max_distance:
            break
        seen = Sighting(hit.camera_id, hit.track_id, hit.captured_at, hit.crop_id)
        if hit.crop_id in probe.crop_ids or hit.camera_id in own_cameras or seen.track_key in own_passes:
            continue
        key: object = (seen.track_key if rules.group_by_track else None) or hit.crop_id
        if key in chosen:
            if rules.group_by_track:
                chosen[key] = replace(chosen[key], crops=chosen[key].crops + 1)
            continue
        if len(chosen) == rules.top:
            continue
        journey = rules.cameras.least_feasible(probe.sightings, seen) if rules.cameras else None
        if journey and not journey.possible and rules.drop_impossible:
            continue
        chosen[key] = Match(len(chosen) + 1, hit, travel=journey)
    return list(chosen.values())


def _groups(probes: Sequence[Probe], rows: Sequence[int], *, narrow: bool) -> list[list[int]]:
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row in rows:
        groups[probes[row].cameras if narrow else ()].append(row)
    return list(groups.values())


def _filters(rules: Rules, probe: Probe, *, narrow: bool) -> Filters:
    if rules.same_camera or not narrow:
        return rules.filters
    return replace(rules.filters, not_cameras=(*rules.filters.not_cameras, *probe.cameras))


def _reranked(source: CropSource, probe: Probe, answers: list[Match]) -> list[Match]:
    from index.exact.k_reciprocal import k_reciprocal

    vectors = source.vectors([each.hit.crop_id for each in answers])
    known = [each for each in answers if each.hit.crop_id in vectors]
    if not known:
        return answers
    features = np.stack([probe.features, *(vectors[each.hit.crop_id] for each in known)])
    # Only the head takes part, so neighbourhoods are those in the head.
    order = np.argsort(k_reciprocal(features, 1)[0], kind="stable")
    return [known[place] for place in order]


def _with_likelihood(answers: list[Match], calibration: Calibration | None) -> list[Match]:
    distances = np.array([each.hit.distance for each in answers])
    likelihoods = calibration.likelihood(distances).tolist() if calibration else [None] * len(answers)
    return [
        replace(each, rank=rank, likelihood=likelihood)
        for rank, (each, likelihood) in enumerate(zip(answers, likelihoods, strict=True), start=1)
    ]
