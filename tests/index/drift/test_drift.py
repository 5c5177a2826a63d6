"""Drift: profiles that add up however crops are divided, and changes that are real, unusual and named."""

from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index.drift.comparison import CameraDrift, DriftLimits, compare
from index.drift.nearest import Sample, nearest_change
from index.drift.profile import MIN_CROPS, UNKNOWN_WEEK, Features, Profile, collect, monday_ms
from index.drift.stored import read_profile, write_profile
from infra.errors import BadSetting, CorruptObject
from infra.store import open_store

DIM = 8
DAY_MS = 86_400_000


def crops(
    week: int,
    count: int = 200,
    *,
    camera: str = "a",
    shift: float = 0.0,
    length: float = 1.0,
    models: int = 5,
    seed: int = 0,
) -> dict[str, list]:
    rng = np.random.default_rng([seed, week])
    features = rng.normal(size=(count, DIM)) * length
    features[:, 0] += shift
    return {
        "camera_id": [camera] * count,
        "captured_at": (monday_ms(week) + rng.integers(0, 7 * DAY_MS, count)).tolist(),
        "model_id": rng.integers(0, models, count).tolist(),
        "embedding": features.astype(np.float32).tolist(),
    }


def batch(*parts: dict[str, list]) -> pa.RecordBatch:
    columns = {name: [value for part in parts for value in part[name]] for name in parts[0]}
    return pa.RecordBatch.from_arrays(
        [
            pa.array(columns["camera_id"]),
            pa.array(columns["captured_at"], pa.int64()),
            pa.array(columns["model_id"], pa.int32()),
            pa.array(columns["embedding"], pa.list_(pa.float32())),
        ],
        names=list(columns),
    )


def profile_of(*parts: dict[str, list]) -> Profile:
    return collect([batch(*parts)], DIM).without_small_weeks()


def only(profile: Profile, **limits: float) -> CameraDrift:
    (camera,) = compare(profile, replace(DriftLimits(), **limits))
    return camera


def test_a_week_begins_on_monday_and_unknown_times_are_a_week_of_their_own() -> None:
    part = crops(0, 3)
    part["captured_at"] = [monday_ms(2900), monday_ms(2900) - 1, -1]
    profile = collect([batch(part)], DIM)
    assert profile.crops == {("a", 2900): 1, ("a", 2899): 1, ("a", UNKNOWN_WEEK): 1}
    assert (
        np.datetime64(monday_ms(2900), "ms").astype("datetime64[D]").astype(int) % 7 == 4
    )  # 1970-01-01: Thursday


