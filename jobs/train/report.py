"""The page of a finished training: the facts of its card and log, with examples of validation images."""

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

from clvr_model.attributes import ATTRIBUTES
from clvr_model.checkpoint import NO_LABELS, Card
from clvr_model.datasets.labelled import LabeledImages
from index.archive.reader import reader_of
from index.evaluation.breakdowns import classification
from index.transforms.track_figures import TrackFigures
from infra.store import Store
from jobs.pages.thumbnail import thumbnail_of
from jobs.pages.training_page import Epoch, Example, TrainingPage, build_training_page
from jobs.runtime.format import labels_used, model_name
from jobs.train.log import TrainingCost

REPORT_FILE = "report.html"
MAX_EXAMPLES = 6  # of right and of wrong predictions each


@dataclass(frozen=True, slots=True)
class ReportInputs:
    """The inputs of the page besides the card. final: the last entry of the training's history."""

    data: str
    training: LabeledImages
    validation: LabeledImages
    final: Mapping[str, Any]
    cost: TrainingCost
    tracks: TrackFigures | None = None


def write_report(
    destination: Store, card: Card, inputs: ReportInputs, log: Sequence[Mapping[str, Any]]
) -> None:
    """Write `report.html` beside the checkpoint."""
    has_classes = bool(card.label_ids)
    predicted = np.array(inputs.final["predicted"], np.int64)
    true = inputs.validation.model_ids if has_classes else predicted
    cost = inputs.cost
    page = TrainingPage(
        title=_title(card, inputs),
        summary=_summary(card, inputs),
        labels_used=labels_used(card),
        rank1=inputs.final.get("rank1"),
        tracks=inputs.tracks,
        attributes={
            name: inputs.final["attributes"][name]
            for name in ATTRIBUTES
            if name in inputs.final.get("attributes", {})
        },
        dataset=inputs.data.rstrip("/").rpartition("/")[2],
        note=_note(card, inputs),
        training_images=len(inputs.training),
        images_of_model=images_of_model(inputs.training),
        predicted=predicted,
        true=true,
        models=classification(predicted, true) if has_classes else None,
        names=card.label_names,
        examples=(
            list(_examples(inputs.validation, card.label_names, predicted, inputs.final["confidence"]))
            if has_classes
            else []
        ),
        epochs=epochs_of(card),
        hours=cost.hours,
        node_hours=cost.node_hours,
        attempts=cost.attempts,
        cost=cost.money,
        facts=_facts(card, inputs, log),
        unstated={name: _plain_text(value) for name, value in card.unstated.items()},
        untrained_classes=card.metrics.get("unlearned", ()),
        command=shlex.join(["clvr", *sys.argv[1:]]),
    )
    destination.put(REPORT_FILE, build_training_page(page).encode())


def _title(card: Card, inputs: ReportInputs) -> str:
    subjects = [f"{len(card.label_ids):,} vehicle models"] if card.label_ids else []
    if inputs.training.vehicle_ids is not None:
        identity = card.recipe.get("identity", "vehicle")
        subjects.append(f"{len(np.unique(inputs.training.vehicle_ids)):,} {identity}s")
    return f"{' and '.join(subjects)}, recipe {card.recipe['name']}"


def _summary(card: Card, inputs: ReportInputs) -> str:
    subject = {
        "model": "A classifier over vehicle models",
        "vehicle": "A network that brings images of the same vehicle together",
        "both": "A classifier over vehicle models that also brings images of the same vehicle together",
        "none": "A network that brings the images of a track together, without any label",
    }[card.labels_used]
    if card.recipe.get("identity") == "track" and card.labels_used == "model":
        subject += " that also brings the images of a track together"
    if card.labels_used == NO_LABELS:
        return f"{subject}, trained on {len(inputs.training):,} images by the recipe “{card.recipe['name']}”."
    measured = (
        "validation images" if card.labels_used == "model" else "images of vehicles that were not trained on"
    )
    return (
        f"{subject}, trained on {len(inputs.training):,} images by the recipe “{card.recipe['name']}” and "
        f"measured on {len(inputs.validation):,} {measured}."
    )


def _note(card: Card, inputs: ReportInputs) -> str:
    if card.labels_used == NO_LABELS:
        return (
            "A track is one pass of a vehicle before one camera, so its crops differ less than those of two "
            "cameras, between which a search goes: clvr evaluate measures that, with labels."
        )
    note = (
        "The network was trained to name the vehicle model, which is not its purpose: clvr evaluate measures "
        "whether it finds the same vehicle again."
        if card.labels_used == "model"
        else "Rank-1 is the share of validation images whose nearest other image is of the same vehicle. It "
        "grows with the images of a vehicle and is no published protocol: clvr evaluate measures those."
    )
    if card.metrics.get("picked") == "best":
        note += (
            " The weights are those of the epoch with the best result on these validation images, which "
            "overstates the accuracy a little."
        )
    if len(inputs.validation) < 1000:
        note += f" {len(inputs.validation)} validation images are few: expect large random variation."
    return note


