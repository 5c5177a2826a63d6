"""The verb evaluate."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.command_line import Json, Runs, emit, settings_of


def evaluate(
    run: Annotated[str, typer.Argument(help="Run id in --runs, or `latest`.")],
    runs: Runs = None,
    labels: Annotated[str | None, typer.Option(help="CSV/Parquet: key or uri, vehicle_id.")] = None,
    protocol: Annotated[
        list[str] | None, typer.Option(help="vehicleid-paper, vehicleid-common, leave-one-out")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of --labels, only rows of this split.")] = None,
    repeats: Annotated[int, typer.Option(min=1)] = 10,
    seed: int = 0,
    html: Annotated[Path | None, typer.Option(help="Write the report page.")] = None,
    as_json: Json = False,
) -> None:
    """CMC of a run by exact L2. Example: clvr evaluate latest --protocol vehicleid-paper --html cmc.html"""
    from jobs.evaluate import EvaluateRequest, evaluate_run

    protocols = tuple(protocol or ("vehicleid-paper", "vehicleid-common"))
    result = evaluate_run(
        EvaluateRequest(run, labels, protocols, repeats, seed, html, split), settings_of(runs=runs)
    )
    emit(result.figures(), as_json, result.table())
