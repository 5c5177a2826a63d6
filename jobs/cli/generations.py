"""Commands of the index: load, promote, rollback, generations, retire, verify, forget, retain."""

from typing import Annotated, Literal

import typer

from infra.errors import CountMismatch
from jobs.cli.options import Alias, Golden, IndexType, Json, Milvus, RunIds, Runs, emit, settings_of

Force = Annotated[
    str | None, typer.Option("--force", help="Skip the checks for this reason; it is recorded.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Erase; the default is a dry run.")]


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
    into_live: Annotated[
        bool, typer.Option(help="Upsert a small increment into the live generation.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Build a new generation from runs. Example: clvr load latest"""
    from jobs.generations import load as loading

    settings = settings_of(runs=runs, milvus=milvus, alias=alias)
    request = loading.LoadRequest(tuple(run), index_type, target, latest_wins)
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
    force: Force = None,
    as_json: Json = False,
) -> None:
    """Check a generation and make it live. Example: clvr promote latest"""
    from jobs.generations.load import promote_generation

    settings = settings_of(runs=runs, milvus=milvus, alias=alias)
    report = promote_generation(generation, settings, new_model=new_model, force=force, golden=golden)
    emit(report, as_json, f"{report.generation} is live as {report.alias}; next: clvr search IMAGE")


def rollback(
    runs: Runs = None, milvus: Milvus = None, alias: Alias = None, force: Force = None, as_json: Json = False
) -> None:
    """Point the alias back to the previous generation. Example: clvr rollback"""
    from jobs.generations.load import rollback_generation

    generation = rollback_generation(settings_of(runs=runs, milvus=milvus, alias=alias), force=force)
    emit(generation, as_json, f"{generation.name} is live again")


def generations(runs: Runs = None, milvus: Milvus = None, alias: Alias = None, as_json: Json = False) -> None:
    """List the generations and their states. Example: clvr generations"""
    from jobs.generations.listing import list_alias_generations

    emit(list_alias_generations(settings_of(runs=runs, milvus=milvus, alias=alias)), as_json)


def retire(
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    keep: Annotated[int, typer.Option(help="Number of newest generations to keep.")] = 3,
    as_json: Json = False,
) -> None:
    """Drop old generations, except the live and the previous one. Example: clvr retire --keep 3"""
    from jobs.generations.load import retire_generations

    done = retire_generations(settings_of(runs=runs, milvus=milvus, alias=alias), keep=keep)
    emit(done, as_json, f"dropped: {', '.join(done.dropped) or 'none'}; kept: {', '.join(done.kept)}")


def verify(
    generation: Annotated[str, typer.Argument(help="Name of a generation, `live` or `latest`.")] = "live",
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    as_json: Json = False,
) -> None:
    """Check that a generation contains each row of its runs once. Example: clvr verify live"""
    from jobs.generations.load import VerifyResult, verify_generation

    report = verify_generation(generation, settings_of(runs=runs, milvus=milvus, alias=alias))
    emit(VerifyResult(report), as_json)
    if report.differences:
        raise CountMismatch(
            f"{report.generation}: {'; '.join(report.differences)}", remedy="Load its runs again: clvr load"
        )


def forget(
    reason: Annotated[str, typer.Option(help="Reason; stored with the receipt.")],
    vehicle: Annotated[
        list[int] | None, typer.Option(help="vehicle_id of labelled crops; may be repeated.")
    ] = None,
    crop: Annotated[list[str] | None, typer.Option(help="URI or crop_id of a crop; may be repeated.")] = None,
    camera: Annotated[list[str] | None, typer.Option(help="Only this camera; may be repeated.")] = None,
    since: Annotated[
        str | None, typer.Option("--from", help="Start of the time window, ISO 8601, UTC.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="End of the time window, exclusive.")] = None,
    yes: Yes = False,
    runs: Runs = None,
    milvus: Milvus = None,
    as_json: Json = False,
) -> None:
    """Erase crops. Example: clvr forget --camera c4 --until 2026-01-01 --reason case-17"""
    from jobs.generations.erase import EraseResult, ForgetRequest, forget_crops

    request = ForgetRequest(
        reason=reason,
        vehicles=tuple(vehicle or ()),
        crops=tuple(crop or ()),
        cameras=tuple(camera or ()),
        since=since,
        until=until,
        dry_run=not yes,
    )
    receipt = forget_crops(request, settings_of(runs=runs, milvus=milvus))
    emit(EraseResult(receipt), as_json)


def retain(
    days: Annotated[int, typer.Option(help="Erase crops older than this many days.")],
    camera: Annotated[list[str] | None, typer.Option(help="Only this camera; may be repeated.")] = None,
    yes: Yes = False,
    runs: Runs = None,
    milvus: Milvus = None,
    as_json: Json = False,
) -> None:
    """Erase by age. Example: clvr retain --days 90 --camera c4 --yes"""
    from jobs.generations.erase import EraseResult, retain_days

    receipt = retain_days(days, camera or [], settings_of(runs=runs, milvus=milvus), dry_run=not yes)
    emit(EraseResult(receipt), as_json)
