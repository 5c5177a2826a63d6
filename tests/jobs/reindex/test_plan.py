"""The plan of a reindex run: its expected duration, and the requests that are rejected."""

from typing import Any

import pytest

from index.runs.timings import Timings
from infra.errors import BadSetting
from jobs.embed.new_run import EmbedRequest
from jobs.reindex.plan import ReindexRequest, expected_seconds

PAST = Timings(
    "2026-11-22", actors=2, rows=1000, planning_seconds=5.0, startup_seconds=15.0, embedding_seconds=110.0
)


def test_expected_duration_grows_with_the_crops_except_for_the_start() -> None:
    assert expected_seconds(1000, PAST, actors=2) == pytest.approx(110.0)
    assert expected_seconds(10_000, PAST, actors=2) == pytest.approx(1010.0)
    assert expected_seconds(1000, PAST, actors=4) == pytest.approx(60.0)


def test_run_without_rows_gives_no_expected_duration() -> None:
    assert expected_seconds(1000, Timings("2026-11-22", actors=2, rows=0), actors=2) is None


@pytest.mark.parametrize(
    ("options", "embed_options"),
    [
        ({"max_vanished_rate": 1.5}, {}),
        ({}, {"max_quarantine_rate": -0.1}),
        ({"keep": 0}, {}),
        ({"lookback_days": -1}, {}),
        ({"lookback_days": 3, "full": True}, {}),
        ({"lookback_days": 3}, {"manifest": "keys.csv"}),
    ],
    ids=str,
)
def test_contradicting_request_is_rejected(options: dict[str, Any], embed_options: dict[str, Any]) -> None:
    with pytest.raises(BadSetting):
        ReindexRequest(embed=EmbedRequest("a", model="m", **embed_options), **options)
