"""The account of a run while it is embedded: rows, causes and seconds by part, and when to stop."""

from collections import Counter
from dataclasses import dataclass, field

from infra.errors import BudgetExceeded, ClvrError
from jobs.embed.part import PartReport
from jobs.runtime.progress import ProgressState

# The rate is taken of at least so many rows: bad pictures come in clusters, and ten of them are no bad night.
BUDGET_ROWS = 1000
MAX_ATTEMPTS = 5


class PartRetriesExhausted(ClvrError):
    """A part whose worker died again and again: a crash of a decoder, or no memory."""


@dataclass(slots=True)
class Totals:
    """Sums over parts; see PartReport for the seconds."""

    embedded: int = 0
    quarantined: int = 0
    bytes: int = 0
    waiting_seconds: float = 0.0
    model_seconds: float = 0.0
    writing_seconds: float = 0.0
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0
    causes: Counter[str] = field(default_factory=Counter)

    def add(self, report: PartReport, *, times: int = 1) -> None:
        """Count one part in, or out again with `times=-1`."""
        for name in self.__slots__:
            if name != "causes":
                setattr(self, name, getattr(self, name) + times * getattr(report, name))
        self.causes.update({cause: times * count for cause, count in report.causes.items()})

    @property
    def seconds(self) -> float:
        """Wall seconds of all actors together."""
        return self.waiting_seconds + self.model_seconds + self.writing_seconds

    @property
    def model_share(self) -> float:
        """Share of their time in which actors were in the model."""
        return self.model_seconds / self.seconds if self.seconds else 0.0


class EmbedBoard:
    """What actors report, by part: an actor that died and was replaced does not count twice.

    before: rows of an interrupted run that stand already, embedded and quarantined by cause.
    """

    def __init__(self, total: int, before: tuple[int, dict[str, int]], max_quarantine_rate: float) -> None:
        self.total = total
        self.before, self.before_causes = before[0], Counter(before[1])
        self.max_quarantine_rate = max_quarantine_rate
        self.parts: dict[int, PartReport] = {}
        self.totals = Totals()
        self.attempts: Counter[int] = Counter()

    def begin(self, part: int) -> None:
        """Note that an actor starts a part. Raises PartRetriesExhausted after MAX_ATTEMPTS of them."""
        self.attempts[part] += 1
        if self.attempts[part] > MAX_ATTEMPTS:
            raise PartRetriesExhausted(
                f"part {part} was started {MAX_ATTEMPTS} times, and each time its worker died",
                remedy="look at the memory of the nodes and at Ray's worker logs; the same command continues",
            )

    def report(self, report: PartReport) -> None:
        """Take how far a part is. Raises BudgetExceeded where too many crops failed; that stops the actor."""
        if (earlier := self.parts.get(report.part)) is not None:
            self.totals.add(earlier, times=-1)
        self.parts[report.part] = report
        self.totals.add(report)
        totals = self.totals
        bad = totals.quarantined + self.before_causes.total()
        seen = totals.embedded + totals.quarantined + self.before + self.before_causes.total()
        if bad > self.max_quarantine_rate * max(seen, BUDGET_ROWS):
            most = (totals.causes + self.before_causes).most_common(5)
            causes = ", ".join(f"{cause} {count:,}" for cause, count in most)
            raise BudgetExceeded(
                f"{bad:,} of {seen:,} crops could not be embedded ({causes}), "
                f"more than the {self.max_quarantine_rate:.1%} that --max-quarantine-rate allows",
                remedy="look at the causes; the same command with a higher rate continues where this stopped",
            )

    def sum(self) -> Totals:
        """Return what this attempt at the run did."""
        return self.totals

    def read(self) -> ProgressState:
        """Answer for a progress display."""
        totals = self.totals
        bad = totals.quarantined + self.before_causes.total()
        done = totals.embedded + self.before + bad
        notes = [f"model busy {totals.model_share:.0%}"] if totals.seconds else []
        return ProgressState(done, self.total, ", ".join([*notes, f"{bad:,} quarantined"]))
