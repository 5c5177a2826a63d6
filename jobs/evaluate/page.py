"""The report of an evaluation: strips of crops, the CMC and the counts, assembled for the page."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clvr_model.checkpoint import Card
from index.archive.reader import ArchiveReader
from index.evaluation.cmc import Split
from index.evaluation.metrics import metrics_by
from index.evaluation.protocols import JUNK, ProtocolResult
from index.exact import NO_ID
from index.exact.knn import nearest
from index.outputs import record_output, withdraw_erased
from index.runs.records import RunSummary
from infra.store import open_store
from jobs.evaluate.dataset import LabelledRun
from jobs.pages.evaluation_page import (
    Classified,
    Counts,
    EvaluationPage,
    ListSection,
    ModelAccuracy,
    Outcomes,
    Ranked,
    Sighting,
    Strip,
    Timing,
    build_evaluation_page,
)
from jobs.pages.html import write_page as write_html
from jobs.pages.published import published_beside
from jobs.pages.thumbnail import thumbnail_of
from jobs.runtime.format import labels_used, model_name, predicted_values

if TYPE_CHECKING:
    from jobs.evaluate.results import Evaluation, ListEvaluation

STRIP_RANKS = 5
STRIPS_PER_PANEL = 4
NUM_HARDEST = 4
NUM_CLASSIFIED = 6


@dataclass(frozen=True, slots=True)
class ReportText:
    """The texts of a report."""

    title: str
    summary: str
    dataset: str
    note: str
    timings: tuple[Timing, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    evaluated: str = ""  # the images of the evaluation, if not the whole dataset


def write_page(path: Path, evaluation: "Evaluation", card: Card, text: ReportText) -> None:
    """Write the report of an evaluation, with a section for each of its lists, atomically.

    It is recorded for a purge with all crops that were evaluated. Raises BadInput if one of them was erased
    meanwhile.
    """
    summary = evaluation.labelled.run.summary
    page = build_evaluation_page(
        EvaluationPage(
            title=text.title,
            summary=text.summary,
            dataset=text.dataset,
            note=text.note,
            counts=_counts(summary),
            lists=[_section(each, card.label_names, text) for each in evaluation.lists],
            metrics=metrics_by(evaluation.ap),
            model_accuracy=_model_accuracy(card),
            timings=text.timings,
            facts={
                "run": summary.run_id,
                "fingerprint": summary.fingerprint,
                "labels used": labels_used(card),
                "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
                **text.facts,
            },
            command=text.command,
        )
    )
    store = evaluation.labelled.run.store
    crop_ids = np.unique(np.concatenate([each.labelled.crop_ids for each in evaluation.lists])).tolist()
    record_output(store, "page", str(path.resolve()), crop_ids)
    write_html(path, page)
    withdraw_erased(store, path, crop_ids)


def _section(evaluation: "ListEvaluation", names: Mapping[int, str], text: ReportText) -> ListSection:
    labelled, first = evaluation.labelled, evaluation.results[0]
    predicted = labelled.crops["model_id"].to_numpy().astype(np.int64)
    first_ranks, models = first.first_ranks[0], evaluation.models
    dataset = text.evaluated or text.dataset
    not_ranked = labelled.quarantined + labelled.not_in_run
    return ListSection(
        dataset=f"{dataset}, list {labelled.name}" if labelled.name else dataset,
        name=labelled.name,
        results=evaluation.results,
        strips=list(strips_of(labelled, first, names, draw_probes(first_ranks))),
        hardest=list(strips_of(labelled, first, names, _hardest_probes(first_ranks))),
        distances=evaluation.distances,
        models=models,
        model_names=[_model_name(names, row.model_id) for row in models.classes] if models else [],
        classified=list(_classified(labelled, predicted, names)) if models else [],
        camera_pairs=evaluation.camera_pairs,
        day_parts=evaluation.day_parts,
        attributes=evaluation.attributes,
        by_color=evaluation.by_color,
        variants=evaluation.variants,
        index=evaluation.index,
        not_ranked=labelled.accounting(),
        outcomes=outcomes_of(first),
        oracles=evaluation.oracles,
        published=published_beside(
            labelled.dataset,
            labelled.name,
            [result.name for result in evaluation.results],
            images=len(labelled.features) + not_ranked,
            not_ranked=not_ranked,
        ),
    )


def _counts(summary: RunSummary) -> Counts:
    return Counts(
        listed=summary.listed,
        embedded=summary.embedded,
        quarantined=summary.quarantined,
        duplicates=summary.duplicates,
        causes=summary.causes,
    )


def outcomes_of(result: ProtocolResult) -> Outcomes:
    """Count the probes of the first repeat by the rank of their first true match."""
    ranks = result.first_ranks[0][result.first_ranks[0] > 0]
    at_1, in_5 = int((ranks == 1).sum()), int((ranks <= STRIP_RANKS).sum())
    return Outcomes(at_1, in_5 - at_1, len(ranks) - in_5, method=f"{result.name}, first repeat, exact L2")


def _model_accuracy(card: Card) -> ModelAccuracy | None:
    metrics = card.metrics
    if metrics.get("accuracy") is None or "held_out" not in metrics:
        return None
    return ModelAccuracy(
        micro=metrics["accuracy"],
        macro=metrics["macro_accuracy"],
        classes=metrics["classes"],
        images=metrics["held_out"],
        chance=metrics["largest_class_share"],
    )


def strips_of(
    labelled: LabelledRun, result: ProtocolResult, names: Mapping[int, str], chosen: NDArray[np.int64]
) -> Iterator[Strip]:
    """Make strips of the first repeat, with the ranks as they were counted."""
    split, ranks = result.splits[0], result.first_ranks[0]
    if not len(chosen):
        return
    probes = split.probes[chosen]
    nearest_rows = np.full((len(chosen), STRIP_RANKS), NO_ID, dtype=np.int64)
    distances = np.full(nearest_rows.shape, np.inf, dtype=np.float32)
    for part in split.one_gallery_each:
        here = np.flatnonzero(np.isin(probes, part.probes))
        nearest_rows[here], distances[here] = nearest(
            labelled.features[probes[here]],
            [(part.gallery, labelled.features[part.gallery])],
            STRIP_RANKS,
            exclude_ids=_excluded_rows(labelled, part, probes[here], result.name in JUNK),
        )
    sighting = _sighting_of_row(labelled, names)
    for probe, rank, rows, row_distances in zip(probes, ranks[chosen], nearest_rows, distances, strict=True):
        vehicle = labelled.vehicle_ids[probe]
        yield Strip(
            probe=sighting(int(probe)),
            ranked=[
                Ranked(sighting(int(row)), float(distance), bool(labelled.vehicle_ids[row] == vehicle))
                for row, distance in zip(rows, row_distances, strict=True)
                if row >= 0
            ],
            first_hit=int(rank),
        )


def _excluded_rows(
    labelled: LabelledRun, split: Split, probes: NDArray[np.int64], junk: bool
) -> NDArray[np.int64]:
    """Return rows (p, m) that are not ranked for a probe: itself, and junk (its vehicle at its camera)."""
    rows = []
    for probe in probes:
        excluded = split.gallery == probe
        if junk:
            excluded |= (labelled.vehicle_ids[split.gallery] == labelled.vehicle_ids[probe]) & (
                labelled.camera_ids[split.gallery] == labelled.camera_ids[probe]
            )
        rows.append(split.gallery[excluded])
    padded = np.full((len(probes), max(map(len, rows), default=0)), NO_ID, dtype=np.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return padded


def _sighting_of_row(labelled: LabelledRun, names: Mapping[int, str]) -> Callable[[int], Sighting]:
    reader = ArchiveReader(open_store(labelled.run.info.archive))

    def sighting(row: int) -> Sighting:
        crop = labelled.crops.slice(row, 1).to_pylist()[0]
        return Sighting(
            jpeg=thumbnail_of(reader, crop["uri"]),
            vehicle=str(labelled.vehicle_ids[row]),
            camera=str(labelled.camera_ids[row]),
            captured_at=int(labelled.captured_at[row]),
            model=_model_name(names, crop["model_id"]),
            attributes=predicted_values(crop),
        )

    return sighting


def _classified(
    labelled: LabelledRun, predicted: NDArray[np.int64], names: Mapping[int, str]
) -> Iterator[Classified]:
    """Draw random crops whose model was predicted correctly, and some predicted wrongly (Figure 5)."""
    order = np.random.default_rng(1).permutation(np.flatnonzero(labelled.true_model_ids >= 0))
    is_correct = predicted == labelled.true_model_ids
    sighting = _sighting_of_row(labelled, names)
    for rows in (order[is_correct[order]], order[~is_correct[order]]):
        for row in rows[:NUM_CLASSIFIED].tolist():
            yield Classified(
                sighting(row),
                true=_model_name(names, int(labelled.true_model_ids[row])),
                confidence=float(labelled.crops["model_confidence"][row].as_py()),
                correct=bool(is_correct[row]),
            )


def _model_name(names: Mapping[int, str], model: int) -> str:
    return model_name(names, model)


def _hardest_probes(ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the probes with the worst ranks of the first true match, beyond the ranks of a strip."""
    order = np.argsort(-ranks, kind="stable")[:NUM_HARDEST]
    return order[ranks[order] > STRIP_RANKS]


def draw_probes(ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Draw random probes of each panel: first match at rank 1, at ranks 2 to 5, and below."""
    order = np.random.default_rng(0).permutation(len(ranks))
    panels = ((1, 1), (2, STRIP_RANKS), (STRIP_RANKS + 1, np.inf))
    return np.concatenate(
        [order[(ranks[order] >= first) & (ranks[order] <= last)][:STRIPS_PER_PANEL] for first, last in panels]
    )
