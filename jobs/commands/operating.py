"""Verbs of every night and of the cluster: reindex, submit, jobs."""

from typing import Annotated, Literal

import typer

from jobs.command_line import Alias, Json, Milvus, Ray, emit, settings_of
from jobs.commands.archive import Actors, Archive, Labels, Manifest, Pattern


def reindex(
    archive: Archive,
    model: Annotated[str, typer.Option(help="URI of the checkpoint.")],
    runs: Annotated[str | None, typer.Option("--to", "--runs", help="URI of the folder of runs.")] = None,
    milvus: Milvus = None,
    alias: Alias = None,
    full: Annotated[
        bool, typer.Option(help="The whole archive, also by another model than the live one's.")
    ] = False,
    beside: Annotated[
        bool, typer.Option(help="A new generation of all runs, even for a small increment.")
    ] = False,
    night: Annotated[str | None, typer.Option(help="Its name (default: date and digest of the job).")] = None,
    key_pattern: Pattern = None,
    manifest: Manifest = None,
    labels: Labels = None,
    lookback_days: Annotated[
        int | None, typer.Option(help="List dt= folders from this far before the last crop known.")
    ] = None,
    actors: Actors = None,
    rows_per_shard: Annotated[int, typer.Option(help="Rows of a shard; 122,880 are about 500 MB.")] = 122_880,
    precision: Annotated[
        Literal["fp32", "bf16", "auto"], typer.Option(help="Of a full night; others keep it.")
    ] = "fp32",
    max_quarantine_rate: Annotated[float, typer.Option(help="Stop above this share of bad pictures.")] = 0.01,
    max_vanished_rate: Annotated[
        float, typer.Option(help="Stop if a larger share of the known crops is gone.")
    ] = 0.1,
    index_type: Annotated[str, typer.Option(help="auto, FLAT, HNSW, IVF_FLAT, IVF_SQ8, …")] = "auto",
    golden: Annotated[
        str | None, typer.Option(help="CSV/Parquet of probes with known matches: uri, vehicle_id.")
    ] = None,
    keep: Annotated[int, typer.Option(help="How many of the newest generations stay.")] = 3,
    price_per_node_hour: Annotated[float | None, typer.Option(help="Gives the cost of the night.")] = None,
    webhook: Annotated[
        str | None, typer.Option(help="Post the summary there; better CLVR_WEBHOOK, for it holds a secret.")
    ] = None,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Do the nightly job, or what is left of it. Example: clvr reindex s3://archive --model m --to s3://data

    The same command again continues an unfinished night; of a finished one it does nothing.
    """
    from jobs.reindex import night_text
    from jobs.reindex import reindex as do_night
    from jobs.reindex_request import NightRequest

    request = NightRequest(
        archive=archive,
        model=model,
        night=night,
        full=full,
        beside=beside,
        key_pattern=key_pattern,
        manifest=manifest,
        labels=labels,
        lookback_days=lookback_days,
        precision=precision,
        actors=actors,
        rows_per_shard=rows_per_shard,
        max_quarantine_rate=max_quarantine_rate,
        max_vanished_rate=max_vanished_rate,
        index_type=index_type,
        golden=golden,
        keep=keep,
        price_per_node_hour=price_per_node_hour,
    )
    settings = settings_of(runs=runs, milvus=milvus, alias=alias, ray=ray, webhook=webhook)
    done = do_night(request, settings)
    emit(done.document(), as_json, night_text(done))
