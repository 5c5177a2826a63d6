"""Commands of the archive and its runs: generate, plan, embed, status, runs, quarantine."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.cli.groups import add_to, command_group
from jobs.cli.inputs import require_paths, require_runs
from jobs.cli.options import Json, MaxQuarantineRate, Price, Ray, RowsPerShard, Runs, emit, settings_of

Archive = Annotated[str, typer.Argument(help="The archive: s3://bucket/prefix or a folder.")]
KeyPattern = Annotated[
    str | None,
    typer.Option("--key-pattern", help="e.g. dt={date}/cam={camera_id}/{captured_at}_{track_id}.jpg"),
]
Manifest = Annotated[
    str | None,
    typer.Option(
        "--manifest",
        help="Read this instead of listing: the manifest.json of an S3 Inventory, or a Parquet/CSV "
        "with key or uri.",
    ),
]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="Run id in --runs, or `latest`.")]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels",
        help="CSV/Parquet: key or uri, and any of camera_id, captured_at, track_id, vehicle_id, model_id.",
    ),
]
Workers = Annotated[
    int | None, typer.Option("--workers", help="Model processes (default: one per GPU, else one per core).")
]
SinceRun = Annotated[
    str | None, typer.Option("--since-run", help="Only crops new or changed since this run, or `latest`.")
]
LookbackDays = Annotated[
    int | None,
    typer.Option("--lookback-days", help="With --since-run: list dt= folders from this many days before."),
]
Requeue = Annotated[
    str | None, typer.Option("--requeue", help="Only the crops quarantined by this run, or `latest`.")
]
Include = Annotated[
    list[str] | None,
    typer.Option("--include", help="Only crops whose key matches this glob; may be repeated."),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", help="Leave out crops whose key matches this glob; may be repeated."),
]
Cause = Annotated[
    list[str] | None, typer.Option("--cause", help="With --requeue: only this cause; may be repeated.")
]


def generate(
    archive: Annotated[str, typer.Argument(help="Folder of the crops: s3://… or a path.")],
    labels: Annotated[str, typer.Option(help="Folder of the label files, outside of the archive.")],
    seed: int = 0,
    models: Annotated[int, typer.Option(help="Vehicle models.")] = 20,
    vehicles: Annotated[int, typer.Option(help="Vehicles per model.")] = 20,
    sightings: Annotated[int, typer.Option(help="Images per vehicle.")] = 8,
    cameras: Annotated[int, typer.Option(help="Cameras.")] = 12,
    days: Annotated[int, typer.Option(help="Days of the archive.")] = 7,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Generate a synthetic archive with labels. Example: clvr generate s3://archive --labels s3://labels"""
    settings = settings_of(ray=ray)
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
    generated = generate_archive(archive, labels, spec, settings)
    emit(generated, as_json)


