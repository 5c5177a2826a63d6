"""`clvr train --plan`: the steps, duration and cost of a training, by a short measurement.

The measurement runs the network on a few images of the data, in this process. It writes nothing.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from clvr_model.attributes import learnable_values
from clvr_model.datasets.labelled import LabeledImages
from clvr_model.network import Clvr
from clvr_model.objective import Objective
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
from infra.settings import Settings, load_settings
from jobs.runtime.format import duration
from jobs.runtime.image_stream import ImageFailure, available_cpus, stream_images
from jobs.train.dataset import check_sets, split_for, without_held_out_models
from jobs.train.job import Work
from jobs.train.train import TrainRequest, requested_recipe, training_images

PROBE_SECONDS = 6.0  # per measurement, and at least one batch
PROBE_BATCH = 8
PROBE_IMAGES = 64
PROBE_VEHICLES = 2  # in turn, so that a batch of the probe has negatives


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage: optimizer steps, and hours including the validation after each epoch."""

    name: str
    epochs: int
    steps: int
    images_per_second: float
    hours: float


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """The plan of a training. `cost` is None without a price.

    The names of the fields are keys of the command's JSON.
    """

    pictures: int
    held_out: int
    classes: int
    unlearned: int
    vehicles: int
    identity: str
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

    def to_text(self) -> str:
        """Return the plan as several lines."""
        subjects = [f"{self.classes} vehicle models"] if self.classes else []
        subjects += [f"{self.vehicles:,} {self.identity}s"] if self.vehicles else []
        sizes = f"; {self.smallest_class:,} to {self.largest_class:,} images a model" if self.classes else ""
        lines = [
            f"{self.pictures:,} images of {' and '.join(subjects)} to train on, "
            f"{self.held_out:,} for validation{sizes}",
            f"probe on {self.device}: {self.forward_per_second:,.1f} images/s forward, "
            f"{self.decoded_per_second:,.0f} decoded/s; "
            f"{self.unreadable_in_sample} of {self.sample} unreadable",
        ]
        lines += [
            f"{stage.name}: {stage.epochs} epochs, {stage.steps:,} steps, "
            f"{stage.images_per_second:,.1f} images/s, {duration(3600 * stage.hours)}"
            for stage in self.stages
        ]
        cost = "" if self.cost is None else f", cost {self.cost:,.2f}"
        lines.append(f"in all {duration(3600 * self.hours)} with {self.workers} workers{cost}")
        return "\n".join([*lines, *(f"assumed: {assumption}" for assumption in self.assumptions)])

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON object."""
        return asdict(self)


def plan_training(request: TrainRequest, settings: Settings | None = None) -> TrainPlan:
    """Read the labels and measure decoding, the forward pass and the steps of each stage, without Ray.

    Raises BadSetting, BadLabels, BadInput if no sampled image can be read.
    """
    recipe = requested_recipe(request)
    labelled = training_images(request, recipe, settings or load_settings())
    labelled, _ = without_held_out_models(labelled, request.hold_out, recipe)
    training, validation = split_for(recipe, labelled)
    check_sets(recipe, training, request.workers)
    device = _device(request)
    images, unreadable, decoded_per_second = _sample(labelled, recipe.image_size)
    classes = len(labelled.classes)
    attributes = learnable_values(labelled)
    network = Clvr.of(recipe.architecture(classes, attributes), seed=recipe.seed)
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    numbers = torch.arange(len(images))
    values = [numbers % len(names) for names in attributes.values()]
    targets = torch.stack([numbers % max(classes, 1), numbers % PROBE_VEHICLES, *values], dim=1)
    batch = (torch.from_numpy(images).to(device), targets.to(device))
    forward = _rate(lambda: pooled_features(network, [batch], precision=recipe.precision), len(targets))
    # On a CPU, the measurement uses all cores, like the workers of this machine together.
    parallelism = request.workers if device.type == "cuda" else 1
    work = Work(recipe, len(training), len(validation))
    stages = [
        _stage_plan(stage, recipe, network, batch, forward, parallelism, work, request.workers)
        for stage in recipe.stages
    ]
    hours = sum(stage.hours for stage in stages) + recipe.reestimate_statistics / forward / 3600
    counts = np.unique(labelled.with_known_model().model_ids, return_counts=True)[1]
    nodes = math.ceil(request.workers / max(1, torch.cuda.device_count())) if device.type == "cuda" else 1
    price = request.price_per_node_hour
    return TrainPlan(
        pictures=len(training),
        held_out=len(validation),
        classes=classes,
        unlearned=classes - len(training.classes),
        identity=recipe.identity,
        vehicles=0 if training.vehicle_ids is None else len(np.unique(training.vehicle_ids)),
        smallest_class=int(counts.min(initial=len(labelled))) if classes else 0,
        largest_class=int(counts.max(initial=0)),
        unreadable_in_sample=unreadable,
        sample=len(images) + unreadable,
        workers=request.workers,
        device=_device_name(device),
        decoded_per_second=decoded_per_second,
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
    parallelism: int,
    work: Work,
    workers: int,
) -> StagePlan:
    share = max(1, recipe.batch // workers)
    steps = stage.epochs * math.ceil(drop_last(work.num_training, share * workers) / (share * workers))
    if not stage.epochs:
        return StagePlan(stage.name, 0, 0, 0.0, 0.0)
    if stage.cacheable:
        cache = pooled_features(network, [batch], precision=recipe.precision)
        cached = (cache[0].to(batch[0].device), cache[1].to(batch[0].device))
        rate = _step_rate(network.head, network, stage, recipe, cached) * parallelism
        seconds = (work.num_training + work.num_validation) / (forward * parallelism)
        seconds += stage.epochs * (work.num_training + work.num_validation) / rate
    else:
        rate = _step_rate(network, network, stage, recipe, batch) * parallelism
        seconds = stage.epochs * (work.num_training / rate + work.num_validation / (forward * parallelism))
    return StagePlan(stage.name, stage.epochs, steps, rate, seconds / 3600)


def _step_rate(module: torch.nn.Module, network: Clvr, stage: Stage, recipe: Recipe, batch: Batch) -> float:
    """Return images per second of whole optimizer steps; they change the network's weights."""
    optimizer = make_optimizer(network, stage)
    training_mode(module, stage)

    def step() -> None:
        train_step(
            module,
            optimizer,
            *batch,
            micro_batch=stage.micro_batch,
            precision=recipe.precision,
            # The probe's few images form no sets, and have no times.
            objective=replace(
                Objective.of(stage),
                set_size=1,
                negatives="any" if stage.negatives == "proven" else stage.negatives,
            ),
        )

    for group in optimizer.param_groups:
        group["lr"] = 1e-9  # the targets are arbitrary
    return _rate(step, len(batch[1]))


