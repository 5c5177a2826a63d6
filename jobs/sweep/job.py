"""`clvr sweep`: search thousands of probes in the archive by a Ray Data job that may be killed.

Each actor searches whole parts, as in `clvr embed`: Ray transfers part numbers only.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import ray
from ray.data import ActorPoolStrategy

from clvr_model.checkpoint import load_checkpoint, read_card
from clvr_model.embedder import Embedder
from clvr_model.engines import default_cache
from index.documents import current_user
from index.milvus.collection import Generation, get_generation, live_generation, row_count
from index.outputs import record_output
from index.runs.run import Run
from index.runs.tombstones import erasure_ids, read_tombstones
from index.search.calibration import Calibration, calibration_for
from index.search.retrieval import CropSource, Rules
from index.search.scan_source import ScanSource
from index.transforms.stored import NONE, read_transform, resolve_transform
from infra.errors import BadInput, BadSetting, FingerprintMismatch, IndexServerError, Locked, Mismatch
from infra.logging import logger
from infra.settings import Settings
from infra.store import open_store
from jobs.runtime.json_fields import FieldsOf
from jobs.runtime.progress import progress
from jobs.runtime.progress_actor import read_progress, start_progress_actor
from jobs.runtime.ray_cluster import connect, num_cpus, root_cause
from jobs.runtime.resolve import (
    LATEST,
    available_runs_of,
    find_generation,
    find_run,
    find_runs,
    open_milvus,
    runs_of,
)
from jobs.runtime.result_table import write_crop_table
from jobs.search.search import RulesRequest, make_rules, resolve_attributes, resolve_model_filters
from jobs.search.searcher import Searcher, open_source
from jobs.sweep.audit import AuditRecord, append_record, require_record
from jobs.sweep.part import SweepWorker
from jobs.sweep.probe_list import read_probe_list
from jobs.sweep.report import ReportContext, write_sweep_report
from jobs.sweep.state import Sweep, SweepSummary, anonymous_list

UNITS = ("image", "track")
MIN_PART_PROBES, MAX_PART_PROBES = 16, 1024
PARTS_PER_ACTOR = 8


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """A request of `clvr sweep`.

    runs: ids of the runs that an exact sweep scans; by default those of the live generation. transform: of an
    exact sweep: an id, `latest` or `none`; by default that of the live generation, or the one that a load of
    the named runs would choose. unit: `track` searches with all crops of the track of each archived probe.
    """

    probes: str
    output: str
    case_number: str
    rules: RulesRequest = field(default_factory=RulesRequest)
    exact: bool = False
    runs: tuple[str, ...] = ()
    transform: str | None = None
    user: str | None = None
    workers: int | None = None
    rows_per_part: int | None = None
    strips: int = 60
    unit: str = "image"  # or track
    table: str | None = None


@dataclass(frozen=True, slots=True)
class SweepResult:
    """The summary of a finished sweep and the folder of its results."""

    summary: SweepSummary
    output: str

    def to_json(self) -> Annotated[dict[str, Any], FieldsOf(SweepSummary)]:
        """Return the summary as in done.json."""
        return asdict(self.summary)

    def to_text(self) -> str:
        """Return the counts, the causes of failures and the place of the report."""
        summary = self.summary
        verdicts = ", ".join(f"{count:,} {name}" for name, count in sorted(summary.verdicts.items()))
        causes = ", ".join(f"{cause} {count:,}" for cause, count in sorted(summary.causes.items()))
        return (
            f"{summary.probes:,} probes: {verdicts}; {summary.answers:,} matches\n"
            + (f"searched: {searched}\n" if (searched := summary.searched()) else "")
            + (f"causes: {causes}\n" if causes else "")
            + f"the report: {self.output.rstrip('/')}/report.html"
        )


@dataclass(frozen=True, slots=True)
class _Plan:
    """The source and the rules of a sweep: every actor opens the same source.

    rows: those of the generation; None for a scan, whose rows are counted from its shards.
    """

    settings: Settings
    rules: Rules
    output: str
    generation: str
    fingerprint: str
    run_ids: tuple[str, ...]
    model: str
    exact: bool
    one_process: bool
    rows: int | None = None
    transform: str = ""

    def source(self) -> CropSource:
        """Open the shards or the generation."""
        if self.exact:
            return self.scan()
        milvus = open_milvus(self.settings)
        return open_source(milvus, get_generation(milvus, self.generation), self.settings)

    def calibration(self) -> Calibration | None:
        """Return the calibration that the source has."""
        store = open_store(self.settings.runs)
        return calibration_for(store, self.generation, self.fingerprint, self.transform)

    def scan(self) -> ScanSource:
        """Open the shards of the runs."""
        transform = read_transform(open_store(self.settings.runs), self.fingerprint, self.transform)
        return ScanSource(find_runs(self.run_ids, self.settings), transform=transform)


class _Actor:
    """A Ray Data actor that opens the source once, and the model for the first image that needs it."""

    def __init__(self, plan: _Plan, record: str, progress_actor: Any) -> None:
        runs = open_store(plan.settings.runs)
        require_record(runs, record)
        sweep = Sweep.open(open_store(plan.output))
        if sweep is None:
            raise Mismatch(f"there is no sweep in {plan.output}")
        self.progress_actor = progress_actor
        self.worker = SweepWorker(
            sweep,
            plan.source(),
            plan.rules,
            lambda: _embedder(plan.model, plan.fingerprint),
            plan.calibration(),
            by_track=sweep.info.request.get("unit") == "track",
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        for part in batch["part"]:
            self.progress_actor.add.remote(*self.worker.search_part(int(part)))
        return {"part": [int(part) for part in batch["part"]]}


def sweep_probes(request: SweepRequest, settings: Settings) -> SweepResult:
    """Search every probe of a list and write the matches, or continue an unfinished sweep.

    Raises BadInput for an invalid list, an unknown camera, no case number or no live generation; Mismatch
    if the folder contains another sweep; AccountingError without an audit record; StoreError,
    IndexUnreachable.
    """
    if not request.case_number.strip():
        raise BadInput("a sweep needs a reason", remedy="give --case-number")
    if request.unit not in UNITS:
        raise BadSetting(f"--unit is {request.unit!r}", remedy=f"choose one of {', '.join(UNITS)}")
    if request.runs and not request.exact:
        raise BadInput("a sweep by the index searches the live generation", remedy="add --exact to --run-id")
    if request.transform and not request.exact:
        raise BadInput("the index has the transform of its generation", remedy="add --exact to --transform")
    erased = read_tombstones(open_store(settings.runs))
    probes = anonymous_list(read_probe_list(request.probes), erased)
    folder = open_store(request.output)
    sweep = Sweep.open(folder)
    plan = _plan(request, settings, sweep)
    request_document = {**request.rules.document(), "exact": request.exact}
    if request.unit != UNITS[0]:
        request_document["unit"] = request.unit
    if sweep:
        sweep.require_same(probes, request_document, plan.fingerprint, erased, plan.transform)
    summary = sweep.summary if sweep else None
    scan = plan.scan()
    if summary is None:
        rows = sum(shard.rows for shard in scan.shards) if plan.rows is None else plan.rows
        logger.info(f"searching {rows:,} rows of runs {', '.join(plan.run_ids)}")
        action = "continue" if sweep else "start"
        record = _write_audit_record(request, settings, plan, request_document, action)
        record_output(open_store(settings.runs), "sweep", folder.uri)
        sweep = sweep or Sweep.create(
            folder,
            probes,
            request=request_document,
            generation=plan.generation,
            fingerprint=plan.fingerprint,
            audit=record,
            rows_per_part=request.rows_per_part or _part_size(probes.num_rows, request.workers),
            transform=plan.transform,
        )
        _search_parts(sweep, request, plan, record)
        summary = sweep.finish(plan.run_ids, rows)
    else:
        logger.info(f"the sweep in {request.output} is already finished")
    assert sweep is not None  # noqa: S101 (created or opened above)
    calibration = plan.calibration()
    context = ReportContext(
        scan,
        dict(read_card(plan.model).label_names),
        calibration.threshold if calibration else None,
        AuditRecord.read(open_store(settings.runs), sweep.info.audit),
    )
    _write_report(sweep, context, plan, request.strips)
    summary = sweep.summary or summary
    if request.table:
        write_crop_table(open_store(settings.runs), request.table, sweep.table())
    return SweepResult(summary, request.output)


def _write_report(sweep: Sweep, context: ReportContext, plan: _Plan, strips: int) -> None:
    """Write the report, and again if crops were erased meanwhile: a purge did not see its first version."""
    store = open_store(plan.settings.runs)
    while True:
        before = erasure_ids(store)
        current = Sweep.open(sweep.store)
        if current is None or current.summary is None:
            raise Locked(
                f"the sweep in {sweep.store.uri} is being purged", remedy="Run the same command again."
            )
        write_sweep_report(current, current.summary, context, plan.rules, strips)
        if erasure_ids(store) == before:
            return


def _plan(request: SweepRequest, settings: Settings, existing: Sweep | None) -> _Plan:
    """Resolve `latest` and the alias once; an existing sweep keeps its generation or runs."""
    if request.exact:
        return _plan_exact(request, settings, existing)
    searcher = Searcher(settings)
    try:
        searcher.require_cameras((*request.rules.cameras, *request.rules.not_cameras))
        # The alias may have moved since an existing sweep was started; the sweep keeps its generation.
        name = existing.info.generation if existing else searcher.source.name
        generation = find_generation(name, searcher.source.milvus, settings)
        runs = available_runs_of(generation, settings)
        rules = resolve_attributes(make_rules(request.rules), lambda: read_card(runs[-1].info.model))
        return _Plan(
            settings=settings,
            rules=resolve_model_filters(rules, request.rules, searcher) if request.rules.models else rules,
            output=request.output,
            generation=generation.name,
            fingerprint=generation.fingerprint,
            run_ids=tuple(run.run_id for run in runs),
            model=runs[-1].info.model,
            exact=False,
            one_process=not settings.milvus.startswith("http"),
            rows=row_count(searcher.source.milvus, generation),
            transform=generation.transform,
        )
    finally:
        # Only one process can open a Milvus Lite file, and the actor opens it next.
        searcher.close()


def _plan_exact(request: SweepRequest, settings: Settings, existing: Sweep | None) -> _Plan:
    if request.rules.models:
        raise BadInput("an exact sweep cannot filter by vehicle model", remedy="leave out --vehicle-model")
    live = None
    if existing:
        runs = find_runs(existing.info.generation.removeprefix("exact:").split("+"), settings)
        if request.runs and _names(runs) != _names(named := find_runs(request.runs, settings)):
            raise Mismatch(
                f"the sweep in {request.output} scans {_names(runs)}, not {_names(named)}",
                remedy="give --output another folder, or leave out --run-id to continue it",
            )
    elif request.runs:
        runs = find_runs(request.runs, settings)
    else:
        live, runs = _live_runs(settings)
    if len({run.fingerprint for run in runs}) > 1:
        raise FingerprintMismatch("the runs are of different models", remedy="sweep the runs of one model")
    transform = request.transform
    if transform is None and existing:
        transform = existing.info.transform or NONE
    elif transform is None and live:
        transform = live.transform or NONE
    return _Plan(
        settings=settings,
        rules=resolve_attributes(make_rules(request.rules), lambda: read_card(runs[-1].info.model)),
        output=request.output,
        generation="exact:" + "+".join(run.run_id for run in runs),
        fingerprint=runs[0].fingerprint,
        run_ids=tuple(run.run_id for run in runs),
        model=runs[-1].info.model,
        exact=True,
        one_process=False,
        transform=resolve_transform(open_store(settings.runs), runs[0].fingerprint, transform),
    )


def _live_runs(settings: Settings) -> tuple[Generation | None, list[Run]]:
    """Return the live generation and its runs, or the latest run if none is live; the log says so.

    Raises IndexServerError and Locked if Milvus cannot be asked.
    """
    is_server = settings.milvus.startswith("http")
    if is_server or Path(settings.milvus).exists():  # opening a local index would create it
        try:
            with open_milvus(settings) as milvus:
                live = live_generation(milvus, settings.alias)
        except (IndexServerError, Locked) as error:
            raise type(error)(
                error.message, remedy=f"{error.remedy} Or name the runs to scan: --run-id."
            ) from error
        if live is not None:
            return live, runs_of(live, settings)
    run = find_run(LATEST, settings)
    logger.warning(f"nothing is live as {settings.alias}: scanning the latest run only, {run.run_id}")
    return None, [run]


def _names(runs: Sequence[Run]) -> str:
    return ", ".join(run.run_id for run in runs)


def _write_audit_record(
    request: SweepRequest, settings: Settings, plan: _Plan, request_document: dict[str, Any], action: str
) -> str:
    """Write the audit record, which must exist before the first search, and return its key."""
    record = AuditRecord(
        user=request.user or current_user(),
        case_number=request.case_number,
        action=f"sweep {action}",
        generation=plan.generation,
        fingerprint=plan.fingerprint,
        request={**request_document, "probes": request.probes, "out": request.output},
    )
    key = append_record(open_store(settings.runs), record)
    logger.info(f"audit record {key}")
    return key


def _search_parts(sweep: Sweep, request: SweepRequest, plan: _Plan, record: str) -> None:
    pending = sweep.pending()
    if not pending:
        return
    connect(plan.settings)
    workers = 1 if plan.one_process else request.workers or num_cpus()
    total = sweep.info.probes
    progress_actor = start_progress_actor(
        total, done=total - min(total, len(pending) * sweep.info.rows_per_part)
    )
    parts = ray.data.from_items(
        [{"part": part} for part in pending], override_num_blocks=len(pending)
    ).map_batches(
        _Actor,
        batch_size=1,
        compute=ActorPoolStrategy(size=min(workers, len(pending)), max_tasks_in_flight_per_actor=2),
        num_cpus=1,
        fn_constructor_kwargs={"plan": plan, "record": record, "progress_actor": progress_actor},
    )
    try:
        with progress("sweep", "probes", lambda: read_progress(progress_actor)):
            for _ in parts.iter_batches(batch_size=None, prefetch_batches=0):
                pass
    except Exception as error:
        raise root_cause(error) from error


def _embedder(model: str, fingerprint: str) -> Embedder:
    checkpoint = load_checkpoint(model)
    if checkpoint.fingerprint != fingerprint:
        raise FingerprintMismatch(
            f"{model} has fingerprint {checkpoint.fingerprint}, the archive was embedded by {fingerprint}",
            remedy=f"restore the archive's model at {model}",
        )
    return Embedder(checkpoint, batch_size=8, cache=default_cache())


def _part_size(num_probes: int, workers: int | None) -> int:
    workers = workers or os.cpu_count() or 1
    return min(max(math.ceil(num_probes / (workers * PARTS_PER_ACTOR)), MIN_PART_PROBES), MAX_PART_PROBES)
