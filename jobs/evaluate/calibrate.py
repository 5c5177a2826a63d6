"""`clvr calibrate`: a labelled run becomes the curve and the threshold that searches by its model use."""

from dataclasses import dataclass

import numpy as np

from index.search.calibration import Calibration, calibrate, store_calibration
from infra.settings import Settings
from infra.store import open_store
from jobs.evaluate.dataset import evaluation_lists, labelled_run
from jobs.runtime.resolve import find_run


@dataclass(frozen=True, slots=True)
class CalibrateRequest:
    """What `clvr calibrate` was asked for."""

    run: str
    labels: str | None = None
    split: str | None = None
    false_alarm_rate: float = 0.01
    same_camera: bool = False
    seed: int = 0


def calibrate_run(request: CalibrateRequest, settings: Settings) -> Calibration:
    """Calibrate the model of a run and store the outcome with the runs.

    Raises BadLabels where no crop has a vehicle id, BadInput for too few probes, BadSetting.
    """
    run = find_run(request.run, settings)
    labelled = labelled_run(run, evaluation_lists(request.labels, request.split)[0])
    calibration = calibrate(
        labelled.features,
        labelled.vehicle_ids,
        np.asarray(labelled.crops["camera_id"].to_pylist(), dtype=np.str_),
        fingerprint=run.fingerprint,
        run_id=run.run_id,
        false_alarm_rate=request.false_alarm_rate,
        same_camera=request.same_camera,
        seed=request.seed,
    )
    store_calibration(open_store(settings.runs), calibration)
    return calibration


def calibration_text(calibration: Calibration) -> str:
    """The calibration as a person reads it."""
    better = 1 - calibration.brier / calibration.brier_base if calibration.brier_base else 0.0
    shares = (0.9, 0.5, 0.1)
    reached = [
        max(
            (d for d, p in zip(calibration.distances, calibration.likelihoods, strict=True) if p >= share),
            default=None,
        )
        for share in shares
    ]
    corners = ", ".join(
        f"{share:.0%} up to {distance:.3f}" if distance is not None else f"{share:.0%} nowhere"
        for share, distance in zip(shares, reached, strict=True)
    )
    return "\n".join(
        [
            f"model {calibration.fingerprint}, run {calibration.run_id}: {calibration.probes:,} probes of "
            f"{calibration.vehicles:,} vehicles in {calibration.gallery:,} crops",
            f"  threshold     {calibration.threshold:.3f} for a false-alarm rate of "
            f"{calibration.false_alarm_rate:.1%}",
            f"  detection     {calibration.detection_rate:.1%} of the probes that have another sighting",
            f"  likelihood    {corners}",
            f"  held out      Brier score {calibration.brier:.4f}, {better:.0%} better than saying the mean",
        ]
    )
