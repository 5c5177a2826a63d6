"""Probes and sightings: the camera, track and time of an image decide which crops may match it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.schema import UNKNOWN_TIME
from index.transforms.transform import (
    UNIT_TOLERANCE,
    FeatureTransform,
    normalized,
    require_same_transform,
)
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
    """One search: a feature (d,) float32 and the known sightings of its images.

    transform: the id of the transform of the feature, "" for a feature as the network gives it.
    """

    name: str
    features: NDArray[np.float32]
    sightings: tuple[Sighting, ...] = ()
    transform: str = ""

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

    The mean of features of unit length, as all transformed ones are, is brought to unit length again, so that
    its distances are those of a single image. Raises BadInput if there are none, TransformMismatch if their
    features are of different transforms.
    Source: average query expansion, Chum et al., "Total Recall", ICCV 2007.
    """
    if not probes:
        raise BadInput("no image to search with")
    transform = probes[0].transform
    for probe in probes:
        require_same_transform(transform, probe.transform, f"the probe {probe.name}")
    features = np.stack([probe.features for probe in probes]).astype(np.float64)
    mean = features.mean(axis=0)
    if transform or np.allclose(np.linalg.norm(features, axis=1), 1, rtol=0, atol=UNIT_TOLERANCE):
        mean = normalized(mean[None])[0]
    return Probe(
        name,
        np.asarray(mean, np.float32),
        tuple(sighting for probe in probes for sighting in probe.sightings),
        transform,
    )


def image_probe(
    name: str,
    features: NDArray[np.float32],
    transform: FeatureTransform | None,
    sighting: Sighting | None = None,
) -> Probe:
    """Return the probe of an image from the network's feature (d,), transformed as a source's are.

    sighting: the camera and time of the image, if they are known: without a camera the probe gets the
    statistics of all cameras.
    """
    sightings = () if sighting is None else (sighting,)
    if transform is None:
        return Probe(name, features, sightings)
    camera, time = (sighting.camera_id, sighting.captured_at) if sighting else ("", UNKNOWN_TIME)
    transformed = transform(features[None], [camera], np.array([time], np.int64))[0]
    return Probe(name, transformed, sightings, transform.transform_id)
