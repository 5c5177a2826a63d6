"""A roadside camera, the light at an hour of the day, and the projection into the image."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clvr_model.synthetic.body import Points


@dataclass(frozen=True, slots=True)
class Camera:
    """Angles in degrees. `azimuth` 0 looks at a vehicle's front, 180 at its rear, 90 at its left flank."""

    azimuth: float
    elevation: float
    distance: float
    long_side: float  # mean length, in pixels, of a crop's long side
    cast: Points  # (3,) gain of the red, green and blue channel
    blur: float  # sigma in pixels
    noise: float  # standard deviation in grey levels
    quality: int  # of the JPEG
    asphalt: float
    verge: Points  # (3,) RGB beyond the road
    night_lamp: Points  # (3,) RGB of the street lamps


def make_camera(rng: np.random.Generator, *, min_side: int, max_side: int) -> Camera:
    """Draw one camera: like traffic cameras, most see fronts, many rears, and some flanks."""
    view = rng.choice(3, p=[0.5, 0.34, 0.16])
    azimuth = (rng.normal(0, 20), 180 + rng.normal(0, 20), rng.choice([-1, 1]) * rng.uniform(48, 78))[view]
    return Camera(
        azimuth=float(azimuth),
        elevation=float(rng.uniform(6, 27)),
        distance=float(rng.uniform(8, 24)),
        long_side=float(rng.uniform(min_side + 0.2 * (max_side - min_side), max_side)),
        cast=1 + rng.normal(0, 0.035, 3),
        blur=float(rng.uniform(0.1, 0.9)),
        noise=float(rng.uniform(1.5, 6.0)),
        quality=int(rng.integers(62, 93)),
        asphalt=float(rng.uniform(0.24, 0.42)),
        verge=rng.choice([[0.2, 0.3, 0.14], [0.45, 0.43, 0.4], [0.33, 0.32, 0.3], [0.28, 0.33, 0.2]]),
        night_lamp=rng.choice([[0.4, 0.34, 0.25], [0.33, 0.34, 0.37]]),
    )


@dataclass(frozen=True, slots=True)
class Light:
    """RGB light, 0..1 and above, from the sky, the ground and the sun (a unit vector towards it)."""

    sky: Points
    ground: Points
    sun: Points
    sun_towards: Points
    lamps: bool


def light_at(hour: float, overcast: float, camera: Camera) -> Light:
    """Return the light at an hour of the day (0-24); `overcast` 0 is a clear sky, 1 a covered one."""
    height = np.sin((hour - 6.0) / 13.0 * np.pi)
    day = float(np.clip(height * 3.0 + 0.25, 0.0, 1.0))
    warm = float(np.clip(1.0 - abs(height) * 2.5, 0.0, 1.0)) * day
    sky = day * (np.array([0.5, 0.56, 0.66]) * (1 - overcast) + np.array([0.66, 0.67, 0.68]) * overcast)
    sky = sky * (1 + warm * np.array([0.1, -0.04, -0.16])) + (1 - day) * camera.night_lamp
    sun = (
        max(0.0, day - 0.15)
        * (1 - overcast)
        * np.array([0.95, 0.9, 0.8])
        * (1 + warm * np.array([0.1, -0.15, -0.4]))
    )
    turn = np.deg2rad(camera.azimuth * 3 + hour * 15)
    up = max(0.25, float(height))
    flat = np.sqrt(max(0.0, 1 - up * up))
    towards = np.array([flat * np.cos(turn), flat * np.sin(turn), up])
    return Light(sky, sky * 0.42 + sun * 0.12, sun, towards / np.linalg.norm(towards), day < 0.45)


@dataclass(frozen=True, slots=True)
class Projection:
    """A pinhole camera at `eye`; `axes` rows are right, down and forward in the vehicle's frame."""

    eye: Points
    axes: Points
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)

    def project(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return image coordinates (n, 2) of points (n, 3); points behind the eye are moved before it."""
        seen = (points - self.eye) @ self.axes.T
        flat = seen[:, :2] / np.maximum(seen[:, 2:], 0.3)
        return np.asarray(flat * self.scale + np.array(self.shift))


def aim(azimuth: float, elevation: float, distance: float, height: float) -> Projection:
    """Make a projection towards a point `height` metres over the origin; angles in degrees."""
    az, el = np.deg2rad(azimuth), np.deg2rad(elevation)
    outward = np.array([np.cos(el) * np.cos(az), np.cos(el) * np.sin(az), np.sin(el)])
    right = np.array([-np.sin(az), np.cos(az), 0.0])
    down = np.cross(-outward, right)
    return Projection(np.array([0, 0, height]) + distance * outward, np.stack([right, down, -outward]))
