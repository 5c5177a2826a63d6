"""`clvr drift` over the shards of runs: profiles are stored once, and cameras that changed are named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from json_documents import read_result

from index.drift.profile import monday_ms
from index.runs.run import Run
from index.search.calibration import Calibration, store_calibration
from infra.errors import BadInput, CorruptObject
from infra.settings import Settings, load_settings
from infra.store import Store, open_store
from jobs.drift import job
from jobs.drift.job import DriftRequest, measure_drift

FINGERPRINT = "5eed" * 16
CROPS = 120
MakeRun = Callable[..., Run]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"runs": str(tmp_path / "runs"), "milvus": str(tmp_path / "index.db")})


@pytest.fixture
def store(settings: Settings) -> Store:
    store = open_store(settings.runs)
    store.create_bucket()
    return store


def week_run(store: Store, make: MakeRun, week: int, *, moved: float = 0.0, models: int = 7) -> Run:
    """Make the run of a week: as many crops of each of two cameras, of which the second may have moved."""

    def look(numbers: np.ndarray) -> np.ndarray:
        features = np.random.default_rng(week).normal(size=(len(numbers), 1024)).astype(np.float32)
        features[numbers % 2 == 1, :16] += np.float32(moved)
        return features

    return make(
        store,
        f"w{week}",
        range(2 * CROPS * week, 2 * CROPS * (week + 1)),
        look=look,
        camera_id=["left", "right"] * CROPS,
        captured_at=[monday_ms(week) + 1000 * number for number in range(2 * CROPS)],
    )


def test_a_camera_that_moved_is_named_and_runs_are_read_once(
    settings: Settings, store: Store, make_finished_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [week_run(store, make_finished_run, week) for week in (1, 2, 3)]
    calm = measure_drift(DriftRequest(tuple(run.run_id for run in runs)), settings)
    assert (calm.alerts, calm.crops, calm.week) == ((), 6 * CROPS, "1970-01-26")
    assert [camera.camera_id for camera in calm.cameras] == ["left", "right"]
    assert calm.nearest is not None
    assert "0 alerts" in calm.to_text()

    runs.append(week_run(store, make_finished_run, 4, moved=8.0))
    read = []
    original = job.profile_shard
    monkeypatch.setattr(job, "profile_shard", lambda shard: read.append(shard.run_id) or original(shard))
    moved = measure_drift(DriftRequest(tuple(run.run_id for run in runs)), settings)
    assert read == ["w4"]
    assert any(alert.startswith("camera right: its features moved by ") for alert in moved.alerts)
    assert not any(alert.startswith("camera left:") for alert in moved.alerts)
    assert read_result("drift", moved)["cameras"][1]["shift"]["value"] == pytest.approx(1.0, abs=0.05)


def test_an_old_calibration_of_a_small_archive_is_named(
    settings: Settings, store: Store, make_finished_run: MakeRun
) -> None:
    run = week_run(store, make_finished_run, 1)
    calibration = Calibration(
        fingerprint=FINGERPRINT,
        run_id=run.run_id,
        false_alarm_rate=0.01,
        threshold=1.0,
        detection_rate=0.5,
        probes=20,
        vehicles=10,
        gallery=100,
        pairs=100,
        brier=0.1,
        brier_base=0.2,
        same_camera=False,
        distances=(1.0,),
        likelihoods=(0.5,),
        created="2026-01-01T00:00:00+00:00",
    )
    store_calibration(store, calibration)
    found = measure_drift(DriftRequest((run.run_id,)), settings)
    assert len(found.alerts) == 2
    assert "days old: clvr calibrate" in found.alerts[0]
    assert "of 100 crops, and the archive has 240" in found.alerts[1]


def test_an_altered_profile_is_noticed_and_a_missing_one_is_made_again(
    settings: Settings, store: Store, make_finished_run: MakeRun
) -> None:
    run = week_run(store, make_finished_run, 1)
    request = DriftRequest((run.run_id,))
    first = measure_drift(request, settings)
    key = f"drift/{FINGERPRINT}/{run.run_id}.parquet"
    data = store.get(key)
    altered = bytearray(data)
    altered[len(data) // 3] ^= 1
    store.put(key, bytes(altered))
    with pytest.raises(CorruptObject, match=run.run_id):
        measure_drift(request, settings)
    store.delete(key)
    assert measure_drift(request, settings) == first
    assert store.get(key) == data


def test_without_a_live_generation_runs_must_be_named(settings: Settings, store: Store) -> None:
    with pytest.raises(BadInput, match="no live generation"):
        measure_drift(DriftRequest(), settings)
