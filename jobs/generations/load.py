"""`clvr load`, `promote`, `rollback`, `retire`, `verify`: runs become a generation, and one goes live."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from index.archive.labels import read_label_table
from index.generations import records
from index.generations.gate import GateReport, check_gate, golden_probes
from index.generations.load import LoadOptions, LoadTimes, Target, build_generation
from index.generations.promotion import Retirement, promote, retire, rollback
from index.generations.reconcile import Reconciliation, reconcile
from index.generations.upsert import Increment, load_into_live
from index.lock import ROWS, acquire
from index.milvus.bulk_import import ImportProgress
from index.milvus.collection import Generation, live_generation
from index.runs.run import Run
from infra.errors import BadInput
from infra.logging import logger
from infra.settings import Settings
from infra.store import open_store
from jobs.runtime.metrics import show_gap, show_gate, show_load
from jobs.runtime.progress import ProgressState, progress
from jobs.runtime.resolve import find_generation, find_run, find_runs, open_milvus

LIVE = "live"


@dataclass(slots=True)
class _LoadProgress:
    alias: str
    done: int = 0
    total: int = 0
    note: str = ""
    imports: ImportProgress = field(default_factory=lambda: ImportProgress(0, Counter()))

    def rows(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    def say(self, note: str) -> None:
        self.note = note

    def show_imports(self, progress: ImportProgress) -> None:
        self.imports = progress

    def standing(self) -> ProgressState:
        show_load(self.alias, done=self.done, total=self.total, states=self.imports.jobs)
        return ProgressState(self.done, self.total, imports_text(self.imports) or self.note)


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What `clvr load` built, and the seconds of its steps."""

    generation: Generation
    rows: int
    target: str
    seconds: LoadTimes

    def __str__(self) -> str:
        """Two lines for a person."""
        spent = self.seconds
        return (
            f"generation {self.generation.name}: {self.rows:,} rows, {self.generation.index.type}, by "
            f"{self.target}; check {spent.check:.1f} s, fill {spent.fill:.1f} s, index {spent.index:.1f} s, "
            f"load {spent.ready:.1f} s\nnext: clvr promote {self.generation.name}"
        )


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What `clvr load` was asked for."""

    run_ids: tuple[str, ...]
    index_type: str = "auto"
    target: Target = "auto"
    latest_wins: bool = False


def load_generation(run_ids: Sequence[str], settings: Settings, *, index_type: str = "auto") -> Generation:
    """Build a generation of finished runs beside the live one. Raises what `load_runs` raises."""
    return load(LoadRequest(tuple(run_ids), index_type), settings).generation


def load(request: LoadRequest, settings: Settings) -> LoadResult:
    """Build a generation of finished runs beside the live one. Raises what `load_runs` raises."""
    runs = find_runs(request.run_ids, settings)
    count = _LoadProgress(settings.alias, total=sum(run.summary.embedded for run in runs))
    milvus, store = open_milvus(settings), open_store(settings.runs)
    times = LoadTimes()
    with (
        progress("load", "rows", count.standing),
        acquire(store, ROWS, f"a load of alias {settings.alias}") as lock,
    ):
        options = _options(request, settings, count)
        generation = build_generation(
            milvus, store, runs, lock, alias=settings.alias, options=options, times=times
        )
    entry = records.read(store, generation.name)
    assert entry is not None  # noqa: S101  build wrote it
    return LoadResult(generation, entry.rows, entry.target, times)


def load_increment(request: LoadRequest, settings: Settings) -> Increment:
    """Bring finished runs into the live generation. Raises what `load_into_live` raises."""
    runs = find_runs(request.run_ids, settings)
    count = _LoadProgress(settings.alias, total=sum(run.summary.embedded for run in runs))
    with progress("load", "rows", count.standing):
        return load_into_live(
            open_milvus(settings),
            open_store(settings.runs),
            runs,
            lambda run_ids: [find_run(run_id, settings) for run_id in run_ids],
            alias=settings.alias,
            options=_options(request, settings, count),
        )


def promote_generation(
    name: str, settings: Settings, *, new_model: bool, force: str | None, golden: str | None = None
) -> GateReport:
    """Measure a generation at the gate and, if it passes or is forced, point the alias to it.

    golden: URI of a table of golden probes, `uri, vehicle_id`.
    Raises GateFailed, with every failure, and then the alias has not moved.
    """
    report = gate_generation(name, settings, new_model=new_model, golden=golden)
    if force and report.failures:
        logger.info(f"  overridden   {'; '.join(report.failures)}: {force}")
    promote(open_milvus(settings), open_store(settings.runs), report.generation, force=force or "")
    return report


def gate_generation(
    name: str, settings: Settings, *, new_model: bool = False, golden: str | None = None
) -> GateReport:
    """Measure a generation at the gate. One that does not pass is a report with failures, not an error."""
    probes = golden_probes(read_label_table(golden)) if golden else None
    milvus = open_milvus(settings)
    generation = find_generation(name, milvus, settings)
    report = check_gate(
        milvus,
        open_store(settings.runs),
        generation,
        _runs_of(generation, settings),
        new_model=new_model,
        golden=probes,
    )
    logger.info(gate_text(report))
    show_gate(settings.alias, report)
    return report


def rollback_generation(settings: Settings, *, force: str | None = None) -> Generation:
    """Point the alias back to the generation before. Raises BadInput where there is none, GateFailed."""
    return rollback(open_milvus(settings), open_store(settings.runs), settings.alias, force=force or "")


def retire_generations(settings: Settings, *, keep: int) -> Retirement:
    """Drop all but the newest generations, never the live or the previous one."""
    return retire(open_milvus(settings), open_store(settings.runs), settings.alias, keep=keep)


def verify_generation(name: str, settings: Settings) -> Reconciliation:
    """Hold every key of a generation against its runs; `live` is the one that the alias points to."""
    milvus = open_milvus(settings)
    current = (
        live_generation(milvus, settings.alias) if name == LIVE else find_generation(name, milvus, settings)
    )
    if current is None:
        raise BadInput(f"alias {settings.alias} points to no generation", remedy="promote one: clvr promote")
    found = reconcile(milvus, open_store(settings.runs), current, _runs_of(current, settings))
    show_gap(settings.alias, expected=found.expected, indexed=found.indexed)
    return found


def imports_text(progress: ImportProgress) -> str:
    """The running imports of a load in one phrase, "" without one."""
    states = ", ".join(f"{jobs} {state}" for state, jobs in sorted(progress.jobs.items()))
    return f"imports: {states}, {progress.percent:.0f} % done" if states else ""


def gate_text(report: GateReport) -> str:
    """The gate's numbers as a person reads them."""
    golden = []
    for where, found in (("golden CMC", report.golden), ("  live CMC", report.live_golden)):
        if found:
            golden.append(
                f"  {where:<12} @1 {found.rank_1:.3f}, @10 {found.rank_10:.3f}, @50 {found.rank_50:.3f} "
                f"({found.probes:,} probes)"
            )
    lines = [
        f"generation {report.generation}",
        f"  rows         {report.rows_indexed:,} of {report.rows_expected:,}",
        f"  recall       @1 {report.recall_at_1:.4f}, @10 {report.recall_at_10:.4f} "
        f"(bar {report.recall_bar}, {report.probes:,} probes)",
        *golden,
        f"  latency      p50 {report.latency_p50_ms:.1f} ms, p95 {report.latency_p95_ms:.1f} ms",
        f"  gate         {'passed' if report.passed else 'FAILED: ' + '; '.join(report.failures)}",
    ]
    return "\n".join(lines)


