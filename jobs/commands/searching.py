"""The verb search."""

from typing import Annotated

import typer

from jobs.command_line import Alias, Json, Milvus, Runs, emit, settings_of


def search(
    picture: Annotated[str, typer.Argument(help="A picture: a file or s3://…")],
    model: Annotated[str | None, typer.Option(help="Checkpoint (default: the one the run names).")] = None,
    top: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    camera: Annotated[list[str] | None, typer.Option(help="Only these cameras.")] = None,
    not_camera: Annotated[list[str] | None, typer.Option(help="Not these cameras.")] = None,
    since: Annotated[str | None, typer.Option("--from", help="ISO time, UTC.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="ISO time, UTC.")] = None,
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    as_json: Json = False,
) -> None:
    """Find where a vehicle was seen. Example: clvr search probe.jpg --top 10"""
    from jobs.search import SearchRequest, search_picture

    request = SearchRequest(picture, model, top, tuple(camera or ()), tuple(not_camera or ()), since, until)
    found = search_picture(request, settings_of(runs=runs, milvus=milvus, alias=alias))
    emit(found, as_json, found.table())
