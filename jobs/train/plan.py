"""`clvr train --plan`: what a training would be, how long it would take and what it would cost.

A short probe in the driver's own process: the network itself, on a few pictures of the data. Writes nothing.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from clvr_model.datasets.labelled import LabeledImages, split_per_class
from clvr_model.network import Clvr
from clvr_model.recipe import Recipe, Stage
from clvr_model.training import (
    Batch,
    drop_last,
    make_optimizer,
    pooled_features,
    train_step,
    training_mode,
)
from index.archive.reader import reader_of
from infra.errors import BadInput, BadSetting
from jobs.runtime.image_stream import ImageFailure, available_cpus, stream_images
from jobs.train.dataset import read_labelled
from jobs.train.job import Work
from jobs.train.train import TrainRequest, asked_recipe

PROBE_SECONDS = 6.0  # of each measurement, at least one batch
PROBE_BATCH = 8
PROBE_PICTURES = 64


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage: optimiser steps, and hours with the look at the held-out pictures after each epoch."""

    name: str
    epochs: int
    steps: int
    images_per_second: float
    hours: float


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """What a training would be. cost: None without a price."""

    pictures: int
    held_out: int
    classes: int
    unlearned: int
    smallest_class: int
    largest_class: int
    unreadable_in_sample: int
    sample: int
    workers: int
    device: str
    decoded_per_second: float
    forward_per_second: float
    stages: list[StagePlan]
    hours: float
    cost: float | None
    assumptions: list[str]

    @property
    def text(self) -> str:
        """For people."""
        lines = [
            f"{self.pictures:,} pictures of {self.classes} vehicle models to train on, "
            f"{self.held_out:,} held out; {self.smallest_class:,} to {self.largest_class:,} pictures a model",
            f"probe on {self.device}: {self.forward_per_second:,.1f} images/s forward, "
            f"{self.decoded_per_second:,.0f} decoded/s; "
            f"{self.unreadable_in_sample} of {self.sample} unreadable",
        ]
        lines += [
            f"{stage.name}: {stage.epochs} epochs, {stage.steps:,} steps, "
            f"{stage.images_per_second:,.1f} images/s, {_time(stage.hours)}"
            for stage in self.stages
        ]
        cost = "" if self.cost is None else f", cost {self.cost:,.2f}"
        lines.append(f"in all {_time(self.hours)} with {self.workers} workers{cost}")
        return "\n".join([*lines, *(f"assumed: {each}" for each in self.assumptions)])


def plan_training(request: TrainRequest) -> TrainPlan:
    """Read the labels and measure decoding, the forward pass and both kinds of step; no Ray is started.

    Raises BadSetting, BadLabels, BadInput where no sampled picture can be read.
    """
    recipe = asked_recipe(request)
    labelled = read_labelled(request.data, root=request.root, split=request.split)
    training, held = split_per_class(labelled, recipe.train_share, recipe.seed)
    device = _device(request)
    pictures, bad, decoded = _sample(labelled)
    classes = len(labelled.classes)
    network = Clvr.of(recipe.architecture(classes), seed=recipe.seed)
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    known = torch.arange(len(pictures)) % classes
    batch = (torch.from_numpy(pictures).to(device), known.to(device))
    forward = _rate(lambda: pooled_features(network, [batch], precision=recipe.precision), len(known))
    # On a CPU the probe has all cores, and so have the workers of this one machine together.
    together = request.workers if device.type == "cuda" else 1
    work = Work(recipe, len(training), len(held))
    stages = [
        _stage_plan(stage, recipe, network, batch, forward, together, work, request.workers)
        for stage in recipe.stages
    ]
    hours = sum(stage.hours for stage in stages) + recipe.reestimate_statistics / forward / 3600
    counts = np.unique(labelled.model_ids, return_counts=True)[1]
    nodes = math.ceil(request.workers / max(1, torch.cuda.device_count())) if device.type == "cuda" else 1
    price = request.price_per_node_hour
    return TrainPlan(
        pictures=len(training),
        held_out=len(held),
        classes=classes,
        unlearned=classes - len(training.classes),
        smallest_class=int(counts.min()),
        largest_class=int(counts.max()),
        unreadable_in_sample=bad,
        sample=len(pictures) + bad,
        workers=request.workers,
        device=_named(device),
        decoded_per_second=decoded,
        forward_per_second=forward,
        stages=stages,
        hours=hours,
        cost=None if price is None else price * hours * nodes,
        assumptions=_assumptions(device, request.workers, nodes),
    )