def increment_text(done: Increment) -> str:
    """What came of an increment, as a person reads it."""
    if done.promote_next:
        return (
            f"too large for the live generation: {done.generation.name} is built of all runs, "
            f"{done.rows_after:,} rows\nnext: clvr promote {done.generation.name}"
        )
    return (
        f"{done.generation.name}: {done.upserted:,} rows upserted, {done.removed:,} vanished rows removed, "
        f"{done.rows_before:,} -> {done.rows_after:,} rows"
    )


def verify_text(found: Reconciliation) -> str:
    """The proof as a person reads it."""
    proof = "DIFFERS: " + "; ".join(found.differences) if found.differences else "matches"
    lines = [
        f"generation {found.generation} ({found.state}), runs {', '.join(found.runs)}",
        f"  listed {found.listed:,} = embedded {found.embedded:,} + quarantined {found.quarantined:,} "
        f"+ duplicates {found.duplicates:,}",
        f"  embedded {found.embedded:,} - superseded {found.superseded:,} - vanished {found.vanished:,} "
        f"- erased {found.erased:,} = {found.expected:,}; count(*) {found.indexed:,}",
        f"  every key    {proof}",
    ]
    return "\n".join(lines)


def _options(request: LoadRequest, settings: Settings, count: _LoadProgress) -> LoadOptions:
    return LoadOptions(
        index_type=request.index_type,
        target=request.target,
        milvus_bucket=settings.milvus_bucket,
        latest_wins=request.latest_wins,
        progress=count.rows,
        note=count.say,
        on_import=count.show_imports,
    )


def _runs_of(generation: Generation, settings: Settings) -> list[Run]:
    entry = records.read(open_store(settings.runs), generation.name)
    return [find_run(run_id, settings) for run_id in (entry.run_ids if entry else generation.run_ids)]
