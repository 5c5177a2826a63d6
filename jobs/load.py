"""`clvr load`, `promote`, `rollback`, `generations`: runs become a generation, and a generation goes live."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from index import generation_ledger
from index.bulk_load import load_runs
from index.generations import Generation, list_generations, live
from index.promote import GateReport, check_gate, promote, rollback
from infra.settings import Settings
from infra.store import open_store
from jobs.progress import Standing, console, progress
from jobs.which import find_generation, find_run, find_runs, open_milvus


@dataclass(slots=True)
class _Count:
    done: int = 0
    total: int = 0

    def __call__(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    def standing(self) -> Standing:
        return Standing(self.done, self.total)


@dataclass(frozen=True, slots=True)
class GenerationRow:
    """One line of `clvr generations`."""

    name: str
    state: str
    rows: int
    index: str
    fingerprint: str
    recall_at_10: float | None
    created: str
    live: bool


def load_generation(run_ids: Sequence[str], settings: Settings, *, index_type: str = "auto") -> Generation:
    """Build a generation of finished runs beside the live one. Raises what `load_runs` raises."""
    runs = find_runs(run_ids, settings)
    count = _Count(total=sum(run.summary.embedded for run in runs))
    with progress("load", "rows", count.standing):
        return load_runs(
            open_milvus(settings),
            open_store(settings.runs),
            runs,
            alias=settings.alias,
            index_type=index_type,
            milvus_bucket=settings.milvus_bucket,
            progress=count,
        )


def promote_generation(name: str, settings: Settings, *, new_model: bool, force: str | None) -> GateReport:
    """Measure a generation at the gate and, if it passes or is forced, point the alias to it.

    Raises GateFailed, with every failure, and then the alias has not moved.
    """
    milvus = open_milvus(settings)
    store = open_store(settings.runs)
    generation = find_generation(name, milvus, settings)
    runs = [find_run(run_id, settings) for run_id in generation.run_ids]
    report = check_gate(milvus, store, generation, runs, new_model=new_model)
    console.print(gate_text(report))
    promote(milvus, store, generation.name, force=force or "")
    return report


def rollback_generation(settings: Settings) -> Generation:
    """Point the alias back to the generation before. Raises BadInput where there is none."""
    return rollback(open_milvus(settings), open_store(settings.runs), settings.alias)


def generation_rows(settings: Settings) -> list[GenerationRow]:
    """Every generation of the alias, the oldest first."""
    milvus = open_milvus(settings)
    store = open_store(settings.runs)
    current = live(milvus, settings.alias)
    rows = []
    for generation in sorted(list_generations(milvus, settings.alias), key=lambda each: each.created):
        entry = generation_ledger.read(store, generation.name)
        rows.append(
            GenerationRow(
                name=generation.name,
                state=entry.state if entry else "unknown",
                rows=entry.rows if entry else 0,
                index=generation.index.type,
                fingerprint=generation.fingerprint,
                recall_at_10=entry.gate["recall_at_10"] if entry and entry.gate else None,
                created=generation.created,
                live=current is not None and current.name == generation.name,
            )
        )
    return rows


def gate_text(report: GateReport) -> str:
    """The gate's numbers as a person reads them."""
    lines = [
        f"generation {report.generation}",
        f"  rows         {report.rows_indexed:,} of {report.rows_expected:,}",
        f"  recall       @1 {report.recall_at_1:.4f}, @10 {report.recall_at_10:.4f} "
        f"(bar {report.recall_bar}, {report.probes:,} probes)",
        f"  latency      p50 {report.latency_p50_ms:.1f} ms, p95 {report.latency_p95_ms:.1f} ms",
        f"  gate         {'passed' if report.passed else 'FAILED: ' + '; '.join(report.failures)}",
    ]
    return "\n".join(lines)


def rows_text(rows: Sequence[GenerationRow]) -> str:
    """The generations as a person reads them."""
    if not rows:
        return "no generation yet; build one: clvr load latest"
    return "\n".join(
        f"{'* ' if row.live else '  '}{row.name}  {row.state}  {row.rows:,} rows  {row.index}  "
        + (f"recall@10 {row.recall_at_10:.3f}" if row.recall_at_10 is not None else "not through the gate")
        for row in rows
    )


def as_documents(rows: Sequence[GenerationRow]) -> list[dict[str, object]]:
    """The generations as a machine reads them."""
    return [asdict(row) for row in rows]
