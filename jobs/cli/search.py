"""The verbs search, calibrate, sweep, serve and audit."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.options import Alias, Json, Milvus, Ray, Runs, emit, settings_of

Camera = Annotated[list[str] | None, typer.Option(help="Only these cameras.")]
NotCamera = Annotated[list[str] | None, typer.Option(help="Not these cameras.")]
Since = Annotated[str | None, typer.Option("--from", help="ISO time, UTC, inclusive.")]
Until = Annotated[str | None, typer.Option("--to", help="ISO time, UTC, exclusive.")]
Models = Annotated[list[str] | None, typer.Option("--model", help="Only this predicted vehicle model.")]
SameCamera = Annotated[bool, typer.Option("--same-camera", help="Also the probe's own camera.")]
EveryCrop = Annotated[bool, typer.Option("--every-crop", help="Each crop an answer, not each pass of a car.")]
MaxDistance = Annotated[float | None, typer.Option(help="No answer farther than this (L2).")]
Cameras = Annotated[str | None, typer.Option(help="CSV camera_id,lat,lon: travel time is judged.")]
MaxSpeed = Annotated[float, typer.Option(help="km/h that nobody drives above.")]
DropImpossible = Annotated[bool, typer.Option("--drop-impossible", help="Drop what is marked otherwise.")]
Rerank = Annotated[bool, typer.Option("--rerank", help="k-reciprocal re-ranking of the first 100.")]
Checkpoint = Annotated[str | None, typer.Option(help="Checkpoint (default: the one the run names).")]


def search(
    pictures: Annotated[
        list[str],
        typer.Argument(help="Of one vehicle: files, s3://…, crop:ID"),
    ],
    top: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    camera: Camera = None,
    not_camera: NotCamera = None,
    since: Since = None,
    until: Until = None,
    model: Models = None,
    same_model: Annotated[bool, typer.Option("--same-model", help="Only its own predicted model.")] = False,
    same_camera: SameCamera = False,
    every_crop: EveryCrop = False,
    max_distance: MaxDistance = None,
    cameras: Cameras = None,
    max_speed: MaxSpeed = 150.0,
    drop_impossible: DropImpossible = False,
    seen: Annotated[str | None, typer.Option(help="Where and when: CAMERA@2026-11-22T18:30:05")] = None,
    rerank: Rerank = False,
    checkpoint: Checkpoint = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with the crops.")] = None,
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    as_json: Json = False,
) -> None:
    """Find where a vehicle was seen. Example: clvr search probe.jpg --top 10 --html strip.html"""
    from jobs.search.search import RulesRequest, SearchRequest, search_pictures

    rules = RulesRequest(
        top=top,
        cameras=tuple(camera or ()),
        not_cameras=tuple(not_camera or ()),
        since=since,
        until=until,
        models=tuple(model or ()),
        same_model=same_model,
        same_camera=same_camera,
        every_crop=every_crop,
        max_distance=max_distance,
        camera_file=cameras,
        max_speed=max_speed,
        drop_impossible=drop_impossible,
        rerank=rerank,
    )
    request = SearchRequest(tuple(pictures), checkpoint, rules, seen, html)
    found = search_pictures(request, settings_of(runs=runs, milvus=milvus, alias=alias))
    emit(found.document(), as_json, found.table())


def calibrate(
    run: Annotated[str, typer.Argument(help="A run whose crops have vehicle ids, or `latest`.")],
    labels: Annotated[str | None, typer.Option(help="CSV/Parquet: key or uri, vehicle_id.")] = None,
    split: Annotated[str | None, typer.Option(help="Of --labels, only rows of this split.")] = None,
    false_alarm_rate: Annotated[float, typer.Option(help="Share of strangers that may pass.")] = 0.01,
    same_camera: SameCamera = False,
    seed: int = 0,
    runs: Runs = None,
    as_json: Json = False,
) -> None:
    """Learn what distances mean. Example: clvr calibrate latest --labels labels.csv"""
    from dataclasses import asdict

    from jobs.evaluate.calibrate import CalibrateRequest, calibrate_run, calibration_text

    request = CalibrateRequest(run, labels, split, false_alarm_rate, same_camera, seed)
    calibration = calibrate_run(request, settings_of(runs=runs))
    emit(asdict(calibration), as_json, calibration_text(calibration))


def sweep(
    probes: Annotated[str, typer.Argument(help="A folder of pictures, or CSV/Parquet: uri, probe_id.")],
    out: Annotated[str, typer.Option(help="Folder of the results: s3://… or a path.")],
    case: Annotated[str, typer.Option(help="Why; it is written to the audit log.")],
    top: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    camera: Camera = None,
    not_camera: NotCamera = None,
    since: Since = None,
    until: Until = None,
    model: Models = None,
    same_camera: SameCamera = False,
    every_crop: EveryCrop = False,
    max_distance: MaxDistance = None,
    cameras: Cameras = None,
    max_speed: MaxSpeed = 150.0,
    drop_impossible: DropImpossible = False,
    exact: Annotated[bool, typer.Option("--exact", help="Scan the shards; no index is needed.")] = False,
    run: Annotated[list[str] | None, typer.Option(help="Runs of an exact sweep (default: latest).")] = None,
    who: Annotated[str | None, typer.Option(help="Who asks (default: the system's user).")] = None,
    workers: Annotated[int | None, typer.Option(help="Actors (default: one a core).")] = None,
    strips: Annotated[int, typer.Option(help="Probes that the report shows.")] = 60,
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Search for many vehicles. Example: clvr sweep probes.csv --case 26-117 --out s3://results/26-117"""
    from jobs.search.search import RulesRequest
    from jobs.sweep.job import SweepRequest, summary_text, sweep_probes

    rules = RulesRequest(
        top=top,
        cameras=tuple(camera or ()),
        not_cameras=tuple(not_camera or ()),
        since=since,
        until=until,
        models=tuple(model or ()),
        same_camera=same_camera,
        every_crop=every_crop,
        max_distance=max_distance,
        camera_file=cameras,
        max_speed=max_speed,
        drop_impossible=drop_impossible,
    )
    request = SweepRequest(
        probes=probes,
        out=out,
        case=case,
        rules=rules,
        exact=exact,
        runs=tuple(run or ("latest",)),
        who=who,
        workers=workers,
        strips=strips,
    )
    summary = sweep_probes(request, settings_of(runs=runs, milvus=milvus, alias=alias, ray=ray))
    emit(summary, as_json, summary_text(summary, out))


