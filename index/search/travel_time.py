"""Travel time: whether one vehicle can have been at two cameras at two times."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from index.schema import UNKNOWN_TIME
from index.search.probe import Sighting
from infra.errors import BadInput, BadSetting
from infra.store import read_user_table
from infra.store.cells import Kind

EARTH_KM = 6371.0088  # mean radius, IUGG
MAX_SPEED_KMH = 150.0
CLOCK_TOLERANCE_SECONDS = 10.0
"""How far the clocks of two cameras may differ; added to the time that the vehicle had."""

_COLUMNS: dict[str, Kind] = {"camera_id": "text", "lat": "number", "lon": "number"}


@dataclass(frozen=True, slots=True)
class TravelCheck:
    """Straight-line distance and time between two sightings, and whether one vehicle can have made both."""

    km: float
    seconds: float
    possible: bool

    @property
    def kmh(self) -> float:
        """The lowest speed that suffices; infinite for two places at the same time."""
        if self.km == 0:
            return 0.0
        return self.km / self.seconds * 3600 if self.seconds else math.inf


@dataclass(frozen=True, slots=True)
class CameraMap:
    """Positions of cameras, (latitude, longitude) in degrees, and the maximum plausible speed."""

    positions: Mapping[str, tuple[float, float]]
    max_speed_kmh: float = MAX_SPEED_KMH
    clock_seconds: float = CLOCK_TOLERANCE_SECONDS

    def __post_init__(self) -> None:
        if not (0 < self.max_speed_kmh < math.inf):
            raise BadSetting(f"a maximum speed of {self.max_speed_kmh} km/h is not positive and finite")

    def km(self, a: str, b: str) -> float | None:
        """Return the great-circle distance of two cameras; None if a position is unknown.

        No road is shorter, so a vehicle that needs too much time for this distance needs it for any road.
        """
        if a not in self.positions or b not in self.positions:
            return None
        (lat1, lon1), (lat2, lon2) = (tuple(map(math.radians, self.positions[name])) for name in (a, b))
        h = (
            math.sin((lat2 - lat1) / 2) ** 2
            + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
        )
        return 2 * EARTH_KM * math.asin(math.sqrt(min(1.0, h)))

    def travel(self, start: Sighting, end: Sighting) -> TravelCheck | None:
        """Check the way between two sightings, in either order; None if a position or time is unknown."""
        km = self.km(start.camera_id, end.camera_id)
        if km is None or UNKNOWN_TIME in (start.captured_at, end.captured_at):
            return None
        seconds = abs(end.captured_at - start.captured_at) / 1000
        reachable_km = (seconds + self.clock_seconds) / 3600 * self.max_speed_kmh
        return TravelCheck(km, seconds, km <= reachable_km)

    def least_feasible(self, starts: Iterable[Sighting], end: Sighting) -> TravelCheck | None:
        """Return the check that needs the highest speed, an impossible one first: all must be possible."""
        checks = [check for start in starts if (check := self.travel(start, end))]
        return max(checks, key=lambda check: (not check.possible, check.kmh), default=None)


def read_cameras(uri: str, *, max_speed_kmh: float = MAX_SPEED_KMH) -> CameraMap:
    """Read a table with the columns camera_id, lat, lon. Raises BadInput, with the data row of the error."""
    table = read_user_table(uri, _COLUMNS, required=list(_COLUMNS))
    positions: dict[str, tuple[float, float]] = {}
    for row, record in enumerate(table.to_pylist(), start=1):
        name, lat, lon = record["camera_id"], record["lat"], record["lon"]
        if name is None or lat is None or lon is None or abs(lat) > 90 or abs(lon) > 180:
            raise BadInput(
                f"{uri}, data row {row}: no camera with a latitude and a longitude",
                remedy="Latitudes are -90 to 90 degrees, longitudes -180 to 180.",
            )
        if positions.setdefault(name, (lat, lon)) != (lat, lon):
            raise BadInput(
                f"{uri}, data row {row}: camera {name} has two positions", remedy="Remove one of them."
            )
    if not positions:
        raise BadInput(f"{uri} names no camera", remedy="Add a line for each camera.")
    return CameraMap(positions, max_speed_kmh)
