"""`clvr plan`: the work, duration and cost of an embedding, measured on a sample. Writes nothing."""

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from index.archive.manifest import drop_duplicates
from index.archive.spool import TableFile
from index.schema import UNKNOWN_TIME
from infra.errors import BadInput
from infra.settings import Settings
from infra.store import open_store
from infra.tracing import span
from jobs.embed.discovery import CropSelection, discover, with_run_ids
from jobs.embed.sizes import ROW_BYTES, SHARD_ROWS, ThroughputSample, rows_per_part

if TYPE_CHECKING:
    from jobs.embed.actor import OpenEmbedder

MAX_VANISHED_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of an embedding. `hours` and `cost` are None without a measurement, `cost` without a price."""

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

    def to_text(self) -> str:
        """Return the plan as several lines."""
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
            lines.append(
                f"feed        {self.probe.decoders} decoder processes for an actor, one for each of its CPUs"
            )
            lines.append(f"time        {self.hours:,.2f} hours")
        if self.cost is not None:
            lines.append(f"cost        {self.cost:,.2f}")
        if self.vanished:
            lines.append(f"vanished    {', '.join(self.vanished)}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON object."""
        return asdict(self)


def plan(
    selection: CropSelection,
    settings: Settings,
    *,
    model: str | None = None,
    actors: int | None = None,
    price_per_node_hour: float | None = None,
    open_embedder: "OpenEmbedder | None" = None,
) -> Plan:
    """List the crops of an archive, and measure this cluster on a sample of them.

    Without a model, no Ray is started and nothing is measured. Raises BadInput for a price without a model,
    and the errors of `discover`.
    """
    if price_per_node_hour is not None and model is None and open_embedder is None:
        raise BadInput("a price needs a measured speed", remedy="give --checkpoint, to measure with")
    archive = open_store(selection.archive)
    selection = with_run_ids(selection, settings)
    with span("planning"):
        discovery = discover(selection, archive, open_store(settings.runs), keep=False)
    crops = _count_crops(discovery.crops, archive.uri)
    sample, nodes = None, 0
    if crops.rows and (model is not None or open_embedder is not None):
        # Imported here: a plan without a measurement needs neither torch nor Ray.
        from jobs.embed.throughput import SAMPLE_CROPS, measure_throughput, open_exact_model
        from jobs.runtime.ray_cluster import connect, num_cpus, num_gpus, num_nodes

        connect(settings)
        open_embedder = open_embedder or partial(open_exact_model, str(model))
        workers = actors or num_gpus() or num_cpus()
        sampled = discovery.crops.spread(SAMPLE_CROPS * workers)
        sample = measure_throughput(sampled, archive, open_embedder, workers)
        nodes = num_nodes()
    hours = None
    if sample is not None:
        hours = (crops.rows / sample.crops_per_second + sample.startup_seconds) / 3600
    part_rows = rows_per_part(crops.rows, actors or (sample.actors if sample else 1))
    parts = math.ceil(crops.rows / part_rows)
    partitions = crops.partitions
    changes = discovery.changes
    return Plan(
        archive=archive.uri,
        crops=crops.rows,
        duplicates=discovery.crops.num_rows - crops.rows,
        bytes=crops.bytes,
        other_objects=discovery.ignored,
        unmatched_keys=discovery.unmatched,
        without_camera=crops.without_camera,
        without_time=crops.without_time,
        partitions=len(partitions),
        largest_partitions=dict(sorted(partitions.items(), key=lambda item: (-item[1], item[0]))[:3]),
        parts=parts,
        shards=math.ceil(parts / max(1, SHARD_ROWS // part_rows)),
        shard_bytes=ROW_BYTES * crops.rows,
        nodes=nodes,
        probe=sample,
        hours=hours,
        cost=None if hours is None or price_per_node_hour is None else hours * nodes * price_per_node_hour,
        notes=discovery.notes,
        vanished=[] if changes is None else changes.vanished[:MAX_VANISHED_SHOWN].to_pylist(),
    )


@dataclass(slots=True)
class _Counts:
    """Counts of crops, each once, and of those in each folder below the archive."""

    rows: int = 0
    bytes: int = 0
    without_camera: int = 0
    without_time: int = 0
    partitions: Counter[str] = field(default_factory=Counter)


def _count_crops(tables: TableFile, archive: str) -> _Counts:
    counts, prefix = _Counts(), len(archive.rstrip("/")) + 1
    for table in tables.tables():
        crops, _ = drop_duplicates(table)
        counts.rows += crops.num_rows
        counts.bytes += pc.sum(pc.max_element_wise(crops["size"], 0), min_count=0).as_py()
        counts.without_camera += _count_true(pc.equal(crops["camera_id"], ""))
        counts.without_time += _count_true(pc.equal(crops["captured_at"], UNKNOWN_TIME))
        folders = pc.replace_substring_regex(pc.utf8_slice_codeunits(crops["uri"], prefix), r"/?[^/]*$", "")
        for entry in pc.value_counts(folders.combine_chunks()).to_pylist():
            counts.partitions[entry["values"] or "."] += entry["counts"]
    return counts


def _count_true(mask: Any) -> int:
    total: int = pc.sum(mask, min_count=0).as_py()
    return total
