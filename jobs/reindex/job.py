"""`clvr reindex`: the nightly job, from a listing of the archive to a live generation and a page about it.

plan -> embed -> load -> gate -> promote -> retention -> summary, each by what its own verb calls. A step that
is done is written down; the same command again begins at the first that is not.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from clvr_model.checkpoint import load_checkpoint
from index.documents import utc_now
from index.lock import Lock, acquire
from infra.logging import logger
from infra.settings import Settings
from infra.store import open_store
from jobs.embed.actor import OpenEmbedder
from jobs.reindex.page import night_page
from jobs.reindex.plan import NightRequest
from jobs.reindex.state import (
    STEPS,
    Attempt,
    ReindexInputs,
    ReindexRun,
    Step,
    StepName,
    current_run_id,
    previous_summary,
)
from jobs.reindex.steps import (
    ReindexContext,
    embed_step,
    gate_step,
    load_step,
    plan_step,
    promote_step,
    retention_step,
)
from jobs.reindex.summary import headline, post, summarise
from jobs.runtime.ray_cluster import connect, nodes
from jobs.runtime.resolve import live_name

STEP_FUNCTIONS: dict[StepName, Callable[[ReindexContext], dict[str, Any]]] = {
    "plan": plan_step,
    "embed": embed_step,
    "load": load_step,
    "gate": gate_step,
    "promote": promote_step,
    "retention": retention_step,
}


@dataclass(frozen=True, slots=True)
class ReindexResult:
    """The summary of a night, and whether anything was left to do for this call."""

    summary: dict[str, Any]
    page: str
    """URI of the page."""
    already: bool = False

    def document(self) -> dict[str, Any]:
        """The summary as it is printed for machines."""
        return self.summary | {"page": self.page, "already_finished": self.already}


def reindex(
    request: NightRequest, settings: Settings, *, open_embedder: OpenEmbedder | None = None
) -> ReindexResult:
    """Do tonight's job, or what is left of it.

    open_embedder: what stands for the checkpoint's model, for tests.
    Raises Locked while another night of the alias is under way; FingerprintMismatch if the live generation is
    of another model and `full` was not asked for; BudgetExceeded for too many bad or vanished crops;
    GateFailed; what the steps raise. After any of them the alias is where it was, the summary says what
    happened, and the same call continues.
    """
    store, archive = open_store(settings.runs), open_store(request.archive)
    archive.ensure()
    model = open_embedder() if open_embedder else load_checkpoint(request.model)
    inputs = ReindexInputs(
        archive=archive.uri,
        fingerprint=model.fingerprint,
        alias=settings.alias,
        milvus=settings.milvus,
        key_pattern=request.key_pattern,
        manifest=request.manifest,
        labels=request.labels,
        lookback_days=request.lookback_days,
        full=request.full,
        beside=request.beside,
    )
    with acquire(store, f"night-{settings.alias}", f"a night of {archive.uri} into {settings.alias}") as lock:
        night = ReindexRun.begin(store, request.night or current_run_id(store, inputs), inputs)
        page = store.uri_of(night.key("summary.html"))
        if night.finished:
            return _finished_result(night, page, settings)
        summary = _run_attempt(
            ReindexContext(request, settings, store, archive, night, open_embedder), lock, page
        )
    return ReindexResult(summary, page)


def night_text(done: ReindexResult) -> str:
    """The summary of a night in a few lines."""
    summary = done.summary
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
    return "\n".join([*lines, f"  page    {done.page}"])


def _run_attempt(at: ReindexContext, lock: Lock, page: str) -> dict[str, Any]:
    attempt = at.night.begin_attempt()
    again = f", attempt {attempt.number}" if attempt.number > 1 else ""
    logger.info(f"night {at.night.night_id}{again}")
    step: str = "start"
    try:
        connect(at.settings)
        for name in STEPS:
            step = name
            lock.require()
            if at.night.step(name) is None:
                _run_step(at, name)
        step = "summary"
    except BaseException as error:
        ended = at.night.end_attempt(attempt, step, error)
        # What is told of a failure must not hide it.
        _publish_summary(at, page, ended, quiet=True)
        raise
    ended = at.night.end_attempt(attempt, "", None)
    summary = _publish_summary(at, page, ended, quiet=False)
    at.night.finish()
    return summary


def _run_step(at: ReindexContext, name: StepName) -> None:
    logger.info(f"{name} …")
    began, clock = utc_now(), time.monotonic()
    outcome = STEP_FUNCTIONS[name](at)
    at.night.record(Step(name, began, round(time.monotonic() - clock, 3), outcome))
    logger.info(f"{name}: {outcome['said']}")


def _publish_summary(at: ReindexContext, page: str, ended: Attempt, *, quiet: bool) -> dict[str, Any]:
    """Write the summary and its page, and post it; of a failed night as far as object storage is there."""
    summary: dict[str, Any] = {}
    try:
        summary = summarise(
            at.night, previous_summary(at.night), price=at.request.price_per_node_hour, nodes=_nodes()
        )
        at.night.write_summary(summary, night_page(summary))
        if at.settings.webhook is not None:
            logger.info(f"webhook: {post(at.settings.webhook, summary, page)}")
    except Exception as error:
        if not quiet:
            raise
        logger.info(f"the summary could not be written: {error}")
    return summary


def _nodes() -> int:
    return nodes() if ray.is_initialized() else 0


def _finished_result(night: ReindexRun, page: str, settings: Settings) -> ReindexResult:
    summary = night.read_summary() or {}
    logger.info(f"night {night.night_id} is finished already: nothing to do")
    name = (summary.get("live") or {}).get("generation")
    live = live_name(settings)
    if name is not None and live is None:
        logger.info(
            f"but {settings.alias} points to nothing: Milvus was lost? The same command with "
            f"--night {night.night_id}-again fills it from the shards"
        )
    elif name is not None and live != name:
        logger.info(
            f"but {settings.alias} points to {live} now, not to {name}; if that is not wanted: "
            "clvr rollback, or clvr promote"
        )
    return ReindexResult(summary, page, already=True)
