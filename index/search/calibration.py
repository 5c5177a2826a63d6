"""Calibration: from distance to likelihood, and the threshold beyond which a vehicle is "not in the archive".

Learnt from labelled crops under the conditions of a search: each labelled crop is a probe, its own camera is
excluded, and the nearest crops are compared with its label.

* likelihood: the share of the nearest crops at a distance that show the same vehicle (isotonic regression).
* threshold: each probe searches again without its own vehicle. The share of the probes that find an impostor
  within the threshold is the false-alarm rate.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.documents import JsonDocument, UtcTime, utc_now
from index.generations import records
from infra.errors import BadInput, BadSetting, FingerprintMismatch, ObjectMissing, TransformMismatch
from infra.store import Store

VERSION = 1
DEPTH = 10  # nearest crops per probe that the curve learns from
MAX_PROBES = 4000
MIN_PROBES = 20
_PROBE_CHUNK = 128
EXACT = "exact:"
"""How the name of a scan begins."""


@dataclass(frozen=True, slots=True)
class Calibration(JsonDocument):
    """The curve and the threshold of one model and transform; its fields are the keys of the stored JSON.

    distances (m,) ascending and likelihoods (m,) descending are the knots of the curve. `detection_rate` is
    the share of probes whose own vehicle is within the threshold at `false_alarm_rate`. `brier` is the mean
    squared error of the likelihood on vehicles that are not in the curve, `brier_base` that of a constant
    prediction of the mean. `gallery` crops were searched: in a larger archive impostors are nearer.
    `transform` is the id of the transform of the features, "" for none.
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
    created: UtcTime
    transform: str = ""
    version: int = VERSION

    def likelihood(self, distances: NDArray[Any]) -> NDArray[np.float64]:
        """Likelihood of the same vehicle at each distance: linear between the knots, constant outside."""
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
    transform: str = "",
) -> Calibration:
    """Learn curve and threshold from labelled features (n, d), vehicle ids (n,) and cameras (n,).

    Up to `MAX_PROBES` probes are drawn. All distances are exact. Raises BadSetting for a rate outside 0..1,
    and BadInput for too few probes, for NaN and infinity, and where other vehicles have equal features.
    """
    if not 0 < false_alarm_rate < 1:
        raise BadSetting(f"a false-alarm rate of {false_alarm_rate} is not between 0 and 1")
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(features))[:MAX_PROBES])
    pairs = _NearestPairs.measure(features, vehicle_ids, None if same_camera else cameras, rows)
    has_genuine = np.isfinite(pairs.genuine)
    if has_genuine.sum() < MIN_PROBES:
        raise BadInput(
            f"{int(has_genuine.sum())} of {len(rows)} labelled crops have another crop of their vehicle in "
            f"run {run_id}, at least {MIN_PROBES} are needed",
            remedy="calibrate on more vehicles with several sightings, or with --same-camera",
        )
    impostors = np.sort(pairs.impostor[np.isfinite(pairs.impostor)])
    from index.exact.products import count_within  # here, because a search needs no torch

    allowed = count_within(false_alarm_rate, len(impostors))
    if not allowed:
        raise BadInput(
            f"{len(impostors)} probes cannot resolve a false-alarm rate of {false_alarm_rate:g}",
            remedy=f"ask for {1 / max(1, len(impostors)):.3g} or more, or label more crops",
        )
    if not impostors[allowed]:
        raise BadInput(
            f"{int((impostors == 0).sum())} of {len(impostors)} crops have the features of another vehicle's "
            "crop: no threshold keeps the rate",
            remedy="look for images under two vehicle ids in the labels, or ask for a higher rate",
        )
    # Just below the first impostor that would exceed the rate.
    threshold = float(np.nextafter(impostors[allowed], -np.inf))
    brier, brier_reference = pairs.validation_error(rng)
    knots, likelihoods = pairs.fit_curve(np.ones(len(pairs.distance), bool))
    return Calibration(
        fingerprint=fingerprint,
        run_id=run_id,
        false_alarm_rate=false_alarm_rate,
        threshold=threshold,
        detection_rate=float((pairs.genuine[has_genuine] <= threshold).mean()),
        probes=len(rows),
        vehicles=len(np.unique(vehicle_ids)),
        gallery=len(features),
        pairs=len(pairs.distance),
        brier=brier,
        brier_base=brier_reference,
        same_camera=same_camera,
        distances=tuple(knots.tolist()),
        likelihoods=tuple(likelihoods.tolist()),
        created=utc_now(),
        transform=transform,
    )


