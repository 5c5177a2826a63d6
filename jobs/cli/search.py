"""The commands search, sweep, audit and serve."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli.inputs import require_paths, require_table_name
from jobs.cli.options import (
    Alias,
    CameraPositions,
    Json,
    MaxSpeed,
    Milvus,
    Ray,
    ResultTable,
    Runs,
    SameCamera,
    emit,
    settings_of,
)

Top = Annotated[int, typer.Option("--top", min=1, max=1000, help="Number of matches per probe.")]
Camera = Annotated[list[str] | None, typer.Option("--camera", help="Only this camera; may be repeated.")]
NotCamera = Annotated[list[str] | None, typer.Option("--not-camera", help="Exclude this camera.")]
Since = Annotated[str | None, typer.Option("--from", help="Start of the time window, ISO 8601, UTC.")]
Until = Annotated[str | None, typer.Option("--until", help="End of the time window, exclusive.")]
VehicleModel = Annotated[
    list[str] | None, typer.Option("--vehicle-model", help="Only this predicted vehicle model.")
]
Color = Annotated[
    list[str] | None, typer.Option("--color", "--colour", help="Only this predicted color; may be repeated.")
]
NotColor = Annotated[
    list[str] | None, typer.Option("--not-color", "--not-colour", help="Exclude this predicted color.")
]
BodyType = Annotated[
    list[str] | None, typer.Option("--body-type", help="Only this predicted body type; may be repeated.")
]
NotBodyType = Annotated[
    list[str] | None, typer.Option("--not-body-type", help="Exclude this predicted body type.")
]
MinColorConfidence = Annotated[
    float | None,
    typer.Option(
        "--min-color-confidence",
        "--min-colour-confidence",
        min=0,
        max=1,
        help="Only crops whose predicted color has this confidence.",
    ),
]
MinBodyTypeConfidence = Annotated[
    float | None,
    typer.Option(
        "--min-body-type-confidence",
        min=0,
        max=1,
        help="Only crops whose predicted body type has this confidence.",
    ),
]
GroupByTrack = Annotated[
    bool,
    typer.Option(
        "--group-by-track/--no-group-by-track", help="One match per track, or every crop as a match."
    ),
]
MaxDistance = Annotated[
    float | None, typer.Option("--max-distance", help="Exclude matches beyond this L2 distance.")
]
DropImpossible = Annotated[
    bool,
    typer.Option("--drop-impossible", help="Exclude matches that would need more than --max-speed."),
]


@contextmanager
def _without_collections() -> Iterator[None]:
    """Import without garbage collections: modules stay, and looking for garbage in them costs a tenth."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _skip_sparse_vectors() -> None:
    """Keep pymilvus from importing scipy.sparse, a fifth of a search's CPU time: no vector here is sparse."""
    from pymilvus.client import utils

    if hasattr(utils, "SciPyHelper"):
        utils.SciPyHelper._checked = True


