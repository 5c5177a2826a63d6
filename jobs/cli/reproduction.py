"""The command reproduce."""

from typing import Annotated

import typer

from jobs.cli.inputs import require_paths
from jobs.cli.options import Json, MaxQuarantineRate, Price, Ray, emit, settings_of


def reproduce(
    data: Annotated[
        str,
        typer.Argument(
            help="A release's folder, or a CSV/Parquet table with split (train, test), vehicle_id, model_id "
            "and, for lists, test_list (small, medium, large)."
        ),
    ],
    to: Annotated[str, typer.Option(help="Folder of checkpoints, features, figures and page.")],
    root: Annotated[str, typer.Option(help="Root of the keys of a table.")] = "",
    method: Annotated[
        list[str] | None,
        typer.Option(help="clvr, ccl or mixeddiff; may be repeated. Default: all three."),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(help="Take this instead of training: METHOD=CHECKPOINT; may be repeated."),
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", help="Change a recipe, e.g. clvr.stage2.epochs=5.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Draws of probes, for mean and deviation.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    workers: Annotated[int, typer.Option(help="Ray Train workers, one per GPU or core.")] = 1,
    gpu: Annotated[
        bool | None,
        typer.Option("--gpu/--cpu", help="Give each worker a GPU (default: if the cluster has so many)."),
    ] = None,
    max_bad_fraction: Annotated[
        float, typer.Option(help="Fail above this share of unreadable training images.")
    ] = 0.001,
    max_quarantine_rate: MaxQuarantineRate = 0.01,
    price_per_node_hour: Price = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only estimate hours and cost of each method. Trains nothing.")
    ] = False,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Make the paper's Table 1 on a dataset. Example: clvr reproduce data/VehicleID --to table1

    Trains CLVR, CCL and MixedDiff, embeds the test images, evaluates every list in both directions, and
    writes table1.html. Run the same command again to continue.
    """
    require_paths(data)
    settings = settings_of(ray=ray)
    from jobs.reproduce.plan import plan_reproduction
    from jobs.reproduce.reproduce import reproduce as run
    from jobs.reproduce.request import ReproduceRequest

    request = ReproduceRequest(
        data=data,
        folder=to,
        root=root,
        methods=tuple(method or ()),
        checkpoints=tuple(checkpoint or ()),
        overrides=tuple(override or ()),
        repeats=repeats,
        seed=seed,
        workers=workers,
        gpu=gpu,
        max_bad_fraction=max_bad_fraction,
        max_quarantine_rate=max_quarantine_rate,
        price_per_node_hour=price_per_node_hour,
    )
    emit(plan_reproduction(request, settings) if plan else run(request, settings), as_json)
