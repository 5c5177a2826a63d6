"""How long a night should take, by how long another one took."""

import pytest

from index.runs.timings import Timings
from infra.errors import BadSetting
from jobs.reindex.plan import NightRequest, expected_seconds

PAST = Timings(
    "2026-11-22", actors=2, rows=1000, planning_seconds=5.0, startup_seconds=15.0, embedding_seconds=110.0
)


def test_the_start_does_not_grow_with_the_crops_and_the_rest_does() -> None:
    assert expected_seconds(1000, PAST, actors=2) == pytest.approx(110.0)
    assert expected_seconds(10_000, PAST, actors=2) == pytest.approx(1010.0)
    assert expected_seconds(1000, PAST, actors=4) == pytest.approx(60.0)


def test_a_run_that_embedded_nothing_tells_nothing() -> None:
    assert expected_seconds(1000, Timings("2026-11-22", actors=2, rows=0), actors=2) is None


@pytest.mark.parametrize(
    "asked",
    [
        {"max_vanished_rate": 1.5},
        {"max_quarantine_rate": -0.1},
        {"keep": 0},
        {"lookback_days": -1},
        {"lookback_days": 3, "full": True},
        {"lookback_days": 3, "manifest": "keys.csv"},
    ],
    ids=str,
)
def test_what_contradicts_itself_is_refused(asked: dict[str, object]) -> None:
    with pytest.raises(BadSetting):
        NightRequest(archive="a", model="m", **asked)
