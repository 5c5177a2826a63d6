"""Tracks as the unit of an evaluation: rows beside those of images, by the same splits."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from index.evaluation.protocols import BY_CAMERA, JUNK, ProtocolResult, with_rankings
from index.evaluation.track_units import TRACK_PROTOCOLS, rank_tracks, unit_numbers
from infra.errors import BadLabels
from infra.logging import logger
from jobs.evaluate.dataset import LabelledRun

TRACK = "track"


def track_results(labelled: LabelledRun, results: Sequence[ProtocolResult]) -> Iterator[ProtocolResult]:
    """Rank tracks by the splits of the protocols by camera, one result for each of TRACK_PROTOCOLS.

    Other protocols have images of the probe's pass in their galleries, and are left out. Raises BadLabels if
    no track or not all cameras are known, or no protocol is by camera.
    """
    tracks, cameras = labelled.track_ids, labelled.cameras
    if tracks is None or cameras is None or not (tracks != "").any():
        raise BadLabels(
            "--unit track needs the camera of every image and the tracks, which are unknown",
            remedy="embed with a --key-pattern that has {camera_id} and {track_id}, or give labels with both",
        )
    by_camera = [result for result in results if result.name in BY_CAMERA]
    if not by_camera:
        raise BadLabels(
            "--unit track ranks by protocols by camera, and none is evaluated",
            remedy=f"add --protocol {BY_CAMERA[-1]}",
        )
    units = unit_numbers(labelled.vehicle_ids, cameras, tracks)
    counts = np.bincount(units)
    logger.info(f"  {len(counts):,} tracks, {(counts > 1).sum():,} of several images")
    images = labelled.images()
    confidence = np.asarray(labelled.crops["model_confidence"].to_numpy(), np.float32)
    for result in by_camera:
        for kind in TRACK_PROTOCOLS:
            ranked = [
                rank_tracks(
                    images,
                    units,
                    split,
                    kind=kind,
                    confidence=confidence,
                    same_camera_is_junk=result.name in JUNK,
                    max_rank=result.curves.shape[1],
                )
                for split in result.splits
            ]
            yield replace(with_rankings(result, ranked, kind), unit=TRACK)
