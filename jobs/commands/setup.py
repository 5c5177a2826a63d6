"""Verbs for a newcomer and for the set-up: demo, config."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from infra.settings import origins
from jobs.command_line import Json, config_file, emit


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
