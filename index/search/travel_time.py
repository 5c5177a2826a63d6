"""Travel time: whether one vehicle can have been at two cameras at two times."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from index.schema import UNKNOWN_TIME
from index.search.probe import Sighting
from infra.errors import BadInput, BadSetting
from infra.store import read_user_table

EARTH_KM = 6371.0088  # mean radius, IUGG
MAX_SPEED_KMH = 150.0
CLOCK_TOLERANCE_SECONDS = 10.0
"""What two cameras' clocks may differ by, given to the vehicle."""

_COLUMNS = ("camera_id", "lat", "lon")


@dataclass(frozen=True, slots=True)
class TravelCheck:
    """From a probe's sighting to a hit: kilometres in a straight line, seconds between, and the verdict."""

    km: float
    seconds: float
    possible: bool

    @property
    def kmh(self) -> float:
        """The speed that it takes at least; infinite for two places at one time."""
        if self.km == 0:
            return 0.0
        return self.km / self.seconds * 3600 if self.seconds else math.inf


@dataclass(frozen=True, slots=True)
class CameraMap:
    """Positions of cameras, (latitude, longitude) in degrees, and the speed that nobody drives above."""

    positions: Mapping[str, tuple[float, float]]
    max_speed_kmh: float = MAX_SPEED_KMH
    clock_seconds: float = CLOCK_TOLERANCE_SECONDS

    def __post_init__(self) -> None:
        if not (0 < self.max_speed_kmh < math.inf):
            raise BadSetting(f"a maximum speed of {self.max_speed_kmh} km/h leads nowhere")

    def km(self, a: str, b: str) -> float | None:
        """Great-circle distance: the road is never shorter, so an "impossible" is never too strict."""
        if a not in self.positions or b not in self.positions:
            return None
        (lat1, lon1), (lat2, lon2) = (tuple(map(math.radians, self.positions[name])) for name in (a, b))
        h = (
            math.sin((lat2 - lat1) / 2) ** 2
            + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
        )
        return 2 * EARTH_KM * math.asin(math.sqrt(min(1.0, h)))

    def journey(self, start: Sighting, end: Sighting) -> TravelCheck | None:
        """How one vehicle would have got from one to the other; None where a place or a time is unknown."""
        km = self.km(start.camera_id, end.camera_id)
        if km is None or UNKNOWN_TIME in (start.captured_at, end.captured_at):
            return None
        seconds = abs(end.captured_at - start.captured_at) / 1000
        reach = (seconds + self.clock_seconds) / 3600 * self.max_speed_kmh
        return TravelCheck(km, seconds, km <= reach)

    def hardest(self, starts: Iterable[Sighting], end: Sighting) -> TravelCheck | None:
        """Of the journeys from each sighting of a probe, the one that decides: all must be possible."""
        known = [journey for start in starts if (journey := self.journey(start, end))]
        return max(known, key=lambda journey: (not journey.possible, journey.kmh), default=None)


def read_cameras(uri: str, *, max_speed_kmh: float = MAX_SPEED_KMH) -> CameraMap:
    """Read a table with the columns camera_id, lat, lon. Raises BadInput, with the data row of the error."""
    table = read_user_table(uri, text=True)
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise BadInput(
            f"{uri} has no column {', '.join(missing)}", remedy="Add a header line: camera_id,lat,lon"
        )
    positions: dict[str, tuple[float, float]] = {}
    for row, record in enumerate(table.select(_COLUMNS).to_pylist(), start=1):
        name, place = str(record["camera_id"] or ""), _place(record["lat"], record["lon"])
        if not name or place is None:
            raise BadInput(f"{uri}, data row {row}: no camera with a latitude and a longitude")
        if positions.setdefault(name, place) != place:
            raise BadInput(f"{uri}, data row {row}: camera {name} has two positions")
    if not positions:
        raise BadInput(f"{uri} names no camera")
    return CameraMap(positions, max_speed_kmh)


def _place(lat: object, lon: object) -> tuple[float, float] | None:
    try:
        place = float(str(lat)), float(str(lon))
    except ValueError:
        return None
    return place if abs(place[0]) <= 90 and abs(place[1]) <= 180 else None
