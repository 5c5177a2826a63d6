"""`clvr plan`: what `clvr embed` would do, how long it would take and what it would cost. Writes nothing."""

import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from clvr_model.checkpoint import load_checkpoint
from index.archive.manifest import drop_duplicates
from index.archive.reader import ArchiveReader
from index.schema import UNKNOWN_TIME
from infra.errors import BadInput
from infra.settings import Settings
from infra.store import Store, open_store
from jobs.embed.actor import OpenEmbedder
from jobs.embed.discovery import Source, discover
from jobs.embed.job import ROW_BYTES, SHARD_ROWS, actor_resources, rows_per_part
from jobs.embed.precision import PrecisionDecision, open_model
from jobs.runtime.image_stream import ImageFailure, stream_images
from jobs.runtime.ray_cluster import connect, cores, gpus, nodes, root_cause

SAMPLE_CROPS = 48
EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class ThroughputSample:
    """A short measurement on this cluster, every actor at once: crops a second of all, and what was bad."""

    crops: int
    failed: int
    actors: int
    crops_per_second: float
    startup_seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What an embedding would be. `hours` and `cost` are None without a probe, `cost` without a price."""

    archive: str
    crops: int
    duplicates: int
    bytes: int
    other_objects: int
    unmatched_keys: int
    without_camera: int
    without_time: int
    partitions: int
    largest_partitions: dict[str, int]
    parts: int
    shards: int
    shard_bytes: int
    nodes: int
    probe: ThroughputSample | None
    hours: float | None
    cost: float | None
    notes: list[str]
    vanished: list[str]

    def __str__(self) -> str:
        """Several lines for a person."""
        largest = ", ".join(f"{name} {count:,}" for name, count in self.largest_partitions.items())
        lines = [
            *self.notes,
            f"crops       {self.crops:,} ({self.bytes / 1e9:,.3f} GB), {self.duplicates:,} duplicates",
            f"partitions  {self.partitions:,}; the largest: {largest}",
            f"result      {self.shards:,} shards, about {self.shard_bytes / 1e9:,.3f} GB, "
            f"in {self.parts:,} parts",
        ]
        if self.without_camera or self.without_time:
            lines.append(
                f"unknown     camera of {self.without_camera:,} crops, time of {self.without_time:,}"
            )
        if self.probe is not None and self.hours is not None:
            lines.append(
                f"speed       {self.probe.crops_per_second:,.1f} crops/s with {self.probe.actors} actors on "
                f"{self.nodes} nodes (measured on {self.probe.crops} crops, {self.probe.failed} bad)"
            )
            lines.append(f"time        {self.hours:,.2f} hours")
        if self.cost is not None:
            lines.append(f"cost        {self.cost:,.2f}")
        if self.vanished:
            lines.append(f"vanished    {', '.join(self.vanished)}")
        return "\n".join(lines)


def plan(
    source: Source,
    settings: Settings,
    *,
    model: str | None = None,
    actors: int | None = None,
    price_per_node_hour: float | None = None,
    open_embedder: OpenEmbedder | None = None,
) -> Plan:
    """Look at an archive and measure this cluster on a few of its crops.

    Without a model nothing is measured, and no Ray is started. Raises what `discover` raises.
    """
    if price_per_node_hour is not None and model is None and open_embedder is None:
        raise BadInput("a price says nothing without a speed", remedy="give --checkpoint, to measure with")
    archive = open_store(source.archive)
    found = discover(source, archive, open_store(settings.runs))
    crops, duplicates = drop_duplicates(found.manifest)
    probe, alive = None, 0
    if crops.num_rows and (model is not None or open_embedder is not None):
        connect(settings)
        open_embedder = open_embedder or partial(exact_model, str(model))
        probe = measure_throughput(crops, archive, open_embedder, actors or gpus() or cores())
        alive = nodes()
    hours = None
    if probe is not None:
        hours = (crops.num_rows / probe.crops_per_second + probe.startup_seconds) / 3600
    per_part = rows_per_part(crops.num_rows, actors or (probe.actors if probe else 1))
    parts = math.ceil(crops.num_rows / per_part)
    folders = _partitions(crops, archive.uri)
    changes = found.changes
    return Plan(
        archive=archive.uri,
        crops=crops.num_rows,
        duplicates=duplicates,
        bytes=pc.sum(pc.max_element_wise(crops["size"], 0), min_count=0).as_py(),
        other_objects=found.ignored,
        unmatched_keys=found.unmatched,
        without_camera=_count(pc.equal(crops["camera_id"], "")),
        without_time=_count(pc.equal(crops["captured_at"], UNKNOWN_TIME)),
        partitions=len(folders),
        largest_partitions=dict(sorted(folders.items(), key=lambda item: (-item[1], item[0]))[:3]),
        parts=parts,
        shards=math.ceil(parts / max(1, SHARD_ROWS // per_part)),
        shard_bytes=ROW_BYTES * crops.num_rows,
        nodes=alive,
        probe=probe,
        hours=hours,
        cost=None if hours is None or price_per_node_hour is None else hours * alive * price_per_node_hour,
        notes=found.notes,
        vanished=[] if changes is None else changes.vanished[:EXAMPLES].to_pylist(),
    )


def exact_model(model: str) -> Any:
    """Load a model unreduced, to measure with."""
    return open_model(model, PrecisionDecision("fp32", load_checkpoint(model).fingerprint, "for a plan"))


def _partitions(crops: pa.Table, archive: str) -> dict[str, int]:
    cut = len(archive.rstrip("/")) + 1
    folders = pc.replace_substring_regex(pc.utf8_slice_codeunits(crops["uri"], cut), r"/?[^/]*$", "")
    counts = pc.value_counts(folders.combine_chunks())
    return {entry["values"].as_py() or ".": entry["counts"].as_py() for entry in counts}


def _count(mask: Any) -> int:
    counted: int = pc.sum(mask, min_count=0).as_py()
    return counted


def measure_throughput(
    crops: pa.Table, archive: Store, open_embedder: OpenEmbedder, actors: int
) -> ThroughputSample:
    """Let as many actors as there would be embed their own sample, all at the same time."""
    each = min(SAMPLE_CROPS, max(1, crops.num_rows // actors))
    stride = max(1, crops.num_rows // (each * actors))
    uris = crops["uri"][::stride].to_pylist()
    begun = time.monotonic()
    try:
        # More of them than fit at once would be measured one after the other: their number is that of actors.
        workers = [
            ray.remote(**actor_resources())(_ThroughputProbe).remote(archive, open_embedder)
            for _ in range(actors)
        ]
        ray.get([worker.ready.remote() for worker in workers])
        startup = time.monotonic() - begun
        found = ray.get(
            [worker.probe.remote(uris[at * each : (at + 1) * each]) for at, worker in enumerate(workers)]
        )
    except Exception as error:
        raise root_cause(error) from error
    for worker in workers:
        ray.kill(worker)
    done = sum(good for good, _, _ in found)
    if not done:
        raise BadInput(
            f"not one of {sum(bad for _, bad, _ in found)} sampled crops of {archive.uri} could be read",
            remedy="Look at a few of them; `clvr embed` names the cause of each in its quarantine.",
        )
    rate = sum((good + bad) / seconds for good, bad, seconds in found if seconds)
    return ThroughputSample(done, sum(bad for _, bad, _ in found), actors, rate, startup)


class _ThroughputProbe:
    """An actor that embeds a sample and keeps nothing."""

    def __init__(self, archive: Store, open_embedder: OpenEmbedder) -> None:
        self.archive = archive
        self.embedder = open_embedder()

    def ready(self) -> None:
        """Answer once the model is loaded."""

    def probe(self, uris: list[str]) -> tuple[int, int, float]:
        """Return how many crops could be embedded, how many not, and the seconds it took."""
        begun, good, bad = time.perf_counter(), 0, 0
        waiting: list[Any] = []
        for _, picture in stream_images(ArchiveReader(self.archive), uris):
            if isinstance(picture, ImageFailure):
                bad += 1
                continue
            waiting.append(picture)
            good += 1
            if len(waiting) == self.embedder.batch_size:
                self.embedder(np.stack(waiting))
                waiting = []
        if waiting:
            self.embedder(np.stack(waiting))
        return good, bad, time.perf_counter() - begun
