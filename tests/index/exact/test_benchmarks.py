"""Candidates are compared by the minimum of several rounds, so one slow round decides nothing."""

from index.exact.products import min_cpu_seconds


def test_the_best_round_of_each_candidate_counts() -> None:
    now = 0.0
    slow_rounds = iter([True, False, False])

    def work(seconds: float) -> None:
        nonlocal now
        now += seconds

    seconds = min_cpu_seconds(
        {"burst": lambda: work(0.5 if next(slow_rounds) else 0.125), "steady": lambda: work(0.25)},
        rounds=3,
        clock=lambda: now,
    )
    assert seconds == {"burst": 0.125, "steady": 0.25}
    assert list(seconds) == ["burst", "steady"]
