"""Travel time: a straight line and a maximum speed rule out some pairs of sightings."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.search.probe import Sighting
from index.search.travel_time import CameraMap, read_cameras
from infra.errors import BadInput, BadSetting

HOUR = 3_600_000
BERLIN_POTSDAM = CameraMap({"berlin": (52.52, 13.405), "potsdam": (52.3906, 13.0645)}, max_speed_kmh=100)


def sighting(camera: str, captured_at: int) -> Sighting:
    return Sighting(camera, "", captured_at)


def test_the_distance_is_the_great_circle() -> None:
    assert BERLIN_POTSDAM.km("berlin", "potsdam") == pytest.approx(27.2, abs=0.3)


@pytest.mark.parametrize(("minutes", "possible"), [(10, False), (16, False), (17, True), (60, True)])
def test_travel_is_possible_from_the_time_that_the_maximum_speed_needs(minutes: int, possible: bool) -> None:
    check = BERLIN_POTSDAM.travel(sighting("berlin", HOUR), sighting("potsdam", HOUR + minutes * 60_000))
    assert check is not None
    assert check.possible is possible


def test_the_direction_of_time_does_not_matter() -> None:
    outward = BERLIN_POTSDAM.travel(sighting("berlin", 0), sighting("potsdam", HOUR))
    assert outward == BERLIN_POTSDAM.travel(sighting("potsdam", HOUR), sighting("berlin", 0))


@pytest.mark.parametrize(
    "end",
    [sighting("elsewhere", HOUR), sighting("", HOUR), sighting("potsdam", -1)],
    ids=["place", "none", "time"],
)
def test_an_unknown_place_or_time_is_not_checked(end: Sighting) -> None:
    assert BERLIN_POTSDAM.travel(sighting("berlin", 0), end) is None


def test_a_small_difference_of_clocks_is_tolerated() -> None:
    near = CameraMap({"a": (0.0, 0.0), "b": (0.0, 0.001)}, max_speed_kmh=100)
    check = near.travel(sighting("a", 0), sighting("b", 0))
    assert check is not None
    assert check.possible


def test_of_several_sightings_the_least_feasible_one_decides() -> None:
    starts = [sighting("potsdam", 0), sighting("berlin", HOUR)]
    check = BERLIN_POTSDAM.least_feasible(starts, sighting("potsdam", HOUR))
    assert check is not None
    assert not check.possible


@given(st.floats(-90, 90), st.floats(-180, 180), st.floats(-90, 90), st.floats(-180, 180))
def test_distances_are_symmetric_and_no_longer_than_half_the_earth(
    a: float, b: float, c: float, d: float
) -> None:
    cameras = CameraMap({"a": (a, b), "b": (c, d)})
    assert cameras.km("a", "b") == pytest.approx(cameras.km("b", "a"), abs=1e-6)
    assert 0 <= (cameras.km("a", "b") or 0) <= 20_016


def test_a_camera_file_may_have_a_byte_order_mark_and_further_columns(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_bytes("\ufeffname,camera_id,lat,lon\nX,001,52.5,13.4\n".encode())
    assert read_cameras(str(tmp_path / "f.csv")).positions == {"001": (52.5, 13.4)}


def test_a_camera_file_may_be_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"camera_id": [7], "lat": [0.0], "lon": [13.4]}), tmp_path / "f.parquet")
    assert read_cameras(str(tmp_path / "f.parquet")).positions == {"7": (0.0, 13.4)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("camera_id,lat\nc,1\n", "no column lon"),
        ("camera_id,lat,lon\nc,1,2\nd,x,2\n", "data row 2"),
        ("camera_id,lat,lon\nc,91,2\n", "data row 1"),
        ("camera_id,lat,lon\nc,nan,2\n", "data row 1"),
        ("camera_id,lat,lon\nc,,2\n", "data row 1"),
        ("camera_id,lat,lon\nc,1,2\nc,1,3\n", "two positions"),
        ("camera_id,lat,lon\n", "names no camera"),
        ("", "is empty"),
    ],
)
def test_a_wrong_camera_file_is_refused_with_the_data_row(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "f.csv").write_text(text)
    with pytest.raises(BadInput, match=message):
        read_cameras(str(tmp_path / "f.csv"))


@pytest.mark.parametrize("speed", [0, -1, float("inf"), float("nan")])
def test_a_maximum_speed_must_be_positive_and_finite(speed: float) -> None:
    with pytest.raises(BadSetting, match="speed"):
        CameraMap({}, max_speed_kmh=speed)
