"""Where the time of a run went: one small document an attempt, beside the run's ledger."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self

from index.documents import JsonDocument
from index.runs.folder import RunFolder

STAGES = ("waiting", "model", "writing")


@dataclass(frozen=True, slots=True)
class Timings(JsonDocument):
    """One attempt at a run. Wall seconds of the job first, then sums over its actors.

    `waiting`, `model` and `writing` add up to the actors' time; `fetch` and `decode` are seconds of the
    loading threads beside them. An attempt whose driver was killed leaves no such document.
    """

    started: str
    actors: int
    rows: int
    bytes: int = 0
    planning_seconds: float = 0.0
    startup_seconds: float = 0.0
    """From the first line of the job to the first embedded rows; planning is part of it."""
    embedding_seconds: float = 0.0
    compacting_seconds: float = 0.0
    finishing_seconds: float = 0.0
    waiting_seconds: float = 0.0
    model_seconds: float = 0.0
    writing_seconds: float = 0.0
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0

    def __add__(self, other: Self) -> "Timings":
        """Two attempts together: the start of the first, the actors of the second."""
        added = {
            name: getattr(self, name) + getattr(other, name)
            for name in (field.name for field in fields(self))
            if name not in ("started", "actors")
        }
        return Timings(self.started, other.actors, **added)

    def shares(self) -> dict[str, float]:
        """Share of the actors' time by stage; empty where nothing was embedded."""
        total = sum(getattr(self, f"{stage}_seconds") for stage in STAGES)
        return {stage: getattr(self, f"{stage}_seconds") / total for stage in STAGES} if total else {}

    def bottleneck(self) -> str:
        """Name what the actors spent most of their time on, and what to do about it."""
        shares = self.shares()
        if not shares:
            return "nothing was embedded"
        most = max(shares, key=lambda stage: shares[stage])
        if most == "model":
            return f"the model ({shares[most]:.0%} of the actors' time): more cores or GPUs make it faster"
        if most == "writing":
            return f"writing ({shares[most]:.0%} of the actors' time): the store of the runs is slow"
        if self.fetch_seconds > 4 * self.decode_seconds:
            return f"fetching (the model waited {shares[most]:.0%} of the time): the archive's store is slow"
        return f"decoding (the model waited {shares[most]:.0%} of the time): give each actor more cores"


def write_timings(folder: RunFolder, timings: Timings) -> None:
    """Put one attempt's document into the run's folder."""
    name = timings.started.translate({ord(":"): None, ord("+"): None})
    folder.store.put(folder.key(f"timings/{name}.json"), timings.to_json())


def read_timings(folder: RunFolder) -> list[Timings]:
    """Return the documents of all attempts, the earliest first. Raises SchemaMismatch."""
    keys = sorted(found.key for found in folder.store.list(folder.key("timings")))
    return [Timings.read(folder.store, key) for key in keys]


def total_of(attempts: Iterable[Timings]) -> Timings | None:
    """Add up attempts; None for none."""
    total: Timings | None = None
    for attempt in attempts:
        total = attempt if total is None else total + attempt
    return total
