"""Which pictures a worker learns from, in which order, and how they reach its device."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from clvr_model.augmentation import augment
from clvr_model.recipe import Recipe, Stage
from clvr_model.training import Batch, drop_last, stage_order
from jobs.training.input import Change, Feed
from jobs.training.job import Pictures, TrainJob
from jobs.training.peers import Peers

Rows = NDArray[np.int64]


class Batches:
    """One worker's share of every batch; what is in it follows from (seed, stage, epoch) alone."""

    def __init__(self, job: TrainJob, recipe: Recipe, peers: Peers) -> None:
        self.job, self.recipe, self.peers = job, recipe, peers
        self.feed = Feed(job.input, peers.world)
        # Every worker steps on equal shares, so that the mean of their gradients is the batch's gradient.
        self.share = max(1, recipe.batch // peers.world)

    def learned(self, stage: Stage, number: int, epoch: int, rows: Rows) -> Iterator[Batch]:
        """Batches of an epoch's rows, as the stage changes them."""
        change = None
        if stage.augments:
            change = partial(augment, stage=stage, seed=self.recipe.seed, number=number, epoch=epoch)
        return self.of(self.job.training, rows, change)

    def rows(self, number: int, epoch: int) -> Rows:
        """This worker's share of an epoch's order: rows k, k + world, …, equally many for each worker."""
        order = stage_order(
            self.recipe.stages[number],
            self.job.training.classes,
            seed=self.recipe.seed,
            number=number,
            epoch=epoch,
        )
        learned = drop_last(len(order), self.share * self.peers.world)
        return order[: learned - learned % self.peers.world][self.peers.rank :: self.peers.world]

    def sample(self) -> Rows:
        """Training pictures from all over the data, the same ones in each worker."""
        count = len(self.job.training)
        return np.unique(
            np.linspace(0, count - 1, min(self.recipe.reestimate_statistics, count)).astype(np.int64)
        )

    def of(self, pictures: Pictures, rows: Rows, change: Change | None = None) -> Iterator[Batch]:
        """Batches of those pictures on the worker's device."""
        for arrays, classes in self.feed.batches(pictures, rows, self.share, change):
            yield (
                torch.from_numpy(arrays).to(self.peers.device, non_blocking=True),
                torch.from_numpy(classes).to(self.peers.device),
            )
