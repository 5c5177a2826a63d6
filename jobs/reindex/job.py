"""`clvr reindex`: from a listing of the archive to a live generation, with a summary page.

The steps are plan, embed, load, gate, promote and retention; each calls the code of its own command. A
finished step is recorded, and the same command continues with the first step that is not.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from index.documents import utc_now
from index.lock import Lock, acquire
from infra.logging import logger
from infra.settings import Settings
from infra.store import open_store
from jobs.embed.actor import OpenEmbedder
from jobs.embed.model import fingerprint_for_runs
from jobs.reindex.page import MAX_TREND, build_reindex_page
from jobs.reindex.plan import ReindexRequest
from jobs.reindex.state import (
    STEPS,
    ReindexInputs,
    ReindexRun,
    Step,
    StepName,
    current_reindex_id,
    previous_summaries,
)
from jobs.reindex.steps import (
    Outcome,
    ReindexContext,
    embed_step,
    gate_step,
    load_step,
    plan_step,
    promote_step,
    retention_step,
)
from jobs.reindex.summary import Summary, headline, post_summary, summarise
from jobs.runtime.ray_cluster import connect, num_nodes
from jobs.runtime.resolve import live_name

STEP_FUNCTIONS: dict[StepName, Callable[[ReindexContext], Outcome]] = {
    "plan": plan_step,
    "embed": embed_step,
    "load": load_step,
    "gate": gate_step,
    "promote": promote_step,
    "retention": retention_step,
}


class ReindexFields(Summary):
    """The summary of a reindex run. page: URI of its page. already_finished: before this call."""

    page: str
    already_finished: bool


@dataclass(frozen=True, slots=True)
class ReindexResult:
    """The summary of a reindex run, and whether it was already finished before this call."""

    summary: Summary
    page: str
    """URI of the page."""
    already_finished: bool = False

    def to_text(self) -> str:
        """Return the summary as several lines."""
        summary = self.summary
        steps = ", ".join(f"{step['name']} {step['seconds']:,.1f} s" for step in summary["steps"])
        lines = [headline(summary), f"  steps   {steps}"]
        if summary["quarantine"]:
            causes = ", ".join(f"{cause} {count:,}" for cause, count in sorted(summary["quarantine"].items()))
            lines.append(f"  causes  {causes}")
        cost = summary["cost"]
        if cost["planned_hours"] is not None:
            lines.append(
                f"  plan    embedding {3600 * cost['planned_hours']:,.1f} s planned, "
                f"{3600 * cost['embedding_hours']:,.1f} s taken"
            )
        if cost["cost"] is not None:
            lines.append(f"  cost    {cost['cost']:,.4f} on {cost['nodes']} nodes")
        return "\n".join([*lines, f"  page    {self.page}"])

    def to_json(self) -> ReindexFields:
        """Return the summary as a JSON object."""
        return {**self.summary, "page": self.page, "already_finished": self.already_finished}


def reindex(
    request: ReindexRequest, settings: Settings, *, open_embedder: OpenEmbedder | None = None
) -> ReindexResult:
    """Do a reindex run, or continue the unfinished run of the same inputs.

    open_embedder: replaces the checkpoint's model, for tests.
    Raises Locked while another reindex run of the alias is active; FingerprintMismatch if the live generation
    is of another model and `full` is not set; BudgetExceeded for too many quarantined or vanished crops;
    GateFailed; and the errors of the steps. The summary then names the error, the alias has not moved, and
    the same call continues the run.
    """
    embedding = request.embed
    store, archive = open_store(settings.runs), open_store(embedding.archive)
    archive.ensure()
    fingerprint = open_embedder().fingerprint if open_embedder else fingerprint_for_runs(embedding.model)
    origin = embedding.origin()
    inputs = ReindexInputs(
        archive=archive.uri,
        fingerprint=fingerprint,
        alias=settings.alias,
        milvus=settings.milvus,
        key_pattern=embedding.key_pattern,
        manifest=embedding.manifest,
        labels=embedding.labels,
        lookback_days=request.lookback_days,
        full=request.full,
        beside=request.rebuild,
        include=origin["include"],
        exclude=origin["exclude"],
        manifest_sha256=origin["manifest_sha256"],
        labels_sha256=origin["labels_sha256"],
    )
    purpose = f"a reindex run of {archive.uri} into {settings.alias}"
    with acquire(store, f"night-{settings.alias}", purpose) as lock:
        reindex_id = request.reindex_id or current_reindex_id(store, inputs)
        run = ReindexRun.start(store, reindex_id, inputs)
        page = store.uri_of(run.key("summary.html"))
        if run.finished:
            return _finished_result(run, page, settings)
        context = ReindexContext(request, settings, store, archive, run, open_embedder)
        return ReindexResult(_run_attempt(context, lock, page), page)


def _run_attempt(context: ReindexContext, lock: Lock, page: str) -> Summary:
    run = context.reindex_run
    attempt = run.start_attempt()
    logger.info(
        f"reindex run {run.reindex_id}" + (f", attempt {attempt.number}" if attempt.number > 1 else "")
    )
    step: str = "start"
    try:
        connect(context.settings)
        for name in STEPS:
            step = name
            lock.require()
            if run.step(name) is None:
                _run_step(context, name)
        step = "summary"
    except BaseException as error:
        run.finish_attempt(attempt, step, error)
        try:
            _publish_summary(context, page)
        except Exception as summary_error:  # must not hide the error of the step
            logger.info(f"the summary could not be written: {summary_error}")
        raise
    run.finish_attempt(attempt, "", None)
    summary = _publish_summary(context, page)
    run.finish()
    return summary


def _run_step(context: ReindexContext, name: StepName) -> None:
    logger.info(f"{name} …")
    started, clock = utc_now(), time.monotonic()
    outcome = STEP_FUNCTIONS[name](context)
    context.reindex_run.record(Step(name, started, round(time.monotonic() - clock, 3), outcome))
    logger.info(f"{name}: {outcome['said']}")


def _publish_summary(context: ReindexContext, page: str) -> Summary:
    """Write the summary and its page, and post it to the webhook."""
    run = context.reindex_run
    history = previous_summaries(run, MAX_TREND - 1)
    summary = summarise(
        run,
        history[-1] if history else None,
        price=context.request.price_per_node_hour,
        nodes=num_nodes() if ray.is_initialized() else 0,
    )
    run.write_summary(summary, build_reindex_page(summary, history))
    if context.settings.webhook is not None:
        logger.info(f"webhook: {post_summary(context.settings.webhook, summary, page)}")
    return summary


def _finished_result(run: ReindexRun, page: str, settings: Settings) -> ReindexResult:
    summary: Any = run.read_summary() or {}
    logger.info(f"reindex run {run.reindex_id} is already finished: nothing to do")
    promoted = (summary.get("live") or {}).get("generation")
    live = live_name(settings)
    if promoted is not None and live is None:
        logger.info(
            f"but {settings.alias} points to nothing. If Milvus lost its data, the same command with "
            f"--night {run.reindex_id}-again loads it from the shards"
        )
    elif promoted is not None and live != promoted:
        logger.info(
            f"but {settings.alias} now points to {live}, not to {promoted}. To change that: "
            "clvr rollback, or clvr promote"
        )
    return ReindexResult(summary, page, already_finished=True)
