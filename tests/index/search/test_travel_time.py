"""Travel time: what a straight line and a top speed rule out, and what they leave open."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.search.probe import Sighting
from index.search.travel_time import CameraMap, read_cameras
from infra.errors import BadInput, BadSetting

HOUR = 3_600_000
BERLIN_POTSDAM = CameraMap({"berlin": (52.52, 13.405), "potsdam": (52.3906, 13.0645)}, max_speed_kmh=100)


def seen(camera: str, at: int) -> Sighting:
    return Sighting(camera, "", at)


def test_the_distance_is_that_of_the_great_circle() -> None:
    assert BERLIN_POTSDAM.km("berlin", "potsdam") == pytest.approx(27.2, abs=0.3)


@pytest.mark.parametrize(("minutes", "possible"), [(10, False), (16, False), (17, True), (60, True)])
def test_a_journey_is_possible_from_the_time_that_the_top_speed_needs(minutes: int, possible: bool) -> None:
    journey = BERLIN_POTSDAM.travel(seen("berlin", HOUR), seen("potsdam", HOUR + minutes * 60_000))
    assert journey is not None
    assert journey.possible is possible


def test_the_direction_of_time_does_not_matter() -> None:
    there = BERLIN_POTSDAM.travel(seen("berlin", 0), seen("potsdam", HOUR))
    assert there == BERLIN_POTSDAM.travel(seen("potsdam", HOUR), seen("berlin", 0))


@pytest.mark.parametrize(
    "end", [seen("elsewhere", HOUR), seen("", HOUR), seen("potsdam", -1)], ids=["place", "none", "time"]
)
def test_what_is_unknown_is_not_judged(end: Sighting) -> None:
    assert BERLIN_POTSDAM.travel(seen("berlin", 0), end) is None


def test_clocks_that_differ_a_little_do_not_make_a_liar_of_a_neighbouring_camera() -> None:
    near = CameraMap({"a": (0.0, 0.0), "b": (0.0, 0.001)}, max_speed_kmh=100)
    journey = near.travel(seen("a", 0), seen("b", 0))
    assert journey is not None
    assert journey.possible


def test_of_several_sightings_the_impossible_one_decides() -> None:
    starts = [seen("potsdam", 0), seen("berlin", HOUR)]
    journey = BERLIN_POTSDAM.least_feasible(starts, seen("potsdam", HOUR))
    assert journey is not None
    assert not journey.possible


@given(st.floats(-90, 90), st.floats(-180, 180), st.floats(-90, 90), st.floats(-180, 180))
def test_distances_are_symmetric_and_no_longer_than_half_the_earth(
    a: float, b: float, c: float, d: float
) -> None:
    cameras = CameraMap({"a": (a, b), "b": (c, d)})
    assert cameras.km("a", "b") == pytest.approx(cameras.km("b", "a"), abs=1e-6)
    assert 0 <= (cameras.km("a", "b") or 0) <= 20_016


def test_a_camera_file_is_read_with_its_byte_order_mark_and_further_columns() -> None:
    cameras = read_cameras("\ufeffname,camera_id,lat,lon\nX,c1,52.5,13.4\n".encode(), "f.csv")
    assert cameras.positions == {"c1": (52.5, 13.4)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("camera_id,lat\nc,1\n", "no column lon"),
        ("camera_id,lat,lon\nc,1,2\nd,x,2\n", "line 3"),
        ("camera_id,lat,lon\nc,91,2\n", "line 2"),
        ("camera_id,lat,lon\nc,nan,2\n", "line 2"),
        ("camera_id,lat,lon\nc,1,2\nc,1,3\n", "two positions"),
        ("camera_id,lat,lon\n", "names no camera"),
        ("", "no column"),
    ],
)
def test_a_camera_file_that_is_wrong_says_where(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read_cameras(text.encode(), "f.csv")


@pytest.mark.parametrize("speed", [0, -1, float("inf"), float("nan")])
def test_a_speed_that_is_none_is_refused(speed: float) -> None:
    with pytest.raises(BadSetting, match="speed"):
        CameraMap({}, max_speed_kmh=speed)
