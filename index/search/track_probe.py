"""All crops of a track as one probe: one pass of a vehicle before one camera."""

from collections.abc import Sequence

import numpy as np

from index.search.probe import Probe, Sighting, merge_probes
from index.search.retrieval import CropSource
from infra.errors import BadInput

TRACK = "track:"
MAX_TRACK_CROPS = 64
"""Of a longer track, so many crops are taken, evenly spread over its time."""


def parse_track(uri: str) -> tuple[str, str]:
    """Return camera and track of `track:CAMERA/TRACK`. Raises BadInput."""
    camera, separator, track = uri.removeprefix(TRACK).partition("/")
    if not (uri.startswith(TRACK) and separator and track):
        raise BadInput(
            f"{uri[:60]!r} is not a track", remedy="write track:CAMERA/TRACK, by a match of --json"
        )
    return camera, track


def track_probe(source: CropSource, name: str, camera: str, track: str) -> Probe | None:
    """Return the mean of the crops of a track as a probe with their sightings, None for an unknown track.

    Erased crops take no part. The camera may be the empty string, for crops of an unknown one.
    """
    found = source.sightings(source.track_crops(camera, track))
    sightings = sorted(found.values(), key=_by_time)
    if len(sightings) > MAX_TRACK_CROPS:
        spread = np.linspace(0, len(sightings) - 1, MAX_TRACK_CROPS).round().astype(int)
        sightings = [sightings[row] for row in spread.tolist()]
    vectors = source.vectors(_ids(sightings))
    transform = source.transform.transform_id if source.transform else ""
    probes = [
        Probe(name, vectors[sighting.crop_id], (sighting,), transform)
        for sighting in sightings
        if sighting.crop_id in vectors
    ]
    return merge_probes(name, probes) if probes else None


def _by_time(sighting: Sighting) -> tuple[int, int]:
    return sighting.captured_at, sighting.crop_id or 0


def _ids(sightings: Sequence[Sighting]) -> list[int]:
    return [sighting.crop_id for sighting in sightings if sighting.crop_id is not None]
