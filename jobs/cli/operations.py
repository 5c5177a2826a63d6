"""Commands that run regularly and on a cluster: reindex, submit, jobs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from infra.logging import logger
from jobs.cli.archive import Archive, Exclude, Include, KeyPattern, Labels, Manifest, Workers
from jobs.cli.groups import add_to, command_group
from jobs.cli.inputs import require_paths
from jobs.cli.options import (
    Alias,
    FullGate,
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
        Literal["fp32", "tf32", "bf16", "auto"] | None,
        typer.Option(help="As for embed, with --full; an increment has that of its base run."),
    ] = None,
    max_quarantine_rate: MaxQuarantineRate = 0.01,
    max_vanished_rate: Annotated[
        float, typer.Option(help="Fail if more than this share of the known crops is missing.")
    ] = 0.1,
    index_type: IndexType = "auto",
    golden: Golden = None,
    full_gate: FullGate = False,
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
    settings = settings_of(runs=runs, milvus=milvus, alias=alias, ray=ray, webhook=webhook)
    from jobs.embed.new_run import EmbedRequest
    from jobs.reindex.job import reindex as run_reindex
    from jobs.reindex.plan import ReindexRequest

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
        full_gate=full_gate,
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

    settings = settings_of(jobs_url=jobs_url)
    from jobs.submit import submit as submission

    check_command(context, command)
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


jobs_group = command_group("Manage submitted jobs. Example: clvr jobs logs latest --follow")
JobName = Annotated[str, typer.Argument(metavar="JOB", help="Name of the job, or `latest`.")]


def _cluster(jobs_url: str | None) -> "JobCluster":
    settings = settings_of(jobs_url=jobs_url)
    from jobs.submit.client import JobCluster

    return JobCluster(settings)


def _name_of(cluster: "JobCluster", job: str) -> str:
    return next((listed.job for listed in cluster.list()), job) if job == "latest" else job


@add_to(jobs_group, "list")
def jobs_list(jobs_url: JobsUrl = None, as_json: Json = False) -> None:
    """List all jobs. Example: clvr jobs list"""
    cluster = _cluster(jobs_url)
    from jobs.submit.text import JobTable

    emit(JobTable(cluster.list()), as_json)


@add_to(jobs_group, "show")
def jobs_show(job: JobName, jobs_url: JobsUrl = None, as_json: Json = False) -> None:
    """Show a job: status, exit code, command. Example: clvr jobs show latest"""
    cluster = _cluster(jobs_url)
    from jobs.submit.text import JobReport

    emit(JobReport(cluster.find(_name_of(cluster, job))), as_json)


@add_to(jobs_group, "logs")
def jobs_logs(
    job: JobName,
    jobs_url: JobsUrl = None,
    follow: Annotated[bool, typer.Option("--follow", help="Wait until the job ends.")] = False,
    as_json: Json = False,
) -> None:
    """Print the log of a job. Example: clvr jobs logs latest --follow

    With --follow, the exit code is that of the job.
    """
    cluster = _cluster(jobs_url)
    from jobs.submit.text import JobLog

    job = _name_of(cluster, job)
    if follow:
        _wait_for_job(cluster, job, detach=False, as_json=as_json)
    else:
        emit(JobLog(job, cluster.logs(job)), as_json)


@add_to(jobs_group, "stop")
def jobs_stop(job: JobName, jobs_url: JobsUrl = None, as_json: Json = False) -> None:
    """Stop a job. Example: clvr jobs stop latest"""
    cluster = _cluster(jobs_url)
    from jobs.submit.text import StopRequest

    job = _name_of(cluster, job)
    stopping = cluster.stop(job)
    state = "is stopping" if stopping else "had already ended"
    emit(StopRequest(job, stopping), as_json, f"{job} {state}")


@add_to(jobs_group, "retry")
def jobs_retry(job: JobName, jobs_url: JobsUrl = None, detach: Detach = False, as_json: Json = False) -> None:
    """Run the command of a job again, under a new name. Example: clvr jobs retry latest"""
    settings = settings_of(jobs_url=jobs_url)
    from jobs.submit import submit as submission

    cluster, name = submission.retry(_name_of(_cluster(jobs_url), job), settings)
    _wait_for_job(cluster, name, detach=detach, as_json=as_json)


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
    checked = commands[name]
    actions = getattr(checked, "commands", {})
    if arguments and arguments[0] in actions:
        name, *arguments = arguments
        checked = actions[name]
    checked.make_context(name, list(arguments), parent=context.parent)


NOT_SUBMITTED = frozenset(
    {"submit", "jobs", "demo", "serve", "config", "stack", "doctor", "exit-codes", "schema"}
)
"""Commands of a terminal or of this machine."""


def _wait_for_job(cluster: "JobCluster", job: str, *, detach: bool, as_json: bool) -> None:
    """Print the log of a job until it ends, then exit with the exit code of its command."""
    from jobs.submit.text import SubmittedJob, follow_to_end

    logger.info(f"job {job} at {cluster.address}")
    if detach:
        emit(SubmittedJob(job), as_json, job)
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
