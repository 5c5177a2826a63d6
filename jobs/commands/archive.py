"""Verbs of the archive and its runs: generate, embed, status."""

from typing import Annotated, Literal

import typer

from jobs.command_line import Json, Ray, Runs, emit, settings_of


def generate(
    archive: Annotated[str, typer.Argument(help="Where the crops go: s3://… or a folder.")],
    labels: Annotated[str, typer.Option(help="Where the label files go, outside of the archive.")],
    seed: int = 0,
    models: Annotated[int, typer.Option(help="Vehicle models.")] = 20,
    vehicles: Annotated[int, typer.Option(help="Vehicles a model.")] = 20,
    sightings: Annotated[int, typer.Option(help="Pictures a vehicle.")] = 8,
    cameras: int = 12,
    days: int = 7,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Make a made-up archive with labels. Example: clvr generate s3://archive --labels s3://labels"""
    from clvr_model.datasets.itinerary import ArchiveSpec
    from jobs.generate import generate_archive

    spec = ArchiveSpec(
        seed=seed,
        models=models,
        vehicles_per_model=vehicles,
        sightings_per_vehicle=sightings,
        cameras=cameras,
        days=days,
    )
    made = generate_archive(archive, labels, spec, settings_of(ray=ray))
    emit(made, as_json, f"{made.pictures:,} pictures in {archive}, labels in {made.labels}")


def embed(
    archive: Annotated[str, typer.Argument(help="The archive: s3://bucket/prefix or a folder.")],
    model: Annotated[str, typer.Option(help="URI of the checkpoint.")],
    runs: Annotated[str | None, typer.Option("--to", "--runs", help="URI of the folder of runs.")] = None,
    run_id: Annotated[str | None, typer.Option(help="Name of the run (default: the time).")] = None,
    key_pattern: Annotated[
        str | None, typer.Option(help="e.g. dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="CSV/Parquet: key or uri, vehicle_id, model_id.")] = None,
    actors: Annotated[int | None, typer.Option(help="Model actors (default: one a core).")] = None,
    precision: Annotated[Literal["fp32", "bf16", "auto"], typer.Option(help="Of the network.")] = "fp32",
    max_quarantine_rate: Annotated[float, typer.Option(help="Stop above this share of bad pictures.")] = 0.01,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Embed an archive into a run. Example: clvr embed s3://archive --model models/clvr --to s3://runs"""
    from jobs.embed import EmbedRequest
    from jobs.embed import embed as embed_archive

    request = EmbedRequest(
        archive=archive,
        model=model,
        key_pattern=key_pattern,
        labels=labels,
        run_id=run_id,
        actors=actors,
        precision=precision,
        max_quarantine_rate=max_quarantine_rate,
    )
    summary = embed_archive(request, settings_of(runs=runs, ray=ray))
    emit(summary, as_json, f"run {summary.run_id} is finished; next: clvr load {summary.run_id}")


def status(
    run: Annotated[str, typer.Argument(help="Run id in --runs, or `latest`.")] = "latest",
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Prove a run's counts: listed = embedded + quarantined + duplicates. Example: clvr status latest"""
    from jobs.status import run_status

    report = run_status(run, settings_of(runs=runs))
    emit(report, as_json, str(report))
