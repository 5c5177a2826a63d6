"""Verbs for a newcomer and for the set-up: demo, config, doctor, stack."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from infra.settings import origins
from jobs.cli.options import Json, Milvus, Ray, Runs, config_file, emit


def demo(
    folder: Annotated[Path, typer.Option(help="Where everything the demo makes goes.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of the made-up archive.")] = 7,
) -> None:
    """Run the whole way on a small made-up archive and write a page. Example: clvr demo"""
    from jobs.demo import run_demo

    run_demo(folder, seed=seed)


def show_config(as_json: Json = False) -> None:
    """Show every setting, its value and where it came from. Example: clvr config"""
    rows = origins(file=config_file())
    text = "\n".join(f"{row.name:16} {row.value:28} {row.origin:16} {row.description}" for row in rows)
    emit([asdict(row) for row in rows], as_json, text)


def doctor(
    archive: Annotated[str | None, typer.Option(help="Also read this archive.")] = None,
    model: Annotated[str | None, typer.Option(help="Also open this checkpoint.")] = None,
    crops: Annotated[int, typer.Option(help="How many crops there must be room for.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds for each check.")] = 20.0,
    runs: Runs = None,
    milvus: Milvus = None,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Try every part of the set-up and say what to do. Example: clvr doctor --model models/clvr

    Ends with exit code 1 if something that is needed is broken. Shows no secret.
    """
    from jobs.doctor.doctor import DoctorOptions, run_doctor

    report = run_doctor(
        DoctorOptions(
            flags={"runs": runs, "milvus": milvus, "ray": ray},
            archive=archive,
            model=model,
            crops=crops,
            config=config_file(),
            seconds=timeout,
        )
    )
    emit(report.to_json(), as_json, report.to_text())
    if not report.healthy:
        raise typer.Exit(1)


def stack(
    action: Annotated[Literal["up", "down", "status"], typer.Argument(help="What to do with it.")],
    folder: Annotated[Path, typer.Option(help="Where its data, logs and state live.")] = Path(
        "clvr-data/stack"
    ),
    without: Annotated[
        list[str] | None, typer.Option(help="With up: leave out milvus or ray; may be repeated.")
    ] = None,
    cpus: Annotated[int | None, typer.Option(help="With up: logical CPUs of Ray (default: all).")] = None,
    purge: Annotated[bool, typer.Option("--purge", help="With down: remove the data as well.")] = False,
    as_json: Json = False,
) -> None:
    """Run SeaweedFS, Milvus and Ray here for development. Example: clvr stack up

    `status` ends with exit code 1 if a server that was started does not serve.
    """
    from jobs.stack import stack_down, stack_status, stack_up

    if action == "down":
        ended = stack_down(folder, purge=purge)
        emit({"ended": ended, "purged": purge}, as_json, f"{ended} processes ended")
        return
    report = stack_up(folder, without=without or (), cpus=cpus) if action == "up" else stack_status(folder)
    emit(report, as_json)
    if not report.healthy:
        raise typer.Exit(1)
