"""Timings of a run: one small record per attempt, which tells where the time went."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self

from index.documents import JsonDocument
from index.runs.folder import RunFolder

STAGES = ("waiting", "model", "writing")


@dataclass(frozen=True, slots=True)
class Timings(JsonDocument):
    """The timings of one attempt: wall seconds of the job, then sums over its actors.

    `waiting`, `model` and `writing` add up to the time of the actors; `fetch` and `decode` are seconds of
    their loading threads. An attempt whose driver was killed leaves no record.
    """

    started: str
    actors: int
    rows: int
    bytes: int = 0
    planning_seconds: float = 0.0
    startup_seconds: float = 0.0
    """From the start of the job to the first embedded rows; includes planning."""
    embedding_seconds: float = 0.0
    compacting_seconds: float = 0.0
    finishing_seconds: float = 0.0
    waiting_seconds: float = 0.0
    model_seconds: float = 0.0
    writing_seconds: float = 0.0
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0

    def __add__(self, other: Self) -> "Timings":
        """Add two attempts: the start of the first, the actors of the second."""
        sums = {
            name: getattr(self, name) + getattr(other, name)
            for name in (field.name for field in fields(self))
            if name not in ("started", "actors")
        }
        return Timings(self.started, other.actors, **sums)

    def shares(self) -> dict[str, float]:
        """Return the share of the actors' time by stage; empty if nothing was embedded."""
        total = sum(getattr(self, f"{stage}_seconds") for stage in STAGES)
        return {stage: getattr(self, f"{stage}_seconds") / total for stage in STAGES} if total else {}

    def bottleneck(self) -> str:
        """Name the stage that took most of the actors' time, and a remedy."""
        shares = self.shares()
        if not shares:
            return "nothing was embedded"
        stage = max(shares, key=lambda name: shares[name])
        if stage == "model":
            return f"the model ({shares[stage]:.0%} of the actors' time): more cores or GPUs make it faster"
        if stage == "writing":
            return f"writing ({shares[stage]:.0%} of the actors' time): the store of the runs is slow"
        if self.fetch_seconds > 4 * self.decode_seconds:
            return f"fetching (the model waited {shares[stage]:.0%} of the time): the archive's store is slow"
        return f"decoding (the model waited {shares[stage]:.0%} of the time): give each actor more cores"


def write_timings(folder: RunFolder, timings: Timings) -> None:
    """Write the timings of one attempt into the folder of its run."""
    name = timings.started.translate({ord(":"): None, ord("+"): None})
    folder.store.put(folder.key(f"timings/{name}.json"), timings.to_json())


def read_timings(folder: RunFolder) -> list[Timings]:
    """Return the timings of all attempts, the earliest first. Raises SchemaMismatch."""
    keys = sorted(info.key for info in folder.store.list(folder.key("timings")))
    return [Timings.read(folder.store, key) for key in keys]


def sum_timings(attempts: Iterable[Timings]) -> Timings | None:
    """Add the timings of attempts; None if there are none."""
    total: Timings | None = None
    for attempt in attempts:
        total = attempt if total is None else total + attempt
    return total
