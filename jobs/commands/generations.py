"""Verbs of the index: load, promote, rollback, generations."""

from typing import Annotated

import typer

from jobs.command_line import Alias, Json, Milvus, RunIds, Runs, emit, settings_of


def load(
    run: RunIds,
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    index_type: Annotated[str, typer.Option(help="auto, FLAT, HNSW, IVF_FLAT, IVF_SQ8, …")] = "auto",
    as_json: Json = False,
) -> None:
    """Build a generation from runs, beside the live one. Example: clvr load latest"""
    from jobs.load import load_generation

    generation = load_generation(
        run, settings_of(runs=runs, milvus=milvus, alias=alias), index_type=index_type
    )
    emit(generation, as_json, f"generation {generation.name} is built; next: clvr promote {generation.name}")


def promote(
    generation: Annotated[str, typer.Argument(help="Generation, or `latest`.")] = "latest",
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    new_model: Annotated[bool, typer.Option(help="The live generation is of another model.")] = False,
    force: Annotated[
        str | None, typer.Option(help="Promote against the gate; the reason is recorded.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a generation and point the alias to it. Example: clvr promote latest"""
    from jobs.load import promote_generation

    settings = settings_of(runs=runs, milvus=milvus, alias=alias)
    report = promote_generation(generation, settings, new_model=new_model, force=force)
    emit(report, as_json, f"{report.generation} is live as {report.alias}; next: clvr search PICTURE")


def rollback(runs: Runs = None, milvus: Milvus = None, alias: Alias = None, as_json: Json = False) -> None:
    """Point the alias back to the previous generation. Example: clvr rollback"""
    from jobs.load import rollback_generation

    generation = rollback_generation(settings_of(runs=runs, milvus=milvus, alias=alias))
    emit(generation, as_json, f"{generation.name} is live again")


def generations(runs: Runs = None, milvus: Milvus = None, alias: Alias = None, as_json: Json = False) -> None:
    """List the generations and who is live. Example: clvr generations"""
    from jobs.load import as_documents, generation_rows, rows_text

    rows = generation_rows(settings_of(runs=runs, milvus=milvus, alias=alias))
    emit(as_documents(rows), as_json, rows_text(rows))
