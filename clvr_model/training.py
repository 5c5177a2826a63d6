"""One stage, one epoch, one step: plain loops, which Ray Train calls with its own wrapped network.

Batches are (uint8 (n, 299, 299, 3) pictures, int64 (n,) classes). A stage that freezes the backbone may give
its head (pooled float32 (n, 2048), classes) instead: the same loops then train the head alone, to the same
result. All randomness comes from (seed, stage, epoch), so a resume needs no generator state.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer, RMSprop

from clvr_model.ema import ExponentialMovingAverage
from clvr_model.memory import is_out_of_memory, pictures_that_fit
from clvr_model.network import Clvr
from clvr_model.preprocessing import to_input
from clvr_model.recipe import RMSPROP_ALPHA, Stage
from infra.errors import BadInput, BadSetting, TrainingDiverged

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over pictures, which add up over steps and workers."""

    loss: float = 0.0
    correct: int = 0
    pictures: int = 0

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(self.loss + other.loss, self.correct + other.correct, self.pictures + other.pictures)


@dataclass(frozen=True, slots=True)
class EpochResult:
    """Mean loss and share of correct classes over an epoch's training pictures, and how long it took."""

    stage: str
    epoch: int
    loss: float
    accuracy: float
    pictures: int
    seconds: float


def epoch_order(count: int, *, seed: int, stage: int, epoch: int) -> NDArray[np.int64]:
    """The order in which an epoch sees `count` pictures: a permutation, equal for equal arguments.

    Source: the paper, section 4: plain random sampling.
    """
    return np.random.default_rng([seed, stage, epoch]).permutation(count).astype(np.int64)