def _rate(run: Callable[[], Any], images: int) -> float:
    """Return images per second, after one warm-up run."""
    run()
    done, started = 0, time.perf_counter()
    while done == 0 or time.perf_counter() - started < PROBE_SECONDS:
        run()
        done += images
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return done / (time.perf_counter() - started)


def _sample(labelled: LabeledImages, size: int) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], int, float]:
    """Return a batch of the data, the unreadable images of the sample, and images decoded per second."""
    rows = np.unique(np.linspace(0, len(labelled) - 1, min(PROBE_IMAGES, len(labelled))).astype(int))
    reader = reader_of(labelled.uris)
    started = time.perf_counter()
    part = labelled.take(rows)
    stream = stream_images(reader, part.uris, decoders=available_cpus(), size=size, boxes=part.boxes)
    sample = [image for _, image in stream]
    seconds = time.perf_counter() - started
    good = [image for image in sample if not isinstance(image, ImageFailure)]
    if not good:
        raise BadInput(f"none of {len(sample)} sampled images of {reader.uri} could be read")
    return np.stack(good[:PROBE_BATCH]), len(sample) - len(good), len(sample) / seconds


def _device(request: TrainRequest) -> torch.device:
    if request.gpu and not torch.cuda.is_available():
        raise BadSetting(
            "--plan --gpu measures on this machine, which has no GPU", remedy="run it on a GPU machine"
        )
    use_gpu = torch.cuda.is_available() if request.gpu is None else request.gpu
    return torch.device("cuda" if use_gpu else "cpu")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU with {os.cpu_count()} cores"


def _assumptions(device: torch.device, workers: int, nodes: int) -> list[str]:
    if device.type == "cuda":
        return [
            f"{workers} workers are {workers} times as fast as this one GPU, on {nodes} nodes like this one",
            "images arrive in time: watch `waited` in the progress line",
        ]
    return ["all workers on this machine, and all its cores free during the measurement"]
