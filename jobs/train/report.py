"""The page of a finished training: what the card and the log tell, with held-out pictures beside it."""

import os
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from clvr_model.checkpoint import Card
from clvr_model.datasets.labelled import LabeledImages
from index.archive.reader import reader_of
from index.evaluation.breakdowns import classification
from infra.store import Store
from jobs.pages.thumbnail import thumbnail_of
from jobs.pages.training_page import Epoch, Example, TrainingPage, build_training_page
from jobs.train.log import Cost

REPORT_FILE = "report.html"
EXAMPLES_EACH = 6


@dataclass(frozen=True, slots=True)
class ReportInputs:
    """What a page needs besides the card. final: the last entry of the training's history."""

    data: str
    training: LabeledImages
    held: LabeledImages
    final: Mapping[str, Any]
    cost: Cost


def write_report(
    destination: Store, card: Card, told: ReportInputs, log: Sequence[Mapping[str, Any]]
) -> None:
    """Write `report.html` beside the checkpoint."""
    predicted = np.array(told.final["predicted"], np.int64)
    true = told.held.model_ids
    recipe = card.recipe["name"]
    cost = told.cost
    page = TrainingPage(
        title=f"{len(card.label_ids):,} vehicle models, recipe {recipe}",
        lead=(
            f"A classifier over vehicle models, fitted on {len(told.training):,} pictures by the recipe "
            f"“{recipe}” and measured on {len(told.held):,} that it never learned from."
        ),
        dataset=told.data.rstrip("/").rpartition("/")[2],
        note=_note(card, told),
        training_pictures=len(told.training),
        predicted=predicted,
        true=true,
        models=classification(predicted, true),
        names=card.label_names,
        examples=list(_examples(told.held, card.label_names, predicted, told.final["confidence"])),
        epochs=[_epoch(entry) for entry in card.metrics["history"]],
        hours=cost.hours,
        node_hours=cost.node_hours,
        attempts=cost.attempts,
        money=cost.money,
        facts=_facts(card, told, log),
        unstated={name: _words(value) for name, value in card.unstated.items()},
        unlearned=card.metrics.get("unlearned", ()),
        command=shlex.join(["clvr", *sys.argv[1:]]),
    )
    destination.put(REPORT_FILE, build_training_page(page).encode())


def _note(card: Card, told: ReportInputs) -> str:
    words = (
        "Naming the model is what the network learned, not what it is for: whether it finds the same vehicle "
        "again is measured by clvr evaluate."
    )
    if card.metrics.get("picked") == "best":
        words += (
            " The weights are those of the epoch that did best on the very pictures they are measured on, "
            "which flatters them a little."
        )
    if len(told.held) < 1000:
        words += f" {len(told.held)} held-out pictures are few: figures this small move by chance."
    return words


def _epoch(entry: Mapping[str, Any]) -> Epoch:
    return Epoch(
        stage=entry["stage"],
        number=entry["epoch"] + 1,
        loss=entry["loss"],
        accuracy=entry["accuracy"],
        held_loss=entry.get("held_loss"),
        held_accuracy=entry.get("held_accuracy"),
        lr=entry.get("lr", 0.0),
        pictures=entry["pictures"],
        seconds=entry["seconds"],
        images_per_second=entry.get("images_per_second", 0.0),
        wait_share=entry.get("wait_share", 0.0),
    )


def _examples(
    held: LabeledImages, names: Mapping[int, str], predicted: NDArray[np.int64], confidence: Sequence[float]
) -> Iterator[Example]:
    """Right and wrong ones, drawn without looking."""
    if not len(held):
        return
    reader = reader_of(held.uris)
    order = np.random.default_rng(1).permutation(len(held))
    right = predicted == held.model_ids
    for some in (order[right[order]], order[~right[order]]):
        for row in some[:EXAMPLES_EACH].tolist():
            yield Example(
                jpeg=thumbnail_of(reader, held.uris[row]),
                true=_name(names, int(held.model_ids[row])),
                predicted=_name(names, int(predicted[row])),
                confidence=confidence[row],
                right=bool(right[row]),
            )


def _facts(card: Card, told: ReportInputs, log: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    starts = [line for line in log if line["event"] == "start"]
    last = starts[-1] if starts else {}
    versions = {**card.versions, "ray": ray.__version__, "python": platform.python_version()}
    facts = {
        "fingerprint": card.fingerprint,
        "made": card.created_at,
        "data": f"{told.data}, digest {card.data_digest[:16]}",
        "backbone's start": str(card.backbone.get("source", "")),
        "stages": "; ".join(_stage(stage) for stage in card.recipe["stages"]),
        "batch": f"{card.recipe['batch']}, {card.recipe['precision']}, seed {card.recipe['seed']}",
        "workers": f"{last.get('workers', '?')} on {last.get('nodes', '?')} nodes, "
        f"{last.get('device', '?')}, pictures by {last.get('input', '?')}",
        "driver's machine": f"{platform.machine()}, {os.cpu_count()} cores, {_device()}",
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
        "weights": f"of the {card.metrics.get('picked', 'last')} epoch",
        "pictures left out": f"{card.metrics.get('unreadable', 0):,}",
    }
    if told.cost.attempts > 1:
        facts["attempts"] = f"{told.cost.attempts}: it was continued after kills or stops"
    if told.cost.price_per_node_hour is not None:
        facts["price"] = f"{told.cost.price_per_node_hour:g} a node-hour, as given"
    return facts


def _stage(stage: Mapping[str, Any]) -> str:
    what = "backbone frozen" if stage["trainable"] == "head" else "all layers"
    epochs = "epoch" if stage["epochs"] == 1 else "epochs"
    return f"{stage['name']}: {stage['epochs']} {epochs}, {what}, {stage['optimizer']}, {stage['lr']:g}"


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(one)}" for name, one in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _name(names: Mapping[int, str], model: int) -> str:
    return names.get(model, f"model {model}")
