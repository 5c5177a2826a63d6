"""Totals of a run while it is embedded: crops, causes and seconds by part, and when to stop the run."""

import time
from collections import Counter
from dataclasses import dataclass, field

from index.runs.timings import StageSeconds
from infra.errors import BudgetExceeded, ClvrError
from jobs.embed.part import PartReport
from jobs.runtime.progress import ProgressState

# The rate is taken over at least so many rows: bad images come in clusters, and ten of them mean nothing.
MIN_BUDGET_ROWS = 1000
MAX_ATTEMPTS = 5


class PartRetriesExhausted(ClvrError):
    """The worker of a part died in every attempt, such as for want of memory."""


@dataclass(slots=True)
class Totals:
    """Sums over parts."""

    embedded: int = 0
    quarantined: int = 0
    bytes: int = 0
    seconds: StageSeconds = field(default_factory=StageSeconds)
    causes: Counter[str] = field(default_factory=Counter)
    first_report: float | None = None  # by the monotonic clock of the driver's node

    def replace(self, before: PartReport, report: PartReport) -> None:
        """Count a report in, and the earlier report of the same part out."""
        self.embedded += report.embedded - before.embedded
        self.quarantined += report.quarantined - before.quarantined
        self.bytes += report.bytes - before.bytes
        self.seconds = self.seconds + report.seconds - before.seconds
        self.causes.update(report.causes)
        self.causes.subtract(before.causes)


class EmbedMonitor:
    """The reports of all actors by part: a part whose actor died and was replaced counts once.

    Reports are kept of the parts in progress only.
    done_before: crops of earlier attempts at the run, embedded and quarantined by cause.
    """

    def __init__(
        self, total: int, done_before: tuple[int, dict[str, int]], max_quarantine_rate: float
    ) -> None:
        self.total = total
        self.embedded_before, self.causes_before = done_before[0], Counter(done_before[1])
        self.max_quarantine_rate = max_quarantine_rate
        self.reports: dict[int, PartReport] = {}
        self.totals = Totals()
        self.attempts: Counter[int] = Counter()
        self.finished: set[int] = set()

    def start_attempt(self, part: int) -> None:
        """Count an actor that starts a part. Raises PartRetriesExhausted after MAX_ATTEMPTS."""
        self.attempts[part] += 1
        if self.attempts[part] > MAX_ATTEMPTS:
            raise PartRetriesExhausted(
                f"part {part} was started {MAX_ATTEMPTS} times, and each time its worker died",
                remedy="check the memory of the nodes and Ray's worker logs; the same command continues",
            )

    def report(self, report: PartReport, *, last: bool = False) -> None:
        """Replace the report of a part; the last one is of a finished part, which counts once.

        Raises BudgetExceeded for too many failures; that stops the actor.
        """
        if report.part in self.finished:
            return
        if self.totals.first_report is None:
            self.totals.first_report = time.monotonic()
        before = self.reports.get(report.part, PartReport(report.part))
        self.reports[report.part] = report
        self.totals.replace(before, report)
        if last:
            self.finished.add(report.part)
            del self.reports[report.part], self.attempts[report.part]
        totals = self.totals
        quarantined = totals.quarantined + self.causes_before.total()
        processed = totals.embedded + self.embedded_before + quarantined
        if quarantined > self.max_quarantine_rate * max(processed, MIN_BUDGET_ROWS):
            common = (totals.causes + self.causes_before).most_common(5)
            causes = ", ".join(f"{cause} {count:,}" for cause, count in common)
            raise BudgetExceeded(
                f"{quarantined:,} of {processed:,} crops could not be embedded ({causes}), "
                f"more than the {self.max_quarantine_rate:.1%} that --max-quarantine-rate allows",
                remedy="look at the causes; the same command with a higher rate continues this run",
            )

    def sum(self) -> Totals:
        """Return the sums over the parts of this attempt at the run."""
        return self.totals

    def read(self) -> ProgressState:
        """Return the state for a progress display."""
        totals = self.totals
        quarantined = totals.quarantined + self.causes_before.total()
        done = totals.embedded + self.embedded_before + quarantined
        busy = [f"model busy {totals.seconds.model_busy_share:.0%}"] if totals.seconds.actor_seconds else []
        return ProgressState(done, self.total, ", ".join([*busy, f"{quarantined:,} quarantined"]))
