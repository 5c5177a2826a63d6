"""`clvr plan`: the work, duration and cost of an embedding, measured on a sample. Writes nothing."""

import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from index.archive.manifest import drop_duplicates
from index.schema import UNKNOWN_TIME
from infra.errors import BadInput
from infra.settings import Settings
from infra.store import open_store
from jobs.embed.discovery import CropSelection, discover
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
    discovery = discover(selection, archive, open_store(settings.runs))
    crops, duplicates = drop_duplicates(discovery.manifest)
    sample, nodes = None, 0
    if crops.num_rows and (model is not None or open_embedder is not None):
        # Imported here: a plan without a measurement needs neither torch nor Ray.
        from jobs.embed.throughput import measure_throughput, open_exact_model
        from jobs.runtime.ray_cluster import connect, num_cpus, num_gpus, num_nodes

        connect(settings)
        open_embedder = open_embedder or partial(open_exact_model, str(model))
        sample = measure_throughput(crops, archive, open_embedder, actors or num_gpus() or num_cpus())
        nodes = num_nodes()
    hours = None
    if sample is not None:
        hours = (crops.num_rows / sample.crops_per_second + sample.startup_seconds) / 3600
    part_rows = rows_per_part(crops.num_rows, actors or (sample.actors if sample else 1))
    parts = math.ceil(crops.num_rows / part_rows)
    partitions = _partitions(crops, archive.uri)
    changes = discovery.changes
    return Plan(
        archive=archive.uri,
        crops=crops.num_rows,
        duplicates=duplicates,
        bytes=pc.sum(pc.max_element_wise(crops["size"], 0), min_count=0).as_py(),
        other_objects=discovery.ignored,
        unmatched_keys=discovery.unmatched,
        without_camera=_count_true(pc.equal(crops["camera_id"], "")),
        without_time=_count_true(pc.equal(crops["captured_at"], UNKNOWN_TIME)),
        partitions=len(partitions),
        largest_partitions=dict(sorted(partitions.items(), key=lambda item: (-item[1], item[0]))[:3]),
        parts=parts,
        shards=math.ceil(parts / max(1, SHARD_ROWS // part_rows)),
        shard_bytes=ROW_BYTES * crops.num_rows,
        nodes=nodes,
        probe=sample,
        hours=hours,
        cost=None if hours is None or price_per_node_hour is None else hours * nodes * price_per_node_hour,
        notes=discovery.notes,
        vanished=[] if changes is None else changes.vanished[:MAX_VANISHED_SHOWN].to_pylist(),
    )


def _partitions(crops: pa.Table, archive: str) -> dict[str, int]:
    """Count the crops of each folder below the archive."""
    prefix = len(archive.rstrip("/")) + 1
    folders = pc.replace_substring_regex(pc.utf8_slice_codeunits(crops["uri"], prefix), r"/?[^/]*$", "")
    counts = pc.value_counts(folders.combine_chunks())
    return {entry["values"].as_py() or ".": entry["counts"].as_py() for entry in counts}


def _count_true(mask: Any) -> int:
    total: int = pc.sum(mask, min_count=0).as_py()
    return total