@dataclass(frozen=True, slots=True)
class _NearestPairs:
    """The nearest crops of all probes, and per probe the nearest genuine and impostor crop."""

    distance: NDArray[np.float64]  # (m,)
    is_genuine: NDArray[np.bool_]  # (m,) the same vehicle
    vehicle: NDArray[np.int64]  # (m,) of the probe
    genuine: NDArray[np.float64]  # (p,) distance to the nearest crop of the same vehicle, infinite for none
    impostor: NDArray[np.float64]  # (p,) distance to the nearest crop of another vehicle

    @classmethod
    def measure(
        cls,
        features: NDArray[np.float32],
        vehicles: NDArray[np.int64],
        cameras: NDArray[np.str_] | None,
        rows: NDArray[np.int64],
    ) -> "_NearestPairs":
        from index.exact.masked import NO_ROW, MaskedNearest

        searcher = MaskedNearest(features)
        chunks: list[tuple[NDArray[Any], ...]] = []
        for start in range(0, len(rows), _PROBE_CHUNK):
            probes = rows[start : start + _PROBE_CHUNK]
            is_searched = probes[:, None] != np.arange(len(features))
            if cameras is not None:
                is_known = cameras[probes] != ""
                is_searched &= ~((cameras[probes, None] == cameras) & is_known[:, None])
            is_genuine = vehicles[probes, None] == vehicles
            bounds = searcher.bound(probes)
            _, genuine = bounds.nearest(1, is_searched & is_genuine)
            _, impostor = bounds.nearest(1, is_searched & ~is_genuine)
            near_rows, near_distance = bounds.nearest(DEPTH, is_searched)
            near_genuine = np.take_along_axis(is_genuine, near_rows, axis=1)
            exists = near_rows != NO_ROW
            probe_vehicle = np.broadcast_to(vehicles[probes, None], near_rows.shape)
            chunks.append(
                (
                    near_distance[exists],
                    near_genuine[exists],
                    probe_vehicle[exists],
                    genuine[:, 0],
                    impostor[:, 0],
                )
            )
        return cls(*(np.concatenate(column) for column in zip(*chunks, strict=True)))

    def fit_curve(self, subset: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Knots and likelihoods of the falling step curve of some pairs: both ends of each step."""
        from scipy.optimize import isotonic_regression  # here, because a search needs no scipy

        order = np.argsort(self.distance[subset], kind="stable")
        distance = self.distance[subset][order]
        fitted = isotonic_regression(self.is_genuine[subset][order].astype(np.float64), increasing=False)
        starts = np.asarray(fitted.blocks[:-1])
        ends = np.asarray(fitted.blocks[1:]) - 1
        # A finite sample cannot prove certainty: a step of n pairs is at most (n + 1) / (n + 2).
        size = ends - starts + 1
        level = np.minimum.accumulate((fitted.x[starts] * size + 1) / (size + 2))
        knots = np.stack([distance[starts], distance[ends]], axis=1).ravel()
        likelihoods = np.repeat(level, 2)
        keep = np.concatenate([[True], np.diff(knots) > 0])
        return knots[keep], likelihoods[keep]

    def validation_error(self, rng: np.random.Generator) -> tuple[float, float]:
        """Brier scores of the curve and of the mean, for each half of the vehicles by the other half."""
        ids = np.unique(self.vehicle)
        half = np.isin(self.vehicle, rng.permutation(ids)[: len(ids) // 2])
        if half.all() or not half.any():
            return float("inf"), float("inf")
        errors, reference = np.empty(len(half)), np.empty(len(half))
        for train in (half, ~half):
            predicted = np.interp(self.distance[~train], *self.fit_curve(train))
            errors[~train] = (predicted - self.is_genuine[~train]) ** 2
            reference[~train] = (self.is_genuine[train].mean() - self.is_genuine[~train]) ** 2
        return float(errors.mean()), float(reference.mean())


def store_calibration(store: Store, calibration: Calibration) -> str:
    """Store it as the current one of its model and transform, and a copy by its time; return its key."""
    stamp = calibration.created.replace(":", "").replace("+0000", "Z")
    folder = _folder(calibration.fingerprint, calibration.transform)
    store.put(f"{folder}/{stamp}.json", calibration.to_json())
    key = f"{folder}/current.json"
    store.put(key, calibration.to_json())
    return key


def calibration_of(store: Store, fingerprint: str, transform: str = "") -> Calibration | None:
    """Return the calibration of a model and a transform, by its id; None without one.

    Raises SchemaMismatch, FingerprintMismatch, TransformMismatch.
    """
    key = f"{_folder(fingerprint, transform)}/current.json"
    try:
        calibration = Calibration.read(store, key)
    except ObjectMissing:
        return None
    if calibration.fingerprint != fingerprint:
        raise FingerprintMismatch(f"{store.uri_of(key)} is of model {calibration.fingerprint}")
    if calibration.transform != transform:
        raise TransformMismatch(f"{store.uri_of(key)} is of transform {calibration.transform or 'none'}")
    return calibration


def calibration_for(
    store: Store, generation: str, fingerprint: str, transform: str = ""
) -> Calibration | None:
    """Return the calibration for a search in a generation, or in a scan `exact:…`.

    None for a generation of tracks: it is learnt from distances of crops. Raises as `calibration_of` does.
    """
    record = None if generation.startswith(EXACT) else records.read(store, generation)
    if record is not None and record.unit == "track":
        return None
    return calibration_of(store, fingerprint, transform)


def _folder(fingerprint: str, transform: str) -> str:
    return f"calibrations/{fingerprint}/{transform}" if transform else f"calibrations/{fingerprint}"
