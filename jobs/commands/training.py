"""The verb train."""

from typing import Annotated

import typer

from jobs.command_line import Json, Ray, emit, settings_of


def train(
    data: Annotated[
        str, typer.Argument(help="VehicleID folder, folder of class folders, or CSV/Parquet table.")
    ],
    to: Annotated[str, typer.Option("--to", help="URI of the checkpoint to write.")],
    recipe: Annotated[str, typer.Option(help="paper, demo, or a YAML file.")] = "paper",
    override: Annotated[list[str] | None, typer.Option("--set", help="e.g. stage2.epochs=5")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Start: a .pth/.safetensors, hf:NAME, or the word random.")
    ] = None,
    root: Annotated[str, typer.Option(help="Where the keys of a table lie.")] = "",
    split: Annotated[str | None, typer.Option(help="Of a table or VehicleID, only this split.")] = None,
    max_bad_fraction: Annotated[float, typer.Option(help="Stop above this share of bad pictures.")] = 0.001,
    workers: Annotated[int, typer.Option(help="Ray Train workers.")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu/--cpu", help="One GPU a worker.")] = False,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Fit the CLVR classifier on vehicle models. Example: clvr train data/VehicleID --to models/clvr"""
    from jobs.train import TrainRequest, train_checkpoint

    request = TrainRequest(
        data=data,
        to=to,
        recipe=recipe,
        overrides=tuple(override or ()),
        weights=weights,
        workers=workers,
        gpu=gpu,
        root=root,
        split=split,
        max_bad_fraction=max_bad_fraction,
    )
    result = train_checkpoint(request, settings_of(ray=ray))
    emit(
        result, as_json, f"checkpoint {to}: accuracy {result.accuracy:.1%}, fingerprint {result.fingerprint}"
    )
