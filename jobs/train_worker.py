"""What each Ray Train worker does: the plain loops of `clvr_model.training` over its share of every batch."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from ray import train
from ray.train import Checkpoint
from ray.train.torch import get_device, prepare_model

from clvr_model.network import Clvr
from clvr_model.recipe import Recipe, Stage, recipe_of
from clvr_model.training import (
    Batch,
    EpochResult,
    Totals,
    cached_batches,
    epoch_order,
    evaluate,
    make_optimizer,
    pooled_features,
    reestimate_batch_statistics,
    train_epoch,
)
from clvr_model.training_state import TrainingState
from clvr_model.weights import load_backbone
from infra.errors import ObjectChanged
from jobs.pictures import Failure, common_store, stream_pictures


@dataclass(frozen=True, slots=True)
class TrainJob:
    """Everything a worker needs to know; plain values, because they travel through Ray."""

    recipe: dict[str, Any]
    classes: tuple[int, ...]
    training: tuple[list[str], NDArray[np.int64]]  # URIs and class numbers
    held: tuple[list[str], NDArray[np.int64]]
    gpu: bool


def train_worker(config: dict[str, Any]) -> None:
    """Run all stages of a job from where the last saved state stands; report a state after each epoch."""
    _Worker(TrainJob(**config["job"]), config["board"]).run()


class _Worker:
    def __init__(self, job: TrainJob, board: Any) -> None:
        self.job = job
        self.board = board
        self.recipe: Recipe = recipe_of(job.recipe)
        context = train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = get_device()
        # Every worker steps on equal shares, so that the mean of their gradients is the batch's gradient.
        self.share = max(1, self.recipe.batch // self.world)

    def run(self) -> None:
        network = Clvr.of(self.recipe.architecture(len(self.job.classes)), seed=self.recipe.seed)
        state = _saved_state()
        if state is None:
            load_backbone(network, self.recipe.backbone)
        else:
            state.restore(network)
        network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if state is None and self.recipe.reestimate_statistics:
            self._say(0, "estimating batch statistics")
            reestimate_batch_statistics(network, self._pictures(self.job.training, self._sample()))
        first = state.stage if state else 0
        history = list(state.history) if state else []
        for number in range(first, len(self.recipe.stages)):
            resumed = state if state and number == first else None
            self._stage(network, number, history, resumed)
        if not history or "micro" not in history[-1]:
            history.append(self._evaluate(network))
            self._report(network, None, len(self.recipe.stages), 0, history)

    def _stage(
        self, network: Clvr, number: int, history: list[dict[str, Any]], resumed: TrainingState | None
    ) -> None:
        stage = self.recipe.stages[number]
        start = resumed.epoch if resumed else 0
        if start >= stage.epochs:
            return
        optimizer = make_optimizer(network, stage)
        if resumed:
            resumed.restore(network, optimizer)
        done = sum(each["pictures"] for each in history)
        module, batches_of = self._prepared(network, stage, number, done)
        for epoch in range(start, stage.epochs):
            done = sum(each["pictures"] for each in history)

            def told(step: int, totals: Totals, done: int = done) -> None:
                note = f"{stage.name}, loss {totals.loss / totals.pictures:.3f}"
                self._say(done + totals.pictures * self.world, note)

            result = train_epoch(
                module,
                optimizer,
                batches_of(epoch),
                stage,
                number=number,
                epoch=epoch,
                seed=self.recipe.seed,
                precision=self.recipe.precision,
                on_step=told,
            )
            history.append(asdict(self._summed(result)))
            last = epoch + 1 == stage.epochs
            self._report(
                network,
                None if last else optimizer,
                number + 1 if last else number,
                0 if last else epoch + 1,
                history,
            )

    def _prepared(
        self, network: Clvr, stage: Stage, number: int, done: int
    ) -> tuple[torch.nn.Module, Callable[[int], Iterator[Batch]]]:
        """The module that is stepped, and what gives an epoch's batches for it."""
        if not stage.cacheable:
            return prepare_model(network), lambda epoch: self._pictures(
                self.job.training, self._rows(number, epoch)
            )
        self._say(done, "running the frozen backbone once")
        cache = self._gathered_features(network)
        return prepare_model(network.head), lambda epoch: (
            (pooled.to(self.device), classes.to(self.device))
            for pooled, classes in cached_batches(cache, self._rows(number, epoch), self.share)
        )

    def _say(self, done: int, note: str) -> None:
        if self.rank == 0:
            self.board.say.remote(done, note)

    def _rows(self, number: int, epoch: int) -> NDArray[np.int64]:
        """This worker's share of an epoch's order: rows k, k + world, …, equally many for each worker."""
        count = len(self.job.training[0])
        order = epoch_order(count, seed=self.recipe.seed, stage=number, epoch=epoch)
        return order[: count - count % self.world][self.rank :: self.world]

    def _sample(self) -> NDArray[np.int64]:
        """Training pictures from all over the data, the same ones in each worker."""
        count = len(self.job.training[0])
        return np.unique(
            np.linspace(0, count - 1, min(self.recipe.reestimate_statistics, count)).astype(np.int64)
        )

    def _gathered_features(self, network: Clvr) -> Batch:
        """Each worker runs the frozen backbone over its share; all of them get all the features."""
        count = len(self.job.training[0])
        mine = np.arange(self.rank, count, self.world)
        pooled, classes = pooled_features(
            network, self._pictures(self.job.training, mine), precision=self.recipe.precision
        )
        everything = torch.empty((count, pooled.shape[1]))
        everything[mine] = pooled
        known = torch.zeros(count, dtype=torch.int64)
        known[mine] = classes
        for rank in range(self.world):
            rows = np.arange(rank, count, self.world)
            for tensor in (everything, known):
                part = tensor[rows].to(self.device)
                if self.world > 1:
                    dist.broadcast(part, src=rank)
                tensor[rows] = part.cpu()
        return everything, known

    def _pictures(
        self, source: tuple[list[str], NDArray[np.int64]], rows: NDArray[np.int64]
    ) -> Iterator[Batch]:
        """Batches in the order of `rows`; the next one is fetched and decoded while this one is used."""
        uris, classes = source
        store, keys = common_store(uris)

        def load(start: int) -> Batch:
            part = rows[start : start + self.share]
            pictures = np.empty((len(part), self.recipe.image_size, self.recipe.image_size, 3), np.uint8)
            for place, picture in stream_pictures(store, [keys[row] for row in part]):
                if isinstance(picture, Failure):
                    raise ObjectChanged(
                        f"{uris[part[place]]} was readable before the training: {picture.detail}",
                        remedy="run the same command again: it leaves the picture out",
                    )
                pictures[place] = picture
            return torch.from_numpy(pictures), torch.from_numpy(classes[part])

        with ThreadPoolExecutor(1, thread_name_prefix="next-batch") as pool:
            starts = range(0, len(rows), self.share)
            following = pool.submit(load, 0) if len(rows) else None
            for start in starts:
                assert following is not None  # noqa: S101 - there is a row at `start`
                pictures, known = following.result()
                following = pool.submit(load, start + self.share) if start + self.share < len(rows) else None
                yield pictures.to(self.device), known.to(self.device)

    def _summed(self, result: EpochResult) -> EpochResult:
        if self.world == 1:
            return result
        sums = torch.tensor(
            [result.loss * result.pictures, result.accuracy * result.pictures, result.pictures],
            dtype=torch.float64,
            device=self.device,
        )
        dist.all_reduce(sums)
        loss, correct, pictures = sums.tolist()
        return EpochResult(
            result.stage, result.epoch, loss / pictures, correct / pictures, int(pictures), result.seconds
        )

    def _evaluate(self, network: Clvr) -> dict[str, Any]:
        """Accuracy on the held-out pictures, each worker a share: micro, macro, and each class's."""
        uris, classes = self.job.held
        count = len(self.job.classes)
        mine = np.arange(self.rank, len(uris), self.world)
        sums = torch.zeros((2, count), dtype=torch.float64, device=self.device)
        if len(mine):
            found = evaluate(
                network, self._pictures(self.job.held, mine), count, precision=self.recipe.precision
            )
            seen = np.bincount(classes[mine], minlength=count)
            sums[0] = torch.from_numpy(np.nan_to_num(found.per_class) * seen)
            sums[1] = torch.from_numpy(seen)
        if self.world > 1:
            dist.all_reduce(sums)
        correct, seen = sums.cpu().numpy()
        shares = [float(hit / all_) if all_ else None for hit, all_ in zip(correct, seen, strict=True)]
        known = [share for share in shares if share is not None]
        return {
            "micro": float(correct.sum() / max(seen.sum(), 1)),
            "macro": float(np.mean(known)) if known else 0.0,
            "per_class": {str(label): share for label, share in zip(self.job.classes, shares, strict=True)},
            "pictures": 0,
        }

    def _report(
        self,
        network: Clvr,
        optimizer: torch.optim.Optimizer | None,
        stage: int,
        epoch: int,
        history: list[dict[str, Any]],
    ) -> None:
        metrics = {key: value for key, value in history[-1].items() if isinstance(value, int | float)}
        if self.rank != 0:
            train.report(metrics)
            return
        with TemporaryDirectory() as folder:
            TrainingState.capture(
                network, optimizer, stage=stage, epoch=epoch, seed=self.recipe.seed, history=history
            ).save(Path(folder))
            train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def _saved_state() -> TrainingState | None:
    saved = train.get_checkpoint()
    if saved is None:
        return None
    with saved.as_directory() as folder:
        return TrainingState.load(Path(folder))
