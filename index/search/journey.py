"""Journeys: the sightings of one vehicle in order of time, with the speed of each leg."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from index.schema import UNKNOWN_TIME
from index.search.probe import Sighting
from index.search.travel_time import CameraMap


@dataclass(frozen=True, slots=True)
class Stop:
    """One pass before one camera: its first and last time in ms, UTC, and its crops by time."""

    camera_id: str
    track_id: str
    first: int
    last: int
    crop_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Leg:
    """The way from one stop to the next: seconds between them, and straight-line km and km/h if known.

    possible: whether one vehicle can have made it; None if a position is unknown. A leg from a stop to a
    later one of the same camera has 0 km.
    """

    seconds: float
    km: float | None = None
    kmh: float | None = None
    possible: bool | None = None


@dataclass(frozen=True, slots=True)
class Journey:
    """The stops in order of time, the legs between them (one fewer), and the crops of unknown time."""

    stops: tuple[Stop, ...]
    legs: tuple[Leg, ...]
    untimed: tuple[int, ...] = ()

    @property
    def impossible(self) -> int:
        """The number of legs that no vehicle can have made."""
        return sum(leg.possible is False for leg in self.legs)


def journey_of(sightings: Iterable[Sighting], cameras: CameraMap | None = None) -> Journey:
    """Order sightings of archived crops by time; those of one track are one stop.

    An impossible leg means that one of its ends shows another vehicle, or that a clock or a position is
    wrong: speeds are along the great circle, and no road is shorter.
    """
    known = {sighting.crop_id: sighting for sighting in sightings if sighting.crop_id is not None}
    timed = [sighting for sighting in known.values() if sighting.captured_at != UNKNOWN_TIME]
    passes: dict[object, list[Sighting]] = {}
    for sighting in sorted(timed, key=lambda one: (one.captured_at, one.crop_id or 0)):
        passes.setdefault(sighting.track_key or sighting.crop_id, []).append(sighting)
    stops = sorted(map(_stop, passes.values()), key=lambda stop: (stop.first, stop.last, stop.camera_id))
    legs = tuple(_leg(start, end, cameras) for start, end in pairwise(stops))
    untimed = [crop_id for crop_id, one in known.items() if one.captured_at == UNKNOWN_TIME]
    return Journey(tuple(stops), legs, tuple(sorted(filter(None, untimed))))


def _stop(crops: Sequence[Sighting]) -> Stop:
    return Stop(
        camera_id=crops[0].camera_id,
        track_id=crops[0].track_id,
        first=crops[0].captured_at,
        last=crops[-1].captured_at,
        crop_ids=tuple(crop.crop_id for crop in crops if crop.crop_id is not None),
    )


def _leg(start: Stop, end: Stop, cameras: CameraMap | None) -> Leg:
    # Two passes may overlap in time, for instance where two cameras see one junction.
    arrival = max(end.first, start.last)
    seconds = (arrival - start.last) / 1000
    check = (
        cameras.travel(
            Sighting(start.camera_id, captured_at=start.last), Sighting(end.camera_id, captured_at=arrival)
        )
        if cameras
        else None
    )
    if check is None:
        return Leg(seconds)
    return Leg(seconds, check.km, check.kmh if math.isfinite(check.kmh) else None, check.possible)
