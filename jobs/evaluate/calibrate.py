"""`clvr calibrate`: compute likelihoods and a threshold for the distances of a model, from a labelled run."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np

from index.search.calibration import Calibration, calibrate, store_calibration
from infra.settings import Settings
from infra.store import open_store
from jobs.evaluate.dataset import evaluation_lists, labelled_run
from jobs.runtime.json_fields import FieldsOf
from jobs.runtime.resolve import find_run, find_transform

SHOWN_LIKELIHOODS = (0.9, 0.5, 0.1)


@dataclass(frozen=True, slots=True)
class CalibrateRequest:
    """A request of `clvr calibrate`."""

    run: str
    labels: str | None = None
    split: str | None = None
    false_alarm_rate: float = 0.01
    same_camera: bool = False
    seed: int = 0
    transform: str | None = None
    """An id, `latest` or `none`; None for the one that a load would choose."""


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """A stored calibration, for people and for machines."""

    calibration: Calibration

    def to_json(self) -> Annotated[dict[str, Any], FieldsOf(Calibration)]:
        """Return the calibration as it is stored."""
        return asdict(self.calibration)

    def to_text(self) -> str:
        """Return the threshold, the detection rate and some likelihoods."""
        calibration = self.calibration
        reference = calibration.brier_base
        better = 1 - calibration.brier / reference if reference else 0.0
        likelihoods = ", ".join(
            f"{share:.0%} up to {distance:.3f}" if distance is not None else f"{share:.0%} at no distance"
            for share, distance in ((share, self._max_distance(share)) for share in SHOWN_LIKELIHOODS)
        )
        return "\n".join(
            [
                f"model {calibration.fingerprint}, "
                + (f"transform {calibration.transform}, " if calibration.transform else "")
                + f"run {calibration.run_id}: {calibration.probes:,} "
                f"probes of {calibration.vehicles:,} vehicles in {calibration.gallery:,} crops",
                f"  threshold     {calibration.threshold:.3f} for a false-alarm rate of "
                f"{calibration.false_alarm_rate:.1%}",
                f"  detection     {calibration.detection_rate:.1%} of the probes that have another sighting",
                f"  likelihood    {likelihoods}",
                f"  validation    Brier score {calibration.brier:.4f}, {better:.0%} better than the mean",
            ]
        )

    def _max_distance(self, likelihood: float) -> float | None:
        """Return the largest distance with at least this likelihood."""
        curve = zip(self.calibration.distances, self.calibration.likelihoods, strict=True)
        return max((distance for distance, share in curve if share >= likelihood), default=None)


def calibrate_run(request: CalibrateRequest, settings: Settings) -> CalibrationResult:
    """Calibrate the model of a run and a transform, and store the calibration with the runs.

    Raises BadLabels if no crop has a vehicle id, BadInput for too few probes, BadSetting.
    """
    run = find_run(request.run, settings)
    labelled = labelled_run(
        run, evaluation_lists(request.labels, request.split, settings.plausible_times())[0]
    )
    cameras = labelled.crops["camera_id"].to_pylist()
    transform = find_transform(request.transform, run.fingerprint, settings)
    features = labelled.features
    if transform:
        features = transform(features, cameras, labelled.crops["captured_at"].to_numpy())
    calibration = calibrate(
        features,
        labelled.vehicle_ids,
        np.asarray(cameras, dtype=np.str_),
        fingerprint=run.fingerprint,
        run_id=run.run_id,
        false_alarm_rate=request.false_alarm_rate,
        same_camera=request.same_camera,
        seed=request.seed,
        transform=transform.transform_id if transform else "",
    )
    store_calibration(open_store(settings.runs), calibration)
    return CalibrationResult(calibration)
