"""Pictures on their way into a training worker: decoded ahead, in the order that was asked for.

Two ways give the same batches: `local` fetches and decodes in threads of the worker's own process, `ray` in
Ray Data tasks on whatever CPUs the cluster has left, so that a GPU machine need not decode what it learns.
The order is the caller's, so (seed, stage, epoch) decides it, and neither the way nor a resume changes it.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray

from clvr_model.augmentation import augment
from clvr_model.preprocessing import IMAGE_SIZE
from clvr_model.recipe import Recipe, Stage
from clvr_model.training import Batch, drop_last, stage_order
from index.archive.reader import ArchiveReader, reader_of
from infra.errors import BadSetting, ObjectChanged
from jobs.runtime.image_stream import ImageFailure, available_cpus, stream_images
from jobs.train.distributed import DistributedContext
from jobs.train.job import Pictures, TrainJob

PREFETCH = 2  # batches under way while one is learned from
BLOCK = 64  # pictures a Ray Data task decodes: 17 MB
SPARE_CPUS = 2  # a GPU worker's share of CPUs from which Ray Data pays

# Changes decoded pictures (n, 299, 299, 3) given their rows (n,): augmentation, beside the decoding.
Transform = Callable[[NDArray[np.uint8], NDArray[np.int64]], NDArray[np.uint8]]
Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]  # pictures (n, 299, 299, 3), class numbers (n,)
_T = TypeVar("_T")


class TimedIterator(Iterable[_T]):
    """Passes batches on and counts the seconds for which they were waited for."""

    def __init__(self, batches: Iterable[_T]) -> None:
        self.batches = batches
        self.seconds = 0.0

    def __iter__(self) -> Iterator[_T]:
        batches = iter(self.batches)
        while True:
            begun = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.seconds += time.perf_counter() - begun
            yield batch


@dataclass(frozen=True, slots=True)
class ImageLoader:
    """How a worker's pictures come: `way` is local or ray, `workers` how many read at the same time."""

    way: str
    workers: int

    def batches(
        self, pictures: Pictures, rows: NDArray[np.int64], size: int, change: Transform | None = None
    ) -> Iterator[Arrays]:
        """Batches of `size` pictures in the order of `rows`, the same ones by either way.

        Raises ObjectChanged where a picture that was readable before the training no longer is.
        """
        if self.way == "ray":
            return _by_ray(pictures, rows, size, change, self.workers)
        return _local(pictures, rows, size, change)


def choose_input_backend(wanted: str, *, workers: int, gpu: bool, cpus: int) -> str:
    """`local` or `ray`; `auto` takes Ray Data where GPUs learn and enough CPUs are left to decode for them.

    Without a GPU a step takes a hundred times as long as its decoding, and threads beside it do.
    Raises BadSetting for `ray` where the workers leave no CPU for its tasks: they would wait for ever.
    """
    spare = cpus - workers
    if wanted == "auto":
        return "ray" if gpu and spare >= SPARE_CPUS * workers else "local"
    if wanted not in ("local", "ray"):
        raise BadSetting(f"--input is {wanted!r}", remedy="choose one of auto, local, ray")
    if wanted == "ray" and spare < workers:
        raise BadSetting(
            f"--input ray needs one CPU a worker to decode on, beside the one that it learns on: "
            f"{2 * workers} for {workers} workers, and the cluster has {cpus}",
            remedy="take fewer --workers, a larger cluster, or --input local",
        )
    return wanted


def _local(
    pictures: Pictures, rows: NDArray[np.int64], size: int, change: Transform | None
) -> Iterator[Arrays]:
    reader, uris = reader_of(pictures.uris), pictures.uris

    def load(start: int) -> Arrays:
        part = rows[start : start + size]
        found = decoded(reader, [uris[row] for row in part], part, change, decoders=available_cpus())
        return found, pictures.classes[part]

    with ThreadPoolExecutor(PREFETCH, thread_name_prefix="next-batch") as pool:
        waiting: deque[Future[Arrays]] = deque()
        try:
            for start in range(0, len(rows), size):
                waiting.append(pool.submit(load, start))
                if len(waiting) > PREFETCH:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _by_ray(
    pictures: Pictures, rows: NDArray[np.int64], size: int, change: Transform | None, workers: int
) -> Iterator[Arrays]:
    reader, uris = reader_of(pictures.uris), pictures.uris
    block = min(size, BLOCK)
    parts = [rows[start : start + block] for start in range(0, len(rows), block)]
    if not parts:
        return
    tables = [
        pa.table({"uri": [uris[row] for row in part], "row": part, "class": pictures.classes[part]})
        for part in parts
    ]

    def decode_block(table: pa.Table) -> dict[str, NDArray[Any]]:
        found = decoded(reader, table["uri"].to_pylist(), table["row"].to_numpy(), change)
        return {"picture": found, "class": table["class"].to_numpy()}

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    options = context.execution_options
    options.preserve_order = True
    # Each worker runs a pipeline of its own: together they must not ask for more CPUs than are left.
    spare = int(ray.cluster_resources().get("CPU", 1)) - workers
    options.resource_limits = options.resource_limits.copy(cpu=max(1, spare // workers))
    with ray.data.DataContext.current(context):
        data = ray.data.from_arrow(tables).map_batches(
            decode_block, batch_size=None, batch_format="pyarrow", num_cpus=1
        )
        for batch in data.iter_batches(batch_size=size, batch_format="numpy", prefetch_batches=PREFETCH):
            yield batch["picture"], batch["class"]


def decoded(
    reader: ArchiveReader,
    uris: list[str],
    rows: NDArray[np.int64],
    change: Transform | None = None,
    *,
    decoders: int = 1,
) -> NDArray[np.uint8]:
    """The pictures at those URIs, (n, 299, 299, 3). Raises ObjectChanged if one cannot be used."""
    found = np.empty((len(uris), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for place, picture in stream_images(reader, uris, decoders=decoders):
        if isinstance(picture, ImageFailure):
            raise ObjectChanged(
                f"{uris[place]} was readable before the training: {picture.detail}",
                remedy="put it back and run the same command again, or train without it, to another --output",
            )
        found[place] = picture
    return change(found, rows) if change else found


Rows = NDArray[np.int64]


class Batches:
    """One worker's share of every batch; what is in it follows from (seed, stage, epoch) alone."""

    def __init__(self, job: TrainJob, recipe: Recipe, peers: DistributedContext) -> None:
        self.job, self.recipe, self.peers = job, recipe, peers
        self.feed = ImageLoader(job.input, peers.world)
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

    def of(self, pictures: Pictures, rows: Rows, change: Transform | None = None) -> Iterator[Batch]:
        """Batches of those pictures on the worker's device."""
        for arrays, classes in self.feed.batches(pictures, rows, self.share, change):
            yield (
                torch.from_numpy(arrays).to(self.peers.device, non_blocking=True),
                torch.from_numpy(classes).to(self.peers.device),
            )
