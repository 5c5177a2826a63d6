"""The page of a training: how well models are told apart, how it went there, and what it cost.

Self-contained HTML without script, in the style of the evaluation's page; Figures 4 and 5 are the paper's.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from index.evaluation.breakdowns import Classification
from jobs.pages.charts import class_chart
from jobs.pages.evaluation_page import PUBLISHED_MODEL_ACCURACY
from jobs.pages.html import render

MATRIX = 12  # models in the drawing of confusions
WORST = 12  # models in the table of the worst


@dataclass(frozen=True, slots=True)
class Example:
    """A held-out picture and what it was taken for (Figure 5)."""

    jpeg: bytes = field(repr=False)
    true: str
    predicted: str
    confidence: float
    right: bool


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch over the training pictures; `held_*` were measured after it. Shares are from 0 to 1."""

    stage: str
    number: int  # in its stage, from 1
    loss: float
    accuracy: float
    held_loss: float | None
    held_accuracy: float | None
    lr: float
    pictures: int
    seconds: float
    images_per_second: float
    wait_share: float


@dataclass(frozen=True, slots=True)
class TrainingPage:
    """Everything the page says. predicted, true: model ids of the held-out pictures (n,)."""

    title: str
    lead: str
    dataset: str
    note: str
    training_pictures: int
    predicted: NDArray[np.int64] = field(repr=False)
    true: NDArray[np.int64] = field(repr=False)
    models: Classification | None
    names: Mapping[int, str]
    examples: Sequence[Example]
    epochs: Sequence[Epoch]
    hours: float
    node_hours: float
    attempts: int
    money: float | None
    facts: Mapping[str, str]
    unstated: Mapping[str, str]
    unlearned: Sequence[str] = ()
    command: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: its points as SVG wants them, and its last value with the height of its label."""

    name: str
    points: str
    dots: Sequence[tuple[float, float]]
    last: float
    label_y: float


@dataclass(frozen=True, slots=True)
class Curves:
    """Values by epoch, all stages side by side."""

    lines: Sequence[Line]
    ticks: Sequence[tuple[float, str]]  # (y, what it says)
    stages: Sequence[tuple[float, str]]  # (x where it begins, name)
    epochs: Sequence[tuple[float, int]]  # (x, number over all stages)
    width: float = 520.0
    height: float = 250.0
    left: float = 46.0
    right: float = 92.0
    top: float = 30.0
    floor: float = 206.0


@dataclass(frozen=True, slots=True)
class WorstModel:
    """A model that is often taken for others; `taken_for` are the commonest, with how often."""

    name: str
    pictures: int
    accuracy: float
    taken_for: Sequence[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Cell:
    """True model in row, predicted model in column: the share of the true one's pictures."""

    x: float
    y: float
    share: float
    count: int
    text: str
    right: bool


@dataclass(frozen=True, slots=True)
class Matrix:
    """Confusion among the models that are confused most."""

    names: Sequence[tuple[float, str]]  # (offset, name), the same along both sides
    cells: Sequence[Cell]
    side: float = 26.0
    left: float = 360.0
    top: float = 26.0


def build_training_page(page: TrainingPage) -> str:
    """The page as HTML text, the same for the same data. Raises UnreadablePicture for what is no JPEG."""
    names = [_name(page, one.model_id) for one in page.models.classes] if page.models else []
    return render(
        "training_page.html.j2",
        page=page,
        classes=class_chart(page.models, names) if page.models else None,
        accuracy=curves(page.epochs, {"training": "accuracy", "held out": "held_accuracy"}, most=1.0),
        loss=curves(page.epochs, {"training": "loss", "held out": "held_loss"}),
        worst=worst_models(page),
        matrix=confusion(page),
        published=PUBLISHED_MODEL_ACCURACY,
        waited=_waited(page.epochs),
    )


