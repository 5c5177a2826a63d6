"""Which tracks cannot show one vehicle: seen at once by one camera, or too far apart for their times.

Nobody labels this: it follows from where and when the crops of a track were taken. It is silent about most
pairs of tracks, which may show one vehicle or not.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UNKNOWN_TIME = -1
UNKNOWN_MODEL = -1


@dataclass(frozen=True, slots=True, eq=False)
class Journeys:
    """Where and when t tracks were seen, by their number.

    positions: of the c cameras on the globe in km from its center, NaN where unknown. max_kmh: the highest
    plausible speed. clock_ms: how far the clocks of two cameras may differ.
    """

    cameras: NDArray[np.int64]  # (t,) numbers
    first_ms: NDArray[np.int64]  # (t,) ms since 1970, UTC; -1 if unknown
    last_ms: NDArray[np.int64]  # (t,)
    models: NDArray[np.int64]  # (t,) labelled vehicle models, -1 if unknown
    positions: NDArray[np.float64]  # (c, 3)
    max_kmh: float = 150.0
    clock_ms: float = 10_000.0

    def are_different(self, tracks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return (k, k): which pairs of the tracks (k,) certainly show two vehicles.

        Three reasons: both were in view of one camera at the same time; one vehicle at the highest speed
        cannot have made the straight way between the two cameras in the time between the tracks; or both have
        a labelled model, and these differ. An unknown time, position or model is no reason.
        """
        cameras, first, last = self.cameras[tracks], self.first_ms[tracks], self.last_ms[tracks]
        is_timed = first != UNKNOWN_TIME
        between = np.maximum(first[:, None] - last, first - last[:, None])  # ms, negative where both are seen
        is_one_camera = cameras[:, None] == cameras
        positions = self.positions[cameras]
        # The chord is shorter than any way on the globe.
        km = np.linalg.norm(positions[:, None] - positions, axis=2)
        is_too_fast = km > (between + self.clock_ms) / 3_600_000 * self.max_kmh  # False for NaN
        different: NDArray[np.bool_] = np.where(is_one_camera, between < 0, is_too_fast)
        different &= is_timed[:, None] & is_timed
        models = self.models[tracks]
        is_known = models != UNKNOWN_MODEL
        different |= (models[:, None] != models) & is_known[:, None] & is_known
        np.fill_diagonal(different, val=False)
        return different


def on_globe(
    latitudes: NDArray[np.float64], longitudes: NDArray[np.float64], radius_km: float
) -> NDArray[np.float64]:
    """Return positions (c, 3) in km from the globe's center, for degrees (c,); NaN stays NaN."""
    lat, lon = np.radians(latitudes), np.radians(longitudes)
    return radius_km * np.column_stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
