"""The log of a job: JSON on the cluster, plain lines at the terminal."""

import json

from jobs.submit.client import LogPrinter, format_log_line


def test_structured_lines_become_messages_and_others_stay() -> None:
    line = json.dumps(
        {"time": "2026-11-22T16:06:49.952+00:00", "level": "info", "message": "plan", "job": "j"}
    )
    assert format_log_line(line) == "16:06:49 plan"
    for other in ("Killed", '{"indexed": 4}', "{broken", ""):
        assert format_log_line(other) == other


def test_printer_joins_pieces_into_lines() -> None:
    lines: list[str] = []
    printer = LogPrinter(lines.append)
    for piece in ("a lo", "ng line\nand ", "another\n", "the res"):
        printer(piece)
    assert lines == ["a long line", "and another"]
    printer.end()
    assert lines[-1] == "the res"


def test_error_line_reads_as_at_a_terminal() -> None:
    line = (
        '{"time": "2026-11-22T16:06:49.1+00:00", "level": "error", "message": "no run", "remedy": "make one"}'
    )
    assert format_log_line(line) == "error: no run\nremedy: make one"
