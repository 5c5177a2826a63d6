"""The frozen command line: a changed command, argument or option must be a decision.

After an intended change run `python tests/jobs/cli/test_surface.py > tests/jobs/cli/surface.txt`.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from typer._click.exceptions import UsageError

from jobs.cli.app import app
from jobs.cli.groups import commands_below

FROZEN = Path(__file__).with_name("surface.txt")
FIRST_RELEASE = Path(__file__).with_name("surface_0.1.txt")
"""The surface of release 0.1; its flags are still accepted."""

GROUP = typer.main.get_command(app)


def surface() -> str:
    """Return one line per command, and one per argument and option, in order."""
    lines = []
    for name, command in sorted(commands_below(GROUP.commands)):
        lines.append(name)
        for parameter in command.params:
            if parameter.name != "help":
                names = ", ".join((*parameter.opts, *parameter.secondary_opts))
                annotation = parameter.type_descriptor.annotation
                kind = annotation.__name__ if annotation.__class__ is type else str(annotation)
                repeated = "..." if parameter.nargs == -1 or parameter.multiple else ""
                lines.append(f"  {names} {kind.removeprefix('typing.')}{repeated}")
    return "\n".join(lines) + "\n"


def flags_of_first_release() -> dict[str, list[tuple[str, bool]]]:
    """Return (flag, whether it takes a value) of the options of release 0.1, by command."""
    flags: dict[str, list[tuple[str, bool]]] = {}
    for line in FIRST_RELEASE.read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            command = flags.setdefault(line, [])
        elif line.startswith("  --"):
            names = re.findall(r"--[a-z-]+", line)
            command += [(name, not line.endswith(" bool")) for name in names]
    return flags


def test_the_surface_changes_only_by_decision() -> None:
    assert surface() == FROZEN.read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "flags"), flags_of_first_release().items())
def test_every_flag_of_the_first_release_sets_one_option(name: str, flags: list[tuple[str, bool]]) -> None:
    command = GROUP.commands[name]
    for flag, has_value in flags:
        arguments = [flag, "1"] if has_value else [flag]
        actions = list(getattr(command, "commands", {}).values()) or [command]
        assert max(options_set(action, arguments) for action in actions) == 1, f"clvr {name} {flag}"


def options_set(command: Any, arguments: list[str]) -> int:
    """Return how many options the arguments set; 0 for a command that does not accept them."""
    try:
        # Resilient parsing accepts missing arguments and invalid values, so one flag can be tested alone.
        context = command.make_context(command.name, list(arguments), resilient_parsing=True)
    except UsageError:
        return 0
    sources = [context.get_parameter_source(parameter.name) for parameter in command.params]
    return sum(source is not None and source.name == "COMMANDLINE" for source in sources)


def test_an_old_flag_has_the_value_of_its_new_name() -> None:
    for old, new in (
        (["--every-crop"], ["--no-group-by-track"]),
        (["--model", "Van", "--model", "7"], ["--vehicle-model", "Van", "--vehicle-model", "7"]),
        (["--to=2026-01-01"], ["--until", "2026-01-01"]),
    ):
        command = GROUP.commands["search"]
        parsed = [command.make_context("search", ["a.jpg", *flags]).params for flags in (old, new)]
        assert parsed[0] == parsed[1]


def test_help_shows_no_old_flag() -> None:
    renamed = {"search": "--every-crop", "train": "--pick", "reindex": "--beside", "embed": "--actors"}
    for name, flag in renamed.items():
        command = GROUP.commands[name]
        assert flag not in command.get_help(command.make_context(name, [], resilient_parsing=True))


if __name__ == "__main__":
    print(surface(), end="")
