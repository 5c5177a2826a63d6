"""What is said on stderr: lines of text for people, JSON with ids for machines, and a secret for nobody."""

import json

import pytest

from infra import logs
from infra.logs import Talk, bind, wants_json, without_secrets


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLVR_LOG_FORMAT", raising=False)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setattr(logs, "_bound", {})
    logs._job.cache_clear()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    said = capsys.readouterr()
    assert said.out == "", "stdout is data"
    return [json.loads(line) for line in said.err.splitlines()]


def test_people_read_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    Talk().say("embed: 10/20 crops [half]", done=10)
    assert capsys.readouterr().err == "embed: 10/20 crops [half]\n"


def test_a_submitted_job_writes_json_with_its_ids(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"metadata": {"job_submission_id": "raysubmit_x1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    assert wants_json()
    bind(run="20261122T010203Z")
    talk = Talk()
    assert not talk.is_terminal, "no live display in a log"
    talk.print("generation [bold]vehicles_1[/bold]\n  rows 5")
    talk.say("embed: 10/20 crops", phase="embed", done=10)
    first, second = lines(capsys)
    assert (first["job"], first["run"]) == ("raysubmit_x1", "20261122T010203Z")
    assert first["message"] == "generation vehicles_1\n  rows 5"
    assert (second["phase"], second["done"], second["level"]) == ("embed", 10, "info")


def test_the_variable_decides_over_the_circumstances(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not wants_json()
    monkeypatch.setenv("CLVR_LOG_FORMAT", "json")
    assert wants_json()
    monkeypatch.setenv("CLVR_LOG_FORMAT", "text")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert not wants_json()


def test_secrets_of_the_environment_are_masked_in_both_forms(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret-1")
    monkeypatch.setenv("CLVR_MILVUS_TOKEN", "root:planted-secret-2")
    text = "the server said: planted-secret-1 and (planted-secret-2) are wrong"
    assert "planted" not in without_secrets(text)
    for form in ("text", "json"):
        monkeypatch.setenv("CLVR_LOG_FORMAT", form)
        Talk().say(text, detail={"key": "planted-secret-1"})
        Talk().print(text)
    said = capsys.readouterr().err
    assert said.count("***") >= 8
    assert "planted" not in said


def test_a_failing_verb_says_so_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.cli.app import app

    monkeypatch.setenv("CLVR_LOG_FORMAT", "json")
    with pytest.raises(SystemExit) as ended:
        app(["status", "no-such-run", "--runs", "/nowhere/at/all"])
    told = lines(capsys)[-1]
    assert told["level"] == "error"
    assert told["exit_code"] == ended.value.code == 3
    assert told["remedy"]
