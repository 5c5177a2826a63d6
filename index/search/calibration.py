"""From distance to likelihood, and the distance above which a probe's vehicle is "not in the archive".

Learnt from labelled crops by the searches that will be asked: each labelled crop is a probe, its own camera
is left out, and what comes first is looked at.

* likelihood: of the first answers at this distance, the share that is the same vehicle (isotonic
  regression).
* threshold: each probe is asked again with its own vehicle taken away. The share of these probes that finds
  something within the threshold anyway is the false-alarm rate.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from index.documents import JsonDocument, utc_now
from infra.errors import BadInput, BadSetting, FingerprintMismatch, ObjectMissing
from infra.store import Store

VERSION = 1
DEPTH = 10
MAX_PROBES = 4000
MIN_PROBES = 20
_BLOCK = 128


@dataclass(frozen=True, slots=True)
class Calibration(JsonDocument):
    """A curve and a threshold of one model.

    distances (m,) ascending and likelihoods (m,) not ascending are the curve's corners. `detection_rate` is
    the share of probes whose own vehicle is found within the threshold at `false_alarm_rate`; `brier` is the
    mean squared error of the likelihood on vehicles that the curve had not seen, `brier_base` that of always
    saying the mean. `gallery` crops were searched: in a larger archive strangers come closer.
    """

    NOUN = "calibration"
    REMEDY = "Run `clvr calibrate`."
    FORMAT = ("version", VERSION)

    fingerprint: str
    run_id: str
    false_alarm_rate: float
    threshold: float
    detection_rate: float
    probes: int
    vehicles: int
    gallery: int
    pairs: int
    brier: float
    brier_base: float
    same_camera: bool
    distances: tuple[float, ...]
    likelihoods: tuple[float, ...]
    created: str
    version: int = VERSION

    def likelihood(self, distances: NDArray[Any]) -> NDArray[np.float64]:
        """Likelihood of the same vehicle at each distance, by lines between the corners, constant outside."""
        return np.interp(np.asarray(distances, np.float64), self.distances, self.likelihoods)


def calibrate(
    features: NDArray[np.float32],
    vehicle_ids: NDArray[np.int64],
    cameras: NDArray[np.str_] | None,
    *,
    fingerprint: str,
    run_id: str,
    false_alarm_rate: float = 0.01,
    same_camera: bool = False,
    seed: int = 0,
) -> Calibration:
    """Learn curve and threshold from labelled features (n, d), vehicle ids (n,) and cameras (n,).

    Up to 4,000 probes are drawn. Raises BadSetting for a rate outside 0..1, BadInput where there are too few
    probes for it.
    """
    if not 0 < false_alarm_rate < 1:
        raise BadSetting(f"a false-alarm rate of {false_alarm_rate} is not between 0 and 1")
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(features))[:MAX_PROBES])
    own = None if same_camera else cameras
    pairs = _Pairs.measured(features, vehicle_ids, own, rows)
    mated = np.isfinite(pairs.mate)
    if mated.sum() < MIN_PROBES:
        raise BadInput(
            f"{int(mated.sum())} of {len(rows)} labelled crops have their vehicle elsewhere in run {run_id}, "
            f"at least {MIN_PROBES} are needed",
            remedy="calibrate on more vehicles with several sightings, or with --same-camera",
        )
    strangers = np.sort(pairs.stranger[np.isfinite(pairs.stranger)])
    allowed = int(false_alarm_rate * len(strangers))
    if not allowed:
        raise BadInput(
            f"{len(strangers)} probes cannot tell a false-alarm rate of {false_alarm_rate:g}",
            remedy=f"ask for {1 / max(1, len(strangers)):.3g} or more, or label more crops",
        )
    # Just below the first stranger that would be one too many.
    threshold = float(np.nextafter(strangers[allowed], -np.inf))
    brier, base = pairs.held_out_error(rng)
    corners, likelihoods = pairs.curve(np.ones(len(pairs.distance), bool))
    return Calibration(
        fingerprint=fingerprint,
        run_id=run_id,
        false_alarm_rate=false_alarm_rate,
        threshold=threshold,
        detection_rate=float((pairs.mate[mated] <= threshold).mean()),
        probes=len(rows),
        vehicles=len(np.unique(vehicle_ids)),
        gallery=len(features),
        pairs=len(pairs.distance),
        brier=brier,
        brier_base=base,
        same_camera=same_camera,
        distances=tuple(corners.tolist()),
        likelihoods=tuple(likelihoods.tolist()),
        created=utc_now(),
    )


@dataclass(frozen=True, slots=True)
class _Pairs:
    distance: NDArray[np.float64]  # (m,) of the first answers of all probes
    same: NDArray[np.bool_]  # (m,)
    vehicle: NDArray[np.int64]  # (m,) of the probe
    mate: NDArray[np.float64]  # (p,) nearest crop of the same vehicle, infinite where there is none
    stranger: NDArray[np.float64]  # (p,) nearest crop of another one

    @classmethod
    def measured(
        cls,
        features: NDArray[np.float32],
        vehicles: NDArray[np.int64],
        cameras: NDArray[np.str_] | None,
        rows: NDArray[np.int64],
    ) -> "_Pairs":
        squares = np.einsum("ij,ij->i", features, features, dtype=np.float64)
        collected: list[tuple[NDArray[Any], ...]] = []
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            squared = squares[block, None] + squares - 2.0 * (features[block] @ features.T)
            away = np.sqrt(np.maximum(squared, 0))
            away[np.arange(len(block)), block] = np.inf
            if cameras is not None:
                known = cameras[block] != ""
                away[(cameras[block, None] == cameras) & known[:, None]] = np.inf
            same = vehicles[block, None] == vehicles
            mate = np.where(same, away, np.inf).min(axis=1)
            stranger = np.where(same, np.inf, away).min(axis=1)
            depth = min(DEPTH, away.shape[1])
            first = np.argpartition(away, depth - 1, axis=1)[:, :depth]
            near = np.take_along_axis(away, first, axis=1)
            hit = np.take_along_axis(same, first, axis=1)
            real = np.isfinite(near)
            owner = np.broadcast_to(vehicles[block, None], near.shape)
            collected.append((near[real], hit[real], owner[real], mate, stranger))
        return cls(*(np.concatenate(column) for column in zip(*collected, strict=True)))

    def curve(self, chosen: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Corners of the falling step curve: where each step begins and ends."""
        order = np.argsort(self.distance[chosen], kind="stable")
        distance = self.distance[chosen][order]
        fitted = isotonic_regression(self.same[chosen][order].astype(np.float64), increasing=False)
        starts = np.asarray(fitted.blocks[:-1])
        ends = np.asarray(fitted.blocks[1:]) - 1
        # No finite sample proves certainty: a step of n pairs says at most (n + 1) / (n + 2).
        size = ends - starts + 1
        level = np.minimum.accumulate((fitted.x[starts] * size + 1) / (size + 2))
        corners = np.stack([distance[starts], distance[ends]], axis=1).ravel()
        likelihoods = np.repeat(level, 2)
        keep = np.concatenate([[True], np.diff(corners) > 0])
        return corners[keep], likelihoods[keep]

    def held_out_error(self, rng: np.random.Generator) -> tuple[float, float]:
        """Brier scores, of the curve and of the mean, of each half of the vehicles by the other half."""
        ids = np.unique(self.vehicle)
        half = np.isin(self.vehicle, rng.permutation(ids)[: len(ids) // 2])
        if half.all() or not half.any():
            return float("inf"), float("inf")
        errors, base = np.empty(len(half)), np.empty(len(half))
        for seen in (half, ~half):
            corners, likelihoods = self.curve(seen)
            said = np.interp(self.distance[~seen], corners, likelihoods)
            errors[~seen] = (said - self.same[~seen]) ** 2
            base[~seen] = (self.same[seen].mean() - self.same[~seen]) ** 2
        return float(errors.mean()), float(base.mean())


def store_calibration(store: Store, calibration: Calibration) -> str:
    """Keep it as the one that searches by this model use, and for ever beside it; return its key."""
    stamp = calibration.created.replace(":", "").replace("+0000", "Z")
    store.put(f"calibrations/{calibration.fingerprint}/{stamp}.json", calibration.to_json())
    key = _key(calibration.fingerprint)
    store.put(key, calibration.to_json())
    return key


def calibration_of(store: Store, fingerprint: str) -> Calibration | None:
    """The calibration of this model, if it has one. Raises SchemaMismatch, FingerprintMismatch."""
    key = _key(fingerprint)
    try:
        calibration = Calibration.read(store, key)
    except ObjectMissing:
        return None
    if calibration.fingerprint != fingerprint:
        raise FingerprintMismatch(f"{store.uri_of(key)} is of model {calibration.fingerprint}")
    return calibration


def _key(fingerprint: str) -> str:
    return f"calibrations/{fingerprint}/current.json"
