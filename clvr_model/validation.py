"""Predictions of vehicle models, and their accuracy."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from clvr_model.training import Batch, autocast, network_input


@dataclass(frozen=True, slots=True)
class Predictions:
    """The most likely class of n images, its probability, and the loss of the true class."""

    classes: NDArray[np.int64]  # (n,)
    confidence: NDArray[np.float32]  # (n,)
    losses: NDArray[np.float32]  # (n,) cross-entropy


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


@torch.inference_mode()
def predict(module: nn.Module, batches: Iterable[Batch], *, precision: str = "fp32") -> Predictions:
    """Predict in eval mode, with a network or, on pooled batches, with its head."""
    module.eval()
    classes, confidence, losses = [], [], []
    for inputs, expected in batches:
        with autocast(inputs, precision):
            _, logits = module(network_input(inputs))
        logits = logits.float()
        best = functional.softmax(logits, dim=1).max(dim=1)
        classes.append(best.indices.cpu())
        confidence.append(best.values.cpu())
        losses.append(functional.cross_entropy(logits, expected, reduction="none").cpu())
    if not classes:
        return Predictions(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.float32))
    return Predictions(*(torch.cat(parts).numpy() for parts in (classes, confidence, losses)))


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
