"""A training as its workers see it: the job, a position in it, and the work of each of its parts."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clvr_model.journeys import Journeys
from clvr_model.recipe import Recipe, Stage
from clvr_model.training import Totals, drop_last

# Cost of one image in passes; one pass is a forward pass through the network.
TRAIN_ALL_PASSES = 3.0  # forward, and backward through every layer
TRAIN_TOP_PASSES = 1.7  # forward, and backward through about a third of the layers
TRAIN_HEAD_PASSES = 1.02  # forward, and backward through two layers
CACHED_PASSES = 0.01  # both layers of the head, from a cached feature


@dataclass(frozen=True, slots=True)
class Images:
    """URIs of n images, the class number of each, and its vehicle where the recipe learns from vehicles.

    boxes: (n, 4) where the release says which part of an image shows the vehicle, see `LabeledImages`.
    attributes: (n, attributes) value numbers where attributes are learned, UNKNOWN_VALUE if unknown.
    """

    uris: list[str]
    classes: NDArray[np.int64]
    vehicles: NDArray[np.int64] | None = None
    boxes: NDArray[np.int32] | None = None
    journeys: Journeys | None = None  # of the vehicles, which are tracks then
    attributes: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.uris)

    def targets(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return what the images at `rows` are trained on.

        Classes (n,), or classes and vehicles (n, 2), or these and attributes, with vehicles of -1 where none
        are learned.
        """
        if self.vehicles is None and self.attributes is None:
            return self.classes[rows]
        vehicles = np.full(len(rows), -1) if self.vehicles is None else self.vehicles[rows]
        attributes = [] if self.attributes is None else [self.attributes[rows]]
        return np.column_stack([self.classes[rows], vehicles, *attributes])


@dataclass(frozen=True, slots=True)
class TrainJob:
    """The job of a worker, in plain values, because Ray serializes them.

    folder: URI of the training's folder, for its log and its best state. input: `local` or `ray`.
    ends: the first crops of held-out tracks, then their last ones; end_cameras: the camera of each track.
    attributes: the values of the attributes that are learned, by name. trackers: names of experiment
    trackers, which are told the checkpoint's URI.
    """

    recipe: dict[str, Any]
    classes: tuple[int, ...]
    training: Images
    validation: Images
    folder: str
    input: str = "local"
    log_every: int = 20
    ends: Images | None = None
    end_cameras: NDArray[np.str_] | None = None
    attributes: dict[str, list[str]] = field(default_factory=dict)
    trackers: tuple[str, ...] = ()
    checkpoint: str = ""


@dataclass(slots=True)
class Position:
    """A position in a job: the next epoch, the totals of its first images, and the history before it."""

    stage: int = 0
    epoch: int = 0
    totals: Totals = field(default_factory=Totals)
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def images_seen(self) -> int:
        """Images trained on so far, over all stages and epochs."""
        return sum(int(epoch.get("pictures", 0)) for epoch in self.history) + self.totals.pictures


@dataclass(frozen=True, slots=True)
class Work:
    """The passes of a recipe over so many training and validation images."""

    recipe: Recipe
    num_training: int
    num_validation: int

    @property
    def total(self) -> int:
        """All passes of the job."""
        return self.passes_before(len(self.recipe.stages))

    def passes_before(self, stage: int, epoch: int = 0, images: int = 0) -> int:
        """Passes before a position in the job."""
        passes = float(self.recipe.reestimate_statistics)
        for earlier in self.recipe.stages[:stage]:
            passes += self.cache_passes(earlier) + earlier.epochs * self.epoch_passes(earlier)
        for current in self.recipe.stages[stage : stage + 1]:
            passes += self.cache_passes(current)
            passes += epoch * self.epoch_passes(current) + images * self.image_passes(current)
        return round(passes)

    def cache_passes(self, stage: Stage) -> float:
        """Passes that fill the feature cache before the first epoch of a stage."""
        return self.num_training + self.num_validation if stage.cacheable and stage.epochs else 0.0

    def epoch_passes(self, stage: Stage) -> float:
        """Passes of one epoch and of the validation after it."""
        trained = drop_last(self.num_training, self.recipe.batch)
        validation_passes = CACHED_PASSES if stage.cacheable else 1.0
        return trained * self.image_passes(stage) + self.num_validation * validation_passes

    def image_passes(self, stage: Stage) -> float:
        """Passes of training on one image."""
        if stage.cacheable:
            return CACHED_PASSES
        return {"all": TRAIN_ALL_PASSES, "top": TRAIN_TOP_PASSES}.get(stage.trainable, TRAIN_HEAD_PASSES)
