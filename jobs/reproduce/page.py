"""The page of a reproduction: its figures with sentences that say what they are of."""

import os
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence

from clvr_model.checkpoint import Card
from jobs.pages.published import DATASET
from jobs.pages.table1_page import (
    ClassFigure,
    ClassifiedFigure,
    MethodSection,
    RankFigure,
    Table1Page,
)
from jobs.reproduce.results import ListResult, MethodResult, Results
from jobs.runtime.format import labels_used
from jobs.train.report import epochs_of

UNTRAINED = "random"  # as a recipe's `pretrained`


def table1_page(
    results: Results,
    cards: Sequence[Card],
    *,
    classes: ClassFigure | None,
    classified: ClassifiedFigure | None,
    ranks: RankFigure | None,
    without_figures: str,
) -> Table1Page:
    """Return the content of the page; `cards` are those of the methods, in their order."""
    titles = _listed([method.title for method in results.methods])
    lists = f"{len(results.lists)} lists" if len(results.lists) > 1 else "one list"
    return Table1Page(
        dataset=dataset_of(results),
        summary=f"{titles} on {lists} of test images, ranked in both directions of {DATASET}'s protocol.",
        note=" ".join(_limits(results, cards)),
        directions=results.directions(),
        published=results.published(),
        images=[_sentence(each, results) for each in results.lists],
        methods=[_section(method, card) for method, card in zip(results.methods, cards, strict=True)],
        classes=classes,
        classified=classified,
        ranks=ranks,
        without_figures=without_figures,
        facts={
            "data": results.data,
            "draws": f"{results.draws}, seed {results.seed}",
            "runs": ", ".join(method.run_id for method in results.methods),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        },
        command=shlex.join(["clvr", *sys.argv[1:]]),
    )


def dataset_of(results: Results) -> str:
    """Return the release's name, or the last two names of the table's path."""
    return results.dataset or "/".join(results.data.rstrip("/").split("/")[-2:])


def _limits(results: Results, cards: Sequence[Card]) -> Iterator[str]:
    """Yield what the figures do not show."""
    changed = [method.title for method in results.methods if method.overrides]
    taken = [method.title for method in results.methods if method.is_taken]
    random = [
        method.title
        for method, card in zip(results.methods, cards, strict=True)
        if card.recipe.get("backbone") == UNTRAINED
    ]
    if not results.published().is_comparable:
        yield "The images are not those of the paper's Table 1, so no figure of ours compares with it."
    if changed:
        yield f"The recipe was changed for {_listed(changed)}: see Methods."
    if taken:
        yield f"The checkpoint of {_listed(taken)} was given; this command did not train it."
    if random:
        yield f"{_listed(random)} started from random weights; the paper's CLVR starts from ImageNet weights."
    if any(method.labels_used != "model" for method in results.methods):
        yield (
            "No source states the margins, sets and schedules of CCL and Mixed Diff: those of our recipes "
            "are our choice, which each card lists."
        )
    yield "Each network was trained once; the deviation is that of the draws, not of trainings."


def _sentence(each: ListResult, results: Results) -> str:
    """Say which images a list has, and what the trainings saw of them."""
    first = next(figures for figures in results.figures if figures.list_name == each.name)
    text = f"{each.name or 'The list'}: {each.images:,} images of {each.vehicles:,} vehicles"
    if first.not_ranked:
        text += f", and {first.not_ranked:,} images that are unreadable or erased"
    if each.trained_images is None:
        text += ". Whether a training saw any of them is not known"
    elif each.trained_images or each.trained_vehicles:
        text += (
            f". The trainings saw {each.trained_images:,} of these images and {each.trained_vehicles:,} of "
            "these vehicles"
        )
    else:
        text += ". No training saw an image of these vehicles"
    named = [figures for figures in results.figures if figures.list_name == each.name and figures.with_model]
    titles = {method.name: method for method in results.methods}
    learned = [figures for figures in named if titles[figures.method].labels_used != "vehicle"]
    if learned:
        known = learned[-1]
        text += (
            f"; {known.of_trained_models:,} of the {known.with_model:,} whose model is known are of models "
            f"that {titles[known.method].title} learned"
        )
    return f"{text}."


def _section(method: MethodResult, card: Card) -> MethodSection:
    measures = (("accuracy", method.accuracy), ("rank-1", method.rank1))
    known = [f"{name} {value:.1%}" for name, value in measures if value is not None]
    return MethodSection(
        title=method.title,
        recipe=method.recipe,
        labels_used=labels_used(card),
        origin="given" if method.is_taken else "trained",
        fingerprint=method.fingerprint,
        changes=", ".join(method.overrides),
        training_images=method.training_images or 0,
        held_out=", ".join(known) or "not measured",
        epochs=epochs_of(card),
    )


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
