"""Measure how fast this cluster embeds a sample of an archive, for `clvr plan`."""

import time
from typing import Any

import pyarrow as pa
import ray

from infra.errors import BadInput
from infra.store import Store
from jobs.embed.actor import OpenEmbedder, decoders_of_actor
from jobs.embed.model import fingerprint_for_runs, open_model
from jobs.embed.part import open_decoders
from jobs.embed.sizes import ThroughputSample
from jobs.runtime.decoders import CropList
from jobs.runtime.ray_cluster import actor_resources, root_cause

SAMPLE_CROPS = 48


def open_exact_model(model: str) -> Any:
    """Load a model at full precision, to measure with."""
    fingerprint_for_runs(model)
    return open_model(model, "fp32", None)


def measure_throughput(
    crops: pa.Table, archive: Store, open_embedder: OpenEmbedder, actors: int
) -> ThroughputSample:
    """Start the actors of an embedding, and let each embed its own sample at the same time.

    Raises BadInput if no sampled crop can be read.
    """
    crops_per_actor = min(SAMPLE_CROPS, max(1, crops.num_rows // actors))
    stride = max(1, crops.num_rows // (crops_per_actor * actors))
    uris, etags = (crops[name][::stride].to_pylist() for name in ("uri", "etag"))
    samples_of = [
        CropList(number, uris[first : first + crops_per_actor], etags[first : first + crops_per_actor])
        for number, first in enumerate(range(0, crops_per_actor * actors, crops_per_actor))
    ]
    started = time.monotonic()
    try:
        # Actors that do not fit at once would be measured one after the other, so start exactly so many.
        workers = [
            ray.remote(**actor_resources())(_ThroughputProbe).remote(archive, open_embedder)
            for _ in range(actors)
        ]
        first = CropList(None, uris[:1], etags[:1])
        decoders = max(ray.get([worker.start.remote(first) for worker in workers]))
        startup_seconds = time.monotonic() - started
        samples = ray.get(
            [worker.probe.remote(sample) for worker, sample in zip(workers, samples_of, strict=True)]
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
    return ThroughputSample(embedded, failed, actors, rate, startup_seconds, decoders)


class _ThroughputProbe:
    """An actor that embeds a sample and drops the result."""

    def __init__(self, archive: Store, open_embedder: OpenEmbedder) -> None:
        self.embedder = open_embedder()
        self.num_decoders = decoders_of_actor()
        self.decoders = open_decoders(archive, self.embedder, self.num_decoders)

    def start(self, first: CropList) -> int:
        """Return the number of decoder processes, once the model is loaded and a crop is decoded."""
        for _ in self.decoders.batches([first]):
            pass
        return self.num_decoders

    def probe(self, sample: CropList) -> tuple[int, int, float]:
        """Return the numbers of embedded and of failed crops, and the seconds."""
        started, good, bad = time.perf_counter(), 0, 0
        for batch in self.decoders.batches([sample]):
            bad += len(batch.failures)
            good += len(batch.positions) - len(batch.failures)
            if len(batch.failures) < len(batch.positions):
                self.embedder(batch.images)
        return good, bad, time.perf_counter() - started
