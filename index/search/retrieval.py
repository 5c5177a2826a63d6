"""Retrieval: the rules of re-identification on top of nearest neighbours, from an index or a scan.

A crop of the probe's own camera or track is no match, and all crops of one track are one match.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from index.archive.reassigned import ReassignedIds
from index.filters import Filters
from index.generations.units import TrackOfCrop
from index.milvus.index_types import MAX_TOP
from index.milvus.search import Hit
from index.search.calibration import Calibration
from index.search.probe import Probe, Sighting
from index.search.travel_time import CameraMap, TravelCheck
from index.transforms.transform import FeatureTransform, require_same_transform
from infra.errors import BadSetting

RERANK_HEAD = 100
"""Number of matches that are re-ranked at least."""

_OVERFETCH = 4


class CropSource(Protocol):
    """A source of nearest crops: a generation, or an exact scan of shards."""

    name: str
    fingerprint: str
    transform: FeatureTransform | None

    def nearest(self, features: NDArray[np.float32], top: int, filters: Filters) -> list[list[Hit]]:
        """Return the nearest crops of each row of features (q, d), nearest first."""
        ...

    def vectors(self, crop_ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """Return the vectors (d,) of those crops that are in the source."""
        ...

    def sightings(self, crop_ids: Sequence[int]) -> dict[int, Sighting]:
        """Return the sightings of those crops that are in the source."""
        ...

    def track_crops(self, camera_id: str, track_id: str) -> list[int]:
        """Return the crop_ids of a camera's track in the source, up to MAX_TOP, in no particular order."""
        ...

    def tracks(self, crop_ids: Sequence[int]) -> dict[int, TrackOfCrop]:
        """Return the tracks of crops; none if the rows of the source are crops."""
        ...

    def reassigned(self) -> ReassignedIds:
        """Return the crops that have another crop_id than the hash of their URI."""
        ...

    def erased_ids(self, crop_ids: Sequence[int], *, now: bool = False) -> set[int]:
        """Return those of the crop_ids that were erased: they are in no answer, and are no probes.

        now: also those that were erased within the last half second.
        """
        ...


@dataclass(frozen=True, slots=True)
class Rules:
    """Which crops may match, and how they are ranked.

    `group_by_track`: make one match of all crops of a track. `drop_impossible`: leave out crops at a camera
    that the vehicle cannot have reached in time, by the positions of `cameras`. `rerank_depth`: the number of
    matches that are re-ranked by k-reciprocal neighbours, 0 for none.
    """

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
            raise BadSetting(f"a maximum distance of {self.max_distance} is not positive")
        if self.drop_impossible and self.cameras is None:
            raise BadSetting(
                "the positions of the cameras are not known", remedy="Give --camera-positions cameras.csv."
            )
        self.filters.expression()


@dataclass(frozen=True, slots=True)
class Match:
    """One hit at its rank among the matches of a probe.

    crops: the number of crops of the same track that were retrieved; in a generation of tracks, `track`, all
    that it has. likelihood: that it is the same vehicle,
    if the model is calibrated. travel: the least feasible way from a sighting of the probe, if cameras and
    times are known.
    """

    rank: int
    hit: Hit
    crops: int = 1
    likelihood: float | None = None
    travel: TravelCheck | None = None
    track: TrackOfCrop | None = None


