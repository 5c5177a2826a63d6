"""Commands of the index: transforms, generations and erasure."""

from typing import Annotated, Literal

import typer

from infra.errors import CountMismatch
from jobs.cli.inputs import require_runs
from jobs.cli.options import (
    Alias,
    FullGate,
    Golden,
    IndexType,
    Json,
    Milvus,
    Ray,
    RunIds,
    Runs,
    Transform,
    emit,
    settings_of,
)

Force = Annotated[
    str | None, typer.Option("--force", help="Skip the checks for this reason; it is recorded.")
]
Wait = Annotated[
    float,
    typer.Option("--wait", min=0, help="Minutes to wait for a running load; 0 fails at once."),
]
Purge = Annotated[
    bool,
    typer.Option("--purge", help="Also remove the bytes: from runs, Milvus, sweeps and pages."),
]
Yes = Annotated[bool, typer.Option("--yes", help="Erase; the default is a dry run.")]


def fit_transform(
    run: RunIds,
    kind: Annotated[
        Literal["whiten", "camera", "whiten-camera", "none", "auto"],
        typer.Option(
            help="What is fitted; auto decides on the tracks of the runs, none stays with plain L2."
        ),
    ] = "auto",
    dimensions: Annotated[
        int | None, typer.Option(min=1, help="Principal components to keep (default: all).")
    ] = None,
    shrinkage: Annotated[
        float, typer.Option(help="Share of the mean eigenvalue that is added to each eigenvalue.")
    ] = 0.3,
    camera_prior: Annotated[
        float, typer.Option(help="Crops by which the mean of a camera moves towards that of all.")
    ] = 20.0,
    by_hour: Annotated[bool, typer.Option(help="Means of cameras by the hour of the day, UTC.")] = False,
    max_rows: Annotated[
        int, typer.Option(min=1, help="Crops to fit to; more are sampled by their crop_id.")
    ] = 262_144,
    runs: Runs = None,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Fit a feature transform without labels. Example: clvr fit-transform latest --kind whiten"""
    settings = settings_of(runs=runs, ray=ray)
    require_runs(run, settings)
    from jobs.fit_transform import job as fitting

    request = fitting.FitRequest(
        run_ids=tuple(run),
        kind=kind,
        dimensions=dimensions,
        shrinkage=shrinkage,
        camera_prior=camera_prior,
        by_hour=by_hour,
        max_rows=max_rows,
    )
    emit(fitting.fit_transform(request, settings), as_json)


def load(
    run: RunIds,
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    index_type: IndexType = "auto",
    target: Annotated[
        Literal["auto", "stream_insert", "grpc_v1", "rest_v2"], typer.Option(help="How rows are imported.")
    ] = "auto",
    latest_wins: Annotated[bool, typer.Option(help="For a crop in two runs, use the later row.")] = False,
    transform: Transform = None,
    unit: Annotated[
        Literal["crop", "track"], typer.Option(help="What a row is: a crop, or the mean of a track's crops.")
    ] = "crop",
    into_live: Annotated[
        bool, typer.Option(help="Upsert a small increment into the live generation.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Build a new generation from runs. Example: clvr load latest"""
    settings = settings_of(runs=runs, milvus=milvus, alias=alias)
    require_runs(run, settings)
    from jobs.generations import load as loading

    request = loading.LoadRequest(tuple(run), index_type, target, latest_wins, transform, unit)
    if into_live:
        emit(loading.IncrementResult(loading.load_increment(request, settings)), as_json)
    else:
        emit(loading.load(request, settings), as_json)


def promote(
    generation: Annotated[str, typer.Argument(help="Name of a generation, or `latest`.")] = "latest",
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    new_model: Annotated[bool, typer.Option(help="Permit a change of the model.")] = False,
    golden: Golden = None,
    full_gate: FullGate = False,
    force: Force = None,
    as_json: Json = False,
) -> None:
    """Check a generation and make it live. Example: clvr promote latest"""
    settings = settings_of(runs=runs, milvus=milvus, alias=alias)
    from jobs.generations.load import promote_generation

    report = promote_generation(
        generation, settings, new_model=new_model, force=force, golden=golden, full=full_gate
    )
    emit(report, as_json, f"{report.generation} is live as {report.alias}; next: clvr search IMAGE")


def rollback(
    generation: Annotated[
        str | None, typer.Argument(help="Generation that was live before (default: the previous one).")
    ] = None,
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    force: Force = None,
    as_json: Json = False,
) -> None:
    """Point the alias back to a generation that was live before. Example: clvr rollback

    The same command again changes nothing. To undo a rollback, name the generation.
    """
    settings = settings_of(runs=runs, milvus=milvus, alias=alias)
    from jobs.generations.load import rollback_generation

    emit(rollback_generation(settings, generation, force=force), as_json)


def generations(runs: Runs = None, milvus: Milvus = None, alias: Alias = None, as_json: Json = False) -> None:
    """List the generations and their states. Example: clvr generations"""
    settings = settings_of(runs=runs, milvus=milvus, alias=alias)
    from jobs.generations.listing import list_alias_generations

    emit(list_alias_generations(settings), as_json)


def retire(
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    keep: Annotated[int, typer.Option(help="Number of newest generations to keep.")] = 3,
    as_json: Json = False,
) -> None:
    """Drop old generations, except the live and the previous one. Example: clvr retire --keep 3"""
    settings = settings_of(runs=runs, milvus=milvus, alias=alias)
    from jobs.generations.load import retire_generations

    done = retire_generations(settings, keep=keep)
    text = f"dropped: {', '.join(done.dropped) or 'none'}; kept: {', '.join(done.kept)}"
    if done.corrected:
        text += f"; collection was gone already: {', '.join(done.corrected)}"
    emit(done, as_json, text)


def verify(
    generation: Annotated[str, typer.Argument(help="Name of a generation, `live` or `latest`.")] = "live",
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    as_json: Json = False,
) -> None:
    """Check that a generation contains each row of its runs once. Example: clvr verify live"""
    settings = settings_of(runs=runs, milvus=milvus, alias=alias)
    from jobs.generations.load import VerifyResult, verify_generation

    report = verify_generation(generation, settings)
    emit(VerifyResult(report), as_json)
    if report.differences:
        raise CountMismatch(
            f"{report.generation}: {'; '.join(report.differences)}", remedy="Load its runs again: clvr load"
        )


def forget(
    reason: Annotated[str, typer.Option(help="Reason; stored with the receipt.")] = "",
    vehicle: Annotated[
        list[int] | None, typer.Option(help="vehicle_id of labelled crops; may be repeated.")
    ] = None,
    crop: Annotated[list[str] | None, typer.Option(help="URI or crop_id of a crop; may be repeated.")] = None,
    camera: Annotated[list[str] | None, typer.Option(help="Only this camera; may be repeated.")] = None,
    since: Annotated[
        str | None, typer.Option("--from", help="Start of the time window, ISO 8601, UTC.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="End of the time window, exclusive.")] = None,
    purge: Purge = False,
    audit: Annotated[
        str | None,
        typer.Option(metavar="ERASURE", help="Erase nothing; look again for this erasure, or `latest`."),
    ] = None,
    yes: Yes = False,
    wait: Wait = 60.0,
    runs: Runs = None,
    milvus: Milvus = None,
    as_json: Json = False,
) -> None:
    """Erase crops. Example: clvr forget --camera c4 --until 2026-01-01 --reason case-17"""
    settings = settings_of(runs=runs, milvus=milvus)
    from jobs.generations.erase import EraseResult, ForgetRequest, audit_erasure, forget_crops

    if audit is not None:
        result = audit_erasure(audit, settings)
        emit(result, as_json)
        result.require_gone()
        return
    request = ForgetRequest(
        reason=reason,
        vehicles=tuple(vehicle or ()),
        crops=tuple(crop or ()),
        cameras=tuple(camera or ()),
        since=since,
        until=until,
        dry_run=not yes,
        purge=purge,
        wait=60 * wait,
    )
    receipt = forget_crops(request, settings)
    emit(EraseResult(receipt), as_json)


def retain(
    days: Annotated[int, typer.Option(help="Erase crops older than this many days.")],
    camera: Annotated[list[str] | None, typer.Option(help="Only this camera; may be repeated.")] = None,
    purge: Purge = False,
    yes: Yes = False,
    wait: Wait = 60.0,
    runs: Runs = None,
    milvus: Milvus = None,
    as_json: Json = False,
) -> None:
    """Erase by age. Example: clvr retain --days 90 --camera c4 --yes"""
    settings = settings_of(runs=runs, milvus=milvus)
    from jobs.generations.erase import EraseResult, retain_days

    receipt = retain_days(days, camera or [], settings, dry_run=not yes, purge_bytes=purge, wait=60 * wait)
    emit(EraseResult(receipt), as_json)
