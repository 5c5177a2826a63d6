"""The commands of cases: list, show, export, verify."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.groups import add_to, command_group
from jobs.cli.inputs import require_paths
from jobs.cli.options import CameraPositions, Json, MaxSpeed, Runs, emit, settings_of

case_group = command_group("Cases of `clvr serve`, and their signed exports. Example: clvr case list")

Number = Annotated[str, typer.Argument(metavar="NUMBER", help="The number of a case.")]


@add_to(case_group, "list")
def case_list(runs: Runs = None, as_json: Json = False) -> None:
    """List all cases, the newest first. Example: clvr case list"""
    settings = settings_of(runs=runs)
    from jobs.cases.commands import list_cases

    emit(list_cases(settings), as_json)


@add_to(case_group, "show")
def case_show(number: Number, runs: Runs = None, as_json: Json = False) -> None:
    """Show what a case holds. Example: clvr case show 26-117"""
    settings = settings_of(runs=runs)
    from jobs.cases.commands import show_case

    emit(show_case(number, settings), as_json)


@add_to(case_group, "export")
def case_export(
    number: Number,
    output: Annotated[Path, typer.Option(help="The ZIP file to write.")],
    camera_positions: CameraPositions = None,
    max_speed: MaxSpeed = 150.0,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Export a case with its images, signed. Example: clvr case export 26-117 --output case-26-117.zip

    `openssl genpkey -algorithm ed25519 -out key.pem` makes a key for the setting signing_key.
    """
    require_paths(camera_positions, output.parent)
    settings = settings_of(runs=runs)
    from index.search.travel_time import read_cameras
    from jobs.cases.commands import export_case

    cameras = read_cameras(camera_positions, max_speed_kmh=max_speed) if camera_positions else None
    emit(export_case(number, output, settings, cameras), as_json)


@add_to(case_group, "verify")
def case_verify(
    file: Annotated[Path, typer.Argument(help="An export of a case.")],
    public_key: Annotated[
        Path | None, typer.Option(help="PEM file of the public key that must have signed it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every file of an export, and its signature. Example: clvr case verify case-26-117.zip

    `openssl pkey -in key.pem -pubout -out public.pem` gives the public key of a signing key.
    """
    require_paths(file, public_key)
    from jobs.cases.signing import read_public_key, verify_export

    emit(verify_export(file, read_public_key(public_key) if public_key else None), as_json)
