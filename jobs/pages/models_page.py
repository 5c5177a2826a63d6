"""The HTML page of a comparison of models: accuracy against speed and size, one table and one figure.

The page is self-contained and has no script, as that of an evaluation.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from jobs.pages.html import render
from jobs.runtime.format import count, significant

COLORS = 3
"""How many classes of colors the stylesheet has."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A row's figures by one protocol; shares from 0 to 1. change: difference of rank-1 in words, or ''."""

    rank_1: tuple[float, float]  # mean, deviation
    mean_precision: tuple[float, float]
    change: str = ""


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A row of the table. model: its number, for the color. cells: in the order of the protocols."""

    name: str
    model: int
    bytes: int
    crops_per_second: float | None
    dollars: float | None
    cells: Sequence[Cell]
    reference: str = ""
    is_compressed: bool = False
    guard: str = ""
    on_frontier: bool = False


@dataclass(frozen=True, slots=True)
class ModelsPage:
    """The content of the page. protocols: names, and their summaries. The first one is in the figure."""

    rows: Sequence[ModelRow]
    protocols: Mapping[str, str]
    crops: int
    rule: str = ""  # of the guard
    facts: Mapping[str, str] = field(default_factory=dict)
    command: str = ""


@dataclass(frozen=True, slots=True)
class Dot:
    """A row in the figure: its number in the table, place, and the ends of mean ± deviation."""

    number: int
    model: int
    x: float
    y: float
    low: float
    high: float
    on_frontier: bool
    tooltip: str


@dataclass(frozen=True, slots=True)
class Scatter:
    """Rank-1 over a cost on a logarithmic scale. path: the best rank-1 at no greater cost."""

    title: str
    dots: Sequence[Dot]
    path: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    width: float = 480.0
    height: float = 360.0
    left: float = 46.0
    right: float = 20.0
    top: float = 16.0
    bottom: float = 46.0


def scatter(
    rows: Sequence[ModelRow],
    cost: Callable[[ModelRow], float | None],
    title: str,
    *,
    is_more_better: bool = False,
) -> Scatter | None:
    """Draw rank-1 by the first protocol over a cost; None if no row has that cost."""
    numbered = [(number, row, value) for number, row in enumerate(rows, 1) if (value := cost(row))]
    if not numbered:
        return None
    costs = [value for _, _, value in numbered]
    empty = Scatter(title, (), "", (), ())
    first, last = math.log(min(costs)), math.log(max(costs))
    margin = max(0.06 * (last - first), 0.1)
    ends = [
        (row.cells[0].rank_1[0] + sign * row.cells[0].rank_1[1]) for _, row, _ in numbered for sign in (-1, 1)
    ]
    floor, top = max(math.floor(10 * min(ends)) / 10, 0.0), min(math.ceil(10 * max(ends)) / 10, 1.0)
    top = max(top, floor + 0.1)

    def x(value: float) -> float:
        share = (math.log(value) - first + margin) / (last - first + 2 * margin)
        return round(empty.left + share * (empty.width - empty.left - empty.right), 1)

    def y(share: float) -> float:
        clipped = (min(max(share, floor), top) - floor) / (top - floor)
        return round(empty.height - empty.bottom - clipped * (empty.height - empty.top - empty.bottom), 1)

    dots = []
    for number, row, value in numbered:
        mean, deviation = row.cells[0].rank_1
        dots.append(
            Dot(
                number=number,
                model=row.model % COLORS,
                x=x(value),
                y=y(mean),
                low=y(mean - deviation),
                high=y(mean + deviation),
                on_frontier=row.on_frontier,
                tooltip=f"{number}: {row.name}: {mean:.1%} ±{deviation:.1%}",
            )
        )
    return Scatter(
        title=title,
        dots=dots,
        path=_best_path(dots, is_more_better=is_more_better),
        x_ticks=[
            (x(value), count(value) if float(value).is_integer() else significant(value))
            for value in _ticks(costs)
        ],
        y_ticks=[
            (y(tenth / 10), f"{10 * tenth} %") for tenth in range(round(10 * floor), round(10 * top) + 1)
        ],
    )


def _best_path(dots: Sequence[Dot], *, is_more_better: bool) -> str:
    """Return the points of a staircase through the dots that are the best at no greater cost."""
    points: list[str] = []
    best: float | None = None
    for dot in sorted(dots, key=lambda dot: (-dot.x if is_more_better else dot.x, dot.y)):
        if best is None or dot.y < best:
            points += [] if best is None else [f"{dot.x},{best}"]
            points.append(f"{dot.x},{dot.y}")
            best = dot.y
    return " ".join(points)


def _ticks(costs: Sequence[float]) -> list[float]:
    """Return at most five of the distinct costs, far enough apart for their labels."""
    chosen: list[float] = []
    gap = max(math.log(max(costs) / min(costs)) / 6, 0.05)
    for value in sorted(set(costs)):
        if not chosen or math.log(value / chosen[-1]) >= gap:
            chosen.append(value)
    return chosen


def build_models_page(page: ModelsPage) -> str:
    """Render the page; the same data give the same HTML."""
    figures = (
        scatter(page.rows, lambda row: row.bytes, "bytes of a feature in the index"),
        scatter(
            page.rows,
            lambda row: None if row.is_compressed else row.crops_per_second,
            "crops a second and core, uncompressed (right is faster)",
            is_more_better=True,
        ),
    )
    return render(
        "models_page.html.j2",
        page=page,
        figures=[figure for figure in figures if figure],
        headline=next(iter(page.protocols)),
    )
