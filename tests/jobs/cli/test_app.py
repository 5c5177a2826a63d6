"""The command line: its surface, its errors, its exit codes."""

import json
import re

import pytest
import typer

from jobs.cli.app import app


def test_every_command_has_an_example_in_its_help() -> None:
    group = typer.main.get_command(app)
    for name, command in group.commands.items():
        assert re.search(rf"Example: clvr {name}\b", command.help or ""), f"{name} shows no example"


def test_examples_of_help_use_existing_options() -> None:
    group = typer.main.get_command(app)
    for name, command in group.commands.items():
        example = re.search(rf"Example: clvr {name}\b[^\n]*", command.help or "")
        assert example
        submitted = group.commands["reindex"].params if name == "submit" else []
        options = {flag for option in (*command.params, *submitted) for flag in option.opts}
        assert set(re.findall(r"--[a-z][a-z-]*", example[0])) <= options, name


def test_every_command_has_a_json_output() -> None:
    group = typer.main.get_command(app)
    people_only = {"demo", "serve"}
    for name, command in group.commands.items():
        if name not in people_only:
            assert any("--json" in option.opts for option in command.params), f"{name} has no --json"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["embed", "nowhere", "--checkpoint", "nothing"], 4, "nowhere does not exist"),
        (["search", "nothing.jpg"], 4, "nothing.jpg"),
        (["evaluate", "latest"], 3, "no finished run"),
        (["status", "unknown"], 3, "no run unknown"),
        (["load", "latest"], 3, "no finished run"),
        (["promote", "--milvus", "http://127.0.0.1:9"], 5, "127.0.0.1:9"),
        (["train", "nowhere", "--output", "model"], 4, "nowhere"),
        (["train", "labels.csv", "--output", "model"], 3, "labels.csv"),
        (["--config", "missing.yaml", "config"], 3, "missing.yaml"),
        (["search"], 2, "images"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_prints_one_line_and_a_remedy_and_exits_with_its_code(
    clvr, arguments, code, message
) -> None:
    done = clvr(*arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if code != 2:
        lines = done.stderr.strip().splitlines()
        assert lines[-2].startswith("error: ")
        assert lines[-1].startswith("remedy: ")


def test_debug_shows_the_traceback(clvr) -> None:
    done = clvr("--debug", "status", "unknown")
    assert done.returncode == 3
    assert "Traceback" in done.stderr


def test_config_shows_the_origin_of_each_value_and_hides_the_token(clvr) -> None:
    done = clvr("config", "--json", env={"CLVR_ALIAS": "cars", "CLVR_MILVUS_TOKEN": "root:very-secret"})
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["alias"] == {**rows["alias"], "value": "cars", "origin": "CLVR_ALIAS"}
    assert "very-secret" not in done.stdout + done.stderr
