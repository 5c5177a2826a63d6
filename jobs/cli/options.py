"""Options that commands share, the settings of a command, and how results are printed."""

import json
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from typer._click.globals import get_current_context

from jobs.cli.schemas import labelled
from jobs.cli.streams import results

if TYPE_CHECKING:
    from infra.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Runs = Annotated[str | None, typer.Option("--runs", help="URI of the folder of runs.")]
Milvus = Annotated[str | None, typer.Option("--milvus", help="http(s)://host:port, or a Milvus Lite file.")]
Alias = Annotated[str | None, typer.Option("--alias", help="Milvus alias that searches use.")]
Ray = Annotated[str | None, typer.Option("--ray", help="Ray address (default: start a local Ray).")]
RunIds = Annotated[list[str], typer.Argument(metavar="RUN...", help="Run ids in --runs, or `latest`.")]
Price = Annotated[
    float | None, typer.Option("--price-per-node-hour", help="Price of one node hour; adds the cost.")
]
IndexType = Annotated[str, typer.Option("--index-type", help="auto, FLAT, HNSW, IVF_FLAT, IVF_SQ8, …")]
Golden = Annotated[
    str | None, typer.Option("--golden", help="CSV/Parquet of probes with known matches: uri, vehicle_id.")
]
FullGate = Annotated[bool, typer.Option("--full-gate", help="Compare all rows at the gate, however many.")]
RowsPerShard = Annotated[
    int, typer.Option("--rows-per-shard", help="Rows of a shard; 122,880 rows are about 500 MB.")
]
MaxQuarantineRate = Annotated[
    float, typer.Option("--max-quarantine-rate", help="Fail above this share of quarantined images.")
]
CameraPositions = Annotated[
    str | None,
    typer.Option("--camera-positions", help="CSV of camera_id, lat, lon: check the travel time of matches."),
]
MaxSpeed = Annotated[float, typer.Option("--max-speed", help="Maximum plausible speed (km/h).")]
ResultTable = Annotated[
    str | None, typer.Option("--table", help="Write the result to this .csv or .parquet, also on s3://.")
]
SameCamera = Annotated[bool, typer.Option("--same-camera", help="Include the probe's own camera.")]

Transform = Annotated[
    str | None,
    typer.Option(
        "--transform",
        help="Feature transform: an id, `latest` or `none` (default: as auto decided, or none).",
    ),
]

OLD_FLAGS: dict[str, dict[str, str]] = {
    "plan": {"model": "checkpoint", "to": "runs", "actors": "workers"},
    "embed": {"model": "checkpoint", "to": "runs", "actors": "workers"},
    "reindex": {
        "model": "checkpoint",
        "to": "runs",
        "actors": "workers",
        "beside": "rebuild",
        "no-beside": "no-rebuild",
    },
    "doctor": {"model": "checkpoint"},
    "train": {"to": "output", "pick": "select-epoch"},
    "forget": {"to": "until"},
    "search": {
        "to": "until",
        "model": "vehicle-model",
        "every-crop": "no-group-by-track",
        "cameras": "camera-positions",
        "seen": "sighting",
    },
    "sweep": {
        "to": "until",
        "model": "vehicle-model",
        "every-crop": "no-group-by-track",
        "cameras": "camera-positions",
        "out": "output",
        "case": "case-number",
        "who": "user",
        "run": "run-id",
    },
    "serve": {"cameras": "camera-positions"},
    "evaluate": {"splits": "splits-file", "also": "variants"},
}
"""Flags of earlier releases and their present names, by command. They parse, and no help shows them."""


def flag_aliases(command: str) -> Callable[[str], str]:
    """The normalizer of a command's option names: it replaces a flag of an earlier release."""
    renamed = OLD_FLAGS.get(command, {})
    return lambda name: renamed.get(name, name)


_config_file: Path | None = None


def set_config_file(file: Path | None) -> None:
    """Store the settings file that was given before the command."""
    global _config_file
    _config_file = file


def config_file() -> Path | None:
    """Return the settings file that was given before the command."""
    return _config_file


def settings_of(**flags: Any) -> "Settings":
    """Return the settings, overridden by the flags of this command. Raises BadSetting.

    A variable whose name is nearly that of a setting is named in a warning: the command does not use it.
    """
    from infra.logging import logger
    from infra.settings import load_settings, unknown_variables

    for name, similar in unknown_variables().items():
        if similar:
            logger.warning(f"{name} sets nothing; did you mean {similar}?")
    return load_settings(flags, file=_config_file)


class Result(Protocol):
    """The result of a command, for people and for machines."""

    def to_text(self) -> str:
        """Return the result as text."""

    def to_json(self) -> Any:
        """Return the result as JSON values."""


_has_emitted = False


def has_emitted() -> bool:
    """Whether this process has printed the result of its command."""
    return _has_emitted


def emit(result: Any, as_json: bool, text: str | None = None, *, schema: str | None = None) -> None:
    """Print the result of a command on stdout: one JSON document, or text.

    result: a `Result`; with `text`, a dataclass, a list of them, or JSON values. schema: the name of its
    schema in `OUTPUTS`; by default the words of the command that runs.
    """
    global _has_emitted
    _has_emitted = True
    if not as_json:
        typer.echo(result.to_text() if text is None else text, file=results())
        return
    document = _plain(result.to_json() if text is None else result)
    document = labelled(_running_command() if schema is None else schema, document)
    typer.echo(json.dumps(document, indent=2, default=str), file=results())


def _plain(document: Any) -> Any:
    if is_dataclass(document) and not isinstance(document, type):
        return asdict(document)
    return [_plain(item) for item in document] if isinstance(document, list) else document


def _running_command() -> str:
    """Return the words of the command that runs, such as `runs show`; "" outside of one."""
    words: list[str] = []
    context = get_current_context(silent=True)
    while context is not None and context.parent is not None:
        words.insert(0, str(context.info_name))
        context = context.parent
    return " ".join(words)
