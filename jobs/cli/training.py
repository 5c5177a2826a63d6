"""The verb train."""

from typing import Annotated

import typer

from jobs.cli.options import Json, Ray, emit, settings_of


def train(
    data: Annotated[
        str, typer.Argument(help="VehicleID folder, folder of class folders, or CSV/Parquet table.")
    ],
    to: Annotated[str, typer.Option("--to", help="URI of the checkpoint to write.")],
    recipe: Annotated[str, typer.Option(help="paper, strong, demo, or a YAML file.")] = "paper",
    override: Annotated[list[str] | None, typer.Option("--set", help="e.g. stage2.epochs=5")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Start: a .pth/.safetensors, hf:NAME, or the word random.")
    ] = None,
    root: Annotated[str, typer.Option(help="Where the keys of a table lie.")] = "",
    split: Annotated[str | None, typer.Option(help="Of a table or VehicleID, only this split.")] = None,
    max_bad_fraction: Annotated[float, typer.Option(help="Stop above this share of bad pictures.")] = 0.001,
    workers: Annotated[int, typer.Option(help="Ray Train workers: one a GPU, or one a CPU core.")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu/--cpu", help="One GPU a worker.")] = False,
    input: Annotated[
        str, typer.Option("--input", help="Who decodes: local (the workers), ray (Ray Data), or auto.")
    ] = "auto",
    keep: Annotated[int, typer.Option(help="States kept, besides the best one.")] = 2,
    pick: Annotated[str, typer.Option(help="Weights of the checkpoint: last, or best on held-out.")] = "last",
    log_every: Annotated[int, typer.Option(help="Steps between two lines of log.jsonl.")] = 20,
    price_per_node_hour: Annotated[float | None, typer.Option(help="Gives the cost.")] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only measure: steps, hours, cost. Writes nothing.")
    ] = False,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Fit the CLVR classifier on vehicle models. Example: clvr train data/VehicleID --to models/clvr

    Run the same command again to continue after a kill; the state of every epoch is kept below --to.
    """
    from jobs.train.train import TrainRequest, train_checkpoint

    request = TrainRequest(
        data=data,
        output=to,
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
        select_epoch=pick,
        log_every=log_every,
        price_per_node_hour=price_per_node_hour,
    )
    if plan:
        from jobs.train.plan import plan_training

        emit(plan_training(request), as_json)
        return
    emit(train_checkpoint(request, settings_of(ray=ray)), as_json)
