"""`clvr generations`: what there is, how good it is, how large, and who is live."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from index.generations import records
from index.generations.records import previous
from index.milvus.collection import Generation, list_generations, live_generation
from index.schema import EMBEDDING_DIM
from infra.settings import Settings
from infra.store import open_store
from jobs.runtime.resolve import open_milvus

_BYTES_A_ROW = 4 * EMBEDDING_DIM + 256
"""The vector and about what the names of a row take; an index of graphs takes some more."""


@dataclass(frozen=True, slots=True)
class GenerationRow:
    """One line of `clvr generations`."""

    name: str
    state: str
    rows: int
    bytes: int
    index: str
    fingerprint: str
    recall_at_10: float | None
    created: str
    live: bool
    previous: bool
    runs: tuple[str, ...]
    pending: tuple[str, ...]


def generation_rows(settings: Settings) -> list[GenerationRow]:
    """Every generation of the alias, the oldest first."""
    milvus = open_milvus(settings)
    store = open_store(settings.runs)
    current, before = live_generation(milvus, settings.alias), previous(milvus, store, settings.alias)
    return [
        _row(one, records.read(store, one.name), live=one == current, previous=one == before)
        for one in list_generations(milvus, settings.alias)
    ]


def rows_text(rows: Sequence[GenerationRow]) -> str:
    """The generations as a person reads them."""
    if not rows:
        return "no generation yet; build one: clvr load latest"
    return "\n".join(_line(row) for row in rows)


def as_documents(rows: Sequence[GenerationRow]) -> list[dict[str, object]]:
    """The generations as a machine reads them."""
    return [asdict(row) for row in rows]


def _row(
    one: Generation, entry: records.GenerationRecord | None, *, live: bool, previous: bool
) -> GenerationRow:
    rows = entry.rows if entry else 0
    return GenerationRow(
        name=one.name,
        state=entry.state if entry else "unknown",
        rows=rows,
        bytes=rows * _BYTES_A_ROW,
        index=one.index.type,
        fingerprint=one.fingerprint,
        recall_at_10=entry.gate["recall_at_10"] if entry and entry.gate else None,
        created=one.created,
        live=live,
        previous=previous,
        runs=entry.run_ids if entry else one.run_ids,
        pending=entry.pending if entry else (),
    )


def _line(row: GenerationRow) -> str:
    role = "live" if row.live else "previous" if row.previous else ""
    recall = f"recall@10 {row.recall_at_10:.3f}" if row.recall_at_10 is not None else "not through the gate"
    cut = f"  increment of {', '.join(row.pending)} was cut off" if row.pending else ""
    return (
        f"{role:<8}  {row.name}  {row.state}  {row.rows:,} rows  {row.bytes / 1e6:,.0f} MB  {row.index}  "
        f"{recall}  {_age(row.created)} old{cut}"
    )


def _age(created: str) -> str:
    seconds = (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
