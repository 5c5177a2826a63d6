"""Training loops of an epoch and a step, which Ray Train calls with its wrapped network.

Batches are (uint8 (n, h, w, 3) images, int64 (n,) classes); where vehicles are learned, int64 (n, 2) classes
and vehicles; where attributes are learned, int64 (n, 2 + attributes). With a frozen backbone, the same loops
train the head alone on batches of (pooled float32 (n, pooled_dim), targets), with the same result. All
randomness comes from (seed, stage, epoch, step), so a resume needs no generator state.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer, RMSprop

from clvr_model.attribute_head import attribute_loss
from clvr_model.ema import ExponentialMovingAverage
from clvr_model.journeys import Journeys
from clvr_model.memory import is_out_of_memory, max_batch_size
from clvr_model.network import Clvr, Head
from clvr_model.normalization import to_input
from clvr_model.objective import Objective, attributes_of
from clvr_model.recipe import MIN_SETS, RMSPROP_ALPHA, Stage
from clvr_model.vehicle_sampling import vehicle_order
from infra.errors import BadInput, BadSetting, TrainingDiverged

Batch = tuple[Tensor, Tensor]
SOFTMAX = Objective()

# Key of a parameter group: the factor of `layer_decay` on its learning rate.
LR_SCALE = "lr_scale"
# Of a group: its gradient is clipped by itself.
APART = "apart"


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over images, which add up over steps and workers. Field names are keys of a saved state."""

    loss: float = 0.0
    correct: int = 0
    pictures: int = 0


class DeviceTotals:
    """Totals that are summed on the device: a GPU works on while steps are queued, until they are read."""

    def __init__(self, start: Totals = Totals()) -> None:
        self.pictures = start.pictures
        self._loss: Tensor | float = start.loss
        self._correct: Tensor | int = start.correct
        self._is_finite: Tensor | bool = True

    def add(self, loss: Tensor, correct: Tensor, pictures: int) -> None:
        """Add the summed loss and the number of right ones of some images."""
        self._loss = self._loss + loss.detach().double()
        self._correct = self._correct + correct
        self.pictures += pictures

    def require_finite(self, name: str, value: Tensor) -> None:
        """Raise TrainingDiverged for a value that is not finite; one on a GPU is looked at by `read`."""
        value = value.detach()
        if value.device.type != "cpu":
            self._is_finite = value.isfinite() & self._is_finite
        elif not value.isfinite():
            raise _diverged(f"the {name} is {float(value)}")

    def read(self) -> Totals:
        """Wait for the device, and return the totals. Raises TrainingDiverged if a value was not finite."""
        if not self._is_finite:
            raise _diverged("the loss or the gradient is not finite")
        return Totals(float(self._loss), int(self._correct), self.pictures)


def _diverged(message: str) -> TrainingDiverged:
    return TrainingDiverged(message, remedy="lower the learning rate")


@dataclass(frozen=True, slots=True)
class EpochResult:
    """Mean loss, accuracy and duration of a training epoch. Field names are keys of the saved history."""

    stage: str
    epoch: int
    loss: float
    accuracy: float
    pictures: int
    seconds: float


