"""`clvr load`, `promote`, `rollback`, `retire`, `verify`: runs become a generation, and one goes live."""

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

from typing_extensions import TypedDict

from index.archive.labels import read_label_table
from index.archive.reassigned import read_reassigned
from index.documents import OptionalUtcTime
from index.generations import records
from index.generations.gate import GateReport, OverShards, at_once, check_gate, golden_probes
from index.generations.gate_sample import GateBudget
from index.generations.load import LoadOptions, LoadTimes, Target, load_runs
from index.generations.promotion import Retirement, Rollback, promote, retire, rollback
from index.generations.reconcile import Reconciliation, reconcile
from index.generations.upsert import Increment, load_into_live
from index.milvus.bulk_import import ImportProgress
from index.milvus.collection import Generation, live_generation
from index.runs.accounting import checked_sum
from index.runs.balance import RunBalance
from infra.errors import BadInput, BadSetting
from infra.logging import logger
from infra.settings import Settings
from infra.store import open_store
from infra.tracing import span
from jobs.runtime.json_fields import FieldsOf
from jobs.runtime.metrics import show_gap, show_gate, show_load
from jobs.runtime.progress import ProgressState, progress
from jobs.runtime.resolve import (
    find_generation,
    find_run,
    find_runs,
    find_transform,
    open_milvus,
    runs_of,
)

