"""Remedies name only commands and options that exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import typer

from jobs.cli.app import COMMANDS, app
from jobs.cli.groups import commands_below

ROOT = Path(__file__).parents[1]


def remedies() -> Iterator[tuple[str, str]]:
    """Yield (place, text) of every string in a `remedy=` argument and in a check of the doctor."""
    for package in ("clvr_model", "index", "infra", "jobs"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                values: list[ast.expr] = []
                if isinstance(node, ast.keyword) and node.arg == "remedy":
                    values = [node.value]
                elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"failed", "warning"}:
                    values = node.args[2:]
                for value in values:
                    for part in ast.walk(value):
                        if isinstance(part, ast.Constant) and isinstance(part.value, str):
                            yield f"{path.relative_to(ROOT)}:{part.lineno}", part.value


def test_remedies_name_existing_commands() -> None:
    named = [
        (place, name) for place, text in remedies() for name in re.findall(r"\bclvr ([a-z][\w-]*)", text)
    ]
    assert len(named) > 10
    assert [(place, name) for place, name in named if name not in COMMANDS] == []


def test_remedies_name_existing_options() -> None:
    group = typer.main.get_command(app)
    commands = [group, *(command for _, command in commands_below(group.commands))]  # type: ignore[attr-defined]
    options = {name for command in commands for option in command.params for name in option.opts}
    options |= {name for command in commands for option in command.params for name in option.secondary_opts}
    named = [(place, name) for place, text in remedies() for name in re.findall(r"--[a-z][\w-]*", text)]
    assert len(named) > 10
    assert [(place, name) for place, name in named if name not in options] == []
