"""Commands that run regularly and on a cluster: reindex, submit, jobs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from infra.logging import logger
from jobs.cli.archive import Archive, Exclude, Include, KeyPattern, Labels, Manifest, Workers
from jobs.cli.inputs import require_paths
from jobs.cli.options import (
    Alias,
    Golden,
    IndexType,
    Json,
    MaxQuarantineRate,
    Milvus,
    Price,
    Ray,
    RowsPerShard,
    Runs,
    config_file,
    emit,
    settings_of,
)

if TYPE_CHECKING:
    from jobs.submit.client import JobCluster


def reindex(
    archive: Archive,
    checkpoint: Annotated[str, typer.Option(help="URI of the checkpoint.")],
    runs: Runs = None,
    milvus: Milvus = None,
    alias: Alias = None,
    full: Annotated[bool, typer.Option(help="Embed the whole archive, also with a new checkpoint.")] = False,
    rebuild: Annotated[
        bool, typer.Option(help="Build a new generation of all runs, even for a small increment.")
    ] = False,
    night: Annotated[
        str | None, typer.Option(help="Id of the reindex run (default: date and digest of the request).")
    ] = None,
    key_pattern: KeyPattern = None,
    manifest: Manifest = None,
    labels: Labels = None,
    include: Include = None,
    exclude: Exclude = None,
    lookback_days: Annotated[
        int | None, typer.Option(help="List dt= folders from this many days before the last known crop.")
    ] = None,
    workers: Workers = None,
    rows_per_shard: RowsPerShard = 122_880,
    precision: Annotated[
        Literal["fp32", "bf16", "auto"],
        typer.Option(help="Precision with --full; an increment has that of its base run."),
    ] = "fp32",
    max_quarantine_rate: MaxQuarantineRate = 0.01,
    max_vanished_rate: Annotated[
        float, typer.Option(help="Fail if more than this share of the known crops is missing.")
    ] = 0.1,
    index_type: IndexType = "auto",
    golden: Golden = None,
    keep: Annotated[int, typer.Option(help="Number of newest generations to keep.")] = 3,
    retain_days: Annotated[
        int | None, typer.Option(help="At the end, erase crops older than this many days.")
    ] = None,
    purge: Annotated[bool, typer.Option(help="At the end, remove the bytes of all erased crops.")] = False,
    drift: Annotated[
        bool, typer.Option(help="At the end, report cameras whose crops changed: see clvr drift.")
    ] = False,
    price_per_node_hour: Price = None,
    webhook: Annotated[
        str | None, typer.Option(help="URL that receives the summary. It is a secret: prefer CLVR_WEBHOOK.")
    ] = None,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Embed, load and promote new crops. Example: clvr reindex s3://archive --checkpoint m --runs s3://data

    Run the same command again to continue an unfinished reindex run; a finished one is not repeated.
    """
    require_paths(archive, checkpoint, manifest, labels, golden)
    from jobs.embed.job import EmbedRequest
    from jobs.reindex.job import reindex as run_reindex
    from jobs.reindex.plan import ReindexRequest

    settings = settings_of(runs=runs, milvus=milvus, alias=alias, ray=ray, webhook=webhook)
    embedding = EmbedRequest(
        archive,
        model=checkpoint,
        key_pattern=key_pattern,
        manifest=manifest,
        labels=labels,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        times=settings.plausible_times(),
        precision=precision,
        actors=workers,
        rows_per_shard=rows_per_shard,
        max_quarantine_rate=max_quarantine_rate,
    )
    request = ReindexRequest(
        embed=embedding,
        reindex_id=night,
        full=full,
        rebuild=rebuild,
        lookback_days=lookback_days,
        max_vanished_rate=max_vanished_rate,
        index_type=index_type,
        golden=golden,
        keep=keep,
        retain_days=retain_days,
        purge=purge,
        drift=drift,
        price_per_node_hour=price_per_node_hour,
    )
    emit(run_reindex(request, settings), as_json)


JobsUrl = Annotated[
    str | None, typer.Option("--jobs-url", help="Dashboard of the cluster: http(s)://head:8265.")
]
Detach = Annotated[bool, typer.Option("--detach", help="Do not wait for the job.")]


