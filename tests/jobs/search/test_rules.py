"""Rules of a search: typed by a user, sent by the page, checked once."""

from pathlib import Path

import pytest

from clvr_model.card import Card
from index.filters import Filters
from index.search.travel_time import CameraMap
from infra.errors import BadInput, BadSetting
from jobs.search.search import RulesRequest, make_rules, resolve_attributes
from jobs.serve.schemas import WebRules

CAMERAS = CameraMap({"c1": (52.0, 13.0)}, 100.0)


def test_the_page_and_the_command_make_the_same_rules() -> None:
    fields = {"top": 7, "since": "2026-01-01", "every_crop": True, "max_distance": 0.5, "rerank": True}
    looks = {"colors": ("red",), "not_body_types": ("van",), "min_color_confidence": 0.5}
    typed = RulesRequest(**fields, **looks, cameras=("c1",), not_cameras=("c2",))
    sent = WebRules(**fields, **looks, cameras=["c1"], not_cameras=["c2"], models=[3])
    assert sent.to_rules(CAMERAS) == make_rules(typed, cameras=CAMERAS, model_ids=[3])


def test_camera_positions_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "cameras.csv"
    file.write_text("camera_id,lat,lon\nc1,52.0,13.0\n")
    rules = make_rules(RulesRequest(camera_file=str(file), max_speed=100.0))
    assert rules.cameras == CAMERAS


def no_card() -> Card:
    raise AssertionError("a search without such filters reads no card")


def test_values_are_spelled_as_the_model_does_and_unknown_ones_are_refused() -> None:
    card = Card(label_ids=(), architecture={"attributes": {"color": ["Red", "dark blue"]}})
    rules = make_rules(RulesRequest(colors=("RED",), not_colors=("Dark Blue",), min_color_confidence=0.5))
    filters = resolve_attributes(rules, lambda: card).filters
    assert (filters.colors, filters.not_colors) == (("Red",), ("dark blue",))
    assert filters.min_color_confidence == 0.5
    assert resolve_attributes(make_rules(RulesRequest()), no_card).filters == Filters()
    for request, message in (
        (RulesRequest(colors=("pink",)), "knows no color 'pink'"),
        (RulesRequest(not_body_types=("van",)), "predicts no body type"),
    ):
        with pytest.raises(BadInput, match=message):
            resolve_attributes(make_rules(request), lambda: card)


def test_the_record_of_a_request_without_attributes_is_that_of_older_releases() -> None:
    assert not {"colors", "min_color_confidence"} & set(RulesRequest(top=3).document())
    assert RulesRequest(colors=("red",)).document()["colors"] == ("red",)


@pytest.mark.parametrize(
    ("since", "until", "message"),
    [("soon", None, "from 'soon' is not an ISO 8601 time"), ("2026-02-02", "2026-01-01", "is empty")],
)
def test_an_invalid_time_window_raises(since: str, until: str | None, message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        make_rules(RulesRequest(since=since, until=until))
