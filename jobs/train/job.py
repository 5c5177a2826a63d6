"""A training, as its workers know it: what it is, where it stands, and how much work each part of it is."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clvr_model.recipe import Recipe, Stage
from clvr_model.training import Totals, drop_last

# What one picture costs, in passes: 1 is once forward through the network.
LEARN_ALL = 3.0  # forward, and back through every layer
LEARN_HEAD = 1.02  # forward, and back through two layers
CACHED = 0.01  # both layers, from a kept feature


@dataclass(frozen=True, slots=True)
class Pictures:
    """Where n pictures lie, and the class number of each."""

    uris: list[str]
    classes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.uris)


@dataclass(frozen=True, slots=True)
class TrainJob:
    """Everything a worker needs to know; plain values, because they travel through Ray.

    folder: URI of the training's own folder, for its log and its best state. input: `local` or `ray`.
    """

    recipe: dict[str, Any]
    classes: tuple[int, ...]
    training: Pictures
    held: Pictures
    folder: str
    input: str = "local"
    log_every: int = 20


@dataclass(slots=True)
class Place:
    """Where a job is: the next epoch, what its first pictures gave, and what came before."""

    stage: int = 0
    epoch: int = 0
    totals: Totals = field(default_factory=Totals)
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seen(self) -> int:
        """Pictures learned from so far, over all stages and epochs."""
        return sum(int(each.get("pictures", 0)) for each in self.history) + self.totals.pictures


@dataclass(frozen=True, slots=True)
class Work:
    """The passes through the network that a recipe makes over so many training and held-out pictures."""

    recipe: Recipe
    training: int
    held: int

    @property
    def total(self) -> int:
        """All passes of the job."""
        return self.before(len(self.recipe.stages))

    def before(self, stage: int, epoch: int = 0, pictures: int = 0) -> int:
        """Passes that lie before a place in the job."""
        passes = float(self.recipe.reestimate_statistics)
        for number, one in enumerate(self.recipe.stages[: stage + 1]):
            if number < stage:
                passes += self.start(one) + one.epochs * self.epoch(one)
            else:
                passes += self.start(one) + epoch * self.epoch(one) + pictures * self.picture(one)
        return round(passes)

    def start(self, stage: Stage) -> float:
        """Passes before a stage's first epoch: those that fill the cache."""
        return self.training + self.held if stage.cacheable and stage.epochs else 0.0

    def epoch(self, stage: Stage) -> float:
        """Passes of one epoch, with its look at the held-out pictures."""
        learned = drop_last(self.training, self.recipe.batch)
        return learned * self.picture(stage) + self.held * (CACHED if stage.cacheable else 1.0)

    def picture(self, stage: Stage) -> float:
        """Passes that learning from one picture is worth."""
        if stage.cacheable:
            return CACHED
        return LEARN_HEAD if stage.trainable == "head" else LEARN_ALL
