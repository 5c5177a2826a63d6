"""Verbs of the archive and its runs: generate, plan, embed, status."""

from typing import Annotated, Literal

import typer

from jobs.cli.options import Json, Ray, Runs, emit, settings_of


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
    from clvr_model.synthetic.trips import ArchiveSpec
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
    emit(made, as_json)


ARCHIVE = typer.Argument(help="The archive: s3://bucket/prefix or a folder.")
Archive = Annotated[str, ARCHIVE]
Pattern = Annotated[
    str | None,
    typer.Option("--key-pattern", help="e.g. dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg"),
]
Manifest = Annotated[
    str | None,
    typer.Option(
        "--manifest",
        help="Instead of a listing: the manifest.json of an S3 Inventory, or a Parquet/CSV with key or uri.",
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels",
        help="Side table, CSV/Parquet: key or uri, and any of camera_id, captured_at, track_id, "
        "vehicle_id, model_id.",
    ),
]
SinceRun = Annotated[
    str | None, typer.Option("--since-run", help="Only crops that are new or changed since this run.")
]
Lookback = Annotated[
    int | None,
    typer.Option("--lookback-days", help="With --since-run: list dt= folders from this far before its end."),
]
Requeue = Annotated[str | None, typer.Option("--requeue", help="Only the quarantine of this run.")]
Cause = Annotated[
    list[str] | None, typer.Option("--cause", help="With --requeue: only this cause; may be repeated.")
]
Actors = Annotated[
    int | None, typer.Option("--actors", help="Model actors (default: one a GPU, or one a core).")
]


def plan(
    archive: Archive,
    model: Annotated[str | None, typer.Option(help="URI of the checkpoint, to measure the speed.")] = None,
    runs: Annotated[str | None, typer.Option("--to", "--runs", help="URI of the folder of runs.")] = None,
    key_pattern: Pattern = None,
    manifest: Manifest = None,
    labels: Labels = None,
    since_run: SinceRun = None,
    lookback_days: Lookback = None,
    requeue: Requeue = None,
    cause: Cause = None,
    actors: Actors = None,
    price_per_node_hour: Annotated[float | None, typer.Option(help="Gives the cost of the run.")] = None,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Say what embedding would do and cost; changes nothing. Example: clvr plan s3://archive --model m"""
    from jobs.embed.discovery import CropSelection
    from jobs.embed.plan import plan as plan_archive

    selection = CropSelection(
        archive,
        key_pattern=key_pattern,
        manifest=manifest,
        labels=labels,
        since_run=since_run,
        lookback_days=lookback_days,
        retry_quarantined=requeue,
        causes=tuple(cause or ()),
    )
    planned = plan_archive(
        selection,
        settings_of(runs=runs, ray=ray),
        model=model,
        actors=actors,
        price_per_node_hour=price_per_node_hour,
    )
    emit(planned, as_json)


def embed(
    archive: Archive,
    model: Annotated[str, typer.Option(help="URI of the checkpoint.")],
    runs: Annotated[str | None, typer.Option("--to", "--runs", help="URI of the folder of runs.")] = None,
    run_id: Annotated[str | None, typer.Option(help="Name of the run (default: the time).")] = None,
    key_pattern: Pattern = None,
    manifest: Manifest = None,
    labels: Labels = None,
    since_run: SinceRun = None,
    lookback_days: Lookback = None,
    requeue: Requeue = None,
    cause: Cause = None,
    actors: Actors = None,
    rows_per_shard: Annotated[int, typer.Option(help="Rows of a shard; 122,880 are about 500 MB.")] = 122_880,
    precision: Annotated[
        Literal["fp32", "bf16", "auto"],
        typer.Option(help="auto: bf16 if a comparison on a sample of this archive allows it."),
    ] = "fp32",
    max_quarantine_rate: Annotated[float, typer.Option(help="Stop above this share of bad pictures.")] = 0.01,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Embed an archive into a run. Example: clvr embed s3://archive --model models/clvr --to s3://runs

    The same command again continues an unfinished run.
    """
    from jobs.embed.job import EmbedRequest
    from jobs.embed.job import embed as embed_archive

    request = EmbedRequest(
        archive,
        model=model,
        key_pattern=key_pattern,
        manifest=manifest,
        labels=labels,
        since_run=since_run,
        lookback_days=lookback_days,
        retry_quarantined=requeue,
        causes=tuple(cause or ()),
        run_id=run_id,
        actors=actors,
        rows_per_shard=rows_per_shard,
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
    from jobs.embed.status import run_status

    report = run_status(run, settings_of(runs=runs))
    emit(report, as_json)