def pack(
    archive: Archive,
    to: Annotated[
        str | None, typer.Option("--to", help="Folder of the tar files, outside of the archive.")
    ] = None,
    index: Annotated[
        bool, typer.Option("--index", help="Only write the indexes that tar files of the archive lack.")
    ] = False,
    tar_size: Annotated[int, typer.Option(help="Size of a tar file in MiB.")] = 128,
    runs: Runs = None,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Pack crops into tar files: one request reads hundreds. Example: clvr pack s3://crops --to s3://packed"""
    if (to is None) == (not index):
        raise typer.BadParameter("give either --to FOLDER or --index")
    require_paths(archive)
    settings = settings_of(runs=runs, ray=ray)
    from jobs.pack import PackRequest
    from jobs.pack import pack as pack_archive

    emit(pack_archive(PackRequest(archive, to, tar_size), settings), as_json)


def plan(
    archive: Archive,
    checkpoint: Annotated[
        str | None, typer.Option(help="URI of a checkpoint; needed to measure the speed.")
    ] = None,
    runs: Runs = None,
    key_pattern: KeyPattern = None,
    manifest: Manifest = None,
    labels: Labels = None,
    since_run: SinceRun = None,
    lookback_days: LookbackDays = None,
    requeue: Requeue = None,
    cause: Cause = None,
    include: Include = None,
    exclude: Exclude = None,
    workers: Workers = None,
    price_per_node_hour: Price = None,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Estimate the time and cost of embedding an archive. Example: clvr plan s3://archive --checkpoint m

    Writes nothing.
    """
    require_paths(archive, checkpoint, manifest, labels)
    settings = settings_of(runs=runs, ray=ray)
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
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        times=settings.plausible_times(),
    )
    planned = plan_archive(
        selection,
        settings,
        model=checkpoint,
        actors=workers,
        price_per_node_hour=price_per_node_hour,
    )
    emit(planned, as_json)


def embed(
    archive: Archive,
    checkpoint: Annotated[str, typer.Option(help="URI of the checkpoint.")],
    runs: Runs = None,
    run_id: Annotated[str | None, typer.Option(help="Id of the run (default: the current time).")] = None,
    key_pattern: KeyPattern = None,
    manifest: Manifest = None,
    labels: Labels = None,
    since_run: SinceRun = None,
    lookback_days: LookbackDays = None,
    requeue: Requeue = None,
    cause: Cause = None,
    include: Include = None,
    exclude: Exclude = None,
    workers: Workers = None,
    rows_per_shard: RowsPerShard = 122_880,
    precision: Annotated[
        Literal["fp32", "tf32", "bf16", "auto"] | None,
        typer.Option(
            help="auto: the fastest of the device that a comparison on a sample of this archive permits "
            "(default: auto on GPUs, fp32 on CPUs)."
        ),
    ] = None,
    max_quarantine_rate: MaxQuarantineRate = 0.01,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Embed an archive. Example: clvr embed s3://archive --checkpoint models/clvr --runs s3://runs

    Run the same command again to continue an unfinished run.
    """
    require_paths(archive, checkpoint, manifest, labels)
    settings = settings_of(runs=runs, ray=ray)
    from jobs.embed.job import embed as embed_archive
    from jobs.embed.new_run import EmbedRequest

    request = EmbedRequest(
        archive,
        model=checkpoint,
        key_pattern=key_pattern,
        manifest=manifest,
        labels=labels,
        since_run=since_run,
        lookback_days=lookback_days,
        retry_quarantined=requeue,
        causes=tuple(cause or ()),
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        times=settings.plausible_times(),
        run_id=run_id,
        actors=workers,
        rows_per_shard=rows_per_shard,
        precision=precision,
        max_quarantine_rate=max_quarantine_rate,
    )
    summary = embed_archive(request, settings)
    emit(summary, as_json, f"run {summary.run_id} is finished; next: clvr load {summary.run_id}")


def status(
    run: Annotated[str, typer.Argument(help="Run id in --runs, or `latest`.")] = "latest",
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Check a run's counts: listed = embedded + quarantined + duplicates. Example: clvr status latest"""
    settings = settings_of(runs=runs)
    require_runs([run], settings)
    from jobs.embed.status import run_status

    emit(run_status(run, settings), as_json)


runs_group = command_group(
    "List the runs with their states, models and crops. Example: clvr runs --runs s3://data",
    invoke_without_command=True,
)


@runs_group.callback()
def runs_list(context: typer.Context, runs: Runs = None, as_json: Json = False) -> None:
    """List the runs, oldest first."""
    if context.invoked_subcommand is not None:
        return
    settings = settings_of(runs=runs)
    from jobs.runs.listing import list_all_runs

    emit(list_all_runs(settings), as_json)


@add_to(runs_group, "show")
def runs_show(run: RunId, runs: Runs = None, as_json: Json = False) -> None:
    """Show the records of a run: model, counts, settings. Example: clvr runs show latest

    `clvr status` also checks the counts against the shards.
    """
    settings = settings_of(runs=runs)
    require_runs([run], settings)
    from jobs.runs.listing import run_details

    emit(run_details(run, settings), as_json)


@add_to(runs_group, "export")
def runs_export(
    run: RunId,
    to: Annotated[Path, typer.Option(help="A new local folder for the dataset.")],
    labels: Annotated[
        str | None, typer.Option(help="CSV/Parquet of true vehicles, models and splits, as for evaluate.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only the crops of this split of --labels.")] = None,
    matches: Annotated[
        str | None, typer.Option(help="Only the crops in this --table of a search or sweep, with its ranks.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of crops; of more, random ones.")] = 10_000,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy local images too; those in S3 and in tar files always are.")
    ] = False,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Export crops as a dataset for FiftyOne. Example: clvr runs export latest --to crops --labels labels.csv

    Each crop has its embedding, the predicted and the true vehicle model, vehicle, camera and time.
    """
    settings = settings_of(runs=runs)
    require_paths(labels, matches)
    require_runs([run], settings)
    from jobs.runs.export import ExportRequest, export_run

    request = ExportRequest(run, to, labels=labels, split=split, matches=matches, limit=limit, copy=copy)
    emit(export_run(request, settings), as_json)


def quarantine(
    run: RunId = "latest",
    cause: Annotated[
        list[str] | None, typer.Option("--cause", help="Only this cause, as listed; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Number of crops to list.")] = 20,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """List the crops that a run could not embed. Example: clvr quarantine latest --cause truncated"""
    settings = settings_of(runs=runs)
    require_runs([run], settings)
    from jobs.runs.quarantine import quarantine_report

    emit(quarantine_report(run, settings, causes=cause or (), limit=limit), as_json)
