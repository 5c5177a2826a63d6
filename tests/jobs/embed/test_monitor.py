"""The board counts a part once however often it is started, and says when it is enough."""

import pytest

from infra.errors import BudgetExceeded
from jobs.embed.monitor import MAX_ATTEMPTS, EmbedBoard, PartRetriesExhausted
from jobs.embed.part import PartReport


def board(rate: float = 0.01, before: tuple[int, dict[str, int]] = (0, {})) -> EmbedBoard:
    return EmbedBoard(1000, before, rate)


def test_a_part_that_starts_anew_replaces_its_report() -> None:
    seen = board()
    seen.report(PartReport(0, embedded=64, model_seconds=2.0))
    seen.report(PartReport(1, embedded=10))
    seen.report(PartReport(0, embedded=8, model_seconds=0.5))
    assert seen.read().done == 18
    assert seen.sum().model_seconds == 0.5


def test_what_an_earlier_attempt_did_counts_in_progress_and_budget() -> None:
    seen = board(0.5, (300, {"decode/empty": 20}))
    seen.report(PartReport(7, embedded=80, quarantined=1, causes={"fetch/missing": 1}))
    assert seen.read().done == 401
    assert seen.read().note.endswith("21 quarantined")
    assert seen.sum().quarantined == 1


def test_too_many_bad_pictures_stop_the_run_with_their_causes() -> None:
    seen = board(0.01)
    seen.report(PartReport(0, embedded=1800, quarantined=18, causes={"decode/empty": 18}))
    with pytest.raises(BudgetExceeded, match="19 of 1,826") as stopped:
        seen.report(PartReport(1, embedded=7, quarantined=1, causes={"fetch/missing": 1}))
    assert "(decode/empty 18, fetch/missing 1)" in stopped.value.message
    assert stopped.value.exit_code == 9


def test_a_handful_of_rows_says_nothing() -> None:
    seen = board(0.01)
    seen.report(PartReport(0, embedded=10, quarantined=10))
    with pytest.raises(BudgetExceeded):
        seen.report(PartReport(0, embedded=10, quarantined=11))


def test_a_part_that_kills_every_worker_is_given_up() -> None:
    seen = board()
    for _ in range(MAX_ATTEMPTS):
        seen.begin(3)
    with pytest.raises(PartRetriesExhausted, match="part 3"):
        seen.begin(3)