def test_profiles_add_up_however_the_crops_are_divided() -> None:
    parts = [crops(week, 40, camera=camera) for week in (1, 2) for camera in "ab"]
    whole = collect([batch(*parts)], DIM)
    pieces = [batch(part).slice(start, 13) for part in parts for start in (0, 13, 26, 39)]
    merged = reduce(Profile.merge, (collect([piece], DIM) for piece in pieces))
    assert merged.crops == whole.crops
    for key, sums in whole.features.items():
        names = ("camera_id", "captured_at", "embedding")
        columns = (row for part in parts for row in zip(*(part[name] for name in names), strict=True))
        rows = [row for name, time, row in columns if (name, (time - monday_ms(0)) // (7 * DAY_MS)) == key]
        plain = np.asarray(rows, np.float32).astype(np.float64)
        for found in (sums, merged.features[key]):
            np.testing.assert_allclose(found.mean, plain.mean(axis=0), atol=1e-12)
            assert found.variance == pytest.approx(plain.var(axis=0).sum())
            assert found.mean_length == pytest.approx(np.linalg.norm(plain, axis=1).mean())
        assert merged.features[key].models == sums.models


def test_a_small_week_keeps_its_number_and_no_feature() -> None:
    profile = profile_of(crops(1, MIN_CROPS - 1), crops(2, MIN_CROPS))
    assert profile.crops == {("a", 1): MIN_CROPS - 1, ("a", 2): MIN_CROPS}
    assert list(profile.features) == [("a", 2)]


def test_equal_weeks_raise_no_alert() -> None:
    for seed in range(5):
        camera = only(profile_of(*(crops(week, seed=seed) for week in range(1, 6))))
        assert camera.alerts == ()
        assert camera.shift is not None and camera.shift.value < 0.1
        assert camera.models is not None and camera.models.value == 0.0
        assert (camera.crops, camera.usual_crops, camera.reference_weeks) == (200, 200.0, 4)


@pytest.mark.parametrize(
    ("change", "alert"),
    [
        ({"shift": 2.0}, "features moved by 0.68"),
        ({"length": 1.5}, "features are 50% longer"),
        ({"models": 1}, "of its predicted models changed"),
        ({"count": 20}, "20 crops instead of about 200"),
    ],
)
def test_a_change_of_the_last_week_is_named(change: dict, alert: str) -> None:
    camera = only(profile_of(*(crops(week) for week in range(1, 5)), crops(5, **{"count": 200} | change)))
    assert alert in camera.alerts[0]


def test_a_camera_without_crops_in_the_last_week_is_named() -> None:
    other = [crops(week, camera="b") for week in range(1, 6)]
    silent, _ = compare(profile_of(*(crops(week) for week in range(1, 5)), *other), DriftLimits())
    assert silent.alerts == ("0 crops instead of about 200: look at the camera",)


def test_a_change_that_is_usual_at_the_camera_is_no_alert() -> None:
    weeks = [crops(week, shift=2.0 * (week % 2)) for week in range(1, 6)]
    camera = only(profile_of(*weeks))
    assert camera.shift is not None
    assert camera.shift.value > 0.25
    assert camera.alerts == ()


def test_few_crops_are_not_compared() -> None:
    camera = only(profile_of(crops(1, 40), crops(2, 40, shift=9.0)))
    assert (camera.shift, camera.length, camera.models, camera.alerts) == (None, None, None, ())
    assert only(profile_of(crops(1, 40), crops(2, 40, shift=9.0)), min_crops=40).alerts


def test_a_new_camera_has_nothing_to_be_compared_with() -> None:
    assert only(profile_of(crops(3))).alerts == ()


def test_limits_out_of_range_are_refused() -> None:
    with pytest.raises(BadSetting, match="0 weeks"):
        DriftLimits(weeks=0)


def test_a_stored_profile_is_that_of_its_run(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    profile = profile_of(crops(1), crops(2, 5), crops(3, camera="b"))
    assert read_profile(store, "f", "r1") is None
    write_profile(store, "f", "r1", profile)
    found = read_profile(store, "f", "r1")
    assert found is not None
    assert found.crops == profile.crops
    for key, sums in profile.features.items():
        assert np.array_equal(found.features[key].mean, sums.mean)
        assert (
            replace(found.features[key], mean=sums.mean) == sums or found.features[key].models == sums.models
        )
    store.put("drift/f/r2.parquet", store.get("drift/f/r1.parquet"))
    with pytest.raises(CorruptObject, match="not the profile of its run"):
        read_profile(store, "f", "r2")


def sample(rng: np.random.Generator, count: int, scale: float = 1.0) -> Sample:
    features = rng.normal(size=(count, DIM)).astype(np.float32) * np.float32(scale)
    return Sample(features, rng.choice(["a", "b", "c"], count))


def test_nearest_crops_of_one_distribution_are_equally_far() -> None:
    rng = np.random.default_rng(3)
    change = nearest_change(sample(rng, 300), sample(rng, 300), sample(rng, 1000))
    assert change is not None
    assert change.low < 0 < change.high
    assert change.alert == ""


def test_nearest_crop_is_by_another_camera_and_a_change_is_named() -> None:
    rng = np.random.default_rng(4)
    recent, earlier, gallery = sample(rng, 200, 2.0), sample(rng, 200), sample(rng, 1000)
    change = nearest_change(recent, earlier, gallery)
    assert change is not None
    plain = np.linalg.norm(recent.features[:, None].astype(float) - gallery.features[None], axis=2)
    plain[recent.cameras[:, None] == gallery.cameras] = np.inf
    assert change.recent == pytest.approx(np.median(plain.min(axis=1)))
    assert change.low > 0.1
    assert "a calibrated threshold is out of date" in change.alert


def test_few_probes_are_not_compared() -> None:
    rng = np.random.default_rng(5)
    assert nearest_change(sample(rng, 29), sample(rng, 200), sample(rng, 100)) is None
    assert nearest_change(sample(rng, 200), sample(rng, 200), sample(rng, 0)) is None


def test_sums_of_two_groups_are_those_of_all() -> None:
    rng = np.random.default_rng(6)
    rows, models = (
        rng.normal(size=(50, DIM)).astype(np.float32) + 1e3,
        rng.integers(0, 3, 50).astype(np.int32),
    )
    merged = Features.of(rows[:7], models[:7]).merge(Features.of(rows[7:], models[7:]))
    assert merged.variance == pytest.approx(rows.astype(np.float64).var(axis=0).sum(), rel=1e-9)
