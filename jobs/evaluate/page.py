"""The page of an evaluation: strips of real crops, the CMC, the counts, put together for `index.report`."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clvr_model.checkpoint import Card
from index.archive.reader import ArchiveReader
from index.evaluation.breakdowns import by_camera_pair, by_day_part, classification, sample_distances
from index.evaluation.cmc import Split
from index.evaluation.protocols import JUNK, ProtocolResult
from index.exact.knn import NO_ID, nearest
from index.runs.records import RunSummary
from infra.store import open_store
from jobs.evaluate.dataset import LabelledRun
from jobs.pages.evaluation_page import (
    Classified,
    Counts,
    ModelAccuracy,
    Outcomes,
    PageData,
    Ranked,
    Sighting,
    Strip,
    Timing,
    build_page,
)
from jobs.pages.thumbnail import thumbnail_of

if TYPE_CHECKING:
    from jobs.evaluate.results import ListEvaluation

STRIP_RANKS = 5
STRIPS_A_PANEL = 4
HARDEST = 4
NAMED_EACH = 6


@dataclass(frozen=True, slots=True)
class ReportText:
    """What a page tells, besides the evaluation itself."""

    title: str
    lead: str
    dataset: str
    note: str
    timings: tuple[Timing, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    command: str = ""


def write_page(
    path: Path,
    labelled: LabelledRun,
    results: tuple[ProtocolResult, ...],
    card: Card,
    story: ReportText,
    more: "ListEvaluation | None" = None,
) -> None:
    """Write the page of a run's evaluation; it appears whole or not at all."""
    summary = labelled.run.summary
    first = results[0]
    predicted = labelled.crops["model_id"].to_numpy().astype(np.int64)
    models = more.models if more else classification(predicted, labelled.true_model_ids)
    junk = first.name in JUNK
    pictures = labelled.pictures()
    distances = more.distances if more else sample_distances(pictures, first.splits[0], junk=junk)
    page = build_page(
        PageData(
            title=story.title,
            lead=story.lead,
            dataset=story.dataset,
            note=story.note,
            counts=_counts(summary),
            results=results,
            strips=list(_strips(labelled, first, card.label_names, _chosen(first.first_ranks[0]))),
            hardest=list(_strips(labelled, first, card.label_names, _hardest(first.first_ranks[0]))),
            distances=distances,
            models=models,
            model_names=[_model_name(card.label_names, one.model_id) for one in models.classes]
            if models
            else [],
            named=list(_named(labelled, predicted, card.label_names)) if models else [],
            camera_pairs=more.camera_pairs if more else by_camera_pair(pictures),
            day_parts=more.day_parts
            if more
            else by_day_part(first.splits[0], first.rankings[0], labelled.captured_at),
            also=more.also if more else (),
            index=more.index if more else None,
            left_out=labelled.accounting(),
            outcomes=_outcomes(first),
            model_accuracy=_model_accuracy(card),
            timings=story.timings,
            facts={
                "run": summary.run_id,
                "fingerprint": summary.fingerprint,
                "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
                **story.facts,
            },
            command=story.command,
        )
    )
    unfinished = path.with_suffix(".part")
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(path)


def _counts(summary: RunSummary) -> Counts:
    return Counts(
        listed=summary.listed,
        embedded=summary.embedded,
        quarantined=summary.quarantined,
        duplicates=summary.duplicates,
        causes=summary.causes,
    )


def _outcomes(result: ProtocolResult) -> Outcomes:
    ranks = result.first_ranks[0][result.first_ranks[0] > 0]
    at_1, in_5 = int((ranks == 1).sum()), int((ranks <= STRIP_RANKS).sum())
    return Outcomes(at_1, in_5 - at_1, len(ranks) - in_5, how=f"{result.name}, first repeat, exact L2")


def _model_accuracy(card: Card) -> ModelAccuracy | None:
    metrics = card.metrics
    if "held_out" not in metrics:
        return None
    return ModelAccuracy(
        micro=metrics["accuracy"],
        macro=metrics["macro_accuracy"],
        classes=metrics["classes"],
        pictures=metrics["held_out"],
        chance=metrics["largest_class_share"],
    )


