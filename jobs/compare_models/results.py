"""The request and the results of a comparison of models."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from index.evaluation.bootstrap import Difference
from index.evaluation.protocols import ProtocolResult
from jobs.runtime.format import NO_VALUE

Guard = Literal["", "passed", "failed", "undecided"]

MAX_LOSS = 0.01
SPEED_NOISE = 0.05


class Spread(TypedDict):
    """Mean and sample standard deviation over the repeats."""

    mean: float
    std: float


class Interval(TypedDict):
    """A change from the reference, and its 95 % interval."""

    mean: float
    low: float
    high: float


class AccuracyFigures(TypedDict):
    """The figures of one row by one protocol. guard: of a compression. change: of rank_1 and map."""

    rank_1: Spread
    map: Spread
    guard: NotRequired[Guard]
    change: dict[str, Interval]


class RowFigures(TypedDict):
    """A model with the features that an index of it would hold.

    format: of a feature, "" for float32. bytes: of a feature. dollars: to embed a million crops. reference:
    the row that changes are relative to, "" for the first row. protocols: the figures by protocol.
    on_frontier: no other row is at least as good in rank-1, size and speed.
    """

    name: str
    run: str
    transform: str
    format: str
    dimension: int
    bytes: int
    crops_per_second: float | None
    dollars: float | None
    reference: str
    guard: Guard
    protocols: dict[str, AccuracyFigures]
    on_frontier: bool


class ModelComparisonFigures(TypedDict):
    """All rows, and each protocol in a sentence. facts: seeds, machine and prices."""

    crops: int
    max_loss: float
    facts: dict[str, str]
    protocols: dict[str, str]
    rows: list[RowFigures]


@dataclass(frozen=True, slots=True)
class CompareModelsRequest:
    """A request of `clvr compare-models`.

    transforms: kinds, with the dimensions that are kept after a colon, such as whiten:256. formats: of
    `index.transforms.compression`. max_loss: how far rank-1 may fall by a compression.
    """

    runs: tuple[str, ...]
    labels: str | None = None
    split: str | None = None
    protocols: tuple[str, ...] = ()  # empty: those of `DEFAULT_PROTOCOLS` that the labels allow
    transforms: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    repeats: int = 10
    seed: int = 0
    max_loss: float = MAX_LOSS
    measures_speed: bool = True
    html: Path | None = None


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The figures of one row by one protocol, and the paired differences from the row's reference."""

    result: ProtocolResult
    rank_1_change: Difference | None = None
    map_change: Difference | None = None
    guard: Guard = ""  # of a compression

    @property
    def rank_1(self) -> tuple[float, float]:
        """Mean and sample standard deviation over the repeats."""
        return float(self.result.mean[0]), float(self.result.std[0])

    @property
    def mean_precision(self) -> tuple[float, float]:
        """Mean and sample standard deviation of mAP over the repeats."""
        return self.result.figure("map")

    def to_json(self) -> AccuracyFigures:
        """Return the figures."""
        changes = {"rank_1": self.rank_1_change, "map": self.map_change}
        figures: AccuracyFigures = {
            "rank_1": _spread(self.rank_1),
            "map": _spread(self.mean_precision),
            "change": {
                name: {"mean": change.difference, "low": change.ci_low, "high": change.ci_high}
                for name, change in changes.items()
                if change is not None
            },
        }
        if self.guard:
            figures["guard"] = self.guard
        return figures


def _spread(figure: tuple[float, float]) -> Spread:
    mean, std = figure
    return {"mean": mean, "std": std}


@dataclass(frozen=True, slots=True)
class Row:
    """A model with the features that an index of it would hold.

    reference: the name of the row that the changes are relative to, "" for the first row. crops_per_second:
    of one core, None if it is not measured. guard: of a compression, over all protocols.
    """

    name: str
    run: str
    transform: str
    format: str  # "" for float32
    dimension: int
    bytes: int  # of a feature in the index
    crops_per_second: float | None
    dollars: float | None  # to embed a million crops
    reference: str
    accuracies: Mapping[str, Accuracy]  # by protocol
    guard: Guard = ""

    def to_json(self, *, is_on_frontier: bool) -> RowFigures:
        """Return all figures."""
        return {
            "name": self.name,
            "run": self.run,
            "transform": self.transform,
            "format": self.format,
            "dimension": self.dimension,
            "bytes": self.bytes,
            "crops_per_second": self.crops_per_second,
            "dollars": self.dollars,
            "reference": self.reference,
            "guard": self.guard,
            "protocols": {name: accuracy.to_json() for name, accuracy in self.accuracies.items()},
            "on_frontier": is_on_frontier,
        }


