"""Commands for a first try and for the set-up: demo, config, doctor, stack."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.cli.options import Json, Milvus, Ray, Runs, config_file, emit


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
    emit([asdict(row) for row in rows], as_json, text)


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


def stack(
    action: Annotated[Literal["up", "down", "status"], typer.Argument(help="Start, stop or show it.")],
    folder: Annotated[Path, typer.Option(help="Folder of its data, logs and state.")] = Path(
        "clvr-data/stack"
    ),
    without: Annotated[
        list[str] | None, typer.Option(help="With up: do not start milvus or ray; may be repeated.")
    ] = None,
    cpus: Annotated[int | None, typer.Option(help="With up: logical CPUs for Ray (default: all).")] = None,
    purge: Annotated[bool, typer.Option("--purge", help="With down: also delete the data.")] = False,
    as_json: Json = False,
) -> None:
    """Run SeaweedFS, Milvus and Ray for development. Example: clvr stack up

    `status` exits with code 1 if a server that was started does not respond.
    """
    from jobs.stack import stack_down, stack_status, stack_up

    if action == "down":
        stopped = stack_down(folder, purge=purge)
        emit({"ended": stopped, "purged": purge}, as_json, f"{stopped} processes stopped")
        return
    report = stack_up(folder, without=without or (), cpus=cpus) if action == "up" else stack_status(folder)
    emit(report, as_json)
    if not report.healthy:
        raise typer.Exit(1)
