"""The command line: its surface, its errors, its exit codes."""

import json
import re

import pytest
import typer

from jobs.cli.app import app


def test_every_verb_has_an_example_in_its_help() -> None:
    group = typer.main.get_command(app)
    for name, verb in group.commands.items():
        assert re.search(rf"Example: clvr {name}\b", verb.help or ""), f"{name} shows no example"


def test_every_verb_answers_machines() -> None:
    group = typer.main.get_command(app)
    people_only = {"demo", "serve"}
    for name, verb in group.commands.items():
        if name not in people_only:
            assert any("--json" in option.opts for option in verb.params), f"{name} has no --json"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["embed", "nowhere", "--model", "nothing"], 4, "nowhere does not exist"),
        (["search", "nothing.jpg"], 4, "nothing.jpg"),
        (["evaluate", "latest"], 3, "no finished run"),
        (["status", "tonight"], 3, "no run tonight"),
        (["load", "latest"], 3, "no finished run"),
        (["promote", "--milvus", "http://127.0.0.1:9"], 5, "127.0.0.1:9"),
        (["train", "nowhere", "--to", "model"], 4, "nowhere"),
        (["train", "labels.csv", "--to", "model"], 3, "labels.csv"),
        (["--config", "missing.yaml", "config"], 3, "missing.yaml"),
        (["search"], 2, "picture"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_gets_one_line_a_remedy_and_its_exit_code(clvr, arguments, code, says) -> None:
    done = clvr(*arguments)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if code != 2:
        lines = done.stderr.strip().splitlines()
        assert lines[-2].startswith("error: ")
        assert lines[-1].startswith("remedy: ")


def test_debug_shows_the_traceback(clvr) -> None:
    done = clvr("--debug", "status", "tonight")
    assert done.returncode == 3
    assert "Traceback" in done.stderr


def test_config_says_where_each_value_comes_from_and_hides_the_token(clvr) -> None:
    done = clvr("config", "--json", env={"CLVR_ALIAS": "cars", "CLVR_MILVUS_TOKEN": "root:very-secret"})
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["alias"] == {**rows["alias"], "value": "cars", "origin": "CLVR_ALIAS"}
    assert "very-secret" not in done.stdout + done.stderr
