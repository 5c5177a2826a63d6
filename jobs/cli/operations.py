"""Verbs of every night and of the cluster: reindex, submit, jobs."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from infra.logging import logger
from jobs.cli.archive import Actors, Archive, Labels, Manifest, Pattern
from jobs.cli.options import Alias, Json, Milvus, Ray, config_file, emit, settings_of
from jobs.runtime.format import iso_timestamp
from jobs.submit.client import LogPrinter, format_log_line


def reindex(
    archive: Archive,
    model: Annotated[str, typer.Option(help="URI of the checkpoint.")],
    runs: Annotated[str | None, typer.Option("--to", "--runs", help="URI of the folder of runs.")] = None,
    milvus: Milvus = None,
    alias: Alias = None,
    full: Annotated[
        bool, typer.Option(help="The whole archive, also by another model than the live one's.")
    ] = False,
    beside: Annotated[
        bool, typer.Option(help="A new generation of all runs, even for a small increment.")
    ] = False,
    night: Annotated[str | None, typer.Option(help="Its name (default: date and digest of the job).")] = None,
    key_pattern: Pattern = None,
    manifest: Manifest = None,
    labels: Labels = None,
    lookback_days: Annotated[
        int | None, typer.Option(help="List dt= folders from this far before the last crop known.")
    ] = None,
    actors: Actors = None,
    rows_per_shard: Annotated[int, typer.Option(help="Rows of a shard; 122,880 are about 500 MB.")] = 122_880,
    precision: Annotated[
        Literal["fp32", "bf16", "auto"], typer.Option(help="Of a full night; others keep it.")
    ] = "fp32",
    max_quarantine_rate: Annotated[float, typer.Option(help="Stop above this share of bad pictures.")] = 0.01,
    max_vanished_rate: Annotated[
        float, typer.Option(help="Stop if a larger share of the known crops is gone.")
    ] = 0.1,
    index_type: Annotated[str, typer.Option(help="auto, FLAT, HNSW, IVF_FLAT, IVF_SQ8, …")] = "auto",
    golden: Annotated[
        str | None, typer.Option(help="CSV/Parquet of probes with known matches: uri, vehicle_id.")
    ] = None,
    keep: Annotated[int, typer.Option(help="How many of the newest generations stay.")] = 3,
    price_per_node_hour: Annotated[float | None, typer.Option(help="Gives the cost of the night.")] = None,
    webhook: Annotated[
        str | None, typer.Option(help="Post the summary there; better CLVR_WEBHOOK, for it holds a secret.")
    ] = None,
    ray: Ray = None,
    as_json: Json = False,
) -> None:
    """Do the nightly job, or what is left of it. Example: clvr reindex s3://archive --model m --to s3://data

    The same command again continues an unfinished night; of a finished one it does nothing.
    """
    from jobs.embed.job import EmbedRequest
    from jobs.reindex.job import reindex as run_reindex
    from jobs.reindex.plan import ReindexRequest

    embedding = EmbedRequest(
        archive,
        model=model,
        key_pattern=key_pattern,
        manifest=manifest,
        labels=labels,
        precision=precision,
        actors=actors,
        rows_per_shard=rows_per_shard,
        max_quarantine_rate=max_quarantine_rate,
    )
    request = ReindexRequest(
        embed=embedding,
        reindex_id=night,
        full=full,
        rebuild=beside,
        lookback_days=lookback_days,
        max_vanished_rate=max_vanished_rate,
        index_type=index_type,
        golden=golden,
        keep=keep,
        price_per_node_hour=price_per_node_hour,
    )
    settings = settings_of(runs=runs, milvus=milvus, alias=alias, ray=ray, webhook=webhook)
    emit(run_reindex(request, settings), as_json)


JobsUrl = Annotated[
    str | None, typer.Option("--jobs-url", help="The cluster's dashboard, http(s)://head:8265.")
]
Detach = Annotated[bool, typer.Option("--detach", help="Do not wait for the job.")]


def submit(
    context: typer.Context,
    command: Annotated[list[str], typer.Argument(metavar="VERB ARGS...", help="As at a terminal.")],
    jobs_url: JobsUrl = None,
    job: Annotated[str | None, typer.Option("--job", help="Its name (default: verb and time).")] = None,
    working_dir: Annotated[
        Path | None, typer.Option(help="Folder to upload and run in, such as a checkout of this project.")
    ] = None,
    runtime_env: Annotated[
        Path | None, typer.Option(help="YAML of Ray's runtime environment: pip, image_uri, env_vars, …")
    ] = None,
    secret_env: Annotated[
        list[str] | None, typer.Option(help="Variable that the cluster must have by itself; may be repeated.")
    ] = None,
    any_versions: Annotated[
        bool, typer.Option(help="Run also where ray, torch, … are of other versions than here.")
    ] = False,
    python: Annotated[str, typer.Option(help="Python of the cluster's nodes.")] = "python",
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Run a verb on a Ray cluster. Example: clvr submit reindex s3://archive --model s3://models/clvr

    Options of submit stand before the verb. The exit code is the verb's; Ctrl-C leaves the job running.
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
    chosen = {one.name: one.value for one in origins(file=config_file()) if one.origin != "default"}
    cluster, name, notes = submission.submit(request, settings, chosen)
    for note in notes:
        logger.info(note)
    _follow_job(cluster, name, detach=detach, as_json=as_json)


def jobs(
    action: Annotated[Literal["list", "show", "logs", "stop", "retry"], typer.Argument()],
    job: Annotated[str | None, typer.Argument(help="Name of the job; `latest` is one, too.")] = None,
    jobs_url: JobsUrl = None,
    follow: Annotated[bool, typer.Option("--follow", help="Of logs: until the job ends.")] = False,
    detach: Detach = False,
    as_json: Json = False,
) -> None:
    """Look after submitted jobs. Example: clvr jobs logs reindex-20261122T210000-1f3a --follow

    list them; show one; its logs; stop it; retry it as it was sent, under a new name.
    """
    from jobs.submit import submit as submission
    from jobs.submit.client import JobCluster

    settings = settings_of(jobs_url=jobs_url)
    cluster = JobCluster(settings)
    if action == "list":
        found = cluster.list()
        emit([job_document(one) for one in found], as_json, jobs_text(found))
        return
    if job is None:
        raise typer.BadParameter(f"{action} needs the name of a job", param_hint="JOB")
    if job == "latest":
        job = next((one.job for one in cluster.list()), job)
    if action == "retry":
        cluster, name = submission.retry(job, settings)
        _follow_job(cluster, name, detach=detach, as_json=as_json)
    elif action == "logs" and follow:
        _follow_job(cluster, job, detach=False, as_json=as_json)
    elif action == "logs":
        text = cluster.logs(job)
        emit({"job": job, "logs": text}, as_json, "\n".join(map(format_log_line, text.splitlines())))
    elif action == "stop":
        stopping = cluster.stop(job)
        emit(
            {"job": job, "stopping": stopping},
            as_json,
            f"{job} {'is told to end' if stopping else 'had ended'}",
        )
    else:
        shown = cluster.find(job)
        emit(job_document(shown), as_json, job_text(shown))


def check_command(context: typer.Context, command: list[str]) -> None:
    """Let the real command line parse what shall be sent. Raises its usage errors, and BadSetting."""
    from jobs.submit.submit import refuse_options

    group = context.parent.command if context.parent else None
    verbs = getattr(group, "commands", {})
    verb, *arguments = command
    if verb not in verbs or verb in NOT_SUBMITTED:
        possible = ", ".join(sorted(set(verbs) - NOT_SUBMITTED))
        raise typer.BadParameter(f"{verb!r} is no verb for a cluster: {possible}", param_hint="VERB")
    refuse_options(arguments)
    verbs[verb].make_context(verb, list(arguments), parent=context.parent)


NOT_SUBMITTED = frozenset({"submit", "jobs", "demo", "serve", "config", "stack", "doctor"})
"""Verbs of a terminal or of this machine."""


def _follow_job(cluster: Any, job: str, *, detach: bool, as_json: bool) -> None:
    """Pass on what a job says, then end with its exit code."""
    from jobs.submit.client import exit_code_of

    logger.info(f"job {job} at {cluster.address}")
    if detach:
        emit({"job": job}, as_json, job)
        return
    try:
        said = LogPrinter(lambda text: print(text, file=sys.stderr, flush=True))
        found = cluster.follow(job, said)
        said.end()
    except KeyboardInterrupt:
        logger.info(
            f"\ndetached: job {job} goes on. clvr jobs logs {job} --follow   or   clvr jobs stop {job}"
        )
        raise typer.Exit(130) from None
    code = exit_code_of(found)
    emit(job_document(found), as_json, f"job {job}: {found.status.lower()}, exit code {code}")
    raise typer.Exit(code)


def job_document(found: Any) -> dict[str, Any]:
    """A job as it is printed for machines: all but its runtime environment."""
    from jobs.submit.client import exit_code_of

    return {
        "job": found.job,
        "status": found.status,
        "exit_code": exit_code_of(found) if found.is_finished else None,
        "command": found.entrypoint,
        "message": found.message,
        "started": iso_timestamp(found.started),
        "ended": iso_timestamp(found.finished),
        **{name: found.metadata.get(name) for name in ("verb", "by", "clvr", "retry_of")},
    }


def jobs_text(found: list[Any]) -> str:
    """Jobs in a table."""
    rows = [("job", "status", "code", "started", "took", "by")]
    for one in found:
        said = job_document(one)
        took = f"{(one.finished - one.started) / 1000:,.0f} s" if one.started and one.finished else ""
        code = "" if said["exit_code"] is None else str(said["exit_code"])
        rows.append((one.job, one.status.lower(), code, said["started"] or "", took, said["by"] or ""))
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def job_text(found: Any) -> str:
    """One job in some lines."""
    said = {name: value for name, value in job_document(found).items() if value is not None}
    return "\n".join(f"{name:10} {value}" for name, value in said.items())
