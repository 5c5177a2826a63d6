"""Rules of a search: typed by a user, sent by the page, checked once."""

from pathlib import Path

import pytest

from index.search.travel_time import CameraMap
from infra.errors import BadSetting
from jobs.search.search import RulesRequest, make_rules
from jobs.serve.app import WebRules

CAMERAS = CameraMap({"c1": (52.0, 13.0)}, 100.0)


def test_the_page_and_the_command_make_the_same_rules() -> None:
    fields = {"top": 7, "since": "2026-01-01", "every_crop": True, "max_distance": 0.5, "rerank": True}
    typed = RulesRequest(**fields, cameras=("c1",), not_cameras=("c2",))
    sent = WebRules(**fields, cameras=["c1"], not_cameras=["c2"], models=[3])
    assert sent.to_rules(CAMERAS) == make_rules(typed, cameras=CAMERAS, model_ids=[3])


def test_camera_positions_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "cameras.csv"
    file.write_text("camera_id,lat,lon\nc1,52.0,13.0\n")
    rules = make_rules(RulesRequest(camera_file=str(file), max_speed=100.0))
    assert rules.cameras == CAMERAS


@pytest.mark.parametrize(
    ("since", "until", "message"),
    [("soon", None, "from 'soon' is not an ISO 8601 time"), ("2026-02-02", "2026-01-01", "is empty")],
)
def test_an_invalid_time_window_raises(since: str, until: str | None, message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        make_rules(RulesRequest(since=since, until=until))
