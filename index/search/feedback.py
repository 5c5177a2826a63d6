"""Relevance feedback: a probe from the confirmed crops of a vehicle, away from the rejected ones.

With the mean m of the confirmed crops and the mean r of the rejected ones, the probe is

    q = m + GAMMA (m - r)

This is Rocchio's rule with coefficients that sum to 1, so that it does not depend on where the origin of the
features is, as L2 does not either. For every crop x

    |q - x|^2 = (1 + GAMMA) |m - x|^2 - GAMMA |r - x|^2 + GAMMA (1 + GAMMA) |m - r|^2

so the ranks are by (1 + GAMMA) d(m, x)^2 - GAMMA d(r, x)^2: near the confirmed and far from the rejected. The
distance that a match shows is d(m, x), because a calibration knows distances between vehicles only.
Source: J. Rocchio, "Relevance feedback in information retrieval", in The SMART Retrieval System, 1971.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from index.schema import UNKNOWN_TIME
from index.search.calibration import Calibration
from index.search.probe import Probe, Sighting, merge_probes
from index.search.retrieval import CropSource, Match, Rules, retrieve

GAMMA = 0.15
"""The weight of the rejected crops: the one of Rocchio's rule that most textbooks use."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """What is searched with (`probe`), and what distances are measured from (`anchor`, (d,) float32)."""

    probe: Probe
    anchor: NDArray[np.float32]

    @classmethod
    def of(cls, name: str, confirmed: Sequence[Probe], rejected: Sequence[Probe] = ()) -> "Feedback":
        """Combine crops of one vehicle and crops of others.

        The rejected crops and their tracks are no matches of the probe. Raises BadInput without a confirmed
        one, TransformMismatch for probes of different transforms.
        """
        mean = merge_probes(name, list(confirmed))
        if not rejected:
            return cls(mean, mean.features)
        others = merge_probes(name, [*rejected])
        anchor = mean.features.astype(np.float64)
        moved = anchor + GAMMA * (anchor - others.features.astype(np.float64))
        # Without a time the travel from them is not checked: another vehicle was there.
        unwanted = [
            Sighting(sighting.camera_id, sighting.track_id, UNKNOWN_TIME, sighting.crop_id)
            for sighting in others.sightings
        ]
        probe = replace(mean, features=moved.astype(np.float32), sightings=(*mean.sightings, *unwanted))
        return cls(probe, mean.features)


def retrieve_with(
    source: CropSource, feedback: Feedback, rules: Rules, calibration: Calibration | None = None
) -> list[Match]:
    """Return the matches of confirmed crops, best first, with distances from their mean.

    The cameras of the confirmed crops are searched too: a vehicle passes the same camera again, and its known
    tracks are left out. A largest distance applies to the distance shown. Raises as `retrieve` does.
    """
    wide = replace(rules, same_camera=True, max_distance=None)
    (matches,) = retrieve(source, [feedback.probe], wide, None)
    vectors = source.vectors([match.hit.crop_id for match in matches])
    kept: list[Match] = []
    for match in matches:
        if (vector := vectors.get(match.hit.crop_id)) is None:
            continue  # deleted since
        distance = float(np.linalg.norm(vector.astype(np.float64) - feedback.anchor))
        if rules.max_distance is None or distance <= rules.max_distance:
            likelihood = float(calibration.likelihood(np.array([distance]))[0]) if calibration else None
            hit = replace(match.hit, distance=distance)
            kept.append(replace(match, rank=len(kept) + 1, hit=hit, likelihood=likelihood))
    return kept
