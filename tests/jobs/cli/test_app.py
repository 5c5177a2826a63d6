"""The command line: its surface, its errors, its exit codes."""

import json
import re
from pathlib import Path

import pytest
import typer

from infra import errors
from jobs.cli.app import COMMANDS, PANELS, app
from jobs.cli.exit_codes import EXIT_CODES
from jobs.cli.groups import commands_below


def test_every_command_has_an_example_in_its_help() -> None:
    group = typer.main.get_command(app)
    for name, command in commands_below(group.commands):
        assert command.example.startswith(f"clvr {name}"), f"{name} shows no example"


def test_examples_of_help_use_existing_options() -> None:
    group = typer.main.get_command(app)
    for name, command in commands_below(group.commands):
        actions = [action for _, action in commands_below(getattr(command, "commands", {}))]
        actions += [group.commands["reindex"]] if name == "submit" else []
        options = {flag for action in (command, *actions) for option in action.params for flag in option.opts}
        assert set(re.findall(r"--[a-z][a-z-]*", command.example)) <= options, name


def test_help_ends_with_the_example_on_one_line(clvr) -> None:
    lines = clvr("embed", "-h").stdout.splitlines()
    assert lines[-1] == "  clvr embed s3://archive --checkpoint models/clvr --runs s3://runs"


def test_help_lists_every_command_below_a_task(clvr) -> None:
    text = clvr("--help").stdout
    assert re.findall(r"^(\w[\w ]*):$", text, re.MULTILINE)[-len(PANELS) - 1 :] == [*PANELS, "Example"]
    assert re.findall(r"^  ([a-z][a-z-]*)  ", text, re.MULTILINE) == list(COMMANDS)


def test_every_command_has_a_json_output() -> None:
    group = typer.main.get_command(app)
    people_only = {"case", "demo", "serve", "jobs", "model", "stack"}
    for name, command in commands_below(group.commands):
        if name not in people_only:
            assert any("--json" in option.opts for option in command.params), f"{name} has no --json"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["embed", "nowhere", "--checkpoint", "nothing"], 3, "nowhere does not exist"),
        (["search", "nothing.jpg"], 3, "nothing.jpg does not exist"),
        (["evaluate", "latest"], 3, "no finished run"),
        (["status", "unknown"], 3, "no run unknown"),
        (["quarantine", "unknown"], 3, "no run unknown"),
        (["runs", "show", "unknown"], 3, "no run unknown"),
        (["model", "show", "nothing"], 3, "nothing does not exist"),
        (["plan", "s3:/bucket"], 3, "one slash"),
        (["serch"], 2, "Did you mean 'search'"),
        (["stack", "upp"], 2, "Did you mean 'up'"),
        (["embed", "a", "--checkpoint", "b", "--precision", "fp31"], 2, "Did you mean 'fp32'?"),
        (["load", "latest"], 3, "no finished run"),
        (["promote", "--milvus", "http://127.0.0.1:9"], 5, "127.0.0.1:9"),
        (["train", "nowhere", "--output", "model"], 3, "nowhere does not exist"),
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


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["status", "unknown", "--json"], 3, "BadInput"),
        (["jobs", "list", "--json", "--jobs-url", "ftp://head"], 3, "BadSetting"),
        (["embed", "--json"], 2, "UsageError"),
        (["serch", "--json"], 2, "UsageError"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_error_with_json_is_one_document_on_stdout(clvr, arguments, code, kind) -> None:
    done = clvr(*arguments)
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["exit_code"], error["type"]) == (code, code, kind)
    assert error["message"] in done.stderr


def test_version(clvr) -> None:
    assert re.fullmatch(r"clvr \d+\.\d+\.\d+\S*\n", clvr("--version").stdout)


def test_a_shell_completes_commands(clvr) -> None:
    words = {"_CLVR_COMPLETE": "complete_bash", "COMP_WORDS": "clvr qua", "COMP_CWORD": "1"}
    assert clvr(env=words).stdout.split() == ["quarantine"]


def test_options_may_stand_before_the_action_as_in_the_first_release(clvr) -> None:
    before = clvr("stack", "--folder", "s", "--json", "status")
    after = clvr("stack", "status", "--folder", "s", "--json")
    assert json.loads(before.stdout) == json.loads(after.stdout)
    assert before.returncode == after.returncode


def test_every_exit_code_of_an_error_is_listed_here_and_in_the_readme() -> None:
    listed = {code for codes in EXIT_CODES for code in codes.split(", ")}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert {str(kind.exit_code) for kind in kinds if issubclass(kind, errors.ClvrError)} <= listed
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    for code, row in EXIT_CODES.items():
        meaning = row.meaning.replace("|", "\\|")
        assert f"| {code} | {meaning} | {row.remedy}".rstrip() + " |" in readme


def test_an_unknown_setting_is_named_with_a_similar_one(clvr, tmp_path: Path) -> None:
    (tmp_path / "typo.yaml").write_text("rnus: data\n")
    done = clvr("--config", "typo.yaml", "config")
    assert done.returncode == 3
    assert "'rnus', which does not exist" in done.stderr
    assert "Did you mean runs?" in done.stderr
