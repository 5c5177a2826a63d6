"""Companions: vehicles that were seen near several stops of a journey, at about the same times.

For each stop, the crops of its camera within a time window are candidates. Two candidates of different stops
show the same vehicle if their distance is within a limit, such as the calibrated one. A companion is a crop
with its nearest counterpart at each other stop, if that is within the limit.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from index.filters import Filters
from index.milvus.search import Hit
from index.search.journey import Stop
from infra.errors import BadSetting

MAX_STOPS = 20
"""Stops that are looked at: the latest ones."""

MAX_CANDIDATES = 200
"""Crops around a stop that are compared; of more, those nearest to it in time."""

_MAX_SELECTED = 4000


class SelectableSource(Protocol):
    """A source of crops by filters, such as a generation."""

    def select(self, filters: Filters, limit: int) -> list[Hit]:
        """Return at most `limit` crops that pass the filters, in no particular order."""
        ...

    def vectors(self, crop_ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """Return the vectors (d,) of those crops that are in the source."""
        ...


@dataclass(frozen=True, slots=True)
class Companion:
    """A vehicle near `stops` (positions in the journey), with one crop for each of them.

    distance: the mean L2 distance between its crops; seconds: the mean time between a crop and its stop.
    """

    stops: tuple[int, ...]
    crops: tuple[Hit, ...]
    distance: float
    seconds: float


def find_companions(
    source: SelectableSource,
    stops: Sequence[Stop],
    *,
    window_seconds: float,
    max_distance: float,
    exclude: Collection[int] = (),
    min_stops: int = 2,
    top: int = 20,
) -> list[Companion]:
    """Return the vehicles near the most stops, then the most similar; each crop is in one of them.

    stops: of one vehicle, by time, with cameras. exclude: crop_ids of the vehicle itself; their tracks are
    left out too. Raises BadSetting for a window or a distance that is not positive.
    """
    if window_seconds <= 0 or max_distance <= 0:
        raise BadSetting("a window and a distance of companions must be positive")
    placed = [(place, stop) for place, stop in enumerate(stops) if stop.camera_id][-MAX_STOPS:]
    known_tracks = {(stop.camera_id, stop.track_id) for stop in stops if stop.track_id}
    groups = [
        (place, _candidates(source, stop, window_seconds, set(exclude), known_tracks))
        for place, stop in placed
    ]
    groups = [(place, hits) for place, hits in groups if hits]
    vectors = source.vectors([hit.crop_id for _, hits in groups for hit in hits])
    groups = [(place, [hit for hit in hits if hit.crop_id in vectors]) for place, hits in groups]
    groups = [(place, hits) for place, hits in groups if hits]
    features = [np.stack([vectors[hit.crop_id] for hit in hits]).astype(np.float64) for _, hits in groups]
    found = []
    for row, (_, hits) in enumerate(groups):
        nearest = [_nearest(features[row], other) for other in features]
        for position in range(len(hits)):
            members = [(row, position)]
            passes = {_pass_of(hits[position])}
            for column, (rows, distances) in enumerate(nearest):
                other = groups[column][1][int(rows[position])]
                # The windows of two stops may overlap: one pass is near one of them.
                if distances[position] <= max_distance and _pass_of(other) not in passes:
                    members.append((column, int(rows[position])))
                    passes.add(_pass_of(other))
            members.sort()
            if len(members) >= min_stops:
                found.append(_companion(groups, features, members, stops))
    found.sort(key=lambda one: (-len(one.stops), one.distance, one.seconds))
    used: set[int] = set()
    chosen = []
    for companion in found:
        crop_ids = {crop.crop_id for crop in companion.crops}
        if not used & crop_ids:
            used |= crop_ids
            chosen.append(companion)
    return chosen[:top]


def _candidates(
    source: SelectableSource,
    stop: Stop,
    window_seconds: float,
    exclude: set[int],
    known_tracks: set[tuple[str, str]],
) -> list[Hit]:
    window = round(1000 * window_seconds)
    filters = Filters(
        cameras=(stop.camera_id,),
        captured_from=max(0, stop.first - window),
        captured_to=stop.last + window + 1,
    )
    hits = [
        hit
        for hit in source.select(filters, _MAX_SELECTED)
        if hit.crop_id not in exclude and (hit.camera_id, hit.track_id) not in known_tracks
    ]
    hits.sort(key=lambda hit: (_seconds_from(stop, hit), hit.crop_id))
    by_track: dict[object, Hit] = {}
    for hit in hits:
        by_track.setdefault(_pass_of(hit), hit)
    return list(by_track.values())[:MAX_CANDIDATES]


def _pass_of(hit: Hit) -> object:
    return (hit.camera_id, hit.track_id) if hit.track_id else hit.crop_id


def _seconds_from(stop: Stop, hit: Hit) -> float:
    return max(stop.first - hit.captured_at, hit.captured_at - stop.last, 0) / 1000


def _nearest(
    features: NDArray[np.float64], others: NDArray[np.float64]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return for each row of features (n, d) the nearest row of others (m, d), and its distance."""
    squares = (features**2).sum(1)[:, None] - 2 * features @ others.T + (others**2).sum(1)[None]
    rows = squares.argmin(axis=1)
    return rows, np.linalg.norm(features - others[rows], axis=1)


def _companion(
    groups: Sequence[tuple[int, Sequence[Hit]]],
    features: Sequence[NDArray[np.float64]],
    members: Sequence[tuple[int, int]],
    stops: Sequence[Stop],
) -> Companion:
    vectors = np.stack([features[column][row] for column, row in members])
    pairs = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    hits = [groups[column][1][row] for column, row in members]
    places = [groups[column][0] for column, _ in members]
    seconds = [_seconds_from(stops[place], hit) for place, hit in zip(places, hits, strict=True)]
    return Companion(
        stops=tuple(places),
        crops=tuple(hits),
        distance=float(pairs.sum() / max(1, len(members) * (len(members) - 1))),
        seconds=float(np.mean(seconds)),
    )