def submit(
    context: typer.Context,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND ARGS...", help="As at a terminal.")],
    jobs_url: JobsUrl = None,
    job: Annotated[str | None, typer.Option("--job", help="Name (default: command and time).")] = None,
    working_dir: Annotated[
        Path | None, typer.Option(help="Folder to upload and run in, such as a checkout of this project.")
    ] = None,
    runtime_env: Annotated[
        Path | None, typer.Option(help="YAML of Ray's runtime environment: pip, image_uri, env_vars, …")
    ] = None,
    secret_env: Annotated[
        list[str] | None, typer.Option(help="Variable that the cluster must define; may be repeated.")
    ] = None,
    any_versions: Annotated[
        bool, typer.Option(help="Run even if the cluster has other versions of ray, torch, …")
    ] = False,
    python: Annotated[str, typer.Option(help="Python of the cluster's nodes.")] = "python",
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Run a command on a Ray cluster. Example: clvr submit reindex s3://archive --checkpoint s3://models/clvr

    Give the options of submit before the command. The exit code is the command's; Ctrl-C leaves the job
    running.
    """
    from infra.settings import origins
    from jobs.submit import submit as submission

    check_command(context, command)
    settings = settings_of(jobs_url=jobs_url)
    request = submission.SubmitRequest(
        tuple(command),
        job=job,
        working_dir=working_dir,
        runtime_env=runtime_env,
        secret_env=tuple(secret_env or ()),
        any_versions=any_versions,
        python=python,
    )
    chosen = {row.name: row.value for row in origins(file=config_file()) if row.origin != "default"}
    cluster, name, notes = submission.submit(request, settings, chosen)
    for note in notes:
        logger.info(note)
    _wait_for_job(cluster, name, detach=detach, as_json=as_json)


def jobs(
    action: Annotated[Literal["list", "show", "logs", "stop", "retry"], typer.Argument()],
    job: Annotated[str | None, typer.Argument(help="Name of the job, or `latest`.")] = None,
    jobs_url: JobsUrl = None,
    follow: Annotated[bool, typer.Option("--follow", help="With logs: wait until the job ends.")] = False,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Manage submitted jobs. Example: clvr jobs logs reindex-20261122T210000-1f3a --follow

    list all jobs; show one; print its logs; stop it; retry the same command under a new name.
    """
    from jobs.submit import submit as submission
    from jobs.submit.client import JobCluster
    from jobs.submit.text import JobLog, JobReport, JobTable

    settings = settings_of(jobs_url=jobs_url)
    cluster = JobCluster(settings)
    if action == "list":
        emit(JobTable(cluster.list()), as_json)
        return
    if job is None:
        raise typer.BadParameter(f"{action} needs the name of a job", param_hint="JOB")
    if job == "latest":
        job = next((listed.job for listed in cluster.list()), job)
    if action == "retry":
        cluster, name = submission.retry(job, settings)
        _wait_for_job(cluster, name, detach=detach, as_json=as_json)
    elif action == "logs" and follow:
        _wait_for_job(cluster, job, detach=False, as_json=as_json)
    elif action == "logs":
        emit(JobLog(job, cluster.logs(job)), as_json)
    elif action == "stop":
        stopping = cluster.stop(job)
        state = "is stopping" if stopping else "had already ended"
        emit({"job": job, "stopping": stopping}, as_json, f"{job} {state}")
    else:
        emit(JobReport(cluster.find(job)), as_json)


def check_command(context: typer.Context, command: list[str]) -> None:
    """Parse a command that is to be submitted. Raises its usage errors, and BadSetting."""
    from jobs.submit.submit import refuse_options

    group = context.parent.command if context.parent else None
    commands = getattr(group, "commands", {})
    name, *arguments = command
    if name not in commands or name in NOT_SUBMITTED:
        possible = ", ".join(sorted(set(commands) - NOT_SUBMITTED))
        raise typer.BadParameter(
            f"{name!r} cannot run on a cluster; choose one of {possible}", param_hint="COMMAND"
        )
    refuse_options(arguments)
    commands[name].make_context(name, list(arguments), parent=context.parent)


NOT_SUBMITTED = frozenset({"submit", "jobs", "demo", "serve", "config", "stack", "doctor"})
"""Commands of a terminal or of this machine."""


def _wait_for_job(cluster: "JobCluster", job: str, *, detach: bool, as_json: bool) -> None:
    """Print the log of a job until it ends, then exit with the exit code of its command."""
    from jobs.submit.text import follow_to_end

    logger.info(f"job {job} at {cluster.address}")
    if detach:
        emit({"job": job}, as_json, job)
        return
    try:
        finished = follow_to_end(cluster, job)
    except KeyboardInterrupt:
        logger.info(
            f"\ndetached: job {job} continues. clvr jobs logs {job} --follow   or   clvr jobs stop {job}"
        )
        raise typer.Exit(130) from None
    emit(finished, as_json)
    raise typer.Exit(finished.exit_code)
