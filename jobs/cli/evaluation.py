"""The verb evaluate."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.options import Alias, Json, Milvus, Ray, Runs, emit, settings_of


def evaluate(
    run: Annotated[str, typer.Argument(help="Run id in --runs, `latest`, or a checkpoint with --archive.")],
    runs: Runs = None,
    labels: Annotated[
        str | None,
        typer.Option(help="CSV/Parquet (key or uri, vehicle_id), or a VehicleID/VeRi/VERI-Wild/VRIC folder."),
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="vehicleid-paper, vehicleid-common, veri, veri-wild, vric, leave-one-out"),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Rows of --labels, or one of its test lists.")] = None,
    splits: Annotated[
        Path | None, typer.Option(help="Parquet of probes and gallery: read if there, else written.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1)] = 10,
    seed: int = 0,
    also: Annotated[
        list[str] | None, typer.Option(help="normalised (default), query-expansion, re-ranking; or none")
    ] = None,
    through_index: Annotated[bool, typer.Option(help="Also search the live generation.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Spread over so many Ray tasks; 0: here.")] = 0,
    device: Annotated[str, typer.Option(help="Where to rank without --workers: cpu, cuda, cuda:1.")] = "cpu",
    compare: Annotated[
        str | None, typer.Option(help="Another run of the same pictures: paired bootstrap of the two.")
    ] = None,
    archive: Annotated[
        str | None, typer.Option(help="Pictures to embed first, once, where RUN is a checkpoint.")
    ] = None,
    max_quarantine_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Of --archive: share of bad pictures to put up with.")
    ] = 0.01,
    html: Annotated[Path | None, typer.Option(help="Write the report page, and a .json beside it.")] = None,
    milvus: Milvus = None,
    alias: Alias = None,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """CMC of a run by exact L2. Example: clvr evaluate latest --protocol vehicleid-paper --html cmc.html"""
    from jobs.evaluate.compare import compare_runs
    from jobs.evaluate.dataset import embed_labelled_set
    from jobs.evaluate.evaluate import evaluate_run
    from jobs.evaluate.results import EvaluateRequest

    settings = settings_of(runs=runs, milvus=milvus, alias=alias, ray=ray)
    ways = tuple(name for name in also or ("normalised",) if name != "none")
    request = EvaluateRequest(
        run=embed_labelled_set(run, archive, settings, max_quarantine_rate),
        labels=labels,
        protocols=tuple(protocol or ()),
        repeats=repeats,
        seed=seed,
        html=html,
        split=split,
        splits=splits,
        also=ways,
        index=through_index,
        workers=workers,
        device=device,
    )
    if compare is None:
        result = evaluate_run(request, settings)
        emit(result.figures(), as_json, result.table())
    else:
        compared = compare_runs(
            request, embed_labelled_set(compare, archive, settings, max_quarantine_rate), settings
        )
        emit(compared.figures(), as_json, compared.table())
