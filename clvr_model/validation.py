"""What a network says of pictures whose vehicle model is known, and how often that is right."""

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
    """The likeliest class of n pictures, its probability, and the loss of the true one; in their order."""

    classes: NDArray[np.int64]  # (n,)
    confidence: NDArray[np.float32]  # (n,)
    losses: NDArray[np.float32]  # (n,) cross-entropy


@dataclass(frozen=True, slots=True)
class Scores:
    """micro: share of right pictures. macro: mean of the classes' shares, over classes that have pictures.

    per_class: share of right pictures of each class, None for a class without pictures.
    """

    loss: float
    micro: float
    macro: float
    per_class: tuple[float | None, ...]
    pictures: int


@torch.inference_mode()
def predict(module: nn.Module, batches: Iterable[Batch], *, precision: str = "fp32") -> Predictions:
    """Predict in eval mode, by a network or, on pooled batches, by its head."""
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
    """Compare with the true class numbers (n,); without any picture all scores are 0."""
    seen = np.bincount(expected, minlength=classes)
    right = np.bincount(expected[predictions.classes == expected], minlength=classes)
    shares = tuple(float(hit / all_) if all_ else None for hit, all_ in zip(right, seen, strict=True))
    known = [share for share in shares if share is not None]
    return Scores(
        loss=float(predictions.losses.mean()) if len(expected) else 0.0,
        micro=float(right.sum() / max(seen.sum(), 1)),
        macro=float(np.mean(known)) if known else 0.0,
        per_class=shares,
        pictures=len(expected),
    )