def _strips(
    labelled: LabelledRun, result: ProtocolResult, names: Mapping[int, str], chosen: NDArray[np.int64]
) -> Iterator[Strip]:
    """Strips of the first repeat, with exactly the ranks that were counted."""
    split, ranks = result.splits[0], result.first_ranks[0]
    if not len(chosen):
        return
    probes = split.probes[chosen]
    gallery = [(split.gallery, labelled.features[split.gallery])]
    found, distances = nearest(
        labelled.features[probes],
        gallery,
        STRIP_RANKS,
        exclude_ids=_not_ranked(labelled, split, probes, result.name in JUNK),
    )
    sighting = _sightings(labelled, names)
    for probe, rank, rows, away in zip(probes, ranks[chosen], found, distances, strict=True):
        vehicle = labelled.vehicle_ids[probe]
        yield Strip(
            probe=sighting(int(probe)),
            ranked=[
                Ranked(sighting(int(row)), float(distance), bool(labelled.vehicle_ids[row] == vehicle))
                for row, distance in zip(rows, away, strict=True)
                if row >= 0
            ],
            first_hit=int(rank),
        )


def _not_ranked(
    labelled: LabelledRun, split: Split, probes: NDArray[np.int64], junk: bool
) -> NDArray[np.int64]:
    """Rows (p, m) that are not ranked for a probe: its own, and junk (its vehicle by its camera)."""
    rows = []
    for probe in probes:
        out = split.gallery == probe
        if junk:
            out |= (labelled.vehicle_ids[split.gallery] == labelled.vehicle_ids[probe]) & (
                labelled.camera_ids[split.gallery] == labelled.camera_ids[probe]
            )
        rows.append(split.gallery[out])
    padded = np.full((len(probes), max(map(len, rows), default=0)), NO_ID, dtype=np.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return padded


def _sightings(labelled: LabelledRun, names: Mapping[int, str]) -> Callable[[int], Sighting]:
    reader = ArchiveReader(open_store(labelled.run.info.archive))

    def sighting(row: int) -> Sighting:
        crop = labelled.crops.slice(row, 1).to_pylist()[0]
        return Sighting(
            jpeg=thumbnail_of(reader, crop["uri"]),
            vehicle=str(labelled.vehicle_ids[row]),
            camera=str(labelled.camera_ids[row]),
            captured_at=int(labelled.captured_at[row]),
            model=_model_name(names, crop["model_id"]),
        )

    return sighting


def _named(
    labelled: LabelledRun, predicted: NDArray[np.int64], names: Mapping[int, str]
) -> Iterator[Classified]:
    """Figure 5: crops named rightly and wrongly, drawn without looking."""
    order = np.random.default_rng(1).permutation(np.flatnonzero(labelled.true_model_ids >= 0))
    right = predicted == labelled.true_model_ids
    sighting = _sightings(labelled, names)
    for some in (order[right[order]], order[~right[order]]):
        for row in some[:NAMED_EACH].tolist():
            yield Classified(
                sighting(row),
                true=_model_name(names, int(labelled.true_model_ids[row])),
                confidence=float(labelled.crops["model_confidence"][row].as_py()),
                right=bool(right[row]),
            )


def _model_name(names: Mapping[int, str], model: int) -> str:
    return names.get(model, f"model {model}")


def _hardest(ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """The probes whose first true match stands furthest down, below the ranks that a strip shows."""
    order = np.argsort(-ranks, kind="stable")[:HARDEST]
    return order[ranks[order] > STRIP_RANKS]


def _chosen(ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Some probes of each panel, drawn without looking: hit at 1, hit in ranks 2 to 5, missed there."""
    order = np.random.default_rng(0).permutation(len(ranks))
    panels = ((1, 1), (2, STRIP_RANKS), (STRIP_RANKS + 1, np.inf))
    return np.concatenate(
        [order[(ranks[order] >= low) & (ranks[order] <= high)][:STRIPS_A_PANEL] for low, high in panels]
    )
