"""The result of `clvr reproduce`: figures of every method and list, as JSON, as text and as Table 1."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from typing_extensions import TypedDict

from index.documents import JsonDocument
from jobs.pages.published import DIRECTIONS, Published, published_beside, published_table
from jobs.pages.table1_page import Cell, Direction, Figure, TableRow
from jobs.reproduce.evaluation import ListFigures, ProtocolFigures
from jobs.runtime.json_fields import FieldsOf

CHANCE = "by chance"


@dataclass(frozen=True, slots=True)
class MethodResult:
    """A method's network. checkpoint: relative to the folder of the reproduction if it was trained there.

    accuracy, macro_accuracy, rank1: on the images that the training held out, None where not measured.
    """

    name: str
    title: str
    recipe: str
    labels_used: str
    checkpoint: str
    is_taken: bool
    overrides: tuple[str, ...]
    fingerprint: str
    run_id: str
    training_images: int | None
    held_out_images: int | None
    epochs: int
    accuracy: float | None
    macro_accuracy: float | None
    rank1: float | None


@dataclass(frozen=True, slots=True)
class ListResult:
    """A list. trained_images, trained_vehicles: of it, that some training has seen; None if unknown."""

    name: str
    images: int
    vehicles: int
    trained_images: int | None
    trained_vehicles: int | None


@dataclass(frozen=True, slots=True)
class Results(JsonDocument):
    """The content of results.json."""

    NOUN = "result of clvr reproduce"
    REMEDY = "Delete it and repeat the command, which computes it from the finished parts."

    dataset: str  # the release's name, '' for a table
    data: str
    draws: int
    seed: int
    methods: tuple[MethodResult, ...]
    lists: tuple[ListResult, ...]
    figures: tuple[ListFigures, ...]  # of every method and list

    def of(self, method: str) -> list[ListFigures]:
        """Return a method's figures, in the order of the lists."""
        return [figures for figures in self.figures if figures.method == method]

    def published(self) -> Published:
        """Return the paper's rows, and whether they are comparable: decided by dataset, list and protocol."""
        return published_table(
            [
                published_beside(
                    self.dataset,
                    figures.list_name,
                    [each.protocol for each in figures.protocols],
                    images=figures.images + figures.not_ranked,
                    not_ranked=figures.not_ranked,
                )
                for figures in self.of(self.methods[0].name)
            ]
        )

    def directions(self) -> list[Direction]:
        """Return Table 1 once for each protocol."""
        names = dict.fromkeys(each.protocol for figures in self.figures for each in figures.protocols)
        return [self._direction(name) for name in names]

    def _direction(self, protocol: str) -> Direction:
        published = dict(self.published().rows)
        first = self._by_list(self.methods[0].name, protocol)
        known = [figures for figures in first if figures is not None]
        rows = [
            TableRow(
                name=method.title,
                cells=[_cell(figures) for figures in self._by_list(method.name, protocol)],
                labels_used=method.labels_used,
                published=published.get(method.title, ()),
            )
            for method in self.methods
        ]
        return Direction(
            protocol=protocol,
            rule=known[0].rule,
            lists=[each.name for each in self.lists],
            sizes=[(each.probes, each.gallery) if each else (0, 0) for each in first],
            methods=rows,
            bounds=list(_bounds(first)),
            draws=known[0].draws,
            is_published=protocol in DIRECTIONS,
        )

    def _by_list(self, method: str, protocol: str) -> list[ProtocolFigures | None]:
        return [
            next((each for each in figures.protocols if each.protocol == protocol), None)
            for figures in self.of(method)
        ]


def _cell(figures: ProtocolFigures | None) -> Cell | None:
    return None if figures is None else Cell(figures.rank_1, figures.rank_5)


def _bounds(by_list: Sequence[ProtocolFigures | None]) -> Iterator[TableRow]:
    """Yield what chance and perfect recognisers reach; they follow from the labels alone."""
    yield TableRow(
        CHANCE,
        [
            None if each is None else Cell(Figure(each.chance_rank_1, 0.0), Figure(each.chance_rank_5, 0.0))
            for each in by_list
        ],
    )
    names = dict.fromkeys(oracle.recognises for each in by_list if each for oracle in each.oracles)
    for name in names:
        found = [
            next((oracle for oracle in each.oracles if oracle.recognises == name), None) if each else None
            for each in by_list
        ]
        shares = [oracle.known_share for oracle in found if oracle]
        yield TableRow(
            f"perfect {name}",
            [
                Cell(Figure(oracle.rank_1, 0.0), Figure(oracle.rank_5, 0.0)) if oracle else None
                for oracle in found
            ],
            note="" if min(shares) == 1 else f"{min(shares):.0%} known",
        )


class PublishedTable(TypedDict):
    """Table 1 of the paper: (rank-1, rank-5) of each method and column, and whether ours may be compared."""

    columns: tuple[str, ...]
    rows: dict[str, tuple[tuple[float, float], ...]]
    comparable: bool
    note: str


class ReproductionFigures(TypedDict):
    """The figures of every method and list, Table 1 of the paper, and the URIs of page and figures."""

    published: PublishedTable
    page: str
    json: str


@dataclass(frozen=True, slots=True)
class Reproduction:
    """The result of the command: its figures, and the URIs of page and figures."""

    results: Results
    page: str
    json: str

    def to_json(self) -> Annotated[dict[str, Any], FieldsOf(Results, ReproductionFigures)]:
        """Return the figures, Table 1 and the URIs as JSON values."""
        published = self.results.published()
        figures: ReproductionFigures = {
            "published": {
                "columns": published.columns,
                "rows": dict(published.rows),
                "comparable": published.is_comparable,
                "note": published.note,
            },
            "page": self.page,
            "json": self.json,
        }
        return {**self.results.plain_values(), **figures}

    def to_text(self) -> str:
        """Return Table 1 of each protocol as text."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        published = self.results.published()
        for table in self.results.directions():
            beside = published.columns if table.is_published else ()
            draws = f", {table.draws} draws" if table.draws > 1 else ""
            yield f"{table.protocol}: {table.rule}{draws}"
            head = "".join(f"{f'{name} rank-1':>19}{'rank-5':>15}" for name in table.lists)
            yield f"{'method':24}{'labels':8}{head}" + "".join(f"{f'paper, {name}':>16}" for name in beside)
            for row in (*table.methods, *table.bounds):
                text = f"{row.name:24}{row.labels_used or row.note:8}"
                for cell in row.cells:
                    is_drawn = table.draws > 1 and row in table.methods
                    text += "".join(
                        _shown(figure, is_drawn, width)
                        for figure, width in zip(
                            (cell.rank_1, cell.rank_5) if cell else (None, None), (19, 15), strict=True
                        )
                    )
                text += "".join(
                    f"{f'{one:.1f} / {five:.1f}':>16}" for one, five in row.published[: len(beside)]
                )
                yield text.rstrip()
            yield ""
        yield f"published: {published.note}"
        yield f"page {self.page}, figures {self.json}"


def _shown(figure: Figure | None, is_drawn: bool, width: int) -> str:
    if figure is None:
        return f"{'-':>{width}}"
    text = f"{figure.mean:.1%} ±{figure.std:5.1%}" if is_drawn else f"{figure.mean:.1%}       "
    return f"{text:>{width}}"
