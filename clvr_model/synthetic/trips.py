"""Trips of vehicles past cameras: the crops of a synthetic archive, each determined by its number.

On a trip, a vehicle passes several cameras, minutes apart; a pass is one track of 1 to 3 images.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final

import numpy as np

from infra.errors import BadSetting

_TRACK_BITS: Final = 48
# Odd and hence invertible modulo 2**48: passes get distinct track ids that do not reveal the vehicle.
_TRACK_SCATTER: Final = 0x5DEECE66D9B7

_TOWN: Final = (52.0, 13.0)  # latitude and longitude of its middle
_TOWN_KM: Final = 2.0  # its radius: two minutes, the shortest way between two passes, are enough to cross it
_KM_PER_DEGREE: Final = 111.195
_GOLDEN_ANGLE: Final = math.pi * (3 - math.sqrt(5))


@dataclass(frozen=True, slots=True)
class ArchiveSpec:
    """Parameters of a synthetic archive. Raises BadSetting for values out of range."""

    seed: int = 0
    models: int = 20
    vehicles_per_model: int = 20
    sightings_per_vehicle: int = 8
    cameras: int = 12
    days: int = 7
    first_day: date = date(2026, 1, 5)
    min_side: int = 128  # pixels, bounds of the long side of an image
    max_side: int = 299
    train_share: float = 0.5  # of each model's vehicles; the rest is for re-identification
    spoiled_share: float = 0.0  # of the archive's objects: truncated, empty or not an image

    def __post_init__(self) -> None:
        for name, low in (
            ("seed", 0),
            ("models", 1),
            ("vehicles_per_model", 1),
            ("sightings_per_vehicle", 1),
        ):
            _require(name, getattr(self, name), low, 2**31)
        _require("cameras", self.cameras, 1, 999)
        _require("days", self.days, 1, 36525)
        _require("min_side", self.min_side, 32, self.max_side)
        _require("max_side", self.max_side, self.min_side, 600)
        _require("train_share", self.train_share, 0.0, 1.0)
        _require("spoiled_share", self.spoiled_share, 0.0, 1.0)

    @property
    def vehicles(self) -> int:
        """Number of vehicles."""
        return self.models * self.vehicles_per_model

    @property
    def images(self) -> int:
        """Number of images."""
        return self.vehicles * self.sightings_per_vehicle


def _require(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise BadSetting(f"{name} is {value}", remedy=f"Give a value from {low} to {high}.")


@dataclass(frozen=True, slots=True)
class SyntheticCrop:
    """Image number `index` of the archive. `captured_at` is in milliseconds since 1970, UTC."""

    index: int
    vehicle_id: int
    model_id: int
    camera: int
    track_id: str
    captured_at: int
    training: bool

    @property
    def camera_id(self) -> str:
        """Three digits, as in the key."""
        return f"{self.camera:03d}"

    @property
    def moment(self) -> datetime:
        """`captured_at` as a UTC time."""
        return datetime.fromtimestamp(self.captured_at / 1000, UTC)

    @property
    def key(self) -> str:
        """Key in the archive."""
        return f"dt={self.moment:%Y-%m-%d}/cam={self.camera_id}/{self.captured_at}_{self.track_id}.jpg"

    @property
    def image(self) -> str:
        """VehicleID's name of the image: seven digits."""
        return f"{self.index + 1:07d}"


def synthetic_crops(spec: ArchiveSpec, start: int = 0, stop: int | None = None) -> Iterator[SyntheticCrop]:
    """Yield crops `start` to `stop` (exclusive, default all) in order, in constant memory."""
    stop = spec.images if stop is None else stop
    if not 0 <= start <= stop <= spec.images:
        raise BadSetting(
            f"images {start} to {stop} of an archive of {spec.images}",
            remedy="Give 0 <= start <= stop <= the number of images.",
        )
    for index in range(start, stop):
        yield synthetic_crop(spec, index)


def synthetic_crop(spec: ArchiveSpec, index: int) -> SyntheticCrop:
    """Return crop number `index`."""
    vehicle, frame = divmod(index, spec.sightings_per_vehicle)
    model, rank = divmod(vehicle, spec.vehicles_per_model)
    number, camera, captured_at = _trips(spec, vehicle)[frame]
    scattered = ((vehicle << 12 | number) + spec.seed) * _TRACK_SCATTER % (1 << _TRACK_BITS)
    return SyntheticCrop(
        index=index,
        vehicle_id=vehicle + 1,
        model_id=model,
        camera=camera,
        track_id=f"{scattered:012x}",
        captured_at=captured_at,
        training=rank < round(spec.train_share * spec.vehicles_per_model),
    )


def camera_positions(spec: ArchiveSpec) -> dict[str, tuple[float, float]]:
    """Return the (latitude, longitude) of each camera: in a town so small that every trip is possible.

    Source: H. Vogel, "A better way to construct the sunflower head", Mathematical Biosciences 44, 1979.
    """
    positions = {}
    for number in range(spec.cameras):
        radius, angle = _TOWN_KM * math.sqrt((number + 0.5) / spec.cameras), number * _GOLDEN_ANGLE
        lat = _TOWN[0] + radius * math.sin(angle) / _KM_PER_DEGREE
        lon = _TOWN[1] + radius * math.cos(angle) / (_KM_PER_DEGREE * math.cos(math.radians(_TOWN[0])))
        positions[f"{number + 1:03d}"] = (round(lat, 5), round(lon, 5))
    return positions


@lru_cache(maxsize=256)
def _trips(spec: ArchiveSpec, vehicle: int) -> tuple[tuple[int, int, int], ...]:
    """Return (pass number, camera from 1, captured_at) of each of the vehicle's images."""
    rng = np.random.default_rng([spec.seed, 4, vehicle])
    midnight = datetime(spec.first_day.year, spec.first_day.month, spec.first_day.day, tzinfo=UTC)
    frames: list[tuple[int, int, int]] = []
    passes = 0
    while len(frames) < spec.sightings_per_vehicle:
        day, minutes = int(rng.integers(spec.days)), float(rng.uniform(5.5 * 60, 21.5 * 60))
        for camera in rng.permutation(spec.cameras)[: int(rng.integers(2, 6))]:
            moment = midnight + timedelta(days=day, minutes=minutes)
            captured_at = int(moment.timestamp() * 1000)
            # The first pass leaves at least one image to another, so that two cameras see the vehicle.
            max_frames = min(3, max(1, spec.sightings_per_vehicle - 1)) if passes == 0 else 3
            for _ in range(int(rng.integers(1, max_frames + 1))):
                frames.append((passes, int(camera) + 1, captured_at))
                captured_at += int(rng.integers(200, 900))
            passes += 1
            minutes += float(rng.uniform(2, 14))
    return tuple(frames[: spec.sightings_per_vehicle])
