"""The loss of a stage: softmax over vehicle models, coupled clusters of vehicles, or their sum."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from clvr_model.coupled_clusters import Center, Negatives, coupled_clusters
from clvr_model.journeys import Journeys
from clvr_model.recipe import Stage


@dataclass(frozen=True, slots=True)
class Objective:
    """The terms of a loss. set_size: images that must stay in one pass, because they share a center."""

    softmax: bool = True
    label_smoothing: float = 0.0
    clusters: bool = False
    clusters_weight: float = 1.0
    margin: float = 1.0
    center: Center = "constant"
    negatives: Negatives = "any"
    set_size: int = 1
    journeys: Journeys | None = None

    @classmethod
    def of(cls, stage: Stage, journeys: Journeys | None = None) -> "Objective":
        """Return the loss that a stage names. journeys: of the tracks, for its `proven` negatives."""
        return cls(
            softmax=stage.uses_softmax,
            label_smoothing=stage.label_smoothing,
            clusters=stage.uses_clusters,
            clusters_weight=stage.clusters_weight,
            margin=stage.margin,
            center=stage.center,
            negatives=stage.negatives,
            set_size=stage.set_size,
            journeys=journeys,
        )

    def __call__(self, feature: Tensor, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, summed over the images, and how many images are right (int64).

        feature: (n, d). logits: (n, classes). targets: int64 (n,) classes, or (n, 2) classes and vehicles; an
        image of class -1, which is unknown, takes no part in the softmax. Further columns are left to
        `attributes.attribute_loss`.
        Right is an image of the predicted class, and without softmax one that is nearer to its vehicle's
        center than all images of others.
        """
        loss = feature.new_zeros((), dtype=torch.float32)
        right = feature.new_zeros((), dtype=torch.int64)
        if self.clusters:
            clusters, right = coupled_clusters(
                feature.float(),
                vehicles_of(targets),
                margin=self.margin,
                center=self.center,
                negatives=self.negatives,
                models=classes_of(targets),
                journeys=self.journeys,
            )
            loss = loss + self.clusters_weight * clusters
        if self.softmax:
            classes = classes_of(targets)
            loss = loss + functional.cross_entropy(
                logits.float(),
                classes,
                reduction="sum",
                label_smoothing=self.label_smoothing,
                ignore_index=-1,
            )
            right = (logits.detach().argmax(dim=1) == classes).sum()
        return loss, right

    def num_passes(self, images: int, micro_batch: int) -> int:
        """Return into how many passes of whole sets a batch is split; 0 as `micro_batch` is one pass."""
        sets = -(-images // self.set_size)
        return -(-sets // (max(1, micro_batch // self.set_size) if micro_batch else sets))

    def split(self, rows: Tensor, passes: int) -> tuple[Tensor, ...]:
        """Split the rows of a batch into about equal portions of whole sets."""
        if self.set_size == 1 or len(rows) % self.set_size:
            return rows.tensor_split(passes)
        sets = rows.reshape(-1, self.set_size, *rows.shape[1:])
        return tuple(part.flatten(0, 1) for part in sets.tensor_split(passes))


def classes_of(targets: Tensor) -> Tensor:
    """Return the class numbers (n,) of targets, which may have the vehicles too."""
    return targets if targets.ndim == 1 else targets[:, 0]


def vehicles_of(targets: Tensor) -> Tensor:
    """Return the vehicles (n,) of targets (n, 2) or with more columns."""
    return targets[:, 1]


def attributes_of(targets: Tensor) -> Tensor:
    """Return the values (n, attributes) of targets (n, 2 + attributes)."""
    return targets[:, 2:]
