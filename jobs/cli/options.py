"""What every verb's command line shares: options, settings, and the way results are printed."""

import json
import os
import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, TextIO

import typer

from infra.settings import Settings, load_settings

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Runs = Annotated[str | None, typer.Option("--runs", help="URI of the folder that holds the runs.")]
Milvus = Annotated[str | None, typer.Option("--milvus", help="http(s)://host:port, or a Milvus Lite file.")]
Alias = Annotated[str | None, typer.Option("--alias", help="The alias that searches use.")]
Ray = Annotated[str | None, typer.Option("--ray", help="Ray address; without one a local Ray is started.")]
RunIds = Annotated[
    list[str], typer.Argument(metavar="RUN...", help="Run ids in --runs; `latest` is one too.")
]


_config_file: Path | None = None


def set_config_file(file: Path | None) -> None:
    """Take the settings file that was given before the verb."""
    global _config_file
    _config_file = file


def config_file() -> Path | None:
    """The settings file that was given before the verb."""
    return _config_file


def settings_of(**flags: Any) -> Settings:
    """The settings in force, with this verb's flags on top. Raises BadSetting."""
    return load_settings(flags, file=_config_file)


_results: TextIO | None = None


def redirect_stdout_to_stderr() -> None:
    """Send to stderr whatever libraries print on stdout; only `results()` still reaches the real one.

    Ray reports a dead worker on stdout, which would spoil `--json`. Its C++ does so below Python's
    `sys.stdout`, hence the file descriptor is moved and not the object alone.
    """
    global _results
    sys.stdout.flush()
    _results = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


def results() -> TextIO:
    """Where results go: stdout."""
    return _results or sys.stdout


class Result(Protocol):
    """The result of a command, a frozen dataclass."""

    def to_text(self) -> str:
        """Return the result for people."""

    def to_json(self) -> Any:
        """Return the result as plain JSON values."""


def emit(result: Any, as_json: bool, text: str | None = None) -> None:
    """Print a result on stdout: one JSON document for machines, or text for people.

    result: a `Result`; with `text`, plain values or a record on disk, which `text` describes for people.
    """
    if not as_json:
        typer.echo(result.to_text() if text is None else text, file=results())
        return
    if text is None:
        values = result.to_json()
    else:
        values = asdict(result) if is_dataclass(result) and not isinstance(result, type) else result
    typer.echo(json.dumps(values, indent=2, default=str), file=results())
