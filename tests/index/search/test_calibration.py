"""Calibration: likelihoods are frequencies, the threshold keeps its rate, and small samples are refused."""

import numpy as np
import pytest

from index.search.calibration import Calibration, calibrate, calibration_of, store_calibration
from infra.errors import BadInput, BadSetting, SchemaMismatch
from infra.store import Store


def make_dataset(vehicles: int = 80, sightings: int = 5, noise: float = 0.45, seed: int = 0):
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(vehicles), sightings)
    centres = rng.normal(size=(vehicles, 32))
    features = centres[ids] + noise * rng.normal(size=(len(ids), 32))
    cameras = np.array([f"c{number}" for number in rng.integers(0, 4, len(ids))])
    return features.astype(np.float32), ids.astype(np.int64), cameras


def calibrated(rate: float = 0.05, **options: object) -> Calibration:
    features, ids, cameras = make_dataset(**options)
    return calibrate(features, ids, cameras, fingerprint="f", run_id="r", false_alarm_rate=rate)


def test_the_likelihood_falls_with_the_distance_and_never_claims_certainty() -> None:
    calibration = calibrated()
    likelihood = calibration.likelihood(np.linspace(0, 50, 200))
    assert (np.diff(likelihood) <= 1e-12).all()
    assert 0 < likelihood[-1] < 0.05 < 0.95 < likelihood[0] < 1


def test_the_likelihood_beats_the_mean_on_other_vehicles() -> None:
    calibration = calibrated()
    assert calibration.brier < 0.5 * calibration.brier_base


def test_new_impostors_pass_the_threshold_at_about_the_rate() -> None:
    calibration = calibrated(rate=0.05)
    features, _, _ = make_dataset(seed=0)
    rng = np.random.default_rng(9)
    impostors = rng.normal(size=(2000, 32)) + 0.45 * rng.normal(size=(2000, 32))
    nearest = np.array([np.linalg.norm(features - impostor, axis=1).min() for impostor in impostors])
    assert (nearest <= calibration.threshold).mean() < 0.12
    assert calibration.detection_rate > 0.8


def test_a_lower_rate_gives_a_stricter_threshold() -> None:
    assert calibrated(rate=0.01).threshold < calibrated(rate=0.2).threshold


def test_the_camera_of_the_probe_is_excluded() -> None:
    features, ids, _ = make_dataset()
    cameras = np.full(len(ids), "only")
    with pytest.raises(BadInput, match="0 of 400 labelled crops"):
        calibrate(features, ids, cameras, fingerprint="f", run_id="r", false_alarm_rate=0.1)
    assert calibrate(
        features, ids, cameras, fingerprint="f", run_id="r", false_alarm_rate=0.1, same_camera=True
    ).probes


def test_unknown_cameras_exclude_nothing() -> None:
    features, ids, _ = make_dataset()
    unknown = np.full(len(ids), "")
    assert calibrate(features, ids, unknown, fingerprint="f", run_id="r", false_alarm_rate=0.1).probes == 400


def test_a_rate_too_low_for_the_probes_is_refused_with_the_lowest_possible() -> None:
    with pytest.raises(BadInput, match="cannot resolve") as caught:
        calibrated(rate=0.0001)
    assert "0.0025" in caught.value.remedy


@pytest.mark.parametrize("rate", [0, 1, -0.1, float("nan")])
def test_a_rate_out_of_range_is_refused(rate: float) -> None:
    with pytest.raises(BadSetting):
        calibrated(rate=rate)


def test_a_stored_calibration_is_found_by_fingerprint(store: Store) -> None:
    calibration = calibrated()
    store_calibration(store, calibration)
    assert calibration_of(store, "f") == calibration
    assert calibration_of(store, "other") is None


def test_a_damaged_file_is_refused(store: Store) -> None:
    key = store_calibration(store, calibrated())
    store.put(key, b"{}")
    with pytest.raises(SchemaMismatch):
        calibration_of(store, "f")
