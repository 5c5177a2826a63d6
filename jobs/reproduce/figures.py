"""The paper's Figures 4, 5 and 6 from features that are embedded already."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from clvr_model.checkpoint import Card, load_checkpoint
from clvr_model.datasets.labelled import LabeledImages
from index.archive.reader import ArchiveReader
from index.evaluation.breakdowns import classification
from index.runs.run import Run
from infra.errors import BadInput
from infra.store import open_store
from jobs.evaluate.dataset import EvaluationList, LabelledRun, labelled_run
from jobs.evaluate.page import draw_probes, outcomes_of, strips_of
from jobs.pages.published import DIRECTIONS
from jobs.pages.table1_page import ClassFigure, Classified, ClassifiedFigure, RankFigure
from jobs.pages.thumbnail import thumbnail_of
from jobs.reproduce.evaluation import ranked
from jobs.reproduce.training import Trained
from jobs.runtime.format import model_name
from jobs.runtime.image_stream import ImageFailure, available_cpus, stream_images
from jobs.train.report import images_of_model

NUM_RIGHT = 6
NUM_DARK = NUM_BRIGHT = 3
LUMINANCE_SIDE = 64  # pixels of the square to which an image is scaled before its luminance is measured
RIGHT_RULE = (
    f"Of the held-out images that are classified correctly, the {NUM_RIGHT} whose second most probable model "
    "has the highest probability, at most one of each pair of models."
)
WRONG_RULE = (
    f"Of the held-out images that are classified wrongly, the {NUM_DARK} darkest and then the {NUM_BRIGHT} "
    "brightest, by the mean luminance of the whole image. They are chosen by their light; whether the "
    "light is the cause of the error is not known."
)
_REC_601 = np.array([0.299, 0.587, 0.114])  # luminance of red, green and blue


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out images with the probabilities of their models: (n, classes), in the order of the card."""

    labelled: LabelledRun
    probabilities: NDArray[np.float64]


def list_of_held_out(images: LabeledImages) -> EvaluationList:
    """Return held-out images as a list. Only their models matter, so that each is a vehicle of its own."""
    columns = {
        "uri": images.uris,
        "vehicle_id": np.arange(len(images)),
        "model_id": images.model_ids.astype(np.int32),
    }
    return EvaluationList("held-out images", pa.table(columns))


def classify_held_out(trained: Trained, run: Run, images: LabeledImages) -> HeldOut:
    """Return the probabilities of the vehicle models of held-out images, from their features."""
    labelled = labelled_run(run, list_of_held_out(images))
    classifier = load_checkpoint(trained.uri).network.head.classifier
    if classifier is None:
        raise BadInput(f"the network in {trained.uri} names no vehicle models", remedy="give another one")
    with torch.inference_mode():
        logits = classifier(torch.from_numpy(labelled.features))
        probabilities = torch.softmax(logits.double(), dim=1).numpy()
    return HeldOut(labelled, probabilities)


def class_figure(trained: Trained, held_out: HeldOut, training: LabeledImages) -> ClassFigure | None:
    """Return Figure 4, None without held-out images."""
    labels = np.asarray(trained.card.label_ids, np.int64)
    predicted = labels[held_out.probabilities.argmax(axis=1)]
    models = classification(predicted, held_out.labelled.true_model_ids)
    if models is None:
        return None
    names = [model_name(trained.card.label_names, row.model_id) for row in models.classes]
    return ClassFigure(models, names, images_of_model(training), trained.method.title)


def classified_figure(card: Card, held_out: HeldOut) -> ClassifiedFigure:
    """Return Figure 5, whose images follow from `RIGHT_RULE` and `WRONG_RULE`."""
    labels = np.asarray(card.label_ids, np.int64)
    order = np.argsort(-held_out.probabilities, axis=1, kind="stable")[:, :2]
    is_right = labels[order[:, 0]] == held_out.labelled.true_model_ids
    uris = held_out.labelled.crops["uri"].to_pylist()
    reader = ArchiveReader(open_store(held_out.labelled.run.info.archive))
    show = _shower(card, held_out, order, uris, reader)
    wrong = np.flatnonzero(~is_right)
    light = _luminances(reader, [uris[row] for row in wrong])
    return ClassifiedFigure(
        right=[show(row, None) for row in most_confusable(held_out.probabilities, order, is_right, uris)],
        wrong=[show(int(wrong[place]), float(light[place])) for place in extreme_places(light)],
        right_rule=RIGHT_RULE,
        wrong_rule=WRONG_RULE,
    )


def _shower(
    card: Card, held_out: HeldOut, order: NDArray[np.int64], uris: Sequence[str], reader: ArchiveReader
) -> Callable[[int, float | None], Classified]:
    def name(place: int) -> str:
        return model_name(card.label_names, card.label_ids[place])

    def show(row: int, luminance: float | None) -> Classified:
        first, second = (int(place) for place in order[row])
        return Classified(
            jpeg=thumbnail_of(reader, uris[row]),
            true=model_name(card.label_names, int(held_out.labelled.true_model_ids[row])),
            predicted=name(first),
            probability=float(held_out.probabilities[row, first]),
            runner_up=name(second),
            runner_up_probability=float(held_out.probabilities[row, second]),
            luminance=luminance,
        )

    return show


def most_confusable(
    probabilities: NDArray[np.float64],
    order: NDArray[np.int64],
    is_right: NDArray[np.bool_],
    uris: Sequence[str],
) -> list[int]:
    """Return the rows of `RIGHT_RULE`; among equals, by URI."""
    rows = np.flatnonzero(is_right)
    ranked_rows = sorted(rows.tolist(), key=lambda row: (-probabilities[row, order[row, 1]], uris[row]))
    chosen: dict[tuple[int, ...], int] = {}
    for row in ranked_rows:
        chosen.setdefault(tuple(sorted(order[row].tolist())), row)
    return list(chosen.values())[:NUM_RIGHT]


def extreme_places(light: NDArray[np.float64]) -> list[int]:
    """Return the places of `WRONG_RULE`: the darkest first, then the brightest of the others."""
    order = [int(place) for place in np.argsort(light, kind="stable") if np.isfinite(light[place])]
    dark, rest = order[:NUM_DARK], order[NUM_DARK:]
    return [*dark, *rest[::-1][:NUM_BRIGHT]]


def _luminances(reader: ArchiveReader, uris: Sequence[str]) -> NDArray[np.float64]:
    """Return the mean luminance of images, from 0 to 255: (n,); NaN for one that cannot be read any more."""
    light = np.full(len(uris), np.nan)
    for place, image in stream_images(reader, list(uris), decoders=available_cpus(), size=LUMINANCE_SIDE):
        if not isinstance(image, ImageFailure):
            light[place] = float((image @ _REC_601).mean())
    return light


def rank_figure(trained: Trained, run: Run, chosen: EvaluationList, seed: int) -> RankFigure:
    """Return Figure 6: the first draw of the paper's direction on a list."""
    labelled = labelled_run(run, chosen)
    result = ranked(labelled, trained.card, DIRECTIONS[0], 1, seed)
    first_ranks = result.first_ranks[0]
    return RankFigure(
        strips=list(strips_of(labelled, result, trained.card.label_names, draw_probes(first_ranks))),
        outcomes=outcomes_of(result),
        dataset=f"list {chosen.name}" if chosen.name else "the list",
        method=trained.method.title,
    )
