"""States of a training on their way to storage and back: the last ones through Ray Train, the best beside."""

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
from jobs.train.job import Place

BEST = "best-"


def reported_state() -> TrainingState | None:
    """The last state that Ray Train knows of, None at the very beginning."""
    saved = train.get_checkpoint()
    return None if saved is None else state_of(saved)


def state_of(checkpoint: Checkpoint) -> TrainingState:
    """Read a reported state back."""
    with checkpoint.as_directory() as folder:
        return TrainingState.load(Path(folder))


def report_state(
    peers: DistributedContext,
    network: Clvr,
    optimizer: torch.optim.Optimizer | None,
    average: ExponentialMovingAverage | None,
    seed: int,
    place: Place,
) -> None:
    """Let Ray Train keep the state; every worker calls it, the first one brings the files."""
    last = place.history[-1] if place.history else {}
    metrics = {key: value for key, value in last.items() if isinstance(value, int | float)}
    if not peers.first:
        train.report(metrics)
        return
    with TemporaryDirectory() as folder:
        TrainingState.capture(
            network,
            optimizer,
            stage=place.stage,
            epoch=place.epoch,
            seed=seed,
            history=place.history,
            totals=place.totals,
            average=average.state_dict() if average else None,
        ).save(Path(folder))
        train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def save_best(
    folder: Store,
    network: Clvr,
    average: ExponentialMovingAverage | None,
    history: list[dict[str, Any]],
    seed: int,
) -> None:
    """Put the best network so far beside the last states, then remove the one that it beats."""
    name = f"{BEST}{len(history):05d}"
    with TemporaryDirectory() as temporary:
        path = Path(temporary)
        with average.installed() if average else nullcontext():
            TrainingState.capture(network, None, stage=-1, epoch=0, seed=seed, history=history).save(path)
        for file in sorted(path.iterdir(), reverse=True):  # the small one, which vouches for the other, last
            folder.put(f"{name}/{file.name}", file)
    remove_folders(folder, BEST, kept={name})


def remove_folders(folder: Store, prefix: str, *, kept: set[str]) -> None:
    """Remove the folders whose names begin with `prefix`, but those to be kept."""
    names = {item.key.split("/")[0] for item in folder.list() if "/" in item.key}
    old = {name for name in names if name.startswith(prefix)} - kept
    folder.delete(*[item.key for name in old for item in folder.list(f"{name}/")])
    if folder.local:
        for name in old:
            with suppress(OSError):  # on a disk a folder outlives its files
                (Path(folder.uri) / name).rmdir()


def best_state(folder: Store) -> TrainingState | None:
    """The state that `keep_best` left, None if there is none."""
    names = sorted({item.key.split("/")[0] for item in folder.list() if item.key.startswith(BEST)})
    for name in reversed(names):
        keys = [item.key for item in folder.list(f"{name}/")]
        if "state.json" not in {key.rpartition("/")[2] for key in keys}:
            continue  # was being written when the worker was lost
        with TemporaryDirectory() as temporary:
            for key in keys:
                (Path(temporary) / key.rpartition("/")[2]).write_bytes(folder.get(key))
            return TrainingState.load(Path(temporary))
    return None