def images_of_model(labelled: LabeledImages) -> dict[int, int]:
    """Return the number of images of each vehicle model."""
    models, counts = np.unique(labelled.model_ids, return_counts=True)
    return dict(zip(models.tolist(), counts.tolist(), strict=True))


def epochs_of(card: Card) -> list[Epoch]:
    """Return the epochs of the training that gave a checkpoint; none for one that no training here gave."""
    return [_epoch(entry) for entry in card.metrics.get("history", ())]


def _epoch(entry: Mapping[str, Any]) -> Epoch:
    return Epoch(
        stage=entry["stage"],
        number=entry["epoch"] + 1,
        loss=entry["loss"],
        accuracy=entry["accuracy"],
        val_loss=entry.get("held_loss"),
        val_accuracy=entry.get("held_accuracy"),
        val_rank1=entry.get("held_rank1"),
        val_track_rank1=entry.get("held_track_rank1"),
        val_attributes={name: entry[f"held_{name}"] for name in ATTRIBUTES if f"held_{name}" in entry},
        lr=entry.get("lr", 0.0),
        images=entry["pictures"],
        seconds=entry["seconds"],
        images_per_second=entry.get("images_per_second", 0.0),
        wait_share=entry.get("wait_share", 0.0),
    )


def _examples(
    validation: LabeledImages,
    names: Mapping[int, str],
    predicted: NDArray[np.int64],
    confidence: Sequence[float],
) -> Iterator[Example]:
    """Yield random examples of right and of wrong predictions."""
    if not len(validation):
        return
    reader = reader_of(validation.uris)
    order = np.random.default_rng(1).permutation(len(validation))
    right = predicted == validation.model_ids
    for rows in (order[right[order]], order[~right[order]]):
        for row in rows[:MAX_EXAMPLES].tolist():
            yield Example(
                jpeg=thumbnail_of(reader, validation.uris[row]),
                true=_model_name(names, int(validation.model_ids[row])),
                predicted=_model_name(names, int(predicted[row])),
                confidence=confidence[row],
                correct=bool(right[row]),
            )


def _facts(card: Card, inputs: ReportInputs, log: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    starts = [line for line in log if line["event"] == "start"]
    last = starts[-1] if starts else {}
    versions = {**card.versions, "ray": ray.__version__, "python": platform.python_version()}
    facts = {
        "fingerprint": card.fingerprint,
        "labels used": labels_used(card),
        "created": card.created_at,
        "data": f"{inputs.data}, digest {card.data_digest[:16]}",
        "initial weights": str(card.backbone.get("source", "")),
        "stages": "; ".join(_stage(stage) for stage in card.recipe["stages"]),
        "batch": f"{card.recipe['batch']}, {card.recipe['precision']}, seed {card.recipe['seed']}",
        "workers": f"{last.get('workers', '?')} on {last.get('nodes', '?')} nodes, "
        f"{last.get('device', '?')}, images by {last.get('input', '?')}",
        "driver's machine": f"{platform.machine()}, {os.cpu_count()} cores, {_device()}",
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
        "weights": f"of the {card.metrics.get('picked', 'last')} epoch",
        "images left out": f"{card.metrics.get('unreadable', 0):,}",
    }
    if inputs.cost.attempts > 1:
        facts["attempts"] = f"{inputs.cost.attempts}: it was continued after a kill or a stop"
    if inputs.cost.price_per_node_hour is not None:
        facts["price"] = f"{inputs.cost.price_per_node_hour:g} a node-hour, as given"
    return facts


def _stage(stage: Mapping[str, Any]) -> str:
    layers = {
        "head": "backbone frozen",
        "top": "backbone frozen below its last reduction",
        "fusion": "backbone and branches frozen",
    }.get(stage["trainable"], "all layers")
    epochs = "epoch" if stage["epochs"] == 1 else "epochs"
    loss = f", {stage['loss']}" if "loss" in stage else ""
    return (
        f"{stage['name']}: {stage['epochs']} {epochs}, {layers}{loss}, {stage['optimizer']}, {stage['lr']:g}"
    )


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _plain_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain_text(item)}" for name, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _model_name(names: Mapping[int, str], model: int) -> str:
    return model_name(names, model)
