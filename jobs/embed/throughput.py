"""Measure how fast this cluster embeds a sample of an archive, for `clvr plan`."""

import time
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from index.archive.reader import ArchiveReader
from infra.errors import BadInput
from infra.store import Store
from jobs.embed.actor import OpenEmbedder
from jobs.embed.job import actor_resources
from jobs.embed.precision import PrecisionDecision, load_for_runs, open_model
from jobs.embed.sizes import ThroughputSample
from jobs.runtime.image_stream import ImageFailure, stream_images
from jobs.runtime.ray_cluster import root_cause

SAMPLE_CROPS = 48


def open_exact_model(model: str) -> Any:
    """Load a model at full precision, to measure with."""
    return open_model(model, PrecisionDecision("fp32", load_for_runs(model).fingerprint, "for a plan"))


def measure_throughput(
    crops: pa.Table, archive: Store, open_embedder: OpenEmbedder, actors: int
) -> ThroughputSample:
    """Start the actors of an embedding, and let each embed its own sample at the same time.

    Raises BadInput if no sampled crop can be read.
    """
    crops_per_actor = min(SAMPLE_CROPS, max(1, crops.num_rows // actors))
    stride = max(1, crops.num_rows // (crops_per_actor * actors))
    uris = crops["uri"][::stride].to_pylist()
    started = time.monotonic()
    try:
        # Actors that do not fit at once would be measured one after the other, so start exactly so many.
        workers = [
            ray.remote(**actor_resources())(_ThroughputProbe).remote(archive, open_embedder)
            for _ in range(actors)
        ]
        ray.get([worker.ready.remote() for worker in workers])
        startup_seconds = time.monotonic() - started
        samples = ray.get(
            [
                worker.probe.remote(uris[number * crops_per_actor : (number + 1) * crops_per_actor])
                for number, worker in enumerate(workers)
            ]
        )
    except Exception as error:
        raise root_cause(error) from error
    for worker in workers:
        ray.kill(worker)
    embedded = sum(good for good, _, _ in samples)
    failed = sum(bad for _, bad, _ in samples)
    if not embedded:
        raise BadInput(
            f"none of {failed} sampled crops of {archive.uri} could be read",
            remedy="Open a few of them; `clvr embed` records the cause of each in its quarantine.",
        )
    rate = sum((good + bad) / seconds for good, bad, seconds in samples if seconds)
    return ThroughputSample(embedded, failed, actors, rate, startup_seconds)


class _ThroughputProbe:
    """An actor that embeds a sample and drops the result."""

    def __init__(self, archive: Store, open_embedder: OpenEmbedder) -> None:
        self.archive = archive
        self.embedder = open_embedder()

    def ready(self) -> None:
        """Return once the model is loaded."""

    def probe(self, uris: list[str]) -> tuple[int, int, float]:
        """Return the numbers of embedded and of failed crops, and the seconds."""
        started, good, bad = time.perf_counter(), 0, 0
        batch: list[NDArray[np.uint8]] = []
        for _, image in stream_images(ArchiveReader(self.archive), uris, size=self.embedder.image_size):
            if isinstance(image, ImageFailure):
                bad += 1
                continue
            batch.append(image)
            good += 1
            if len(batch) == self.embedder.batch_size:
                self.embedder(np.stack(batch))
                batch = []
        if batch:
            self.embedder(np.stack(batch))
        return good, bad, time.perf_counter() - started
