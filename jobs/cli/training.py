"""The commands train and model."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.groups import add_to, command_group
from jobs.cli.inputs import require_paths, require_runs
from jobs.cli.options import CameraPositions, Json, MaxSpeed, Price, Ray, Runs, emit, settings_of


def train(
    output: Annotated[str, typer.Option(help="URI of the checkpoint to write.")],
    data: Annotated[
        str | None,
        typer.Argument(help="VehicleID folder, class folders, CSV/Parquet table, or tar/Parquet of images."),
    ] = None,
    tracks: Annotated[
        list[str] | None,
        typer.Option(help="Run whose tracks are learned from, without labels; may be repeated."),
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Checkpoint to start from, with its network.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="paper, strong, lite, tracks, unlabelled, ccl, mixeddiff, demo, or a YAML file (default: "
            "paper; with --tracks: tracks, or unlabelled without DATA)."
        ),
    ] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="e.g. stage2.epochs=5")] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Initial weights: a .pth/.safetensors file (a path or s3://…), hf:NAME, package:NAME, "
            "imagenet, or random."
        ),
    ] = None,
    root: Annotated[str, typer.Option(help="Root of the keys of a table.")] = "",
    split: Annotated[str | None, typer.Option(help="Only this split of a table or of VehicleID.")] = None,
    max_bad_fraction: Annotated[
        float, typer.Option(help="Fail above this share of unreadable images.")
    ] = 0.001,
    workers: Annotated[int, typer.Option(help="Ray Train workers, one per GPU or core.")] = 1,
    gpu: Annotated[
        bool | None,
        typer.Option("--gpu/--cpu", help="Give each worker a GPU (default: if the cluster has so many)."),
    ] = None,
    input: Annotated[
        str, typer.Option("--input", help="Decode in the workers (local), in Ray Data (ray), or auto.")
    ] = "auto",
    keep: Annotated[int, typer.Option(help="Number of latest states to keep, besides the best.")] = 2,
    select_epoch: Annotated[
        str, typer.Option(help="Epoch of the checkpoint: last, or best on the validation split.")
    ] = "last",
    log_every: Annotated[int, typer.Option(help="Write a line of log.jsonl every so many steps.")] = 20,
    track: Annotated[
        list[str] | None,
        typer.Option(help="Report to mlflow or wandb, by their own variables; may be repeated."),
    ] = None,
    hold_out: Annotated[
        str,
        typer.Option(
            help="Hold out images of every model (images), or whole models as well (models), for the "
            "protocol unseen-models."
        ),
    ] = "images",
    camera_positions: CameraPositions = None,
    max_speed: MaxSpeed = 150.0,
    max_crops: Annotated[
        int, typer.Option(min=1, help="With --tracks: of more crops, stretches of time are drawn.")
    ] = 100_000,
    price_per_node_hour: Price = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only estimate steps, hours and cost. Writes nothing.")
    ] = False,
    runs: Runs = None,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Train on labels, tracks, or both. Example: clvr train data/VehicleID --output models/clvr

    Run the same command again to continue a killed training; --output contains the state of each epoch.
    """
    settings = settings_of(runs=runs, ray=ray)
    require_paths(data, start, camera_positions)
    require_runs(tracks or (), settings)
    from jobs.train.train import TrainRequest, train_checkpoint

    request = TrainRequest(
        data=data,
        output=output,
        recipe=recipe,
        overrides=tuple(override or ()),
        weights=weights,
        workers=workers,
        gpu=gpu,
        root=root,
        split=split,
        max_bad_fraction=max_bad_fraction,
        input=input,
        keep=keep,
        select_epoch=select_epoch,
        log_every=log_every,
        price_per_node_hour=price_per_node_hour,
        hold_out=hold_out,
        tracks=tuple(tracks or ()),
        start=start,
        cameras=camera_positions,
        max_speed=max_speed,
        max_crops=max_crops,
        trackers=tuple(track or ()),
    )
    if plan:
        from jobs.train.plan import plan_training

        emit(plan_training(request, settings), as_json)
        return
    emit(train_checkpoint(request, settings), as_json)


model_group = command_group(
    "Make a checkpoint of a pretrained network, show or export one. Example: clvr model show models/clvr"
)


@add_to(model_group, "import")
def model_import(
    source: Annotated[
        str,
        typer.Argument(help="A backbone, for its ImageNet weights, or weights as for train --weights."),
    ],
    to: Annotated[str, typer.Option("--to", help="URI of the checkpoint to write.")],
    network: Annotated[
        str | None, typer.Option(help="Backbone of a file of weights (default: by its content).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Use a pretrained network without labels. Example: clvr model import efficientnet_lite0 --to start

    The checkpoint has no classifier. Its feature is the backbone's pooled one, with 1024 dimensions and
    length 1.
    """
    from jobs.model import import_model

    emit(import_model(source, to, network), as_json)


@add_to(model_group, "show")
def model_show(
    source: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="URI of a checkpoint.")],
    as_json: Json = False,
) -> None:
    """Show the card of a checkpoint. Example: clvr model show models/clvr"""
    require_paths(source)
    from jobs.model import show_model

    emit(show_model(source), as_json)


@add_to(model_group, "export")
def model_export(
    source: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="The checkpoint's folder or URI.")],
    to: Annotated[Path, typer.Option(help="A new local folder for the exported network.")],
    format: Annotated[str, typer.Option(help="onnx or openvino.")] = "onnx",
    as_json: Json = False,
) -> None:
    """Export a network to ONNX or OpenVINO, compared with torch. Example: clvr model export model --to out"""
    require_paths(source)
    from clvr_model.export import export_checkpoint

    emit(export_checkpoint(source, to, format), as_json)  # type: ignore[arg-type]  # it refuses others