def curves(epochs: Sequence[Epoch], fields: Mapping[str, str], *, most: float | None = None) -> Curves | None:
    """Draw fields of epochs, a curve each, from 0 to `most` or to the largest value; None without epochs."""
    series = {
        name: [(place, float(getattr(epoch, key))) for place, epoch in enumerate(epochs) if _has(epoch, key)]
        for name, key in fields.items()
    }
    values = [value for points in series.values() for _, value in points]
    if not values:
        return None
    blank = Curves((), (), (), ())
    top = most or max(values) * 1.05 or 1.0
    across = blank.width - blank.left - blank.right

    def x(place: float) -> float:
        return round(blank.left + across * (place + 0.5) / len(epochs), 1)

    def y(value: float) -> float:
        return round(blank.floor - (blank.floor - blank.top) * value / top, 1)

    lines, taken = [], -99.0
    for name, points in sorted(series.items(), key=lambda item: -item[1][-1][1] if item[1] else 0.0):
        if not points:
            continue
        dots = [(x(place), y(value)) for place, value in points]
        taken = max(dots[-1][1], taken + 30)
        lines.append(Line(name, " ".join(f"{a},{b}" for a, b in dots), dots, points[-1][1], taken))
    lines.sort(key=lambda line: list(fields).index(line.name))
    begins = [place for place, epoch in enumerate(epochs) if epoch.number == 1 or place == 0]
    every = max(1, len(epochs) // 10)
    return Curves(
        lines,
        [(y(top * share), f"{100 * share:.0f} %" if most else f"{top * share:.2g}") for share in (0, 0.5, 1)],
        [(x(place - 0.5), epochs[place].stage) for place in begins],
        [(x(place), place + 1) for place in range(0, len(epochs), every)],
    )


def worst_models(page: TrainingPage) -> list[WorstModel]:
    """The models with the lowest accuracy, the more pictures the earlier."""
    if not page.models:
        return []
    found = []
    order = sorted(page.models.classes, key=lambda one: (one.accuracy, -one.pictures, one.model_id))
    for one in order[:WORST]:
        if one.accuracy >= 1:
            break
        wrong = Counter(page.predicted[(page.true == one.model_id) & (page.predicted != page.true)].tolist())
        common = [(_name(page, model), count) for model, count in wrong.most_common(3)]
        found.append(WorstModel(_name(page, one.model_id), one.pictures, one.accuracy, common))
    return found


def confusion(page: TrainingPage) -> Matrix | None:
    """The models of the commonest confusions, against each other; None where nothing is confused."""
    wrong = page.predicted != page.true
    pairs = Counter(zip(page.true[wrong].tolist(), page.predicted[wrong].tolist(), strict=True))
    chosen: list[int] = []
    for (true, predicted), _ in sorted(pairs.items(), key=lambda item: (-item[1], item[0])):
        new = [model for model in dict.fromkeys((true, predicted)) if model not in chosen]
        if len(chosen) + len(new) > MATRIX:
            continue
        chosen += new
    if not chosen:
        return None
    blank = Matrix((), ())
    cells = []
    for row, true in enumerate(chosen):
        own = page.true == true
        many = int(own.sum())
        for column, predicted in enumerate(chosen):
            count = int((own & (page.predicted == predicted)).sum())
            if not count:
                continue
            cells.append(
                Cell(
                    x=blank.left + column * blank.side,
                    y=blank.top + row * blank.side,
                    share=count / many,
                    count=count,
                    text=f"{_name(page, true)}: {count} of {many} taken for {_name(page, predicted)}",
                    right=true == predicted,
                )
            )
    names = [(number * blank.side, _name(page, model)) for number, model in enumerate(chosen)]
    return Matrix(names, cells)


def _name(page: TrainingPage, model: int) -> str:
    return page.names.get(model, f"model {model}")


def _has(epoch: Epoch, key: str) -> bool:
    value = getattr(epoch, key)
    return value is not None and bool(np.isfinite(value))


def _waited(epochs: Sequence[Epoch]) -> float:
    seconds = sum(epoch.seconds for epoch in epochs)
    return sum(epoch.wait_share * epoch.seconds for epoch in epochs) / seconds if seconds else 0.0
