"""`clvr sweep`: thousands of probes over a window of the archive, as a Ray Data job that can be killed.

Each actor answers whole parts by itself, as in `clvr embed`: only part numbers pass through Ray.
"""

import math
import os
from dataclasses import asdict, dataclass, field
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from clvr_model.checkpoint import load_checkpoint, read_card
from clvr_model.embedder import Embedder
from clvr_model.engines import default_cache
from index.documents import current_user
from index.milvus.collection import get_generation
from index.search.calibration import calibration_of
from index.search.milvus_source import MilvusSource
from index.search.retrieval import CropSource, Rules
from index.search.scan_source import ScanSource
from infra.errors import BadInput, FingerprintMismatch, Mismatch
from infra.logging import logger
from infra.settings import Settings
from infra.store import open_store
from jobs.runtime.progress import progress
from jobs.runtime.progress_actor import read_progress, start_progress_actor
from jobs.runtime.ray_cluster import connect, num_cpus, root_cause
from jobs.runtime.resolve import find_runs, open_milvus
from jobs.search.search import RulesRequest, resolve_model_filters, rules_of
from jobs.search.searcher import Searcher
from jobs.sweep import audit
from jobs.sweep.part import SweepWorker
from jobs.sweep.probe_list import read_probe_list
from jobs.sweep.report import ReportContext, write_sweep_report
from jobs.sweep.state import Sweep, SweepSummary

