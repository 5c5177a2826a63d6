"""The HTML report of a training: accuracy per vehicle model, curves over epochs, and cost.

The page is self-contained and has no script, as that of an evaluation; Figures 4 and 5 are the paper's.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.evaluation.breakdowns import Classification
from index.transforms.track_figures import TrackFigures
from jobs.pages.charts import class_chart
from jobs.pages.html import render
from jobs.pages.published import PUBLISHED_MODEL_ACCURACY

MATRIX_SIZE = 12  # models in the confusion matrix
NUM_WORST = 12  # models in the table of the lowest accuracies


@dataclass(frozen=True, slots=True)
class Example:
    """A validation image with its true and predicted model (Figure 5)."""

    jpeg: bytes = field(repr=False)
    true: str
    predicted: str
    confidence: float
    correct: bool


@dataclass(frozen=True, slots=True)
class Epoch:
    """The figures of one epoch; `val_*` are of the validation split after it. Shares are from 0 to 1."""

    stage: str
    number: int  # in its stage, from 1
    loss: float
    accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    val_rank1: float | None = field(default=None, kw_only=True)
    val_track_rank1: float | None = field(default=None, kw_only=True)
    val_attributes: Mapping[str, float] = field(default_factory=dict, kw_only=True)
    lr: float
    images: int
    seconds: float
    images_per_second: float
    wait_share: float


@dataclass(frozen=True, slots=True)
class TrainingPage:
    """The content of the page. predicted, true: model ids of the validation images (n,), n may be 0.

    labels_used: what the network learned from. rank1: share of validation images whose nearest other image is
    of the same vehicle, for a network that learned vehicles. tracks: what the tracks of a run brought.
    """

    title: str
    summary: str
    dataset: str
    note: str
    training_images: int
    predicted: NDArray[np.int64] = field(repr=False)
    true: NDArray[np.int64] = field(repr=False)
    models: Classification | None
    names: Mapping[int, str]
    examples: Sequence[Example]
    epochs: Sequence[Epoch]
    hours: float
    node_hours: float
    attempts: int
    cost: float | None
    facts: Mapping[str, str]
    unstated: Mapping[str, str]
    untrained_classes: Sequence[str] = ()
    command: str = ""
    labels_used: str = "vehicle models"
    rank1: float | None = None
    tracks: TrackFigures | None = None
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # name -> `AttributeScores`
    images_of_model: Mapping[int, int] = field(default_factory=dict)  # of training


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: its SVG points, its last value, and the y of its label."""

    name: str
    points: str
    dots: Sequence[tuple[float, float]]
    last: float
    label_y: float


@dataclass(frozen=True, slots=True)
class Curves:
    """Values by epoch, all stages side by side."""

    lines: Sequence[Line]
    ticks: Sequence[tuple[float, str]]  # (y, label)
    stages: Sequence[tuple[float, str]]  # (x of its start, name)
    epochs: Sequence[tuple[float, int]]  # (x, number over all stages)
    width: float = 520.0
    height: float = 250.0
    left: float = 46.0
    right: float = 92.0
    top: float = 30.0
    floor: float = 206.0