def serve(
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    token: Annotated[
        bool | None, typer.Option("--token/--no-token", help="Default: wherever others can reach it.")
    ] = None,
    cameras: Cameras = None,
    max_speed: MaxSpeed = 150.0,
    max_upload: Annotated[int, typer.Option(min=1, help="MiB of a request.")] = 32,
    certificate: Annotated[Path | None, typer.Option(help="PEM file: serve by HTTPS.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's key.")] = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="On the Ray cluster, so many (Ray Serve).")
    ] = None,
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    ray: Ray = None,
) -> None:
    """Serve the search page. $CLVR_SERVE_TOKEN is its token. Example: clvr serve --port 8080"""
    from jobs.serve.request import ServeRequest
    from jobs.serve.server import serve_page

    request = ServeRequest(
        host=host,
        port=port,
        require_token=token is True,
        no_token=token is False,
        camera_file=cameras,
        max_speed=max_speed,
        max_upload_mib=max_upload,
        certificate=certificate,
        key=key,
        replicas=replicas,
    )
    serve_page(request, settings_of(runs=runs, milvus=milvus, alias=alias, ray=ray))


def audit(runs: Runs = None, as_json: Json = False) -> None:
    """List who swept the archive, and why. Example: clvr audit"""
    from dataclasses import asdict

    from infra.store import open_store
    from jobs.sweep.audit import entries

    found = entries(open_store(settings_of(runs=runs).runs))
    lines = [
        f"{entry.when[:19]}  {entry.who}  {entry.case}  {entry.action}  {entry.request.get('probes', '')}  "
        f"{entry.generation}"
        for _, entry in found
    ]
    text = "\n".join(lines) or "nobody has swept this archive"
    emit([{"key": key, **asdict(entry)} for key, entry in found], as_json, text)
