"""Log lines on stderr: text for people, JSON with ids for machines, and no secret in either."""

import json

import pytest

from infra.console import StderrConsole
from infra.log_format import wants_json
from infra.logging import bind_context, context, logger, without_secrets


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLVR_LOG_FORMAT", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    for name in list(context):
        monkeypatch.delitem(context, name)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("infra.console.console", StderrConsole())


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    captured = capsys.readouterr()
    assert captured.out == "", "stdout is for results"
    return [json.loads(line) for line in captured.err.splitlines()]


def test_people_read_plain_lines_whatever_their_length(capsys: pytest.CaptureFixture[str]) -> None:
    logger.info("embed: 10/20 crops [half] :car:", extra={"done": 10})
    logger.info("x " * 200 + "end")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "embed: 10/20 crops [half] :car:"
    assert second.endswith("x end")


@pytest.mark.usefixtures("terminal")
def test_a_terminal_shows_markup_and_levels_in_colour(capsys: pytest.CaptureFixture[str]) -> None:
    logger.info("[bold]1/6 archive[/bold]", extra={"markup": True})
    logger.warning("no certificate")
    assert capsys.readouterr().err == "\x1b[1m1/6 archive\x1b[0m\n\x1b[33mno certificate\x1b[0m\n"


def test_a_submitted_job_writes_json_with_its_ids(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"metadata": {"job_submission_id": "raysubmit_x1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    assert wants_json()
    monkeypatch.setitem(context, "run", "")
    bind_context(run="20261122T010203Z")
    logger.info("generation [bold]vehicles_1[/bold]\n  rows 5", extra={"markup": True})
    logger.info("embed: 10/20 crops [half]", extra={"phase": "embed", "done": 10})
    first, second = lines(capsys)
    assert (first["job"], first["run"]) == ("raysubmit_x1", "20261122T010203Z")
    assert first["message"] == "generation vehicles_1\n  rows 5"
    assert second.keys() == {"time", "level", "message", "job", "run", "phase", "done"}
    assert (second["phase"], second["done"], second["level"]) == ("embed", 10, "info")
    assert second["message"] == "embed: 10/20 crops [half]"


@pytest.mark.usefixtures("terminal")
def test_there_is_no_live_display_among_json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert StderrConsole().is_terminal
    monkeypatch.setenv("CLVR_LOG_FORMAT", "json")
    assert not StderrConsole().is_terminal


def test_the_format_variable_wins_over_the_circumstances(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not wants_json()
    monkeypatch.setenv("CLVR_LOG_FORMAT", "json")
    assert wants_json()
    monkeypatch.setenv("CLVR_LOG_FORMAT", "text")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert not wants_json()


def test_secrets_of_the_environment_are_masked_in_both_formats(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret-1")
    monkeypatch.setenv("CLVR_MILVUS_TOKEN", "root:planted-secret-2")
    text = "the server said: planted-secret-1 and (planted-secret-2) are wrong"
    assert "planted" not in without_secrets(text)
    for log_format in ("text", "json"):
        monkeypatch.setenv("CLVR_LOG_FORMAT", log_format)
        logger.info(text, extra={"detail": {"key": "planted-secret-1"}})
        logger.warning(text, extra={"markup": True})
    captured = capsys.readouterr().err
    assert captured.count("***") >= 8
    assert "planted" not in captured


def test_a_failing_command_writes_its_error_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.cli.app import app

    monkeypatch.setenv("CLVR_LOG_FORMAT", "json")
    with pytest.raises(SystemExit) as ended:
        app(["status", "no-such-run", "--runs", "/nowhere/at/all"])
    line = lines(capsys)[-1]
    assert line["level"] == "error"
    assert line["exit_code"] == ended.value.code == 3
    assert line["remedy"]
