"""Predictions of vehicle models and attributes, their accuracy, and how often a vehicle is found again."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from clvr_model.objective import classes_of
from clvr_model.training import Batch, autocast, network_input

MAX_PROBES = 4096
PROBE_ROWS = 512


@dataclass(frozen=True, slots=True)
class Predictions:
    """The most likely class of n images, its probability, and the loss of the true class.

    Without a classifier the classes are -1, with confidence and loss 0. features: if they were asked for.
    attributes: the most likely value of each attribute, if the network has attributes.
    """

    classes: NDArray[np.int64]  # (n,)
    confidence: NDArray[np.float32]  # (n,)
    losses: NDArray[np.float32]  # (n,) cross-entropy
    features: NDArray[np.float32] | None = None  # (n, feature_dim)
    attributes: NDArray[np.int64] | None = None  # (n, attributes)


@dataclass(frozen=True, slots=True)
class Scores:
    """Accuracy of predictions.

    micro: share of correct images. macro: mean of the classes' shares, over classes with images. per_class:
    share of correct images of each class, None for a class without images.
    """

    loss: float
    micro: float
    macro: float
    per_class: tuple[float | None, ...]
    pictures: int


@dataclass(frozen=True, slots=True)
class AttributeScores:
    """Accuracy of an attribute over the images whose value is known; `accuracy` is None without any.

    chance: share of the most frequent value among them. Field names are keys of cards.
    """

    accuracy: float | None
    chance: float
    pictures: int


@torch.inference_mode()
def predict(
    module: nn.Module, batches: Iterable[Batch], *, precision: str = "fp32", keep_features: bool = False
) -> Predictions:
    """Predict in eval mode, with a network or, on pooled batches, with its head."""
    module.eval()
    classes, confidence, losses, features, values = [], [], [], [], []
    for inputs, targets in batches:
        with autocast(inputs, precision):
            feature, logits, *attributes = module(network_input(inputs))
        if attributes:
            values.append(torch.stack([part.argmax(dim=1) for part in attributes], dim=1).cpu())
        if keep_features:
            features.append(feature.float().cpu())
        best, probability, loss = _best(logits.float(), classes_of(targets))
        classes.append(best.cpu())
        confidence.append(probability.cpu())
        losses.append(loss.cpu())
    if not classes:
        return Predictions(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.float32))
    return Predictions(
        torch.cat(classes).numpy(),
        torch.cat(confidence).numpy(),
        torch.cat(losses).numpy(),
        features=torch.cat(features).numpy() if keep_features else None,
        attributes=torch.cat(values).numpy() if values else None,
    )


def _best(logits: Tensor, expected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the most likely class of each row, its probability, and the loss of the expected class.

    The loss is 0 where the expected class is unknown, -1.
    """
    if not logits.shape[1]:
        nothing = logits.new_zeros(len(logits))
        return torch.full_like(nothing, -1, dtype=torch.int64), nothing, nothing
    best = functional.softmax(logits, dim=1).max(dim=1)
    return (
        best.indices,
        best.values,
        functional.cross_entropy(logits, expected, reduction="none", ignore_index=-1),
    )


def vehicle_rank1(features: NDArray[np.float32], vehicles: NDArray[np.int64]) -> float:
    """Return the share of images whose nearest other image (L2) is of the same vehicle.

    features: (n, d). vehicles: (n,). Counts images of vehicles with two or more, up to MAX_PROBES spread
    evenly; 0 without any. A measure of progress: `clvr evaluate` gives the exact figures.
    """
    _, numbers, counts = np.unique(vehicles, return_inverse=True, return_counts=True)
    probes = np.flatnonzero(counts[numbers] > 1)
    if not len(probes):
        return 0.0
    probes = probes[np.unique(np.linspace(0, len(probes) - 1, min(MAX_PROBES, len(probes))).astype(np.int64))]
    gallery = torch.from_numpy(features - features.mean(axis=0))
    squares = gallery.square().sum(dim=1)
    right = 0
    for start in range(0, len(probes), PROBE_ROWS):
        rows = torch.from_numpy(probes[start : start + PROBE_ROWS])
        distances = squares - 2 * (
            gallery[rows] @ gallery.T
        )  # without the probe's own square, equal in a row
        distances[torch.arange(len(rows)), rows] = torch.inf
        nearest = distances.argmin(dim=1).numpy()
        right += int((vehicles[nearest] == vehicles[rows.numpy()]).sum())
    return right / len(probes)


def score(predictions: Predictions, expected: NDArray[np.int64], classes: int) -> Scores:
    """Compare predictions with the true class numbers (n,); without images all scores are 0."""
    seen = np.bincount(expected, minlength=classes)
    correct = np.bincount(expected[predictions.classes == expected], minlength=classes)
    shares = tuple(float(hits / count) if count else None for hits, count in zip(correct, seen, strict=True))
    known = [share for share in shares if share is not None]
    return Scores(
        loss=float(predictions.losses.mean()) if len(expected) else 0.0,
        micro=float(correct.sum() / max(seen.sum(), 1)),
        macro=float(np.mean(known)) if known else 0.0,
        per_class=shares,
        pictures=len(expected),
    )


def score_attributes(
    predicted: NDArray[np.int64] | None, expected: NDArray[np.int64], names: Sequence[str]
) -> dict[str, AttributeScores]:
    """Compare predicted values with the true ones, both (n, attributes); negative ones are unknown."""
    scores = {}
    for column, name in enumerate(names):
        known = np.flatnonzero(expected[:, column] >= 0)
        true = expected[known, column]
        right = None if predicted is None else predicted[known, column] == true
        scores[name] = AttributeScores(
            accuracy=float(right.mean()) if right is not None and len(known) else None,
            chance=float(np.bincount(true).max() / len(known)) if len(known) else 0.0,
            pictures=len(known),
        )
    return scores
