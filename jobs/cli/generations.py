"""Verbs of the index: load, promote, rollback, generations, retire, verify, forget, retain."""

from typing import Annotated, Literal

import typer

from infra.errors import CountMismatch
from jobs.cli.options import Alias, Json, Milvus, RunIds, Runs, emit, settings_of

Force = Annotated[str | None, typer.Option(help="Go against the checks; the reason is recorded.")]
Yes = Annotated[bool, typer.Option("--yes", help="Erase; without it this is a dry run.")]


def load(
    run: RunIds,
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    index_type: Annotated[str, typer.Option(help="auto, FLAT, HNSW, IVF_FLAT, IVF_SQ8, …")] = "auto",
    target: Annotated[
        Literal["auto", "stream_insert", "grpc_v1", "rest_v2"], typer.Option(help="How rows get in.")
    ] = "auto",
    latest_wins: Annotated[bool, typer.Option(help="Of a crop in two runs take the later row.")] = False,
    into_live: Annotated[bool, typer.Option(help="Upsert a small increment into the live one.")] = False,
    as_json: Json = False,
) -> None:
    """Build a generation from runs, beside the live one. Example: clvr load latest"""
    from jobs.generations import load as loading

    settings = settings_of(runs=runs, milvus=milvus, alias=alias)
    request = loading.LoadRequest(tuple(run), index_type, target, latest_wins)
    if into_live:
        done = loading.load_increment(request, settings)
        emit(loading.IncrementResult(done), as_json)
    else:
        loaded = loading.load(request, settings)
        emit(loaded, as_json)


def promote(
    generation: Annotated[str, typer.Argument(help="Generation, or `latest`.")] = "latest",
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    new_model: Annotated[bool, typer.Option(help="The live generation is of another model.")] = False,
    golden: Annotated[
        str | None, typer.Option(help="CSV/Parquet of probes with known matches: uri, vehicle_id.")
    ] = None,
    force: Force = None,
    as_json: Json = False,
) -> None:
    """Check a generation and point the alias to it. Example: clvr promote latest"""
    from jobs.generations.load import promote_generation

    settings = settings_of(runs=runs, milvus=milvus, alias=alias)
    report = promote_generation(generation, settings, new_model=new_model, force=force, golden=golden)
    emit(report, as_json, f"{report.generation} is live as {report.alias}; next: clvr search PICTURE")


def rollback(
    runs: Runs = None, milvus: Milvus = None, alias: Alias = None, force: Force = None, as_json: Json = False
) -> None:
    """Point the alias back to the previous generation. Example: clvr rollback"""
    from jobs.generations.load import rollback_generation

    generation = rollback_generation(settings_of(runs=runs, milvus=milvus, alias=alias), force=force)
    emit(generation, as_json, f"{generation.name} is live again")


def generations(runs: Runs = None, milvus: Milvus = None, alias: Alias = None, as_json: Json = False) -> None:
    """List the generations and who is live. Example: clvr generations"""
    from jobs.generations.listing import list_alias_generations

    emit(list_alias_generations(settings_of(runs=runs, milvus=milvus, alias=alias)), as_json)


def retire(
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    keep: Annotated[int, typer.Option(help="How many of the newest stay.")] = 3,
    as_json: Json = False,
) -> None:
    """Drop old generations, never the live or the previous one. Example: clvr retire --keep 3"""
    from jobs.generations.load import retire_generations

    done = retire_generations(settings_of(runs=runs, milvus=milvus, alias=alias), keep=keep)
    emit(done, as_json, f"dropped: {', '.join(done.dropped) or 'none'}; kept: {', '.join(done.kept)}")


def verify(
    generation: Annotated[str, typer.Argument(help="Generation, `live` or `latest`.")] = "live",
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    as_json: Json = False,
) -> None:
    """Prove that a generation holds each row of its runs once. Example: clvr verify live"""
    from jobs.generations.load import VerifyResult, verify_generation

    found = verify_generation(generation, settings_of(runs=runs, milvus=milvus, alias=alias))
    emit(VerifyResult(found), as_json)
    if found.differences:
        raise CountMismatch(f"{found.generation}: {'; '.join(found.differences)}", remedy="Load it again.")


def forget(
    reason: Annotated[str, typer.Option(help="Why; kept with the receipt.")],
    vehicle: Annotated[list[int] | None, typer.Option(help="vehicle_id of labelled crops.")] = None,
    crop: Annotated[list[str] | None, typer.Option(help="URI or crop_id of a crop.")] = None,
    camera: Annotated[list[str] | None, typer.Option(help="camera_id.")] = None,
    since: Annotated[str | None, typer.Option("--from", help="ISO 8601, UTC unless said; inclusive.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="ISO 8601, exclusive.")] = None,
    yes: Yes = False,
    runs: Runs = None,
    milvus: Milvus = None,
    as_json: Json = False,
) -> None:
    """Erase crops everywhere, for good. Example: clvr forget --camera c4 --to 2026-01-01 --reason case-17"""
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
    days: Annotated[int, typer.Option(help="Crops captured longer ago are erased.")],
    camera: Annotated[list[str] | None, typer.Option(help="Of these cameras only.")] = None,
    yes: Yes = False,
    runs: Runs = None,
    milvus: Milvus = None,
    as_json: Json = False,
) -> None:
    """Erase by age. Example: clvr retain --days 90 --camera c4 --yes"""
    from jobs.generations.erase import EraseResult, retain_days

    receipt = retain_days(days, camera or [], settings_of(runs=runs, milvus=milvus), dry_run=not yes)
    emit(EraseResult(receipt), as_json)
