"""Commands and groups of commands with an example in their help."""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

HELP_FLAGS = ["-h", "--help"]
_MAX_SHORT_HELP = 200
_EXAMPLE = re.compile(r"\s*\bExample: (clvr .+)$", re.MULTILINE)


def split_example(text: str | None) -> tuple[str, str]:
    """Divide the docstring of a command into its help and its example, `clvr …`."""
    match = _EXAMPLE.search(text or "")
    return (_EXAMPLE.sub("", text or "", count=1), match[1]) if match else (text or "", "")


class ExampleCommand(TyperCommand):
    """A command whose help ends with an example, on a line of its own so that it can be copied.

    Its help is plain text: rich's tables cut the words of long options at 80 columns.
    """

    def __init__(self, *args: Any, help: str | None = None, **options: Any) -> None:
        text, self.example = split_example(help)
        super().__init__(*args, help=text, **{**options, "rich_markup_mode": None})

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, then the example."""
        super().format_help(ctx, formatter)
        _write_example(formatter, self.example)


class ExampleGroup(TyperGroup):
    """A group of commands whose help lists them by task and ends with an example, also in plain text."""

    def __init__(self, *args: Any, help: str | None = None, **options: Any) -> None:
        text, self.example = split_example(help)
        super().__init__(*args, help=text, **{**options, "rich_markup_mode": None})

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, then the example."""
        super().format_help(ctx, formatter)
        _write_example(formatter, self.example)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands below the names of their panels."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.commands[name]
            row = (name, command.get_short_help_str(_MAX_SHORT_HELP))
            panels.setdefault(getattr(command, "rich_help_panel", None) or "Commands", []).append(row)
        width = max((len(name) for name in self.commands), default=0)
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows])


def _write_example(formatter: Any, example: str) -> None:
    if example:
        formatter.write(f"\nExample:\n  {example}\n")


class ActionGroup(ExampleGroup):
    """A group below `clvr`, such as `jobs`. Its options may also stand before the name of the command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse `clvr jobs --json list`, as earlier releases wrote it, like `clvr jobs list --json`."""
        position = next((place for place, word in enumerate(args) if word in self.commands), 0)
        first, rest = args[position : position + 1], args[position + 1 :]
        return super().parse_args(ctx, [*first, *args[:position], *rest])


def command_group(help: str, **options: Any) -> typer.Typer:
    """Return an empty group of commands. help: ends with `Example: clvr …`."""
    return typer.Typer(
        cls=ActionGroup,
        help=help,
        no_args_is_help=not options.get("invoke_without_command"),
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        **options,
    )


def add_to(group: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds a command to a group."""
    return group.command(name, cls=ExampleCommand)


def did_you_mean(word: str, known: list[str]) -> str:
    """Return ` Did you mean …?` with the most similar of some words, or nothing."""
    similar = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {similar[0]!r}?" if similar else ""


def commands_below(commands: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (name, command) of commands and of those in their groups: `jobs`, `jobs list`."""
    for name, command in commands.items():
        yield f"{group}{name}", command
        yield from commands_below(getattr(command, "commands", {}), f"{group}{name} ")