def stage_order(
    stage: Stage, classes: NDArray[np.int64], *, seed: int, number: int, epoch: int
) -> NDArray[np.int64]:
    """The order in which an epoch of a stage sees the pictures of those class numbers; its length is theirs.

    Plain sampling: `epoch_order`. Balanced: of each class equally many (to one), all of a small class's
    pictures as often as each other, a fresh choice of a large one's; equal for equal arguments.
    """
    count = len(classes)
    if stage.sampling == "plain":
        return epoch_order(count, seed=seed, stage=number, epoch=epoch)
    rng = np.random.default_rng([seed, number, epoch])
    known = np.unique(classes)
    wanted = np.full(len(known), count // len(known))
    wanted[rng.permutation(len(known))[: count % len(known)]] += 1
    rows = []
    for each, share in zip(known, wanted, strict=True):
        own = np.flatnonzero(classes == each)
        rounds = [rng.permutation(own) for _ in range(-(-int(share) // len(own)))]
        rows += [row[: int(share) - done * len(own)] for done, row in enumerate(rounds)]
    return rng.permutation(np.concatenate(rows)).astype(np.int64)


def drop_last(count: int, batch: int) -> int:
    """How many of `count` pictures an epoch learns from: a multiple of `batch`, or all where they fill none.

    A last batch of four pictures was seen to step along a gradient eleven times as long as the others', and
    to leave batch statistics of these four. Orders differ, so what one epoch leaves out another learns from.
    """
    return count - count % batch if count >= batch else count


def learning_rate(stage: Stage, position: float) -> float:
    """The learning rate after `position` epochs of the stage, from 0 to its epochs."""
    rise = min(1.0, position / stage.warmup_epochs) if stage.warmup_epochs else 1.0
    if stage.schedule == "constant":
        return stage.lr * rise
    falling = max(stage.epochs - stage.warmup_epochs, 1e-9)
    done = min(1.0, max(0.0, position - stage.warmup_epochs) / falling)
    return stage.lr * rise * (1 + math.cos(math.pi * done)) / 2


def make_optimizer(module: nn.Module, stage: Stage) -> Optimizer:
    """Freeze or free the backbone as the stage says, and build its optimiser over what may learn."""
    network = unwrap_ddp(module)
    if isinstance(network, Clvr):
        network.backbone.requires_grad_(stage.trainable == "all")
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    lr, momentum, decay = stage.lr, stage.momentum, stage.weight_decay
    if stage.optimizer == "rmsprop":
        return RMSprop(parameters, lr, RMSPROP_ALPHA, momentum=momentum, weight_decay=decay)
    return SGD(parameters, lr, momentum, weight_decay=decay)


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
    on_step: Callable[[int, Totals], None] | None = None,
    average: ExponentialMovingAverage | None = None,
    steps: int = 1,
) -> EpochResult:
    """One pass over `batches`; `on_step(batch number, totals so far)` may show progress, or raise to stop.

    The pictures are as `augmentation.augment` left them. start_step, totals: where an epoch is taken up
    again; `batches` then begin at that batch. average: takes every step in. steps: batches of a whole epoch,
    which a schedule counts in. Raises TrainingDiverged naming stage, epoch and batch, BadInput if there is no
    batch, BadSetting where memory runs out, with the micro_batch that would fit.
    """
    started = time.monotonic()
    training_mode(module, stage)
    totals = totals or Totals()
    for step, (pictures, classes) in enumerate(batches, start_step):
        where = f"stage {stage.name}, epoch {epoch + 1}, batch {step + 1}"
        if stage.schedule != "constant" or stage.warmup_epochs:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(stage, epoch + (step + 0.5) / max(steps, step + 1))
        failed = False
        try:
            totals += train_step(
                module,
                optimizer,
                pictures,
                classes,
                micro_batch=stage.micro_batch,
                precision=precision,
                label_smoothing=stage.label_smoothing,
                max_grad_norm=stage.max_grad_norm,
            )
        except TrainingDiverged as error:
            raise TrainingDiverged(f"{where}: {error.message}", remedy=error.remedy) from None
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            failed = True
        if failed:  # outside of `except`, whose traceback would hold the memory
            optimizer.zero_grad(set_to_none=True)
            raise _out_of_memory(module, pictures, classes, stage, precision, where)
        if average:
            average.update()
        if on_step:
            on_step(step, totals)
    if not totals.pictures:
        raise BadInput(f"stage {stage.name}, epoch {epoch + 1}: there is nothing to train on")
    return EpochResult(
        stage.name,
        epoch,
        totals.loss / totals.pictures,
        totals.correct / totals.pictures,
        totals.pictures,
        time.monotonic() - started,
    )


def train_step(
    module: nn.Module,
    optimizer: Optimizer,
    inputs: Tensor,
    classes: Tensor,
    *,
    micro_batch: int = 0,
    precision: str = "fp32",
    label_smoothing: float = 0.0,
    max_grad_norm: float = 0.0,
) -> Totals:
    """One optimiser step on one batch: mean softmax cross-entropy (the paper, eq. 1 and 2).

    max_grad_norm: longer gradients are clipped to this norm; 0: no clipping.
    With `micro_batch` the batch passes in portions of at most so many, of about one size, and their gradients
    are summed before the step: as one pass, but for batch statistics, which are a portion's. Raises
    TrainingDiverged before the weights are touched.
    """
    optimizer.zero_grad(set_to_none=True)
    totals = Totals()
    portions = -(-len(inputs) // (micro_batch or len(inputs)))
    for part, expected in zip(inputs.tensor_split(portions), classes.tensor_split(portions), strict=True):
        with autocast(part, precision):
            _, logits = module(network_input(part))
        loss = functional.cross_entropy(
            logits.float(), expected, reduction="sum", label_smoothing=label_smoothing
        )
        value = float(loss.detach())
        if not np.isfinite(value):
            raise TrainingDiverged(f"the loss is {value}", remedy="lower the learning rate")
        (loss / len(inputs)).backward()  # type: ignore[no-untyped-call]
        correct = int((logits.detach().argmax(dim=1) == expected).sum())
        totals += Totals(value, correct, len(part))
    if max_grad_norm:
        learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        length = float(torch.nn.utils.clip_grad_norm_(learning, max_grad_norm))
        if not np.isfinite(length):
            raise TrainingDiverged(f"the gradient's length is {length}", remedy="lower the learning rate")
    optimizer.step()
    return totals


def training_mode(module: nn.Module, stage: Stage) -> None:
    """Training mode, but a frozen backbone keeps its batch statistics, and so does a stage that says so."""
    module.train()
    network = unwrap_ddp(module)
    if isinstance(network, Clvr) and (stage.trainable == "head" or stage.frozen_statistics):
        network.backbone.eval()  # of its layers only batch normalisation knows the difference


def _out_of_memory(
    module: nn.Module, inputs: Tensor, classes: Tensor, stage: Stage, precision: str, what: str
) -> BadSetting:
    """The error for a step that did not fit, with the micro_batch that would."""

    def loss_of(count: int) -> Tensor:
        part = inputs[:1].expand(count, *inputs.shape[1:])
        with autocast(part, precision):
            _, logits = unwrap_ddp(module)(
                network_input(part)
            )  # without other workers, who would have to take part
        return functional.cross_entropy(logits.float(), classes[:1].expand(count))

    tried = min(stage.micro_batch or len(inputs), len(inputs))
    fits = min(pictures_that_fit(loss_of, inputs.device), tried - 1)
    remedy = (
        f"about {fits} fit: --set {stage.name}.micro_batch={fits}, which gives the same gradient"
        if fits
        else "not even one picture fits: take a device with more memory, or a smaller network"
    )
    return BadSetting(f"{what}: out of memory with {tried} pictures a pass", remedy=remedy)


@torch.no_grad()  # not inference_mode, whose tensors could not enter the head's gradient
def pooled_features(network: Clvr, batches: Iterable[Batch], *, precision: str = "fp32") -> Batch:
    """The frozen backbone's output for each picture, once: float32 (n, 2048) and classes (n,), on the CPU.

    8 KB a picture: VehicleID's 72,049 training pictures take 590 MB. Raises BadInput if there is no batch.
    """
    network.backbone.eval()
    pooled, known = [], []
    for pictures, classes in batches:
        with autocast(pictures, precision):
            pooled.append(network.backbone(network_input(pictures)).float().cpu())
        known.append(classes.cpu())
    if not pooled:
        raise BadInput("there is nothing to train on")
    return torch.cat(pooled), torch.cat(known)


@torch.no_grad()
def reestimate_batch_statistics(network: Clvr, batches: Iterable[Batch]) -> None:
    """Replace every batch normalisation's running mean and variance by the plain average over `batches`.

    For a backbone whose own statistics are of other pictures, or of none: random weights with the statistics
    they start with (0 and 1) let hardly any difference between two pictures through.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for the plain average
    network.train()
    for pictures, _ in batches:
        network.backbone(network_input(pictures))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def cached_batches(cache: Batch, order: NDArray[np.int64], batch: int) -> Iterator[Batch]:
    """The batches that a loader with this order would give, from `pooled_features`' output."""
    pooled, classes = cache
    for start in range(0, len(order), batch):
        rows = torch.from_numpy(order[start : start + batch])
        yield pooled[rows], classes[rows]


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