@dataclass(frozen=True, slots=True)
class ModelComparison:
    """All rows. The first protocol decides the frontier."""

    rows: Sequence[Row]
    protocols: Sequence[ProtocolResult]  # of the first row
    crops: int
    max_loss: float
    facts: Mapping[str, str] = field(default_factory=dict)  # seeds, machine, prices

    @property
    def headline(self) -> str:
        """The name of the protocol that decides the frontier."""
        return self.protocols[0].name

    def is_on_frontier(self, row: Row) -> bool:
        """Whether no other row is at least as good in mean rank-1, size and speed, and better in one.

        Speeds that differ by less than SPEED_NOISE count as equal.
        """
        return not any(_dominates(other, row, self.headline) for other in self.rows)

    def to_json(self) -> ModelComparisonFigures:
        """Return all figures."""
        return {
            "crops": self.crops,
            "max_loss": self.max_loss,
            "facts": dict(self.facts),
            "protocols": {result.name: result.summary() for result in self.protocols},
            "rows": [row.to_json(is_on_frontier=self.is_on_frontier(row)) for row in self.rows],
        }

    def to_text(self) -> str:
        """Return one table, with a block a protocol, and what the compressions cost."""
        width = max(len(row.name) for row in self.rows)
        lines = [f"{self.crops:,} labelled crops; {'; '.join(f'{k}: {v}' for k, v in self.facts.items())}"]
        head = f"{'bytes':>7} {'crops/s':>8} {'$/M':>6} {'rank-1':>14} {'mAP':>14}  rank-1 change, 95 %"
        for result in self.protocols:
            lines += [f"{result.name}, {result.probes:,} probes", f"  {'':{width}} {head}"]
            lines += [
                f"{'*' if result.name == self.headline and self.is_on_frontier(row) else ' '} "
                f"{row.name:{width}} {_line(row, result.name)}".rstrip()
                for row in self.rows
            ]
        lines.append(f"* no other row is at least as good in rank-1, crops/s and bytes ({self.headline})")
        if any(row.format for row in self.rows):
            lines.append(guard_rule(self.max_loss))
        return "\n".join(lines)


def _dominates(other: Row, row: Row, protocol: str) -> bool:
    gain = other.accuracies[protocol].rank_1[0] - row.accuracies[protocol].rank_1[0]
    speedup = (other.crops_per_second or 1.0) / (row.crops_per_second or 1.0) - 1
    is_as_good = gain >= 0 and other.bytes <= row.bytes and speedup > -SPEED_NOISE
    return is_as_good and (gain > 0 or other.bytes < row.bytes or speedup > SPEED_NOISE)


def _line(row: Row, protocol: str) -> str:
    accuracy = row.accuracies[protocol]
    speed = NO_VALUE if row.crops_per_second is None else f"{row.crops_per_second:,.1f}"
    dollars = NO_VALUE if row.dollars is None else f"{row.dollars:.2f}"
    figures = "".join(
        f" {mean:>7.1%} ±{std:<5.1%}" for mean, std in (accuracy.rank_1, accuracy.mean_precision)
    )
    change = f"{change_text(accuracy.rank_1_change)} {accuracy.guard}"
    return f"{row.bytes:>7,} {speed:>8} {dollars:>6}{figures}  {change}"


def change_text(change: Difference | None) -> str:
    """A difference with its interval, in percentage points; '' for none."""
    if change is None:
        return ""
    low, high = 100 * change.ci_low, 100 * change.ci_high
    return f"{100 * change.difference:+.1f} ({low:+.1f} to {high:+.1f})"


def guard_of(change: Difference, vehicles: int, max_loss: float) -> Guard:
    """Judge a compression by the 95 % interval of its change of rank-1 over so many vehicles.

    `failed`: the whole interval is below -max_loss. `passed`: it is at or above -max_loss, and there are at
    least 3 / max_loss vehicles, because fewer can all keep their ranks by chance (rule of three, Hanley and
    Lippman-Hand, JAMA 1983). `undecided` otherwise.
    """
    if change.ci_high < -max_loss:
        return "failed"
    is_enough = vehicles * max_loss >= 3
    return "passed" if change.ci_low >= -max_loss and is_enough else "undecided"


def worst(guards: Iterable[Guard]) -> Guard:
    """Return the verdict over all protocols: failed by one, or passed by all."""
    found = set(guards)
    return "failed" if "failed" in found else "undecided" if "undecided" in found else "passed"


def guard_rule(max_loss: float) -> str:
    """The rule of the guard in a sentence."""
    enough = f" and at least {3 / max_loss:,.0f} vehicles" if max_loss else ""
    return (
        f"Compressions: failed if rank-1 falls by more than {max_loss:.1%} with 95 % confidence; passed if "
        f"it falls by at most {max_loss:.1%} with 95 % confidence{enough}; otherwise undecided."
    )


def name_of(model: str, transform: str, format: str) -> str:
    """The name of a row."""
    return ", ".join(part for part in (model, transform, format) if part)