def _stage_plan(
    stage: Stage,
    recipe: Recipe,
    network: Clvr,
    batch: Batch,
    forward: float,
    together: int,
    work: Work,
    workers: int,
) -> StagePlan:
    share = max(1, recipe.batch // workers)
    steps = stage.epochs * math.ceil(drop_last(work.training, share * workers) / (share * workers))
    if not stage.epochs:
        return StagePlan(stage.name, 0, 0, 0.0, 0.0)
    if stage.cacheable:
        cache = pooled_features(network, [batch], precision=recipe.precision)
        cached = (cache[0].to(batch[0].device), cache[1].to(batch[0].device))
        rate = _step_rate(network.head, network, stage, recipe, cached) * together
        seconds = (work.training + work.held) / (forward * together)
        seconds += stage.epochs * (work.training + work.held) / rate
    else:
        rate = _step_rate(network, network, stage, recipe, batch) * together
        seconds = stage.epochs * (work.training / rate + work.held / (forward * together))
    return StagePlan(stage.name, stage.epochs, steps, rate, seconds / 3600)


def _step_rate(module: torch.nn.Module, network: Clvr, stage: Stage, recipe: Recipe, batch: Batch) -> float:
    """Pictures a second of whole optimiser steps; the network's weights are moved, and thrown away."""
    optimizer = make_optimizer(network, stage)
    training_mode(module, stage)

    def step() -> None:
        train_step(module, optimizer, *batch, micro_batch=stage.micro_batch, precision=recipe.precision)

    for group in optimizer.param_groups:
        group["lr"] = 1e-9  # made-up labels shall not lead anywhere
    return _rate(step, len(batch[1]))


def _rate(act: Callable[[], Any], pictures: int) -> float:
    """Pictures a second, after one run that warms up."""
    act()
    done, begun = 0, time.perf_counter()
    while done == 0 or time.perf_counter() - begun < PROBE_SECONDS:
        act()
        done += pictures
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return done / (time.perf_counter() - begun)


def _sample(labelled: LabeledImages) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], int, float]:
    """A batch of the data's own pictures, how many of the sample failed, and pictures decoded a second."""
    rows = np.unique(np.linspace(0, len(labelled) - 1, min(PROBE_PICTURES, len(labelled))).astype(int))
    reader = reader_of(labelled.uris)
    begun = time.perf_counter()
    stream = stream_images(reader, [labelled.uris[row] for row in rows], decoders=available_cpus())
    found = [picture for _, picture in stream]
    seconds = time.perf_counter() - begun
    good = [picture for picture in found if not isinstance(picture, ImageFailure)]
    if not good:
        raise BadInput(f"not one of {len(found)} sampled pictures of {reader.uri} could be read")
    return np.stack(good[:PROBE_BATCH]), len(found) - len(good), len(found) / seconds


def _device(request: TrainRequest) -> torch.device:
    if request.gpu and not torch.cuda.is_available():
        raise BadSetting(
            "--plan --gpu measures on this machine, which has no GPU", remedy="run it on a GPU machine"
        )
    return torch.device("cuda" if request.gpu else "cpu")


def _named(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU with {os.cpu_count()} cores"


def _assumptions(device: torch.device, workers: int, nodes: int) -> list[str]:
    if device.type == "cuda":
        return [
            f"{workers} workers are {workers} times as fast as this one GPU, on {nodes} nodes like this one",
            "pictures arrive in time: watch `waited` in the progress line",
        ]
    return ["all workers on this machine, which the probe had to itself with all its cores"]


def _time(hours: float) -> str:
    if hours * 60 < 1:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:,.1f} h"
