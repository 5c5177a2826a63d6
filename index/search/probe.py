"""Probes and sightings: the camera, track and time of an image decide which crops may match it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.schema import UNKNOWN_TIME
from infra.errors import BadInput


@dataclass(frozen=True, slots=True)
class Sighting:
    """Where and when a vehicle was seen; the empty string and UNKNOWN_TIME mean "unknown"."""

    camera_id: str = ""
    track_id: str = ""
    captured_at: int = UNKNOWN_TIME
    crop_id: int | None = None

    @property
    def track_key(self) -> tuple[str, str] | None:
        """The camera and its track, which is one pass of a vehicle; None if the track is unknown."""
        return (self.camera_id, self.track_id) if self.track_id else None


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """One search: a feature (1024,) float32 and the known sightings of its images."""

    name: str
    features: NDArray[np.float32]
    sightings: tuple[Sighting, ...] = ()

    @property
    def cameras(self) -> tuple[str, ...]:
        """The known cameras of its images, sorted."""
        return tuple(sorted({sighting.camera_id for sighting in self.sightings if sighting.camera_id}))

    @property
    def tracks(self) -> frozenset[tuple[str, str]]:
        """The tracks of its images."""
        return frozenset(sighting.track_key for sighting in self.sightings if sighting.track_key)

    @property
    def crop_ids(self) -> frozenset[int]:
        """The archived crops among its images."""
        return frozenset(sighting.crop_id for sighting in self.sightings if sighting.crop_id is not None)


def merge_probes(name: str, probes: list[Probe]) -> Probe:
    """Merge probes of the same vehicle: the mean of their features, and all their sightings.

    Raises BadInput if there are none.
    Source: average query expansion, Chum et al., "Total Recall", ICCV 2007.
    """
    if not probes:
        raise BadInput("no image to search with")
    mean = np.stack([probe.features for probe in probes]).astype(np.float64).mean(axis=0)
    return Probe(
        name,
        np.asarray(mean, np.float32),
        tuple(sighting for probe in probes for sighting in probe.sightings),
    )