def retrieve(
    source: CropSource, probes: Sequence[Probe], rules: Rules, calibration: Calibration | None = None
) -> list[list[Match]]:
    """Return the matches of each probe, best first, at most `rules.top`.

    Probes with the same filters are searched together and deeper than needed. Those with too few matches
    after the rules are searched again, deeper and with their own cameras excluded by the source. So a match
    is missing only if the archive (or the nearest 16,384 crops) has no other.
    Raises TransformMismatch for probes of another transform than the source's, and what its `nearest` raises.
    """
    for probe in probes:
        own = source.transform.transform_id if source.transform else ""
        require_same_transform(own, probe.transform, f"the probe {probe.name}")
    depth_rules = replace(rules, top=max(rules.top, rules.rerank_depth)) if rules.rerank_depth else rules
    top = depth_rules.top
    matches: list[list[Match]] = [[] for _ in probes]
    depth = min(MAX_TOP, top * (_OVERFETCH if rules.group_by_track else 1) + 16)
    pending = list(range(len(probes)))
    # Prefilter: exclude the probe's own cameras in the source. That costs one search per set of cameras.
    prefilter = len({probe.cameras for probe in probes}) == 1
    while pending:
        incomplete = []
        for group in _groups(probes, pending, by_camera=prefilter and not rules.same_camera):
            filters = _filters(rules, probes[group[0]], prefilter=prefilter)
            results = source.nearest(np.stack([probes[row].features for row in group]), depth, filters)
            for row, hits in zip(group, results, strict=True):
                matches[row] = select(probes[row], hits, depth_rules)
                is_too_far = (
                    rules.max_distance is not None and hits and hits[-1].distance > rules.max_distance
                )
                if len(matches[row]) < top and len(hits) >= depth and not is_too_far:
                    incomplete.append(row)
        if depth >= MAX_TOP and prefilter:
            break
        pending, prefilter, depth = incomplete, True, min(MAX_TOP, depth * _OVERFETCH)
    if rules.rerank_depth:
        matches = [
            _rerank(source, probe, candidates) for probe, candidates in zip(probes, matches, strict=True)
        ]
    matches = [candidates[: rules.top] for candidates in matches]
    tracks = source.tracks(sorted({match.hit.crop_id for candidates in matches for match in candidates}))
    return [_with_likelihood(_with_tracks(candidates, tracks), calibration) for candidates in matches]


def select(probe: Probe, hits: Sequence[Hit], rules: Rules) -> list[Match]:
    """Apply the rules to hits, nearest first; return at most `rules.top` matches, ranked from 1."""
    probe_cameras = set() if rules.same_camera else set(probe.cameras)
    probe_tracks = frozenset() if rules.same_track else probe.tracks
    matches: dict[object, Match] = {}
    seen: set[int] = set()
    for hit in hits:
        if hit.crop_id in seen:
            continue  # Milvus Lite may have both rows of a crop after an increment that was killed
        seen.add(hit.crop_id)
        if rules.max_distance is not None and hit.distance > rules.max_distance:
            break
        sighting = Sighting(hit.camera_id, hit.track_id, hit.captured_at, hit.crop_id)
        if hit.crop_id in probe.crop_ids or hit.camera_id in probe_cameras:
            continue
        if sighting.track_key in probe_tracks:
            continue
        key: object = (sighting.track_key if rules.group_by_track else None) or hit.crop_id
        if key in matches:
            if rules.group_by_track:
                matches[key] = replace(matches[key], crops=matches[key].crops + 1)
            continue
        if len(matches) == rules.top:
            continue
        travel = rules.cameras.least_feasible(probe.sightings, sighting) if rules.cameras else None
        if travel and not travel.possible and rules.drop_impossible:
            continue
        matches[key] = Match(len(matches) + 1, hit, travel=travel)
    return list(matches.values())


def _groups(probes: Sequence[Probe], rows: Sequence[int], *, by_camera: bool) -> list[list[int]]:
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row in rows:
        groups[probes[row].cameras if by_camera else ()].append(row)
    return list(groups.values())


def _filters(rules: Rules, probe: Probe, *, prefilter: bool) -> Filters:
    if rules.same_camera or not prefilter:
        return rules.filters
    return replace(rules.filters, not_cameras=(*rules.filters.not_cameras, *probe.cameras))


def _rerank(source: CropSource, probe: Probe, matches: list[Match]) -> list[Match]:
    """Sort matches by k-reciprocal distance; only the matches themselves are neighbours of each other."""
    from index.exact.k_reciprocal import k_reciprocal

    vectors = source.vectors([match.hit.crop_id for match in matches])
    with_vector = [match for match in matches if match.hit.crop_id in vectors]
    if not with_vector:
        return matches
    features = np.stack([probe.features, *(vectors[match.hit.crop_id] for match in with_vector)])
    order = np.argsort(k_reciprocal(features, 1)[0], kind="stable")
    return [with_vector[position] for position in order]


def _with_tracks(matches: list[Match], tracks: dict[int, TrackOfCrop]) -> list[Match]:
    found = [(match, tracks.get(match.hit.crop_id)) for match in matches]
    return [replace(match, crops=track.crops, track=track) if track else match for match, track in found]


def _with_likelihood(matches: list[Match], calibration: Calibration | None) -> list[Match]:
    distances = np.array([match.hit.distance for match in matches])
    likelihoods = calibration.likelihood(distances).tolist() if calibration else [None] * len(matches)
    return [
        replace(match, rank=rank, likelihood=likelihood)
        for rank, (match, likelihood) in enumerate(zip(matches, likelihoods, strict=True), start=1)
    ]
