"""A job's log: JSON on the cluster, plain lines at the terminal."""

import json

from jobs.submit.client import LogPrinter, format_log_lines


def test_structured_lines_are_said_plainly_and_others_as_they_are() -> None:
    line = json.dumps(
        {"time": "2026-11-22T16:06:49.952+00:00", "level": "info", "message": "plan", "job": "j"}
    )
    assert format_log_lines(line) == "16:06:49 plan"
    for other in ("Killed", '{"indexed": 4}', "{broken", ""):
        assert format_log_lines(other) == other


def test_lines_come_whole_however_they_are_cut() -> None:
    heard: list[str] = []
    say = LogPrinter(heard.append)
    for piece in ("a lo", "ng line\nand ", "another\n", "the res"):
        say(piece)
    assert heard == ["a long line", "and another"]
    say.end()
    assert heard[-1] == "the res"


def test_an_error_reads_as_it_does_at_a_terminal() -> None:
    line = (
        '{"time": "2026-11-22T16:06:49.1+00:00", "level": "error", "message": "no run", "remedy": "make one"}'
    )
    assert format_log_lines(line) == "error: no run\nremedy: make one"
