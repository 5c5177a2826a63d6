"""The monitor of an embedding counts each part once and stops a run with too many failures."""

import time

import pytest

from index.runs.timings import StageSeconds
from infra.errors import BudgetExceeded
from jobs.embed.monitor import MAX_ATTEMPTS, EmbedMonitor, PartRetriesExhausted
from jobs.embed.part import PartReport


def monitor(rate: float = 0.01, done_before: tuple[int, dict[str, int]] = (0, {})) -> EmbedMonitor:
    return EmbedMonitor(1000, done_before, rate)


def test_report_of_a_restarted_part_replaces_the_earlier_one() -> None:
    embedding = monitor()
    embedding.report(PartReport(0, embedded=64, seconds=StageSeconds(model_seconds=2.0)))
    embedding.report(PartReport(1, embedded=10))
    embedding.report(PartReport(0, embedded=8, seconds=StageSeconds(model_seconds=0.5)))
    assert embedding.read().done == 18
    assert embedding.sum().seconds.model_seconds == 0.5


def test_the_first_report_of_this_attempt_has_its_time() -> None:
    embedding = monitor(done_before=(300, {}))
    assert embedding.sum().first_report is None
    before = time.monotonic()
    embedding.report(PartReport(7, embedded=8))
    first = embedding.sum().first_report
    embedding.report(PartReport(7, embedded=16))
    assert first is not None
    assert before <= first <= time.monotonic()
    assert embedding.sum().first_report == first


def test_progress_and_budget_count_the_crops_of_earlier_attempts() -> None:
    embedding = monitor(0.5, (300, {"decode/empty": 20}))
    embedding.report(PartReport(7, embedded=80, quarantined=1, causes={"fetch/missing": 1}))
    assert embedding.read().done == 401
    assert embedding.read().note.endswith("21 quarantined")
    assert embedding.sum().quarantined == 1


def test_too_many_failures_stop_the_run_and_name_their_causes() -> None:
    embedding = monitor(0.01)
    embedding.report(PartReport(0, embedded=1800, quarantined=18, causes={"decode/empty": 18}))
    with pytest.raises(BudgetExceeded, match="19 of 1,826") as stopped:
        embedding.report(PartReport(1, embedded=7, quarantined=1, causes={"fetch/missing": 1}))
    assert "(decode/empty 18, fetch/missing 1)" in stopped.value.message
    assert stopped.value.exit_code == 9


def test_rate_of_failures_is_taken_over_a_minimum_of_rows() -> None:
    embedding = monitor(0.01)
    embedding.report(PartReport(0, embedded=10, quarantined=10))
    with pytest.raises(BudgetExceeded):
        embedding.report(PartReport(0, embedded=10, quarantined=11))


def test_part_whose_workers_all_die_fails_the_run() -> None:
    embedding = monitor()
    for _ in range(MAX_ATTEMPTS):
        embedding.start_attempt(3)
    with pytest.raises(PartRetriesExhausted, match="part 3"):
        embedding.start_attempt(3)


def test_finished_parts_are_counted_once_and_forgotten() -> None:
    embedding = monitor()
    for part in range(1000):
        embedding.start_attempt(part)
        embedding.report(PartReport(part, embedded=1))
        embedding.report(PartReport(part, embedded=2), last=True)
    embedding.start_attempt(3)
    embedding.report(PartReport(3, embedded=1))  # a part that was given out again, though it was finished
    assert embedding.sum().embedded == 2000
    assert not embedding.reports
