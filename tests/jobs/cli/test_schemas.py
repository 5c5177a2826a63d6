"""`clvr schema`: the published JSON Schemas are those of the types, and cover every command."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from json_documents import read_document
from jsonschema import Draft202012Validator, ValidationError

from jobs.cli.app import app
from jobs.cli.groups import commands_below
from jobs.cli.make_schemas import make_schema
from jobs.cli.schemas import ERROR, OUTPUTS, id_of, stored_schemas

RENEW = "python -m jobs.cli.make_schemas"


def test_every_command_with_json_has_a_schema() -> None:
    group = typer.main.get_command(app)
    printing = {
        name
        for name, command in commands_below(group.commands)  # type: ignore[attr-defined]
        if any("--json" in option.opts for option in command.params)
    }
    assert printing | {ERROR} == OUTPUTS.keys() == stored_schemas().keys()


@pytest.mark.parametrize("name", OUTPUTS)
def test_the_schema_of_a_command_changes_only_by_decision(name: str) -> None:
    made, stored = make_schema(name), stored_schemas()[name]
    if made == stored:
        return
    if without_texts(made) == without_texts(stored):
        pytest.fail(f"descriptions of clvr {name} --json changed; run `{RENEW}`")
    pytest.fail(
        f"clvr {name} --json changes. If a key of {id_of(name)} is removed or renamed, or its values change, "
        f"readers break: raise its version in jobs/cli/schemas.py. Then run `{RENEW}`"
    )


def without_texts(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {
            key: without_texts(value)
            for key, value in schema.items()
            if key != "description" or not isinstance(value, str)
        }
    return [without_texts(value) for value in schema] if isinstance(schema, list) else schema


def test_schemas_are_valid_and_their_keys_are_snake_case() -> None:
    for schema in stored_schemas().values():
        Draft202012Validator.check_schema(schema)
        wrong = [key for key in keys_of(schema) if not re.fullmatch("[a-z][a-z0-9_]*", key)]
        assert wrong == [], schema["$id"]


def keys_of(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        properties = schema.get("properties")
        yield from properties if isinstance(properties, dict) else ()
        for value in schema.values():
            yield from keys_of(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from keys_of(value)


def test_the_command_prints_a_schema_or_lists_all(clvr) -> None:
    listed = {row["command"]: row for row in json.loads(clvr("schema", "--json").stdout)}
    assert listed["runs show"]["schema"] == "runs-show/1"
    printed = json.loads(clvr("schema", "runs", "show").stdout)
    assert printed == stored_schemas()["runs show"]
    assert printed["$id"] == listed["runs show"]["id"] == "urn:clvr-archive:json:runs-show:1"
    assert len(clvr("schema").stdout.splitlines()) == len(OUTPUTS)
    unknown = clvr("schema", "serch")
    assert unknown.returncode == 2
    assert "Did you mean 'search'?" in unknown.stderr


def test_a_document_of_another_command_or_version_is_not_of_the_schema() -> None:
    text = json.dumps({"schema": "jobs-stop/1", "job": "load-1", "stopping": True})
    assert read_document(["jobs", "stop", "load-1"], text)["stopping"] is True
    for wrong in (text.replace("/1", "/2"), text.replace("jobs-stop", "submit"), text.replace("true", "1")):
        with pytest.raises(ValidationError):
            read_document(["jobs", "stop", "load-1"], wrong)
