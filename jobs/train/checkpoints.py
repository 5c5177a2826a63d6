"""Saved states of a training: the latest ones through Ray Train, the best one beside them."""

from contextlib import nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from ray import train
from ray.train import Checkpoint

from clvr_model.ema import ExponentialMovingAverage
from clvr_model.network import Clvr
from clvr_model.training_state import TrainingState
from infra.store import Store
from jobs.train.distributed import DistributedContext
from jobs.train.job import Position

BEST = "best-"


def report_state(
    distributed: DistributedContext,
    network: Clvr,
    optimizer: torch.optim.Optimizer | None,
    average: ExponentialMovingAverage | None,
    seed: int,
    position: Position,
) -> None:
    """Report a state to Ray Train. Every worker calls it; rank 0 provides the files."""
    last = position.history[-1] if position.history else {}
    metrics = {key: value for key, value in last.items() if isinstance(value, int | float)}
    if not distributed.is_rank_zero:
        train.report(metrics)
        return
    with TemporaryDirectory() as folder:
        TrainingState.capture(
            network,
            optimizer,
            stage=position.stage,
            epoch=position.epoch,
            seed=seed,
            history=position.history,
            totals=position.totals,
            average=average.state_dict() if average else None,
        ).save(Path(folder))
        train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def reported_state() -> TrainingState | None:
    """Return the latest state that Ray Train has, None before the first."""
    checkpoint = train.get_checkpoint()
    return None if checkpoint is None else state_of(checkpoint)


def state_of(checkpoint: Checkpoint) -> TrainingState:
    """Read the state in a checkpoint of Ray Train."""
    with checkpoint.as_directory() as folder:
        return TrainingState.load(Path(folder))


def save_best(
    folder: Store,
    network: Clvr,
    average: ExponentialMovingAverage | None,
    history: list[dict[str, Any]],
    seed: int,
) -> None:
    """Save the best network so far, then delete the state that it replaces."""
    name = f"{BEST}{len(history):05d}"
    with TemporaryDirectory() as temporary:
        path = Path(temporary)
        with average.installed() if average else nullcontext():
            TrainingState.capture(network, None, stage=-1, epoch=0, seed=seed, history=history).save(path)
        # state.json goes last: it marks the state as complete.
        for file in sorted(path.iterdir(), reverse=True):
            folder.put(f"{name}/{file.name}", file)
    remove_folders(folder, BEST, kept={name})


def best_state(folder: Store) -> TrainingState | None:
    """Read the state that `save_best` wrote, None if it wrote none."""
    names = sorted({item.key.split("/")[0] for item in folder.list() if item.key.startswith(BEST)})
    for name in reversed(names):
        keys = [item.key for item in folder.list(f"{name}/")]
        if "state.json" not in {key.rpartition("/")[2] for key in keys}:
            continue  # the worker was lost while it wrote this state
        with TemporaryDirectory() as temporary:
            for key in keys:
                (Path(temporary) / key.rpartition("/")[2]).write_bytes(folder.get(key))
            return TrainingState.load(Path(temporary))
    return None


def remove_folders(folder: Store, prefix: str, *, kept: set[str]) -> None:
    """Delete the folders whose names start with `prefix`, except the `kept` ones."""
    names = {item.key.split("/")[0] for item in folder.list() if "/" in item.key}
    removed = {name for name in names if name.startswith(prefix)} - kept
    folder.delete(*[item.key for name in removed for item in folder.list(f"{name}/")])
    if folder.local:
        for name in removed:
            with suppress(OSError):  # a local folder remains after its files are deleted
                (Path(folder.uri) / name).rmdir()