PART_PROBES = (16, 1024)
PARTS_PER_ACTOR = 8


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """What `clvr sweep` was asked for. runs: run ids for an exact sweep, else the live generation answers."""

    probes: str
    out: str
    case: str
    rules: RulesRequest = field(default_factory=RulesRequest)
    exact: bool = False
    runs: tuple[str, ...] = ("latest",)
    who: str | None = None
    workers: int | None = None
    rows_per_part: int | None = None
    strips: int = 60


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which archive answers, by which rules: what every actor needs to open the same source."""

    settings: Settings
    rules: Rules
    out: str
    generation: str
    fingerprint: str
    run_ids: tuple[str, ...]
    model: str
    exact: bool
    one_process: bool

    def source(self) -> CropSource:
        """Open the shards or the generation."""
        if self.exact:
            return ScanSource(find_runs(self.run_ids, self.settings))
        milvus = open_milvus(self.settings)
        return MilvusSource(milvus, get_generation(milvus, self.generation))


class _Actor:
    """A Ray Data actor: the source is opened once, the model when a picture first needs it."""

    def __init__(self, plan: _Plan, entry: str, board: Any) -> None:
        runs = open_store(plan.settings.runs)
        audit.require(runs, entry)
        sweep = Sweep.open(open_store(plan.out))
        if sweep is None:
            raise Mismatch(f"there is no sweep in {plan.out}")
        self.board = board
        self.worker = SweepWorker(
            sweep,
            plan.source(),
            plan.rules,
            lambda: _embedder(plan.model, plan.fingerprint),
            calibration_of(runs, plan.fingerprint),
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        for part in batch["part"]:
            self.board.add.remote(*self.worker.do(int(part)))
        return {"part": [int(part) for part in batch["part"]]}


def sweep_probes(request: SweepRequest, settings: Settings) -> SweepSummary:
    """Answer every probe of a list into `request.out`, or continue the sweep that was cut off there.

    Raises BadInput for a list that is none, an unknown camera, no case, or nothing live; Mismatch if the
    folder holds another sweep; AccountingError without an audit entry; StoreError, IndexUnreachable.
    """
    if not request.case.strip():
        raise BadInput("a sweep needs a reason", remedy="give --case, such as a case number")
    probes = read_probe_list(request.probes)
    out = open_store(request.out)
    sweep = Sweep.open(out)
    plan = _plan(request, settings, sweep)
    asked = {**asdict(request.rules), "exact": request.exact}
    if sweep:
        sweep.require_same(probes, asked, plan.fingerprint)
    summary = sweep.summary if sweep else None
    if summary is None:
        entry = _write_audit_record(request, settings, plan, asked, "continue" if sweep else "start")
        sweep = sweep or Sweep.create(
            out,
            probes,
            request=asked,
            generation=plan.generation,
            fingerprint=plan.fingerprint,
            audit=entry,
            rows_per_part=request.rows_per_part or _part_size(probes.num_rows, request.workers),
        )
        _answer_parts(sweep, request, plan, entry)
        summary = sweep.finish()
    else:
        logger.info(f"the sweep in {request.out} is finished already")
    assert sweep is not None  # noqa: S101 (created or opened above)
    calibration = calibration_of(open_store(settings.runs), plan.fingerprint)
    album = ReportContext(
        ScanSource(find_runs(plan.run_ids, settings)),
        dict(read_card(plan.model).label_names),
        calibration.threshold if calibration else None,
    )
    write_sweep_report(sweep, summary, album, plan.rules, request.strips)
    return summary


def _plan(request: SweepRequest, settings: Settings, there: Sweep | None) -> _Plan:
    """Resolve `latest` and the alias once; a sweep that is continued keeps what it began with."""
    if request.exact:
        return _exact_plan(request, settings, there)
    searcher = Searcher(settings)
    try:
        searcher.require_cameras((*request.rules.cameras, *request.rules.not_cameras))
        # Where the alias has moved since, the sweep goes on with the generation it began with.
        generation = get_generation(
            searcher.source.milvus, there.info.generation if there else searcher.source.name
        )
        return _Plan(
            settings=settings,
            rules=resolve_model_filters(rules_of(request.rules), request.rules, searcher)
            if request.rules.models
            else rules_of(request.rules),
            out=request.out,
            generation=generation.name,
            fingerprint=generation.fingerprint,
            run_ids=generation.run_ids,
            model=find_runs(generation.run_ids, settings)[-1].info.model,
            exact=False,
            one_process=not settings.milvus.startswith("http"),
        )
    finally:
        # A Milvus Lite file can be open in one process only, and the actor is the next.
        searcher.close()


def _exact_plan(request: SweepRequest, settings: Settings, there: Sweep | None) -> _Plan:
    if request.rules.models:
        raise BadInput("an exact sweep knows no vehicle models by name", remedy="leave out --model")
    began = there.info.generation.removeprefix("exact:").split("+") if there else request.runs
    runs = find_runs(began, settings)
    if len({run.fingerprint for run in runs}) > 1:
        raise FingerprintMismatch("the runs are of different models", remedy="sweep the runs of one model")
    return _Plan(
        settings=settings,
        rules=rules_of(request.rules),
        out=request.out,
        generation="exact:" + "+".join(run.run_id for run in runs),
        fingerprint=runs[0].fingerprint,
        run_ids=tuple(run.run_id for run in runs),
        model=runs[-1].info.model,
        exact=True,
        one_process=False,
    )


def _write_audit_record(
    request: SweepRequest, settings: Settings, plan: _Plan, asked: dict[str, Any], action: str
) -> str:
    """Write the audit entry: nothing is answered before it stands."""
    entry = audit.AuditRecord(
        who=request.who or current_user(),
        case=request.case,
        action=f"sweep {action}",
        generation=plan.generation,
        fingerprint=plan.fingerprint,
        request={**asked, "probes": request.probes, "out": request.out},
    )
    key = audit.append(open_store(settings.runs), entry)
    logger.info(f"audit entry {key}")
    return key


def _answer_parts(sweep: Sweep, request: SweepRequest, plan: _Plan, entry: str) -> None:
    pending = sweep.pending()
    if not pending:
        return
    connect(plan.settings)
    workers = 1 if plan.one_process else request.workers or num_cpus()
    total = sweep.info.probes
    board = start_progress_actor(total, done=total - min(total, len(pending) * sweep.info.rows_per_part))
    parts = ray.data.from_items(
        [{"part": part} for part in pending], override_num_blocks=len(pending)
    ).map_batches(
        _Actor,
        batch_size=1,
        compute=ActorPoolStrategy(size=min(workers, len(pending)), max_tasks_in_flight_per_actor=2),
        num_cpus=1,
        fn_constructor_kwargs={"plan": plan, "entry": entry, "board": board},
    )
    try:
        with progress("sweep", "probes", lambda: read_progress(board)):
            for _ in parts.iter_batches(batch_size=None, prefetch_batches=0):
                pass
    except Exception as error:
        raise root_cause(error) from error


def _embedder(model: str, fingerprint: str) -> Embedder:
    checkpoint = load_checkpoint(model)
    if checkpoint.fingerprint != fingerprint:
        raise FingerprintMismatch(
            f"{model} is model {checkpoint.fingerprint}, the archive was embedded by {fingerprint}",
            remedy="put the archive's own model back where its run names it",
        )
    return Embedder(checkpoint, batch_size=8, cache=default_cache())


def _part_size(probes: int, workers: int | None) -> int:
    workers = workers or os.cpu_count() or 1
    low, high = PART_PROBES
    return min(max(math.ceil(probes / (workers * PARTS_PER_ACTOR)), low), high)


def summary_text(summary: SweepSummary, out: str) -> str:
    """The summary as a person reads it."""
    verdicts = ", ".join(f"{count:,} {name}" for name, count in sorted(summary.verdicts.items()))
    causes = ", ".join(f"{cause} {count:,}" for cause, count in sorted(summary.causes.items()))
    return (
        f"{summary.probes:,} probes: {verdicts}; {summary.answers:,} answers\n"
        + (f"causes: {causes}\n" if causes else "")
        + f"the report: {out.rstrip('/')}/report.html"
    )
