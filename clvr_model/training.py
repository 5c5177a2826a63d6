"""One stage, one epoch, one step: plain loops, which Ray Train calls with its own wrapped network.

Batches are (uint8 (n, 299, 299, 3) pictures, int64 (n,) classes). A stage that freezes the backbone may give
its head (pooled float32 (n, 2048), classes) instead: the same loops then train the head alone, to the same
result. All randomness comes from (seed, stage, epoch), so a resume needs no generator state.
"""

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

from clvr_model.network import Clvr
from clvr_model.preprocessing import to_input
from clvr_model.recipe import RMSPROP_ALPHA, Stage
from infra.errors import BadInput, TrainingDiverged

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


@dataclass(frozen=True, slots=True)
class Evaluation:
    """micro: share of correct pictures. macro: mean of the classes' shares, over classes that occur.

    per_class: share of correct pictures of each class, NaN for a class without pictures.
    """

    loss: float
    micro: float
    macro: float
    per_class: NDArray[np.float64]
    pictures: int


def epoch_order(count: int, *, seed: int, stage: int, epoch: int) -> NDArray[np.int64]:
    """The order in which an epoch sees `count` pictures: a permutation, equal for equal arguments.

    Source: the paper, section 4: plain random sampling.
    """
    return np.random.default_rng([seed, stage, epoch]).permutation(count).astype(np.int64)


def make_optimizer(module: nn.Module, stage: Stage) -> Optimizer:
    """Freeze or free the backbone as the stage says, and build its optimiser over what may learn."""
    network = plain(module)
    if isinstance(network, Clvr):
        network.backbone.requires_grad_(stage.trainable == "all")
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    lr, momentum, decay = stage.lr, stage.momentum, stage.weight_decay
    if stage.optimizer == "rmsprop":
        return RMSprop(parameters, lr, RMSPROP_ALPHA, momentum=momentum, weight_decay=decay)
    return SGD(parameters, lr, momentum, weight_decay=decay)


def train_stage(
    module: nn.Module,
    optimizer: Optimizer,
    stage: Stage,
    batches_of: Callable[[int], Iterable[Batch]],
    *,
    number: int = 0,
    first_epoch: int = 0,
    seed: int = 0,
    precision: str = "fp32",
    on_epoch: Callable[[EpochResult], None] | None = None,
) -> list[EpochResult]:
    """Train from `first_epoch` to the stage's last; `batches_of(epoch)` gives an epoch's batches.

    `on_epoch` is called after each epoch and may save. Raises TrainingDiverged.
    """
    results = []
    for epoch in range(first_epoch, stage.epochs):
        result = train_epoch(
            module,
            optimizer,
            batches_of(epoch),
            stage,
            number=number,
            epoch=epoch,
            seed=seed,
            precision=precision,
        )
        results.append(result)
        if on_epoch:
            on_epoch(result)
    return results


def train_epoch(
    module: nn.Module,
    optimizer: Optimizer,
    batches: Iterable[Batch],
    stage: Stage,
    *,
    number: int = 0,
    epoch: int = 0,
    seed: int = 0,
    precision: str = "fp32",
    first_step: int = 0,
    totals: Totals | None = None,
    on_step: Callable[[int, Totals], None] | None = None,
) -> EpochResult:
    """One pass over `batches`; `on_step(batch number, totals so far)` may show progress, or raise to stop.

    first_step, totals: where an epoch is taken up again; `batches` then begin at that batch.
    Raises TrainingDiverged naming epoch and batch, BadInput if there is no batch.
    """
    started = time.monotonic()
    training_mode(module, stage)
    totals = totals or Totals()
    for step, (pictures, classes) in enumerate(batches, first_step):
        if stage.flip:
            pictures = mirrored(pictures, _generator(seed, number, epoch, step))
        try:
            totals += train_step(
                module, optimizer, pictures, classes, micro_batch=stage.micro_batch, precision=precision
            )
        except TrainingDiverged as error:
            raise TrainingDiverged(
                f"stage {stage.name}, epoch {epoch + 1}, batch {step + 1}: {error.message}",
                remedy=error.remedy,
            ) from None
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
) -> Totals:
    """One optimiser step on one batch: mean softmax cross-entropy (the paper, eq. 1 and 2).

    With `micro_batch` the batch passes in portions and their gradients are summed before the step: as one
    pass, but for batch statistics, which are then those of a portion. Raises TrainingDiverged before the
    weights are touched.
    """
    optimizer.zero_grad(set_to_none=True)
    totals = Totals()
    portion = micro_batch or len(inputs)
    for start in range(0, len(inputs), portion):
        part, expected = inputs[start : start + portion], classes[start : start + portion]
        with _autocast(part, precision):
            _, logits = module(_ready(part))
        loss = functional.cross_entropy(logits.float(), expected, reduction="sum")
        value = float(loss.detach())
        if not np.isfinite(value):
            raise TrainingDiverged(f"the loss is {value}", remedy="lower the learning rate")
        (loss / len(inputs)).backward()  # type: ignore[no-untyped-call]
        correct = int((logits.detach().argmax(dim=1) == expected).sum())
        totals += Totals(value, correct, len(part))
    optimizer.step()
    return totals