def search(
    images: Annotated[
        list[str], typer.Argument(help="Images of one vehicle: files, s3://…, crop:ID, track:CAMERA/TRACK")
    ],
    top: Top = 20,
    camera: Camera = None,
    not_camera: NotCamera = None,
    since: Since = None,
    until: Until = None,
    vehicle_model: VehicleModel = None,
    color: Color = None,
    not_color: NotColor = None,
    min_color_confidence: MinColorConfidence = None,
    body_type: BodyType = None,
    not_body_type: NotBodyType = None,
    min_body_type_confidence: MinBodyTypeConfidence = None,
    same_model: Annotated[
        bool, typer.Option("--same-model", help="Only the predicted vehicle model of the probe.")
    ] = False,
    same_camera: SameCamera = False,
    group_by_track: GroupByTrack = True,
    max_distance: MaxDistance = None,
    camera_positions: CameraPositions = None,
    max_speed: MaxSpeed = 150.0,
    drop_impossible: DropImpossible = False,
    sighting: Annotated[
        str | None, typer.Option(help="Camera and time of the probe: CAMERA@2026-11-22T18:30:05")
    ] = None,
    rerank: Annotated[
        bool, typer.Option("--rerank", help="Re-rank the first 100 matches by k-reciprocal neighbours.")
    ] = False,
    checkpoint: Annotated[
        str | None, typer.Option(help="URI of the checkpoint (default: the one of the run).")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the matches to this HTML file.")] = None,
    case_number: Annotated[str, typer.Option(help="Case of the search; stored in the audit.")] = "",
    table: ResultTable = None,
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    as_json: Json = False,
) -> None:
    """Search a vehicle by its image. Example: clvr search probe.jpg --top 10 --html strip.html"""
    require_paths(*images, checkpoint, camera_positions)
    require_table_name(table)
    settings = settings_of(runs=runs, milvus=milvus, alias=alias)
    with _without_collections():
        from jobs.cases.recorded_search import search_recorded
        from jobs.search.search import RulesRequest, SearchRequest

        _skip_sparse_vectors()

    rules = RulesRequest(
        top=top,
        cameras=tuple(camera or ()),
        not_cameras=tuple(not_camera or ()),
        since=since,
        until=until,
        models=tuple(vehicle_model or ()),
        colors=tuple(color or ()),
        not_colors=tuple(not_color or ()),
        min_color_confidence=min_color_confidence,
        body_types=tuple(body_type or ()),
        not_body_types=tuple(not_body_type or ()),
        min_body_type_confidence=min_body_type_confidence,
        same_model=same_model,
        same_camera=same_camera,
        every_crop=not group_by_track,
        max_distance=max_distance,
        camera_file=camera_positions,
        max_speed=max_speed,
        drop_impossible=drop_impossible,
        rerank=rerank,
    )
    request = SearchRequest(tuple(images), checkpoint, rules, sighting, html, table)
    emit(search_recorded(request, settings, case_number), as_json)


def sweep(
    probes: Annotated[str, typer.Argument(help="A folder of images, or a CSV/Parquet: uri, probe_id.")],
    output: Annotated[str, typer.Option(help="Folder of the results: s3://… or a path.")],
    case_number: Annotated[str, typer.Option(help="Reason for the sweep; stored in the audit log.")],
    top: Top = 20,
    camera: Camera = None,
    not_camera: NotCamera = None,
    since: Since = None,
    until: Until = None,
    vehicle_model: VehicleModel = None,
    color: Color = None,
    not_color: NotColor = None,
    min_color_confidence: MinColorConfidence = None,
    body_type: BodyType = None,
    not_body_type: NotBodyType = None,
    min_body_type_confidence: MinBodyTypeConfidence = None,
    same_camera: SameCamera = False,
    group_by_track: GroupByTrack = True,
    max_distance: MaxDistance = None,
    camera_positions: CameraPositions = None,
    max_speed: MaxSpeed = 150.0,
    drop_impossible: DropImpossible = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Scan the shards of runs exactly, without an index.")
    ] = False,
    run_id: Annotated[
        list[str] | None,
        typer.Option(
            help="With --exact: run to scan (default: those of the live generation); may be repeated."
        ),
    ] = None,
    transform: Annotated[
        str | None,
        typer.Option(help="With --exact: id, `latest` or `none` (default: that of the live generation)."),
    ] = None,
    user: Annotated[
        str | None, typer.Option(help="User in the audit log (default: the system's user).")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Search processes (default: one per core).")] = None,
    unit: Annotated[
        str, typer.Option(help="Probe of an archived image: the image, or the track that it is on.")
    ] = "image",
    strips: Annotated[int, typer.Option(help="Number of probes that the report shows.")] = 60,
    table: ResultTable = None,
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Search many vehicles. Example: clvr sweep probes.csv --case-number 26-117 --output s3://results

    Run the same command again to continue an unfinished sweep.
    """
    require_paths(probes, camera_positions)
    require_table_name(table)
    settings = settings_of(runs=runs, milvus=milvus, alias=alias, ray=ray)
    from jobs.search.search import RulesRequest
    from jobs.sweep.job import SweepRequest, sweep_probes

    rules = RulesRequest(
        top=top,
        cameras=tuple(camera or ()),
        not_cameras=tuple(not_camera or ()),
        since=since,
        until=until,
        models=tuple(vehicle_model or ()),
        colors=tuple(color or ()),
        not_colors=tuple(not_color or ()),
        min_color_confidence=min_color_confidence,
        body_types=tuple(body_type or ()),
        not_body_types=tuple(not_body_type or ()),
        min_body_type_confidence=min_body_type_confidence,
        same_camera=same_camera,
        every_crop=not group_by_track,
        max_distance=max_distance,
        camera_file=camera_positions,
        max_speed=max_speed,
        drop_impossible=drop_impossible,
    )
    request = SweepRequest(
        probes=probes,
        output=output,
        case_number=case_number,
        rules=rules,
        exact=exact,
        runs=tuple(run_id or ()),
        transform=transform,
        user=user,
        workers=workers,
        strips=strips,
        table=table,
        unit=unit,
    )
    emit(sweep_probes(request, settings), as_json)


def audit(runs: Runs = None, as_json: Json = False) -> None:
    """List sweeps, searches and exports, with users and reasons. Example: clvr audit"""
    from infra.store import open_store

    settings = settings_of(runs=runs)
    from jobs.sweep.audit import AuditLog

    logs: list[Any] = [AuditLog.read(open_store(settings.runs))]
    if settings.has_cases():
        from jobs.cases.audit import SearchAudit

        logs.append(SearchAudit.read(settings))
    text = "\n".join(log.to_text() for log in logs)
    emit([record for log in logs for record in log.to_json()], as_json, text)


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8080,
    token: Annotated[
        bool | None,
        typer.Option("--token/--no-token", help="Require a token (default: unless on the loopback)."),
    ] = None,
    camera_positions: CameraPositions = None,
    max_speed: MaxSpeed = 150.0,
    max_upload: Annotated[int, typer.Option(min=1, help="Maximum size of a request, in MiB.")] = 32,
    certificate: Annotated[Path | None, typer.Option(help="PEM file of a certificate: serve HTTPS.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's key.")] = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Serve from this many replicas on the Ray cluster.")
    ] = None,
    access_log: Annotated[
        bool | None,
        typer.Option(
            "--access-log/--no-access-log", help="Log each request (default: if others may connect)."
        ),
    ] = None,
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    ray: Ray = None,
) -> None:
    """Serve the search page; $CLVR_SERVE_TOKEN sets its token. Example: clvr serve --port 8080"""
    require_paths(certificate, key, camera_positions)
    settings = settings_of(runs=runs, milvus=milvus, alias=alias, ray=ray)
    from jobs.serve.request import ServeRequest
    from jobs.serve.server import serve_page

    request = ServeRequest(
        host=host,
        port=port,
        require_token=token is True,
        no_token=token is False,
        camera_file=camera_positions,
        max_speed=max_speed,
        max_upload_mib=max_upload,
        certificate=certificate,
        key=key,
        replicas=replicas,
        access_log=access_log,
    )
    serve_page(request, settings)
