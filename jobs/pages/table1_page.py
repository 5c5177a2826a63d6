"""The HTML report of a reproduction: the paper's Table 1 beside ours, and its Figures 4, 5 and 6.

The page is self-contained and has no script, as that of an evaluation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from index.evaluation.breakdowns import Classification
from jobs.pages.charts import class_chart
from jobs.pages.evaluation_page import Outcomes, Strip
from jobs.pages.html import render
from jobs.pages.published import PUBLISHED_MODEL_ACCURACY, Published
from jobs.pages.training_page import Epoch, curves


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over draws and its sample standard deviation; shares from 0 to 1."""

    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class Cell:
    """Rank-1 and rank-5 on one list; without a deviation where nothing was drawn."""

    rank_1: Figure
    rank_5: Figure


@dataclass(frozen=True, slots=True)
class TableRow:
    """A method, or a bound such as chance. cells: by list, None if unknown.

    published: rank-1 and rank-5 in percent by the columns of the table's `Published`; empty for bounds.
    """

    name: str
    cells: Sequence[Cell | None]
    labels_used: str = ""
    published: Sequence[tuple[float, float]] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Direction:
    """Table 1 by one protocol. sizes: probes and gallery images by list."""

    protocol: str
    rule: str
    lists: Sequence[str]
    sizes: Sequence[tuple[int, int]]
    methods: Sequence[TableRow]
    bounds: Sequence[TableRow]
    draws: int
    is_published: bool  # whether the paper's rule is one of two that this protocol may be


@dataclass(frozen=True, slots=True)
class MethodSection:
    """What is known of a method's network, and its epochs. held_out: its measure on images not trained on."""

    title: str
    recipe: str
    labels_used: str
    origin: str
    fingerprint: str
    changes: str
    training_images: int
    held_out: str
    epochs: Sequence[Epoch] = field(repr=False, default=())


@dataclass(frozen=True, slots=True)
class ClassFigure:
    """Figure 4: models classified on held-out images, and the number of training images of each."""

    models: Classification
    names: Sequence[str]  # of `models.classes`
    training_images: Mapping[int, int]
    method: str


@dataclass(frozen=True, slots=True)
class Classified:
    """An image of Figure 5. runner_up: the second most probable model. luminance: mean, from 0 to 255."""

    jpeg: bytes = field(repr=False)
    true: str
    predicted: str
    probability: float
    runner_up: str
    runner_up_probability: float
    luminance: float | None = None


@dataclass(frozen=True, slots=True)
class ClassifiedFigure:
    """Figure 5: images classified right and wrong, and the rules that chose them."""

    right: Sequence[Classified]
    wrong: Sequence[Classified]
    right_rule: str
    wrong_rule: str


@dataclass(frozen=True, slots=True)
class RankFigure:
    """Figure 6: strips by the rank of the first match. dataset: which images they are."""

    strips: Sequence[Strip]
    outcomes: Outcomes
    dataset: str
    method: str

    @property
    def panels(self) -> list[list[Strip]]:
        """The strips by the rank of their first true match."""
        return [[strip for strip in self.strips if strip.panel == panel] for panel in range(3)]


@dataclass(frozen=True, slots=True)
class Table1Page:
    """The content of the page. images: sentences on what the figures speak of."""

    dataset: str
    summary: str
    note: str
    directions: Sequence[Direction]
    published: Published
    images: Sequence[str]
    methods: Sequence[MethodSection]
    classes: ClassFigure | None = None
    classified: ClassifiedFigure | None = None
    ranks: RankFigure | None = None
    without_figures: str = ""  # why Figures 4 and 5 are missing
    facts: Mapping[str, str] = field(default_factory=dict)
    command: str = ""


def build_table1_page(page: Table1Page) -> str:
    """Render the page. Raises UnreadableImage for image bytes that are not JPEG."""
    drawn = [
        (
            method,
            curves(
                method.epochs,
                {"training": "accuracy", "validation": "val_accuracy", "rank-1": "val_rank1"},
                top=1.0,
            ),
            curves(method.epochs, {"training": "loss", "validation": "val_loss"}),
        )
        for method in page.methods
    ]
    figure = page.classes
    return render(
        "table1_page.html.j2",
        page=page,
        drawn=drawn,
        classes=class_chart(figure.models, figure.names, figure.training_images) if figure else None,
        published_accuracy=PUBLISHED_MODEL_ACCURACY,
    )
