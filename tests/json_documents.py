"""Documents that commands print with --json, held to their JSON Schemas."""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NoReturn

from jsonschema import Draft202012Validator, FormatChecker

from jobs.cli.schemas import ERROR, OUTPUTS, labelled, stored_schemas

_formats = FormatChecker(())


@_formats.checks("date-time", ValueError)
def _is_utc(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).utcoffset() == timedelta(0)


def read_document(arguments: Sequence[str], text: str) -> Any:
    """Return what `clvr ARGUMENTS` printed with --json, which must have the published schema."""
    document = json.loads(text, parse_constant=_refuse)
    words = [word for word in map(str, arguments) if not word.startswith("-")]
    names = (" ".join(words[:2]), words[0])
    name = next((name for name in names if name in OUTPUTS), " ".join((words[0], words[-1])))
    is_error = isinstance(document, dict) and document.keys() == {"schema", "error"}
    return _checked(ERROR if is_error else name, document)


def read_result(name: str, result: Any) -> Any:
    """Return what the command `name` would print of a result with --json, held to its schema."""
    document = json.dumps(labelled(name, result.to_json()), default=str, allow_nan=False)
    return _checked(name, json.loads(document))


def _checked(name: str, document: Any) -> Any:
    Draft202012Validator(stored_schemas()[name], format_checker=_formats).validate(document)
    return document


def _refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is no JSON")