def epoch_order(count: int, *, seed: int, stage: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of an epoch over `count` images: a permutation, equal for equal arguments.

    Source: the paper, section 4: plain random sampling.
    """
    return np.random.default_rng([seed, stage, epoch]).permutation(count).astype(np.int64)


def stage_order(
    stage: Stage,
    classes: NDArray[np.int64],
    *,
    seed: int,
    number: int,
    epoch: int,
    vehicles: NDArray[np.int64] | None = None,
    batch: int = 0,
    journeys: Journeys | None = None,
) -> NDArray[np.int64]:
    """Return the order of an epoch of a stage over images with the given class numbers (n,).

    Plain sampling: `epoch_order`. Balanced: equal counts for all classes (up to one image), and equal counts
    for the images of a class (up to one). Both leave out images of class -1, which is unknown, if there are
    others. By vehicles (n,), in batches of that size: `vehicle_order`; for proven negatives, by the times of
    their journeys. Equal for equal arguments. Raises BadLabels as `vehicle_order` does.
    """
    if stage.sampling == "vehicles" and vehicles is not None:
        size = stage.images_per_vehicle
        models = classes if stage.negatives == "same_model" else None
        times = journeys.first_ms[vehicles] if journeys and stage.negatives == "proven" else None
        return vehicle_order(
            vehicles,
            images=size,
            batch=batch,
            seed=seed,
            stage=number,
            epoch=epoch,
            models=models,
            times=times,
        )
    labelled = np.flatnonzero(classes >= 0)
    if 0 < len(labelled) < len(classes):
        order = stage_order(stage, classes[labelled], seed=seed, number=number, epoch=epoch)
        return labelled[order]
    count = len(classes)
    if stage.sampling == "plain":
        return epoch_order(count, seed=seed, stage=number, epoch=epoch)
    rng = np.random.default_rng([seed, number, epoch])
    known = np.unique(classes)
    counts = np.full(len(known), count // len(known))
    counts[rng.permutation(len(known))[: count % len(known)]] += 1
    rows = []
    for label, wanted in zip(known, counts, strict=True):
        members = np.flatnonzero(classes == label)
        rounds = [rng.permutation(members) for _ in range(-(-int(wanted) // len(members)))]
        rows += [row[: int(wanted) - number * len(members)] for number, row in enumerate(rounds)]
    return rng.permutation(np.concatenate(rows)).astype(np.int64)


def drop_last(count: int, batch: int) -> int:
    """Return how many of `count` images an epoch trains on: whole batches, or all if they fill none.

    A small last batch has a noisy gradient and replaces the batch statistics by its own. Orders differ
    between epochs, so another epoch trains on the images that one leaves out.
    """
    return count - count % batch if count >= batch else count


def learning_rate(stage: Stage, position: float) -> float:
    """Return the learning rate after `position` epochs of the stage, from 0 to its last."""
    rise = min(1.0, position / stage.warmup_epochs) if stage.warmup_epochs else 1.0
    if stage.schedule == "constant":
        return stage.lr * rise
    decay_epochs = max(stage.epochs - stage.warmup_epochs, 1e-9)
    progress = min(1.0, max(0.0, position - stage.warmup_epochs) / decay_epochs)
    return stage.lr * rise * (1 + math.cos(math.pi * progress)) / 2


def make_optimizer(module: nn.Module, stage: Stage) -> Optimizer:
    """Freeze what the stage does not train, free the rest, and make the optimizer of what learns."""
    network = unwrap_ddp(module)
    if isinstance(network, Clvr):
        network.backbone.requires_grad_(stage.trainable == "all")
        if stage.trainable == "top":
            for name, parameter in network.backbone.named_parameters():
                parameter.requires_grad_(name.startswith(network.backbone.top))
        network.head.select(
            softmax=stage.uses_softmax,
            output=stage.output,
            fusion_only=stage.trainable == "fusion",
            attribute_gradient=stage.attributes_weight,
        )
    groups = _parameter_groups(module, network, stage)
    lr, momentum, decay = stage.lr, stage.momentum, stage.weight_decay
    if stage.optimizer == "rmsprop":  # torch has no fused one
        return RMSprop(groups, lr, RMSPROP_ALPHA, momentum=momentum, weight_decay=decay)
    # One kernel for all parameters. On CPUs the plain loops stay: their results are those of earlier runs.
    fused = all(each.is_cuda for group in groups for each in group["params"]) or None
    if stage.optimizer == "adamw":
        return AdamW(groups, lr, weight_decay=decay, fused=fused)
    return SGD(groups, lr, momentum, weight_decay=decay, fused=fused)


def _parameter_groups(module: nn.Module, network: nn.Module, stage: Stage) -> list[dict[str, Any]]:
    """Group what learns by its learning rate and its decay; the head's group is the first.

    The classifiers of attributes are apart: their gradient has no part in the norm by which the others are
    clipped.
    """
    head = network.head if isinstance(network, Clvr) else network
    attributes = set(map(id, head.attributes.parameters())) if isinstance(head, Head) else set()
    scales: dict[int, float] = {}
    if stage.layer_decay < 1 and isinstance(network, Clvr):
        for depth, layer in enumerate(reversed(network.backbone.layers()), 1):
            scales |= {id(parameter): stage.layer_decay**depth for parameter in layer}
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            decays = stage.optimizer != "adamw" or parameter.ndim > 1
            key = (id(parameter) not in attributes, scales.get(id(parameter), 1.0), decays)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": stage.lr * scale,
            LR_SCALE: scale,
            **({} if decays else {"weight_decay": 0.0}),
            **({} if in_task else {APART: True}),
        }
        for (in_task, scale, decays), parameters in sorted(
            groups.items(), key=lambda group: group[0], reverse=True
        )
    ]


def train_epoch(
    module: nn.Module,
    optimizer: Optimizer,
    batches: Iterable[Batch],
    stage: Stage,
    *,
    epoch: int = 0,
    precision: str = "fp32",
    start_step: int = 0,
    totals: Totals | None = None,
    on_step: Callable[[int, DeviceTotals], None] | None = None,
    average: ExponentialMovingAverage | None = None,
    steps: int = 1,
    seed: Sequence[int] = (0,),
    journeys: Journeys | None = None,
) -> EpochResult:
    """Train one pass over `batches`; `on_step(batch number, totals)` may show progress, or raise to stop.

    The images are augmented already. start_step, totals: where an interrupted epoch resumes; `batches` then
    start at that batch. average: is updated after every step. steps: batches of a whole epoch, the unit of
    the schedule. seed: of what a step draws, with epoch and step (dropout). journeys: of the tracks, for
    proven negatives. Raises TrainingDiverged naming stage, epoch and batch (on a GPU, the batch after which
    the totals were read), BadInput if there is no batch, BadSetting when memory runs out, with a micro_batch
    that fits.
    """
    started = time.monotonic()
    training_mode(module, stage)
    running = DeviceTotals(totals or Totals())
    where = f"stage {stage.name}, epoch {epoch + 1}"
    for step, (images, targets) in enumerate(batches, start_step):
        where = f"stage {stage.name}, epoch {epoch + 1}, batch {step + 1}"
        if stage.schedule != "constant" or stage.warmup_epochs:
            for group in optimizer.param_groups:
                lr = learning_rate(stage, epoch + (step + 0.5) / max(steps, step + 1))
                group["lr"] = lr * group.get(LR_SCALE, 1.0)  # states of earlier versions have no scale
        failed = False
        torch.manual_seed(int(np.random.SeedSequence([*seed, epoch, step]).generate_state(1, np.uint64)[0]))
        try:
            with _diverging_at(where):
                train_step(
                    module,
                    optimizer,
                    images,
                    targets,
                    micro_batch=stage.micro_batch,
                    precision=precision,
                    objective=Objective.of(stage, journeys),
                    max_grad_norm=stage.max_grad_norm,
                    totals=running,
                )
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            failed = True
        if failed:  # outside of `except`, whose traceback keeps the memory alive
            optimizer.zero_grad(set_to_none=True)
            raise _out_of_memory(module, images, stage, precision, where)
        if average:
            average.update()
        if on_step:
            with _diverging_at(where):
                on_step(step, running)
    if not running.pictures:
        raise BadInput(f"{where}: no images to train on")
    with _diverging_at(where):
        sums = running.read()
    return EpochResult(
        stage.name,
        epoch,
        sums.loss / sums.pictures,
        sums.correct / sums.pictures,
        sums.pictures,
        time.monotonic() - started,
    )


@contextmanager
def _diverging_at(where: str) -> Iterator[None]:
    """Name the place in a TrainingDiverged."""
    try:
        yield
    except TrainingDiverged as error:
        raise TrainingDiverged(f"{where}: {error.message}", remedy=error.remedy) from None


def train_step(
    module: nn.Module,
    optimizer: Optimizer,
    inputs: Tensor,
    targets: Tensor,
    *,
    micro_batch: int = 0,
    precision: str = "fp32",
    objective: Objective = SOFTMAX,
    max_grad_norm: float = 0.0,
    totals: DeviceTotals | None = None,
) -> DeviceTotals:
    """Take one optimizer step on one batch: by default mean softmax cross-entropy (the paper, eq. 1 and 2).

    targets: int64 (n,) classes, (n, 2) classes and vehicles, or (n, 2 + attributes), of which a network with
    attributes learns from those that are known; the totals are of the objective alone. max_grad_norm: longer
    gradients are clipped to this norm; 0: no clipping. With `micro_batch` the batch is split into portions of
    at most that size, about equal and of whole sets, whose gradients are summed before the step. Only batch
    statistics differ from one pass, and the negatives of coupled clusters: they are a portion's. totals: to
    add to, and to return.

    Does not wait for a GPU. On a CPU, raises TrainingDiverged before the weights change; on a GPU, `read`
    of the totals does, later: read them before the weights are saved.
    """
    totals = totals or DeviceTotals()
    optimizer.zero_grad(set_to_none=True)
    passes = objective.num_passes(len(inputs), micro_batch)
    parts = zip(objective.split(inputs, passes), objective.split(targets, passes), strict=True)
    for number, (part, expected) in enumerate(parts, 1):
        with _gradients_kept(module) if number < passes else nullcontext():
            with autocast(part, precision):
                feature, logits, *attributes = module(network_input(part))
            loss, correct = objective(feature, logits, expected)
            totals.add(loss, correct, len(part))
            if attributes:
                loss = loss + attribute_loss(attributes, attributes_of(expected))
            totals.require_finite("loss", loss)
            (loss / len(inputs)).backward()  # type: ignore[no-untyped-call]
    if max_grad_norm:
        groups = optimizer.param_groups
        for chosen in ([g for g in groups if APART not in g], [g for g in groups if APART in g]):
            clipped = [parameter for group in chosen for parameter in group["params"]]
            norm = torch.nn.utils.clip_grad_norm_(clipped, max_grad_norm)
            totals.require_finite("gradient's norm", norm)
    optimizer.step()
    return totals


def _gradients_kept(module: nn.Module) -> AbstractContextManager[None]:
    """Keep gradients on this worker; those of the last portion are then averaged with all before."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def training_mode(module: nn.Module, stage: Stage) -> None:
    """Set training mode; a frozen backbone and a stage with `frozen_statistics` keep batch statistics."""
    module.train()
    network = unwrap_ddp(module)
    if isinstance(network, Clvr) and (stage.trainable != "all" or stage.frozen_statistics):
        network.backbone.eval()  # only its batch normalization and its dropout depend on the mode


def _out_of_memory(
    module: nn.Module, inputs: Tensor, stage: Stage, precision: str, location: str
) -> BadSetting:
    """Make the error for a step that ran out of memory, with a micro_batch that fits."""

    def loss_of(count: int) -> Tensor:
        part = inputs[:1].expand(count, *inputs.shape[1:])
        with autocast(part, precision):
            # Unwrapped: a distributed pass would wait for the other workers.
            outputs = unwrap_ddp(module)(network_input(part))
        return torch.stack([output.float().square().sum() for output in outputs]).sum()

    tried = min(stage.micro_batch or len(inputs), len(inputs))
    fits = min(max_batch_size(loss_of, inputs.device), tried - 1)
    if not fits:
        remedy = "one image does not fit: use a device with more memory, or a smaller network"
    elif stage.set_size > 1 and fits < MIN_SETS * stage.set_size:
        remedy = f"{MIN_SETS} sets do not fit: use a device with more memory, or a smaller network"
    else:
        gradient = "the negatives of fewer images" if stage.uses_clusters else "the same gradient"
        remedy = f"about {fits} fit: --set {stage.name}.micro_batch={fits}, which gives {gradient}"
    return BadSetting(f"{location}: out of memory with {tried} images a pass", remedy=remedy)


@torch.no_grad()  # inference_mode tensors cannot take part in the head's gradient
def pooled_features(network: Clvr, batches: Iterable[Batch], *, precision: str = "fp32") -> Batch:
    """Run the frozen backbone once over all batches: float32 (n, pooled_dim) and targets, on the CPU.

    An image takes 8 KB of Inception-V3's. Raises BadInput if there is no batch.
    """
    network.backbone.eval()
    pooled, known = [], []
    for images, targets in batches:
        with autocast(images, precision):
            pooled.append(network.backbone(network_input(images)).float().cpu())
        known.append(targets.cpu())
    if not pooled:
        raise BadInput("no images to train on")
    return torch.cat(pooled), torch.cat(known)


@torch.no_grad()
def reestimate_batch_statistics(network: Clvr, batches: Iterable[Batch]) -> None:
    """Replace the running statistics of every batch normalization by the average over `batches`.

    For a backbone with statistics of other images or with initial ones: with random weights and the initial
    statistics, the features of all images are almost equal.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch then averages all batches equally
    network.train()
    for images, _ in batches:
        network.backbone(network_input(images))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def cached_batches(cache: Batch, order: NDArray[np.int64], batch: int) -> Iterator[Batch]:
    """Yield the batches of a loader with this order, from the output of `pooled_features`."""
    pooled, targets = cache
    for start in range(0, len(order), batch):
        rows = torch.from_numpy(order[start : start + batch])
        yield pooled[rows], targets[rows]


def unwrap_ddp(module: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel, which Ray Train wraps around it."""
    inner = getattr(module, "module", None)
    return inner if isinstance(inner, nn.Module) else module


def network_input(inputs: Tensor) -> Tensor:
    """Return uint8 images as the network takes them; pooled features stay as they are."""
    return to_input(inputs) if inputs.dtype == torch.uint8 else inputs


def autocast(inputs: Tensor, precision: str) -> AbstractContextManager[None]:
    """Return the context for a forward pass at that precision, on the inputs' device."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(inputs.device.type, torch.bfloat16)
