"""The page of an evaluation: strips of real crops, the CMC, the counts, put together for `index.report`."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clvr_model.checkpoint import Card
from index.exact import nearest
from index.ledger import RunSummary
from index.protocols import ProtocolResult
from index.report import (
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
from infra.store import open_store
from jobs.labelled_run import LabelledRun
from jobs.thumbnail import thumbnail_of

STRIP_RANKS = 5
STRIPS_A_PANEL = 4


@dataclass(frozen=True, slots=True)
class Story:
    """What a page tells, besides the evaluation itself."""

    title: str
    lead: str
    dataset: str
    note: str
    timings: tuple[Timing, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    command: str = ""


def write_page(
    path: Path, labelled: LabelledRun, results: tuple[ProtocolResult, ...], card: Card, story: Story
) -> None:
    """Write the page of a run's evaluation; it appears whole or not at all."""
    summary = labelled.run.summary
    first = results[0]
    page = build_page(
        PageData(
            title=story.title,
            lead=story.lead,
            dataset=story.dataset,
            note=story.note,
            counts=_counts(summary),
            results=results,
            strips=list(_strips(labelled, first, card.label_names)),
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
    ranks = result.ranks[0]
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


def _strips(labelled: LabelledRun, result: ProtocolResult, names: Mapping[int, str]) -> Iterator[Strip]:
    """Strips of the first repeat, with exactly the ranks that were counted."""
    split, ranks = result.splits[0], result.ranks[0]
    chosen = _chosen(ranks)
    probes = split.probes[chosen]
    # Where everything is both probe and gallery, a probe must not find itself.
    itself = probes[:, None] if np.array_equal(split.probes, split.gallery) else None
    gallery = [(split.gallery, labelled.features[split.gallery])]
    found, distances = nearest(labelled.features[probes], gallery, STRIP_RANKS, forbidden=itself)
    archive = open_store(labelled.run.info.archive)
    root = archive.uri_of("")

    def sighting(row: int) -> Sighting:
        crop = labelled.crops.slice(row, 1).to_pylist()[0]
        return Sighting(
            jpeg=thumbnail_of(archive, crop["uri"].removeprefix(root)),
            vehicle=str(labelled.vehicle_ids[row]),
            camera=crop["camera_id"],
            captured_at=crop["captured_at"],
            model=names.get(crop["model_id"], f"model {crop['model_id']}"),
        )

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


def _chosen(ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Some probes of each panel, drawn without looking: hit at 1, hit in ranks 2 to 5, missed there."""
    order = np.random.default_rng(0).permutation(len(ranks))
    panels = ((1, 1), (2, STRIP_RANKS), (STRIP_RANKS + 1, np.inf))
    return np.concatenate(
        [order[(ranks[order] >= low) & (ranks[order] <= high)][:STRIPS_A_PANEL] for low, high in panels]
    )
