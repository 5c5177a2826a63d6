"""The commands evaluate, compare-models, calibrate and drift."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.inputs import require_paths, require_runs, require_table_name
from jobs.cli.options import (
    Alias,
    Json,
    MaxQuarantineRate,
    Milvus,
    Ray,
    ResultTable,
    Runs,
    SameCamera,
    Transform,
    emit,
    settings_of,
)


def evaluate(
    run: Annotated[str, typer.Argument(help="Run id in --runs, `latest`, or with --archive a checkpoint.")],
    runs: Runs = None,
    labels: Annotated[
        str | None,
        typer.Option(help="CSV/Parquet (key or uri, vehicle_id), or a VehicleID/VeRi/VERI-Wild/VRIC folder."),
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="vehicleid-paper, vehicleid-common, veri, veri-wild, vric, leave-one-out, listed, "
            "cross-camera, within-model, within-model-color, unseen-models; may be repeated."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Only this split of --labels, or this test list of its dataset.")
    ] = None,
    splits_file: Annotated[
        Path | None, typer.Option(help="Parquet of probes and gallery: read if it exists, else written.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1)] = 10,
    seed: int = 0,
    variants: Annotated[
        list[str] | None,
        typer.Option(help="normalised (default), query-expansion, re-ranking, none; may be repeated."),
    ] = None,
    transform: Annotated[
        list[str] | None,
        typer.Option(
            help="Also rank by a transform fitted to the gallery without labels: none, whiten, camera, "
            "whiten-camera; may be repeated."
        ),
    ] = None,
    unit: Annotated[
        str, typer.Option(help="image, or track: rank tracks too, by the protocols by camera.")
    ] = "image",
    ap: Annotated[
        str, typer.Option(help="Average precision: mean of the precisions, or VeRi's trapezoid.")
    ] = "mean",
    through_index: Annotated[bool, typer.Option(help="Also search the live generation.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Ray tasks that rank; 0 ranks in this process.")] = 0,
    device: Annotated[str, typer.Option(help="Device without --workers: cpu, cuda, cuda:1.")] = "cpu",
    compare: Annotated[
        str | None, typer.Option(help="Another run of the same images: compare by paired bootstrap.")
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint to show beside RUN, such as its untrained start; embeds RUN's archive once."
        ),
    ] = None,
    archive: Annotated[
        str | None, typer.Option(help="Archive to embed once by the checkpoint RUN, then evaluate.")
    ] = None,
    max_quarantine_rate: MaxQuarantineRate = 0.01,
    html: Annotated[Path | None, typer.Option(help="Write the report to this file, and a .json.")] = None,
    table: ResultTable = None,
    milvus: Milvus = None,
    alias: Alias = None,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Compute CMC, mAP and mINP of a run. Example: clvr evaluate latest --protocol veri --html cmc.html"""
    settings = settings_of(runs=runs, milvus=milvus, alias=alias, ray=ray)
    require_paths(labels, archive, baseline)
    require_table_name(table)
    if archive is None:
        require_runs(filter(None, (run, compare)), settings)
    else:
        require_paths(run, compare)
    from jobs.evaluate.compare import compare_runs
    from jobs.evaluate.dataset import embed_labelled_set
    from jobs.evaluate.evaluate import evaluate_run
    from jobs.evaluate.results import EvaluateRequest

    request = EvaluateRequest(
        run=embed_labelled_set(run, archive, settings, max_quarantine_rate),
        labels=labels,
        protocols=tuple(protocol or ()),
        repeats=repeats,
        seed=seed,
        html=html,
        table=table,
        split=split,
        splits=splits_file,
        variants=tuple(name for name in variants or ("normalised",) if name != "none"),
        index=through_index,
        workers=workers,
        device=device,
        ap=ap,
        baseline=baseline,
        max_quarantine_rate=max_quarantine_rate,
        transforms=tuple(name for name in transform or () if name != "none"),
        unit=unit,
    )
    for option, value in (("--baseline", baseline), ("--table", table)):
        if compare is not None and value is not None:
            raise typer.BadParameter("it has no effect with --compare", param_hint=option)
    if compare is None:
        emit(evaluate_run(request, settings), as_json)
    else:
        other = embed_labelled_set(compare, archive, settings, max_quarantine_rate)
        emit(compare_runs(request, other, settings), as_json)


