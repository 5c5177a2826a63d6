"""`clvr fit-transform`, and the commands that use its result: load, calibrate, sweep --exact."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from json_documents import read_result
from numpy.typing import NDArray

from index.generations import records
from index.generations.load_plan import plan_load
from index.runs.run import Run
from index.runs.shards import vectors_of
from index.search.calibration import calibration_of
from index.search.probe import Probe
from index.search.retrieval import Rules, retrieve
from index.transforms.fitting import TransformSettings, fit_features
from index.transforms.stored import list_documents, read_transform
from infra.errors import BadInput, BadSetting
from infra.settings import Settings, load_settings
from infra.store import Store, open_store
from jobs.evaluate.calibrate import CalibrateRequest, calibrate_run
from jobs.fit_transform import job as fitting
from jobs.fit_transform.job import FitRequest, fit_transform
from jobs.generations.listing import list_alias_generations
from jobs.generations.load import LoadRequest, load, load_increment, promote_generation
from jobs.runtime.resolve import open_milvus
from jobs.search.searcher import open_source
from jobs.sweep.job import SweepRequest, _plan_exact

Make = Callable[..., Run]


@pytest.fixture
def settings(tmp_path: Path, store: Store) -> Settings:
    return load_settings({"runs": store.uri, "milvus": str(tmp_path / "index.db")})


def tracks(numbers: NDArray[np.int64]) -> NDArray[np.float32]:
    """Vehicles of three crops differ in many small directions, below noise in a few large ones."""
    rng = np.random.default_rng(1)
    vehicles = 0.3 * rng.normal(size=(numbers.max() // 3 + 1, 64))
    noise = rng.normal(size=(numbers.max() + 1, 1024))
    noise[:, :8] *= 4
    noise[:, 8:] *= 0.1
    features = noise[numbers] + 1
    features[:, 8:72] += vehicles[numbers // 3]
    return features.astype(np.float32)


@pytest.fixture
def make(store: Store, make_finished_run: Make) -> Make:
    def run(run_id: str, rows: int = 450, first: int = 0, **options: object) -> Run:
        numbers = range(first, first + rows)
        columns = {
            "camera_id": [f"c{number // 3 % 4}" for number in numbers],
            "track_id": [f"t{number // 3}" for number in numbers],
            "captured_at": [1000 * number for number in numbers],
            "vehicle_id": [number // 6 for number in numbers],
        }
        return make_finished_run(store, run_id, numbers, look=tracks, **(columns | options))

    return run


def test_a_fit_is_that_of_all_rows_without_erased_crops(
    store: Store, settings: Settings, make: Make, hide: Callable[..., str]
) -> None:
    run = make("r1", 120, rows_per_shard=50)
    erased = run.manifest()["crop_id"].to_pylist()[:10]
    hide(store, erased)
    plan = plan_load([run])
    result = fit_in_process(FitRequest(("r1",), kind="whiten-camera", dimensions=40), settings)
    assert result.transform is not None
    assert (result.transform.rows, result.transform.sampled_of) == (110, 110)
    assert not result.is_default
    rows = next(plan.batches(1000))
    batches = list(plan.batches(1000))
    features = np.concatenate([vectors_of(batch) for batch in batches])
    cameras = [name for batch in batches for name in batch.column("camera_id").to_pylist()]
    expected = fit_features(features, TransformSettings("whiten-camera", dimensions=40), cameras)
    stored = read_transform(store, run.fingerprint, result.transform.transform_id)
    assert stored is not None
    probe, at = vectors_of(rows)[:5], rows.column("camera_id").to_pylist()[:5]
    one, other = stored(probe, at), expected(probe, at)
    np.testing.assert_allclose(one @ one.T, other @ other.T, atol=1e-5)
    again = fit_in_process(FitRequest(("r1",), kind="whiten-camera", dimensions=40), settings)
    assert again.transform is not None
    assert again.transform.transform_id == result.transform.transform_id


def fit_in_process(request: FitRequest, settings: Settings) -> fitting.FitResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            fitting,
            "_statistics_of",
            lambda shards, sampling, settings: [
                fitting.shard_statistics(shard, sampling) for shard in shards
            ],
        )
        return fit_transform(request, settings)


def test_ray_tasks_give_the_same_transform_whatever_their_order(settings: Settings, make: Make) -> None:
    make("r1", 120, rows_per_shard=50)
    request = FitRequest(("r1",), kind="whiten", dimensions=16)
    by_ray, in_process = fit_transform(request, settings), fit_in_process(request, settings)
    assert by_ray.transform is not None
    assert in_process.transform is not None
    assert by_ray.transform.rows == in_process.transform.rows == 120
    one, other = (
        read_transform(open_store(settings.runs), each.transform.fingerprint, each.transform.transform_id)
        for each in (by_ray, in_process)
    )
    assert one is not None
    assert other is not None
    assert one.matrix is not None
    assert other.matrix is not None
    np.testing.assert_allclose(one.matrix, other.matrix, rtol=1e-6, atol=1e-9)


def test_auto_becomes_the_default_of_loads_calibrations_and_exact_sweeps(
    store: Store, settings: Settings, make: Make
) -> None:
    run = make("r1")
    decided = fit_transform(FitRequest(("r1",), dimensions=64), settings)
    assert decided.choice is not None
    assert (decided.choice.kind, decided.is_default) == ("whiten", True)
    assert decided.transform is not None
    assert decided.transform.rows == 450  # the tracks that were held out take part in the end
    text = decided.to_text()
    assert "95 % interval" in text
    assert "chosen: whiten" in text
    name = decided.transform.transform_id
    assert read_result("fit-transform", decided)["transform"] == name

    loaded = load(LoadRequest(("r1",)), settings)
    assert f"transform {name} to 64 dimensions" in loaded.to_text()
    assert promote_generation("latest", settings, new_model=False, force=None).passed
    (row,) = list_alias_generations(settings).rows
    assert (row.transform, row.dimension) == (name, 64)
    assert name in row.to_text()

    result = calibrate_run(CalibrateRequest("r1", false_alarm_rate=0.05), settings)
    calibrated = result.calibration
    assert read_result("calibrate", result)["threshold"] == calibrated.threshold
    assert calibrated.transform == name
    assert calibration_of(store, run.fingerprint, name) == calibrated
    assert calibration_of(store, run.fingerprint) is None

    plan = _plan_exact(SweepRequest("p", "o", "1", exact=True), settings, None)
    assert plan.transform == name
    with open_milvus(settings) as milvus:
        generation = loaded.generation
        index, scan = open_source(milvus, generation, settings), plan.source()
        crop = plan_load([run]).crop_ids()[:1].tolist()
        assert np.allclose(index.vectors(crop)[crop[0]], scan.vectors(crop)[crop[0]], atol=1e-6)

    with pytest.raises(BadSetting, match="live generation"):
        load_increment(LoadRequest(("r1",), transform="none"), settings)
    assert load(LoadRequest(("r1",), transform="none"), settings).generation.transform == ""
    plain = fit_transform(FitRequest(("r1",), kind="none"), settings)
    assert "no transform" in plain.to_text()
    assert load(LoadRequest(("r1",)), settings).generation.transform == ""
    assert load(LoadRequest(("r1",), transform="latest"), settings).generation.transform == name


def test_auto_stays_with_plain_features_where_there_are_no_tracks(settings: Settings, make: Make) -> None:
    make("r1", 60, track_id=[""] * 60)
    result = fit_transform(FitRequest(("r1",)), settings)
    assert result.transform is None
    assert "0 held-out tracks" in result.to_text()
    assert list_documents(open_store(settings.runs), result.fingerprint) == []
    assert load(LoadRequest(("r1",)), settings).generation.transform == ""


def test_a_sample_of_the_crops_is_fitted_and_said(settings: Settings, make: Make) -> None:
    make("r1", 300)
    result = fit_transform(FitRequest(("r1",), kind="camera", max_rows=100), settings)
    assert result.transform is not None
    assert 60 < result.transform.rows < 140
    assert f"{result.transform.rows} of 300 crops, means of 4 cameras" in result.to_text()


def test_unknown_transforms_are_refused(settings: Settings, make: Make) -> None:
    make("r1", 20)
    with pytest.raises(BadInput, match="whiten-0"):
        load(LoadRequest(("r1",), transform="whiten-0"), settings)
    with pytest.raises(BadInput, match="no transform"):
        load(LoadRequest(("r1",), transform="latest"), settings)
    with pytest.raises(BadSetting, match="dimensions"):
        FitRequest(("r1",), kind="camera", dimensions=4)
    assert list(records.list_records(open_store(settings.runs))) == []


def test_a_search_by_the_rules_finds_the_other_track_of_a_vehicle(settings: Settings, make: Make) -> None:
    run = make("r1", 240)
    fit_transform(FitRequest(("r1",), kind="whiten", dimensions=64), settings)
    generation = load(LoadRequest(("r1",), transform="latest"), settings).generation
    with open_milvus(settings) as milvus:
        source = open_source(milvus, generation, settings)
        table = run.manifest()
        crop = table["crop_id"].to_pylist()[0]
        probe = Probe(
            "p", source.vectors([crop])[crop], (source.sightings([crop])[crop],), generation.transform
        )
        (matches,) = retrieve(source, [probe], Rules(top=3))
    assert len(matches) == 3
    assert matches[0].hit.camera_id != table["camera_id"].to_pylist()[0]