LIVE = "live"


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """The request of `clvr load`."""

    run_ids: tuple[str, ...]
    index_type: str = "auto"
    target: Target = "auto"
    latest_wins: bool = False
    transform: str | None = None
    """An id, `latest` or `none`; None for the one that was decided for the model, or none. An increment has
    that of the live generation."""
    unit: records.Unit = "crop"
    """What a row is."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The generation that `clvr load` built, and the seconds of its steps; `crops` on the rows of tracks."""

    generation: Generation
    rows: int
    target: str
    seconds: LoadTimes
    unit: records.Unit = "crop"
    crops: int | None = None

    def to_text(self) -> str:
        """Return the result and the next command as two lines."""
        seconds = self.seconds
        tracks = f"tracks {seconds.tracks:.1f} s, " if self.crops is not None else ""
        return (
            f"generation {self.generation.name}: {rows_text(self.rows, self.crops)}, "
            f"{self.generation.index.type}{transform_text(self.generation)}, by {self.target}; "
            f"check {seconds.check:.1f} s, {tracks}fill {seconds.fill:.1f} s, "
            f"index {seconds.index:.1f} s, load {seconds.ready:.1f} s\n"
            f"next: clvr promote {self.generation.name}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the result as a JSON object."""
        return asdict(self)


def rows_text(rows: int, crops: int | None) -> str:
    """Return the number of rows, and of the crops on them if a row is a track."""
    return f"{rows:,} rows" if crops is None else f"{rows:,} rows of tracks from {crops:,} crops"


def transform_text(generation: Generation) -> str:
    """Return the transform of a generation as a phrase, "" without one."""
    if not generation.transform:
        return ""
    return f", transform {generation.transform} to {generation.dimension:,} dimensions"


@dataclass(frozen=True, slots=True)
class IncrementResult:
    """The result of `clvr load --into-live`."""

    increment: Increment

    def to_text(self) -> str:
        """Return the change of the live generation, or the next command if a new one was built."""
        increment = self.increment
        name = increment.generation.name
        if increment.promote_next:
            return (
                f"too large for the live generation: {name} is built of all runs, "
                f"{increment.rows_after:,} rows\nnext: clvr promote {name}"
            )
        return (
            f"{name}: {increment.upserted:,} rows upserted, {increment.removed:,} vanished rows removed, "
            f"{increment.rows_before:,} -> {increment.rows_after:,} rows"
        )

    def to_json(self) -> Annotated[dict[str, Any], FieldsOf(Increment)]:
        """Return the increment as a JSON object."""
        return asdict(self.increment)


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """The result of `clvr verify`."""

    reconciliation: Reconciliation

    def to_text(self) -> str:
        """Return the counts of the generation and of its runs, and whether all keys match."""
        counts = self.reconciliation
        listed = RunBalance(counts.listed, counts.embedded, counts.quarantined, counts.duplicates)
        by_track = counts.crops is not None
        terms = (
            ("embedded", counts.embedded),
            ("-superseded", counts.superseded),
            ("-vanished", counts.vanished),
            ("-erased", counts.erased),
            *((("-withdrawn", counts.withdrawn - counts.stray),) if by_track else ()),
        )
        total = counts.crops if counts.crops is not None else counts.expected
        rows = f" crops on {counts.expected:,} rows" if by_track else ""
        expected = checked_sum(counts.generation, ("", total), *terms) + rows
        keys = "DIFFERS: " + "; ".join(counts.differences) if counts.differences else "matches"
        return "\n".join(
            [
                f"generation {counts.generation} ({counts.state}), runs {', '.join(counts.runs)}",
                f"  {listed.to_text(counts.generation)}",
                f"  {expected}; count(*) {counts.indexed:,}",
                f"  every key    {keys}",
            ]
        )

    def to_json(self) -> Annotated[dict[str, Any], FieldsOf(Reconciliation)]:
        """Return the counts as a JSON object."""
        return asdict(self.reconciliation)


class MoveFields(TypedDict):
    """The live generation, and the move that made it live. Not `moved`: it was live already.

    replaced: the generation that was live before the move. at: its time. undo: the generation to which an
    opposite rollback would go.
    """

    moved: bool
    replaced: str | None
    at: OptionalUtcTime
    undo: str | None


@dataclass(frozen=True, slots=True)
class RollbackResult:
    """The result of `clvr rollback`; `undo` names the generation to which an opposite rollback would go."""

    rollback: Rollback
    undo: str | None

    def to_text(self) -> str:
        """Return the live generation, and how to return to the one that was live before."""
        done = self.rollback
        name, alias = done.generation.name, done.generation.alias
        undo = f"; to undo it: clvr rollback {self.undo}" if self.undo else ""
        if done.moved:
            return f"{name} is live again{undo}"
        if done.replaced is None:
            return f"{name} is live already; nothing was changed"
        return (
            f"{alias} was rolled back to {name} from {done.replaced} at {done.at}; nothing was changed{undo}"
        )

    def to_json(self) -> Annotated[dict[str, Any], FieldsOf(Generation, MoveFields)]:
        """Return the live generation as a JSON object, and the move that made it live."""
        done = self.rollback
        move = MoveFields(moved=done.moved, replaced=done.replaced, at=done.at, undo=self.undo)
        return {**asdict(done.generation), **move}


@dataclass(slots=True)
class _LoadProgress:
    """Rows, notes and import jobs of a load, for its progress display and for its metrics."""

    alias: str
    done: int = 0
    total: int = 0
    note: str = ""
    imports: ImportProgress = field(default_factory=lambda: ImportProgress(0, Counter()))

    def set_rows(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    def set_note(self, note: str) -> None:
        self.note = note

    def set_imports(self, progress: ImportProgress) -> None:
        self.imports = progress

    def read(self) -> ProgressState:
        show_load(self.alias, done=self.done, total=self.total, states=self.imports.jobs)
        return ProgressState(self.done, self.total, imports_text(self.imports) or self.note)


def imports_text(progress: ImportProgress) -> str:
    """Return the running imports of a load as one phrase, "" without one."""
    states = ", ".join(f"{jobs} {state}" for state, jobs in sorted(progress.jobs.items()))
    return f"imports: {states}, {progress.percent:.0f} % done" if states else ""


def load(request: LoadRequest, settings: Settings) -> LoadResult:
    """Build a generation of finished runs beside the live one. Raises the errors of `load_runs`."""
    runs = find_runs(request.run_ids, settings)
    state = _LoadProgress(settings.alias, total=sum(run.summary.embedded for run in runs))
    milvus, store = open_milvus(settings), open_store(settings.runs)
    times = LoadTimes()
    transform = find_transform(request.transform, runs[0].fingerprint, settings)
    with span("load", alias=settings.alias), progress("load", "rows", state.read):
        options = replace(_options(request, settings, state), transform=transform)
        generation = load_runs(milvus, store, runs, alias=settings.alias, options=options, times=times)
    record = records.read(store, generation.name)
    assert record is not None  # noqa: S101  load_runs wrote it
    return LoadResult(generation, record.rows, record.target, times, unit=record.unit, crops=record.crops)


def load_increment(request: LoadRequest, settings: Settings) -> Increment:
    """Upsert finished runs into the live generation. Raises the errors of `load_into_live`."""
    if request.transform is not None:
        raise BadSetting(
            "an increment has the transform of the live generation", remedy="leave out --transform"
        )
    if request.unit != "crop":
        raise BadSetting(
            "an increment goes into a generation of crops", remedy="leave out --into-live or --unit"
        )
    runs = find_runs(request.run_ids, settings)
    state = _LoadProgress(settings.alias, total=sum(run.summary.embedded for run in runs))
    with progress("load", "rows", state.read):
        return load_into_live(
            open_milvus(settings),
            open_store(settings.runs),
            runs,
            lambda run_ids: [find_run(run_id, settings) for run_id in run_ids],
            alias=settings.alias,
            options=_options(request, settings, state),
        )


def _options(request: LoadRequest, settings: Settings, state: _LoadProgress) -> LoadOptions:
    return LoadOptions(
        index_type=request.index_type,
        target=request.target,
        milvus_bucket=settings.milvus_bucket,
        latest_wins=request.latest_wins,
        progress=state.set_rows,
        note=state.set_note,
        on_import=state.set_imports,
        reuse=True,
        unit=request.unit,
    )


def promote_generation(
    name: str,
    settings: Settings,
    *,
    new_model: bool,
    force: str | None,
    golden: str | None = None,
    full: bool = False,
) -> GateReport:
    """Measure a generation at the gate and, if it passes or is forced, point the alias to it.

    golden: URI of a table of golden probes, `uri, vehicle_id`. full: compare all rows, however many.
    Raises GateFailed with every failure, and Locked if the alias moved during the gate; the alias then stays
    where it is.
    """
    milvus = open_milvus(settings)
    live = live_generation(milvus, settings.alias)
    report = gate_generation(name, settings, new_model=new_model, golden=golden, full=full)
    if force and report.failures:
        logger.info(f"  overridden   {'; '.join(report.failures)}: {force}")
    store = open_store(settings.runs)
    promote(milvus, store, report.generation, force=force or "", replacing=live.name if live else None)
    return report


def gate_generation(
    name: str,
    settings: Settings,
    *,
    new_model: bool = False,
    golden: str | None = None,
    full: bool = False,
) -> GateReport:
    """Measure a generation at the gate and log the numbers. A failed gate is a report with failures.

    full: compare all rows, instead of a sample of a generation that has more than `gate_rows`, in Ray tasks.
    """
    milvus, reassigned = open_milvus(settings), read_reassigned(open_store(settings.runs))
    probes = golden_probes(read_label_table(golden), reassigned) if golden else None
    generation = find_generation(name, milvus, settings)
    record = records.read(open_store(settings.runs), generation.name)
    over_shards: OverShards = at_once
    if full and record is not None and record.rows > settings.gate_rows:
        from jobs.generations.shard_tasks import over_tasks  # only this gate needs Ray

        over_shards = over_tasks(settings)
    with span("gate", generation=generation.name):
        report = check_gate(
            milvus,
            open_store(settings.runs),
            generation,
            runs_of(generation, settings),
            new_model=new_model,
            golden=probes,
            budget=None if full else GateBudget(settings.gate_rows, settings.gate_seconds),
            over_shards=over_shards,
        )
    logger.info(_gate_text(report))
    show_gate(settings.alias, report)
    return report


def _gate_text(report: GateReport) -> str:
    golden = [
        f"  {title:<12} @1 {result.rank_1:.3f}, @10 {result.rank_10:.3f}, @50 {result.rank_50:.3f} "
        f"({result.probes:,} probes)"
        for title, result in (("golden CMC", report.golden), ("  live CMC", report.live_golden))
        if result
    ]
    low, high = report.recall_at_10_low, report.recall_at_10_high
    interval = f"[{low:.4f}, {high:.4f}] with 95 % confidence " if None not in (low, high) else ""
    return "\n".join(
        [
            f"generation {report.generation}",
            f"  rows         {report.rows_indexed:,} of {report.rows_expected:,}",
            f"  recall       @1 {report.recall_at_1:.4f}, @10 {report.recall_at_10:.4f} "
            f"{interval}(bar {report.recall_bar}, {report.probes:,} probes)",
            *_sample_lines(report),
            *golden,
            f"  latency      p50 {report.latency_p50_ms:.1f} ms, p95 {report.latency_p95_ms:.1f} ms",
            f"  gate         {'passed' if report.passed else 'FAILED: ' + '; '.join(report.failures)}",
        ]
    )


def _sample_lines(report: GateReport) -> list[str]:
    sample = report.sample
    if sample is None:
        return []
    differing = f", {sample.missing:,} missing, {sample.foreign:,} foreign"
    return [
        f"  sample       {sample.partitions:,} partitions, {sample.rows:,} rows compared"
        f"{differing if sample.missing or sample.foreign else ''}; {sample.rows_read:,} of "
        f"{sample.budget_rows:,} rows read, {sample.seconds:.1f} of {sample.budget_seconds:,.0f} s",
        f"  filtered     @10 {sample.filtered_recall_at_10:.4f}, which decides nothing",
    ]


def rollback_generation(
    settings: Settings, name: str | None = None, *, force: str | None = None
) -> RollbackResult:
    """Point the alias back to a generation, by default the previous one. Raises the errors of `rollback`."""
    milvus, store = open_milvus(settings), open_store(settings.runs)
    done = rollback(milvus, store, settings.alias, name, force=force or "")
    can_undo = done.replaced is not None and bool(milvus.call("has_collection", done.replaced))
    return RollbackResult(done, done.replaced if can_undo else None)


def retire_generations(settings: Settings, *, keep: int) -> Retirement:
    """Drop all but the newest generations, never the live or the previous one."""
    return retire(open_milvus(settings), open_store(settings.runs), settings.alias, keep=keep)


def verify_generation(name: str, settings: Settings) -> Reconciliation:
    """Compare every key of a generation with its runs; `live` is the generation of the alias."""
    milvus = open_milvus(settings)
    generation = (
        live_generation(milvus, settings.alias) if name == LIVE else find_generation(name, milvus, settings)
    )
    if generation is None:
        raise BadInput(f"alias {settings.alias} points to no generation", remedy="promote one: clvr promote")
    counts = reconcile(milvus, open_store(settings.runs), generation, runs_of(generation, settings))
    show_gap(settings.alias, expected=counts.expected, indexed=counts.indexed)
    return counts
