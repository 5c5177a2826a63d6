"""Times of a run by phase and stage: one record per attempt, in the run's folder."""

from collections.abc import Iterable
from dataclasses import dataclass, fields

from index.documents import JsonDocument
from index.runs.folder import RunFolder

STAGES = ("waiting", "model", "writing")
"""Stages that follow each other in an actor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSeconds:
    """Seconds of the stages of embedding, summed over actors.

    `waiting` (for images), `model` and `writing` (where the model waits for it) add up to the actors' time;
    `fetch` and `decode` are seconds of the decoders that run beside them.
    """

    waiting_seconds: float = 0.0
    model_seconds: float = 0.0
    writing_seconds: float = 0.0
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0

    def __add__(self, other: "StageSeconds") -> "StageSeconds":
        return StageSeconds(
            **{
                stage.name: getattr(self, stage.name) + getattr(other, stage.name)
                for stage in fields(StageSeconds)
            }
        )

    def __sub__(self, other: "StageSeconds") -> "StageSeconds":
        return StageSeconds(
            **{
                stage.name: getattr(self, stage.name) - getattr(other, stage.name)
                for stage in fields(StageSeconds)
            }
        )

    @property
    def actor_seconds(self) -> float:
        """Wall seconds of all actors together."""
        return self.waiting_seconds + self.model_seconds + self.writing_seconds

    @property
    def model_busy_share(self) -> float:
        """Share of the actors' time that they spent in the model."""
        return self.model_seconds / self.actor_seconds if self.actor_seconds else 0.0


@dataclass(frozen=True, slots=True)
class Timings(StageSeconds, JsonDocument):
    """One attempt at a run: wall seconds of the job's phases, then the stages of its actors.

    An attempt whose driver was killed leaves no record.
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

    def __add__(self, other: StageSeconds) -> "Timings":
        """Add two attempts: the start of the first, the actors of the second."""
        if not isinstance(other, Timings):
            return NotImplemented
        sums = {
            name: getattr(self, name) + getattr(other, name)
            for name in (field.name for field in fields(self))
            if name not in ("started", "actors")
        }
        return Timings(started=self.started, actors=other.actors, **sums)

    def shares(self) -> dict[str, float]:
        """Return the share of the actors' time by stage; empty if nothing was embedded."""
        total = self.actor_seconds
        return {stage: getattr(self, f"{stage}_seconds") / total for stage in STAGES} if total else {}

    def bottleneck(self) -> str:
        """Name the stage that took most of the actors' time, and what makes it faster."""
        shares = self.shares()
        if not shares:
            return "nothing was embedded"
        slowest = max(shares, key=lambda stage: shares[stage])
        if slowest == "model":
            return f"the model ({shares[slowest]:.0%} of the actors' time): more cores or GPUs make it faster"
        if slowest == "writing":
            return f"writing ({shares[slowest]:.0%} of the actors' time): the store of the runs is slow"
        if self.fetch_seconds > 4 * self.decode_seconds:
            return (
                f"fetching (the model waited {shares[slowest]:.0%} of the time): the archive's store is slow"
            )
        return f"decoding (the model waited {shares[slowest]:.0%} of the time): give each actor more cores"


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