def training_mode(module: nn.Module, stage: Stage) -> None:
    """Training mode, but a frozen backbone keeps its batch statistics, and so does a stage that says so."""
    module.train()
    network = plain(module)
    if isinstance(network, Clvr) and (stage.trainable == "head" or stage.frozen_statistics):
        network.backbone.eval()  # of its layers only batch normalisation knows the difference


def _generator(*where: int) -> torch.Generator:
    """Randomness of one step alone, so that an epoch may be taken up again at any step."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(where).generate_state(1)[0]))


def mirrored(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture of (n, h, w, 3) mirrored left to right with probability 1/2."""
    chosen = torch.rand(len(pictures), generator=generator) < 0.5
    return torch.where(chosen.to(pictures.device)[:, None, None, None], pictures.flip(2), pictures)


@torch.no_grad()  # not inference_mode, whose tensors could not enter the head's gradient
def pooled_features(network: Clvr, batches: Iterable[Batch], *, precision: str = "fp32") -> Batch:
    """The frozen backbone's output for each picture, once: float32 (n, 2048) and classes (n,), on the CPU.

    8 KB a picture: VehicleID's 72,049 training pictures take 590 MB. Raises BadInput if there is no batch.
    """
    network.backbone.eval()
    pooled, known = [], []
    for pictures, classes in batches:
        with _autocast(pictures, precision):
            pooled.append(network.backbone(_ready(pictures)).float().cpu())
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
        network.backbone(_ready(pictures))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def cached_batches(cache: Batch, order: NDArray[np.int64], batch: int) -> Iterator[Batch]:
    """The batches that a loader with this order would give, from `pooled_features`' output."""
    pooled, classes = cache
    for start in range(0, len(order), batch):
        rows = torch.from_numpy(order[start : start + batch])
        yield pooled[rows], classes[rows]


@torch.inference_mode()
def evaluate(
    module: nn.Module, batches: Iterable[Batch], classes: int, *, precision: str = "fp32"
) -> Evaluation:
    """Loss and accuracy in eval mode; a network or, on pooled batches, its head.

    Raises BadInput if there is no batch.
    """
    module.eval()
    seen, correct, loss = np.zeros(classes, np.int64), np.zeros(classes, np.int64), 0.0
    for inputs, expected in batches:
        with _autocast(inputs, precision):
            _, logits = module(_ready(inputs))
        loss += float(functional.cross_entropy(logits.float(), expected, reduction="sum"))
        hits = logits.argmax(dim=1) == expected
        seen += np.bincount(expected.cpu().numpy(), minlength=classes)
        correct += np.bincount(expected[hits].cpu().numpy(), minlength=classes)
    pictures = int(seen.sum())
    if not pictures:
        raise BadInput("there is nothing to evaluate on")
    per_class = np.divide(correct, seen, out=np.full(classes, np.nan), where=seen > 0)
    return Evaluation(
        loss / pictures, float(correct.sum() / pictures), float(np.nanmean(per_class)), per_class, pictures
    )


def plain(module: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel, which Ray Train wraps around it."""
    inner = getattr(module, "module", None)
    return inner if isinstance(inner, nn.Module) else module


def _ready(inputs: Tensor) -> Tensor:
    return to_input(inputs) if inputs.dtype == torch.uint8 else inputs


def _autocast(inputs: Tensor, precision: str) -> AbstractContextManager[None]:
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(inputs.device.type, torch.bfloat16)
