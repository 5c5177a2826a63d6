"""Input of a training worker: images decoded ahead of the steps, in the order that the caller gives.

Two backends give the same batches: `local` fetches and decodes in threads of the worker's process, `ray` in
Ray Data tasks on other CPUs of the cluster, so that a GPU machine need not decode. The caller's order follows
from (seed, stage, epoch); neither the backend nor a resume changes it.
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
from clvr_model.vehicle_sampling import share_of_sets
from index.archive.reader import ArchiveReader, reader_of
from infra.errors import BadSetting, ObjectChanged
from jobs.runtime.image_stream import ImageFailure, available_cpus, stream_images
from jobs.train.distributed import DistributedContext
from jobs.train.job import Images, TrainJob

PREFETCH_BATCHES = 2
BLOCK_IMAGES = 64  # images that a Ray Data task decodes: 17 MB
MIN_CPUS_PER_GPU = 2  # CPUs beside the workers from which Ray Data is faster than local threads

Rows = NDArray[np.int64]
# Augments decoded images (n, h, w, 3) given their rows (n,), in the threads or tasks that decode them.
Transform = Callable[[NDArray[np.uint8], Rows], NDArray[np.uint8]]
Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images (n, h, w, 3), and `Images.targets`
_T = TypeVar("_T")


class TimedIterator(Iterable[_T]):
    """Yields batches, and counts the seconds spent waiting for them."""

    def __init__(self, batches: Iterable[_T]) -> None:
        self.batches = batches
        self.seconds = 0.0

    def __iter__(self) -> Iterator[_T]:
        batches = iter(self.batches)
        while True:
            started = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.seconds += time.perf_counter() - started
            yield batch


class Batches:
    """One worker's share of every batch; its contents follow from (seed, stage, epoch) alone."""

    def __init__(self, job: TrainJob, recipe: Recipe, distributed: DistributedContext) -> None:
        self.job, self.recipe, self.distributed = job, recipe, distributed
        self.loader = ImageLoader(job.input, distributed.world_size, recipe.image_size)
        # All workers have equal shares, so that the mean of their gradients is the gradient of the batch.
        self.share = max(1, recipe.batch // distributed.world_size)

    def epoch_rows(self, stage_number: int, epoch: int) -> Rows:
        """Return this worker's share of an epoch's order; all workers have equally many rows.

        The images of a set go to one worker together.
        """
        stage = self.recipe.stages[stage_number]
        order = stage_order(
            stage,
            self.job.training.classes,
            seed=self.recipe.seed,
            number=stage_number,
            epoch=epoch,
            vehicles=self.job.training.vehicles,
            batch=self.recipe.batch,
            journeys=self.job.training.journeys,
        )
        world_size, rank = self.distributed.world_size, self.distributed.rank
        count = drop_last(len(order), self.share * world_size)
        whole = count - count % (world_size * stage.set_size)
        return share_of_sets(order[:whole], stage.set_size, rank=rank, world_size=world_size)

    def sample_rows(self) -> Rows:
        """Return training rows spread over the data, the same ones in each worker."""
        count = len(self.job.training)
        sample_size = min(self.recipe.reestimate_statistics, count)
        return np.unique(np.linspace(0, count - 1, sample_size).astype(np.int64))

    def train_batches(self, stage: Stage, stage_number: int, epoch: int, rows: Rows) -> Iterator[Batch]:
        """Yield batches of training rows, augmented as the stage says."""
        transform = None
        if stage.augments:
            transform = partial(augment, stage=stage, seed=self.recipe.seed, number=stage_number, epoch=epoch)
        return self.eval_batches(self.job.training, rows, transform)

    def eval_batches(self, images: Images, rows: Rows, transform: Transform | None = None) -> Iterator[Batch]:
        """Yield batches of images on the worker's device."""
        for batch in self.loader.batches(images, rows, self.share, transform):
            pixels, targets = (_to_device(array, self.distributed.device) for array in batch)
            yield pixels, targets


def _to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    # From page-locked memory the copy is queued, and the worker goes on to queue the step.
    return tensor.pin_memory().to(device, non_blocking=True)


def choose_input_backend(option: str, *, workers: int, gpu: bool, cpus: int) -> str:
    """Return `local` or `ray`; `auto` means Ray Data if GPUs train and enough CPUs are free to decode.

    On a CPU, a step takes a hundred times as long as its decoding, so local threads suffice.
    Raises BadSetting for `ray` if the workers leave too few CPUs for its tasks, which would never start.
    """
    free_cpus = cpus - workers
    if option == "auto":
        return "ray" if gpu and free_cpus >= MIN_CPUS_PER_GPU * workers else "local"
    if option not in ("local", "ray"):
        raise BadSetting(f"--input is {option!r}", remedy="choose one of auto, local, ray")
    if option == "ray" and free_cpus < workers:
        raise BadSetting(
            f"--input ray needs one CPU a worker to decode on, beside the one that it learns on: "
            f"{2 * workers} for {workers} workers, and the cluster has {cpus}",
            remedy="take fewer --workers, a larger cluster, or --input local",
        )
    return option


@dataclass(frozen=True, slots=True)
class ImageLoader:
    """Loads the images of a worker.

    backend: local or ray. workers: the number of such loaders. image_size: height and width of the images.
    """

    backend: str
    workers: int
    image_size: int = IMAGE_SIZE

    def batches(
        self, images: Images, rows: Rows, size: int, transform: Transform | None = None
    ) -> Iterator[Arrays]:
        """Yield batches of `size` images in the order of `rows`; both backends give the same ones.

        Raises ObjectChanged for an image that was readable before the training and is not any more.
        """
        if self.backend == "ray":
            return _ray_batches(images, rows, size, transform, self)
        return _local_batches(images, rows, size, transform, self)


def _local_batches(
    images: Images, rows: Rows, size: int, transform: Transform | None, loader: ImageLoader
) -> Iterator[Arrays]:
    reader = reader_of(images.uris)

    def load(start: int) -> Arrays:
        batch_rows = rows[start : start + size]
        uris, boxes = [images.uris[row] for row in batch_rows], images.boxes
        arrays = decode_images(
            reader,
            uris,
            batch_rows,
            transform,
            decoders=available_cpus(),
            size=loader.image_size,
            boxes=None if boxes is None else boxes[batch_rows],
        )
        return arrays, images.targets(batch_rows)

    with ThreadPoolExecutor(PREFETCH_BATCHES, thread_name_prefix="next-batch") as pool:
        pending: deque[Future[Arrays]] = deque()
        try:
            for start in range(0, len(rows), size):
                pending.append(pool.submit(load, start))
                if len(pending) > PREFETCH_BATCHES:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _ray_batches(
    images: Images, rows: Rows, size: int, transform: Transform | None, loader: ImageLoader
) -> Iterator[Arrays]:
    reader, image_size, workers = reader_of(images.uris), loader.image_size, loader.workers
    boxes = images.boxes
    block = min(size, BLOCK_IMAGES)
    blocks = [rows[start : start + block] for start in range(0, len(rows), block)]
    if not blocks:
        return
    tables = [pa.table({"uri": [images.uris[row] for row in block], "row": block}) for block in blocks]

    def decode_block(table: pa.Table) -> dict[str, NDArray[Any]]:
        uris, block_rows = table["uri"].to_pylist(), table["row"].to_numpy()
        return {
            "image": decode_images(
                reader,
                uris,
                block_rows,
                transform,
                size=image_size,
                boxes=None if boxes is None else boxes[block_rows],
            ),
            "row": block_rows,
        }

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    options = context.execution_options
    options.preserve_order = True
    # Each worker runs its own pipeline: together they must not request more CPUs than are free.
    free_cpus = int(ray.cluster_resources().get("CPU", 1)) - workers
    options.resource_limits = options.resource_limits.copy(cpu=max(1, free_cpus // workers))
    with ray.data.DataContext.current(context):
        data = ray.data.from_arrow(tables).map_batches(
            decode_block, batch_size=None, batch_format="pyarrow", num_cpus=1
        )
        for batch in data.iter_batches(
            batch_size=size, batch_format="numpy", prefetch_batches=PREFETCH_BATCHES
        ):
            yield batch["image"], images.targets(batch["row"])


def decode_images(
    reader: ArchiveReader,
    uris: list[str],
    rows: Rows,
    transform: Transform | None = None,
    *,
    decoders: int = 1,
    size: int = IMAGE_SIZE,
    boxes: NDArray[np.int32] | None = None,
) -> NDArray[np.uint8]:
    """Return the images at the URIs, or their boxes (n, 4), as (n, size, size, 3).

    Raises ObjectChanged if one cannot be used.
    """
    arrays = np.empty((len(uris), size, size, 3), np.uint8)
    for position, image in stream_images(reader, uris, decoders=decoders, size=size, boxes=boxes):
        if isinstance(image, ImageFailure):
            raise ObjectChanged(
                f"{uris[position]} was readable before the training: {image.detail}",
                remedy="put it back and run the same command again, or train without it, to another --output",
            )
        arrays[position] = image
    return transform(arrays, rows) if transform else arrays
