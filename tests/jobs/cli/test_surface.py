"""The command line's surface is frozen: a change of it is a change that users must be told of.

After a wanted change: `python tests/jobs/test_surface.py > tests/jobs/surface.txt`, and look at the diff.
"""

from pathlib import Path

import typer

from jobs.cli.app import app

FROZEN = Path(__file__).with_name("surface.txt")


def surface() -> str:
    """One line for each verb, and one for each of its arguments and options, in order."""
    lines = []
    for name, verb in sorted(typer.main.get_command(app).commands.items()):
        lines.append(name)
        for parameter in verb.params:
            if parameter.name != "help":
                names = ", ".join((*parameter.opts, *parameter.secondary_opts))
                annotation = parameter.type_descriptor.annotation
                kind = annotation.__name__ if annotation.__class__ is type else str(annotation)
                many = "..." if parameter.nargs == -1 or parameter.multiple else ""
                lines.append(f"  {names} {kind.removeprefix('typing.')}{many}")
    return "\n".join(lines) + "\n"


def test_no_verb_and_no_option_came_went_or_changed_unseen() -> None:
    assert surface() == FROZEN.read_text(encoding="utf-8")


if __name__ == "__main__":
    print(surface(), end="")
