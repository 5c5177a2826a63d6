"""Probes and what is known of them: where and when a picture was taken decides what may be its answer."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.schema import UNKNOWN_TIME
from infra.errors import BadInput


@dataclass(frozen=True, slots=True)
class Sighting:
    """Where and when a vehicle was seen; the empty string and UNKNOWN_TIME stand for "unknown"."""

    camera_id: str = ""
    track_id: str = ""
    captured_at: int = UNKNOWN_TIME
    crop_id: int | None = None

    @property
    def track_key(self) -> tuple[str, str] | None:
        """One pass of a vehicle: the track on its camera, or None where no tracker said so."""
        return (self.camera_id, self.track_id) if self.track_id else None


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """One question: a feature (1024,) float32 and the sightings that its pictures are known to be."""

    name: str
    features: NDArray[np.float32]
    sightings: tuple[Sighting, ...] = ()

    @property
    def cameras(self) -> tuple[str, ...]:
        """The known cameras of its pictures, sorted."""
        return tuple(sorted({sighting.camera_id for sighting in self.sightings if sighting.camera_id}))

    @property
    def tracks(self) -> frozenset[tuple[str, str]]:
        """The passes that its pictures belong to."""
        return frozenset(sighting.track_key for sighting in self.sightings if sighting.track_key)

    @property
    def crop_ids(self) -> frozenset[int]:
        """The archived crops that it is made of."""
        return frozenset(s.crop_id for s in self.sightings if s.crop_id is not None)


def merge_probes(name: str, probes: list[Probe]) -> Probe:
    """One probe of several pictures of the same vehicle: the mean of their features, all their sightings.

    Source: average query expansion, Chum et al., "Total Recall", ICCV 2007. Raises BadInput for none.
    """
    if not probes:
        raise BadInput("no picture to search with")
    mean = np.stack([probe.features for probe in probes]).astype(np.float64).mean(axis=0)
    return Probe(
        name,
        np.asarray(mean, np.float32),
        tuple(sighting for probe in probes for sighting in probe.sightings),
    )