@dataclass(frozen=True, slots=True)
class WorstModel:
    """A model with a low accuracy, and the models most often predicted instead, with counts."""

    name: str
    images: int
    accuracy: float
    confused_with: Sequence[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of the confusion matrix: the share of the images of the true model (row)."""

    x: float
    y: float
    share: float
    count: int
    tooltip: str
    correct: bool


@dataclass(frozen=True, slots=True)
class Matrix:
    """The confusion matrix of the most confused models."""

    names: Sequence[tuple[float, str]]  # (offset, name) of rows and columns
    cells: Sequence[Cell]
    side: float = 26.0
    left: float = 360.0
    top: float = 130.0


def build_training_page(page: TrainingPage) -> str:
    """Render the page. Raises UnreadableImage for image bytes that are not JPEG."""
    names = [_name(page, row.model_id) for row in page.models.classes] if page.models else []
    return render(
        "training_page.html.j2",
        page=page,
        classes=class_chart(page.models, names, page.images_of_model) if page.models else None,
        accuracy=curves(
            page.epochs,
            {
                "training": "accuracy",
                "validation": "val_accuracy",
                "rank-1": "val_rank1",
                "tracks": "val_track_rank1",
            },
            top=1.0,
        ),
        loss=curves(page.epochs, {"training": "loss", "validation": "val_loss"}),
        worst=worst_models(page),
        matrix=confusion(page),
        published=PUBLISHED_MODEL_ACCURACY,
        wait_share=_mean_wait_share(page.epochs),
    )


def curves(epochs: Sequence[Epoch], fields: Mapping[str, str], *, top: float | None = None) -> Curves | None:
    """Draw one curve per field, from 0 to `top` or to the largest value; None without epochs."""
    series = {
        name: [(index, float(getattr(epoch, key))) for index, epoch in enumerate(epochs) if _has(epoch, key)]
        for name, key in fields.items()
    }
    values = [value for points in series.values() for _, value in points]
    if not values:
        return None
    frame = Curves((), (), (), ())
    maximum = top or max(values) * 1.05 or 1.0
    width = frame.width - frame.left - frame.right

    def x(index: float) -> float:
        return round(frame.left + width * (index + 0.5) / len(epochs), 1)

    def y(value: float) -> float:
        return round(frame.floor - (frame.floor - frame.top) * value / maximum, 1)

    lines, label_y = [], -99.0
    for name, points in sorted(series.items(), key=lambda item: -item[1][-1][1] if item[1] else 0.0):
        if not points:
            continue
        dots = [(x(index), y(value)) for index, value in points]
        label_y = max(dots[-1][1], label_y + 30)
        lines.append(Line(name, " ".join(f"{a},{b}" for a, b in dots), dots, points[-1][1], label_y))
    lines.sort(key=lambda line: list(fields).index(line.name))
    starts = [index for index, epoch in enumerate(epochs) if epoch.number == 1 or index == 0]
    step = max(1, len(epochs) // 10)
    return Curves(
        lines,
        [
            (y(maximum * share), f"{100 * share:.0f} %" if top else f"{maximum * share:.2g}")
            for share in (0, 0.5, 1)
        ],
        [(x(index - 0.5), epochs[index].stage) for index in starts],
        [(x(index), index + 1) for index in range(0, len(epochs), step)],
    )


def worst_models(page: TrainingPage) -> list[WorstModel]:
    """Return the models with the lowest accuracy; among equals, those with more images first."""
    if not page.models:
        return []
    worst = []
    order = sorted(page.models.classes, key=lambda row: (row.accuracy, -row.pictures, row.model_id))
    for row in order[:NUM_WORST]:
        if row.accuracy >= 1:
            break
        is_wrong = (page.true == row.model_id) & (page.predicted != page.true)
        predictions = Counter(page.predicted[is_wrong].tolist())
        confused_with = [(_name(page, model), count) for model, count in predictions.most_common(3)]
        worst.append(WorstModel(_name(page, row.model_id), row.pictures, row.accuracy, confused_with))
    return worst


def confusion(page: TrainingPage) -> Matrix | None:
    """Make the matrix of the most frequent confusions; None if every prediction is correct."""
    is_wrong = page.predicted != page.true
    pairs = Counter(zip(page.true[is_wrong].tolist(), page.predicted[is_wrong].tolist(), strict=True))
    chosen: list[int] = []
    for (true, predicted), _ in sorted(pairs.items(), key=lambda item: (-item[1], item[0])):
        new = [model for model in dict.fromkeys((true, predicted)) if model not in chosen]
        if len(chosen) + len(new) > MATRIX_SIZE:
            continue
        chosen += new
    if not chosen:
        return None
    frame = Matrix((), ())
    cells = []
    for row, true in enumerate(chosen):
        of_model = page.true == true
        total = int(of_model.sum())
        for column, predicted in enumerate(chosen):
            count = int((of_model & (page.predicted == predicted)).sum())
            if not count:
                continue
            cells.append(
                Cell(
                    x=frame.left + column * frame.side,
                    y=frame.top + row * frame.side,
                    share=count / total,
                    count=count,
                    tooltip=f"{_name(page, true)}: {count} of {total} predicted as {_name(page, predicted)}",
                    correct=true == predicted,
                )
            )
    names = [(number * frame.side, _name(page, model)) for number, model in enumerate(chosen)]
    return Matrix(names, cells)


def _name(page: TrainingPage, model: int) -> str:
    return page.names.get(model, f"model {model}")


def _has(epoch: Epoch, key: str) -> bool:
    value = getattr(epoch, key)
    return value is not None and bool(np.isfinite(value))


def _mean_wait_share(epochs: Sequence[Epoch]) -> float:
    seconds = sum(epoch.seconds for epoch in epochs)
    return sum(epoch.wait_share * epoch.seconds for epoch in epochs) / seconds if seconds else 0.0
