"""`clvr generations`: the generations of an alias with their states, quality and size."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from index.documents import OptionalUtcTime
from index.generations import records
from index.generations.records import GenerationRecord, Unit, previous
from index.milvus.collection import Generation, list_generations, live_generation
from index.schema import EMBEDDING_DIM
from infra.settings import Settings
from infra.store import open_store
from jobs.generations.load import rows_text
from jobs.runtime.format import age
from jobs.runtime.json_fields import FieldsOf
from jobs.runtime.resolve import open_milvus

_SCALAR_BYTES = 256
"""About the bytes of the other columns of a row; a graph index takes more."""


@dataclass(frozen=True, slots=True)
class GenerationRow:
    """One generation in the list. Not `exists`: the collection is gone, although the record is `ready`.

    crops: how many are on the rows, if a row is a track.
    """

    name: str
    state: str
    rows: int
    bytes: int
    index: str
    fingerprint: str
    recall_at_10: float | None
    created: OptionalUtcTime
    live: bool
    previous: bool
    runs: tuple[str, ...]
    pending: tuple[str, ...]
    exists: bool = True
    transform: str = ""
    dimension: int = EMBEDDING_DIM
    unit: Unit = "crop"
    crops: int | None = None

    def to_text(self) -> str:
        """Return the generation as one line."""
        if not self.exists:
            state = f"{self.state}  its collection is gone; the next clvr retire records that"
            return f"{'':<8}  {self.name}  {state}"
        role = "live" if self.live else "previous" if self.previous else ""
        recall = (
            f"recall@10 {self.recall_at_10:.3f}" if self.recall_at_10 is not None else "not through the gate"
        )
        pending = f"  increment of {', '.join(self.pending)} was cut off" if self.pending else ""
        transform = f"  {self.transform}" if self.transform else ""
        rows = rows_text(self.rows, self.crops)
        return (
            f"{role:<8}  {self.name}  {self.state}  {rows}  {self.bytes / 1e6:,.0f} MB  "
            f"{self.index}{transform}  {recall}  {age(self.created)} old{pending}"
        )


@dataclass(frozen=True, slots=True)
class GenerationList:
    """The result of `clvr generations`, oldest first."""

    rows: tuple[GenerationRow, ...]

    def to_text(self) -> str:
        """Return one line per generation."""
        if not self.rows:
            return "no generation yet; build one: clvr load latest"
        return "\n".join(row.to_text() for row in self.rows)

    def to_json(self) -> list[Annotated[dict[str, Any], FieldsOf(GenerationRow)]]:
        """Return one JSON object per generation."""
        return [asdict(row) for row in self.rows]


def list_alias_generations(settings: Settings) -> GenerationList:
    """List the generations of the alias."""
    milvus = open_milvus(settings)
    store = open_store(settings.runs)
    live = live_generation(milvus, settings.alias)
    rollback_target = previous(milvus, store, settings.alias)
    rows = [
        _row(
            generation,
            records.read(store, generation.name),
            is_live=generation == live,
            is_previous=generation == rollback_target,
        )
        for generation in list_generations(milvus, settings.alias)
    ]
    gone = [_dropped_row(record) for record in records.without_collection(milvus, store, settings.alias)]
    return GenerationList((*gone, *rows))


def _dropped_row(record: GenerationRecord) -> GenerationRow:
    return GenerationRow(
        name=record.name,
        state="dropped",
        rows=0,
        bytes=0,
        index="",
        fingerprint=record.fingerprint,
        recall_at_10=None,
        created="",
        live=False,
        previous=False,
        runs=record.run_ids,
        pending=record.pending,
        exists=False,
        unit=record.unit,
    )


def _row(
    generation: Generation, record: GenerationRecord | None, *, is_live: bool, is_previous: bool
) -> GenerationRow:
    rows = record.rows if record else 0
    return GenerationRow(
        name=generation.name,
        state=record.state if record else "unknown",
        rows=rows,
        bytes=rows * (4 * generation.dimension + _SCALAR_BYTES),
        index=generation.index.type,
        fingerprint=generation.fingerprint,
        recall_at_10=record.gate["recall_at_10"] if record and record.gate else None,
        created=generation.created,
        live=is_live,
        previous=is_previous,
        runs=record.run_ids if record else generation.run_ids,
        pending=record.pending if record else (),
        transform=generation.transform,
        dimension=generation.dimension,
        unit=record.unit if record else "crop",
        crops=record.crops if record else None,
    )
