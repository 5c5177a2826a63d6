from collections import defaultdict
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clvr_model.synthetic.trips import ArchiveSpec, SyntheticCrop, synthetic_crop, synthetic_crops
from index.archive.key_pattern import KeyPattern
from infra.errors import BadSetting

SPECS = st.builds(
    ArchiveSpec,
    seed=st.integers(0, 2**31),
    models=st.integers(1, 4),
    vehicles_per_model=st.integers(1, 4),
    sightings_per_vehicle=st.integers(1, 12),
    cameras=st.integers(2, 30),
    days=st.integers(1, 5),
)


def tracks_of(spec: ArchiveSpec) -> dict[str, list[SyntheticCrop]]:
    tracks = defaultdict(list)
    for crop in synthetic_crops(spec):
        tracks[crop.track_id].append(crop)
    return tracks


@settings(deadline=None)
@given(SPECS)
def test_keys_are_unique_and_agree_with_the_labels(spec: ArchiveSpec) -> None:
    pattern = KeyPattern("dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg")
    expected = list(synthetic_crops(spec))
    keys = [crop.key for crop in expected]
    columns = pattern.extract(pa.array(keys, pa.string()))
    assert all(columns["matched"].to_pylist())
    for name in ("camera_id", "captured_at", "track_id"):
        assert columns[name].to_pylist() == [getattr(crop, name) for crop in expected]
    assert len(set(keys)) == spec.images


@settings(deadline=None)
@given(SPECS)
def test_a_track_is_one_pass_of_one_vehicle_before_one_camera(spec: ArchiveSpec) -> None:
    for track in tracks_of(spec).values():
        assert 1 <= len(track) <= 3
        assert len({(crop.vehicle_id, crop.camera) for crop in track}) == 1
        assert track[-1].captured_at - track[0].captured_at < 2000


@settings(deadline=None)
@given(SPECS.filter(lambda spec: spec.sightings_per_vehicle > 1))
def test_every_vehicle_is_seen_by_two_cameras(spec: ArchiveSpec) -> None:
    cameras = defaultdict(set)
    for crop in synthetic_crops(spec):
        cameras[crop.vehicle_id].add(crop.camera)
    assert all(len(met) > 1 for met in cameras.values())


@settings(deadline=None)
@given(SPECS)
def test_every_image_is_captured_within_the_requested_days(spec: ArchiveSpec) -> None:
    first = datetime(spec.first_day.year, spec.first_day.month, spec.first_day.day, tzinfo=UTC)
    for crop in synthetic_crops(spec):
        assert first <= crop.moment < first + timedelta(days=spec.days)


@settings(deadline=None)
@given(SPECS, st.data())
def test_an_image_depends_on_its_number_alone(spec: ArchiveSpec, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, spec.images - 1))
    assert synthetic_crop(spec, index) == list(synthetic_crops(spec, 0, index + 1))[-1]


def test_half_of_each_models_vehicles_are_for_training() -> None:
    spec = ArchiveSpec(models=3, vehicles_per_model=10, sightings_per_vehicle=2)
    training = {(crop.model_id, crop.vehicle_id) for crop in synthetic_crops(spec) if crop.training}
    testing = {(crop.model_id, crop.vehicle_id) for crop in synthetic_crops(spec) if not crop.training}
    assert [sum(model == m for model, _ in training) for m in range(3)] == [5, 5, 5]
    assert not {vehicle for _, vehicle in training} & {vehicle for _, vehicle in testing}


def test_the_first_day_may_be_any_date() -> None:
    spec = ArchiveSpec(first_day=date(2031, 12, 31), days=1, models=1, vehicles_per_model=1)
    assert all(crop.key.startswith("dt=2031-12-31/cam=") for crop in synthetic_crops(spec))


@pytest.mark.parametrize(
    "wrong",
    [
        {"models": 0},
        {"vehicles_per_model": 0},
        {"sightings_per_vehicle": 0},
        {"cameras": 1000},
        {"days": 0},
        {"seed": -1},
        {"min_side": 300, "max_side": 200},
        {"max_side": 5000},
        {"spoiled_share": 1.5},
        {"train_share": -0.1},
    ],
)
def test_a_setting_out_of_range_is_refused_with_its_name(wrong: dict[str, float]) -> None:
    with pytest.raises(BadSetting, match=next(iter(wrong))):
        ArchiveSpec(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("start", "stop"), [(-1, 4), (5, 4), (0, 10**9)])
def test_a_range_outside_the_archive_is_refused(start: int, stop: int) -> None:
    with pytest.raises(BadSetting, match="of an archive of"):
        list(synthetic_crops(ArchiveSpec(), start, stop))