def compare_models(
    runs_: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run ids in --runs, `latest`, or with --archive checkpoints."),
    ],
    labels: Annotated[
        str | None, typer.Option(help="CSV/Parquet (key or uri, vehicle_id), or the folder of a dataset.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Only this split of --labels, or this test list of its dataset.")
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            help="As in evaluate; the first one decides the frontier (default: cross-camera, "
            "vehicleid-paper, within-model and unseen-models where the labels allow); may be repeated."
        ),
    ] = None,
    transform: Annotated[
        list[str] | None,
        typer.Option(
            help="whiten, camera or whiten-camera, or with dimensions whiten:256, fitted to the gallery "
            "without labels; may be repeated."
        ),
    ] = None,
    compress: Annotated[
        list[str] | None,
        typer.Option(help="float16, int8 or binary, of each row's features; may be repeated."),
    ] = None,
    max_loss: Annotated[
        float, typer.Option(help="How far rank-1 may fall by a compression, as a share.")
    ] = 0.01,
    repeats: Annotated[int, typer.Option(min=1)] = 10,
    seed: int = 0,
    speed: Annotated[bool, typer.Option(help="Measure the crops a second that one core embeds.")] = True,
    archive: Annotated[
        str | None, typer.Option(help="Archive to embed once by each checkpoint RUN, then compare.")
    ] = None,
    max_quarantine_rate: MaxQuarantineRate = 0.01,
    html: Annotated[Path | None, typer.Option(help="Write the page to this file, and a .json.")] = None,
    runs: Runs = None,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Compare accuracy and cost of models. Example: clvr compare-models RUN_A RUN_B --html models.html"""
    settings = settings_of(runs=runs, ray=ray)
    from jobs.compare_models.compare import compare_models
    from jobs.compare_models.results import CompareModelsRequest
    from jobs.evaluate.dataset import embed_labelled_set

    request = CompareModelsRequest(
        runs=tuple(embed_labelled_set(run, archive, settings, max_quarantine_rate) for run in runs_),
        labels=labels,
        split=split,
        protocols=tuple(protocol or ()),
        transforms=tuple(name for name in transform or () if name != "none"),
        formats=tuple(name for name in compress or () if name != "none"),
        repeats=repeats,
        seed=seed,
        max_loss=max_loss,
        measures_speed=speed,
        html=html,
    )
    emit(compare_models(request, settings), as_json)


def calibrate(
    run: Annotated[str, typer.Argument(help="A run whose crops have vehicle ids, or `latest`.")],
    labels: Annotated[str | None, typer.Option(help="CSV/Parquet: key or uri, vehicle_id.")] = None,
    split: Annotated[str | None, typer.Option(help="Only this split of --labels.")] = None,
    false_alarm_rate: Annotated[
        float, typer.Option(help="Share of vehicles outside the archive that still match.")
    ] = 0.01,
    same_camera: SameCamera = False,
    seed: int = 0,
    transform: Transform = None,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Calibrate distances to likelihoods. Example: clvr calibrate latest --labels labels.csv"""
    settings = settings_of(runs=runs)
    require_paths(labels)
    require_runs([run], settings)
    from jobs.evaluate.calibrate import CalibrateRequest, calibrate_run

    request = CalibrateRequest(run, labels, split, false_alarm_rate, same_camera, seed, transform)
    emit(calibrate_run(request, settings), as_json)


def drift(
    run: Annotated[
        list[str] | None, typer.Argument(help="Run ids, or `latest` (default: those of the live generation).")
    ] = None,
    weeks: Annotated[int, typer.Option(min=1, help="Last weeks, compared with all weeks before.")] = 1,
    min_crops: Annotated[
        int, typer.Option(min=1, help="Crops, before and after, from which a camera is compared.")
    ] = 50,
    max_shift: Annotated[
        float, typer.Option(help="Alert above this distance of the means, in spreads of the features.")
    ] = 0.25,
    max_length_change: Annotated[
        float, typer.Option(help="Alert above this relative change of the features' length.")
    ] = 0.1,
    max_model_change: Annotated[
        float, typer.Option(help="Alert above this share of changed predicted models.")
    ] = 0.3,
    max_age: Annotated[
        int, typer.Option(min=1, help="Alert above this age of calibration and transform, in days.")
    ] = 90,
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Compare the last weeks of each camera with those before. Example: clvr drift --weeks 2"""
    settings = settings_of(runs=runs, milvus=milvus, alias=alias, ray=ray)
    require_runs(run or (), settings)
    from index.drift.comparison import DriftLimits
    from jobs.drift.job import DriftRequest, measure_drift

    limits = DriftLimits(weeks, min_crops, max_shift, max_length_change, max_model_change)
    request = DriftRequest(tuple(run or ()), limits, max_age)
    emit(measure_drift(request, settings), as_json)
