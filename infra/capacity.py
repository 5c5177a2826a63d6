"""Nodes, hours, requests and dollars to embed a whole archive, from rates and prices.

`python -m infra.capacity docs/scaling.md` updates the tables of that page.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

MARKS = ("<!-- made by infra/capacity.py -->", "<!-- end -->")
SIZES = (10_000_000, 100_000_000, 1_000_000_000)
MAX_PARTITION_ROWS = 1 << 18  # of index/archive/partitions.py, which infra cannot import


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates measured on a two-core machine; `gpu` is an assumption."""

    cpu_fp32: float = 20.0  # crops/s per core, OpenVINO; a whole part is as fast (docs/embedding.md)
    cpu_bf16: float = 38.0
    gpu: float = 7000.0  # crops/s per GPU, assumed
    saturated: float = 0.93  # share of the bare model's rate when every core is busy
    crop_bytes: int = 20_000
    row_bytes: int = 4400  # in a shard
    rows_per_part: int = 4096
    rows_per_shard: int = 122_880
    listed_per_second: float = 66_000.0  # one process
    listing_cores: int = 16  # ... by tasks, assumed to be as fast on each
    planned_per_second: float = 650_000.0  # by the planner: listed crops joined and written (bench_scale.py)
    planner_bytes: int = 700_000_000  # at most: beyond 16 million crop_ids it sorts on disk (bench_scale.py)
    spooled_bytes: int = 120  # per key on local disk: two compressed copies of the listing, assumed
    known_bytes: int = 8  # per known crop, read in a night: its crop_id
    gate_rows: int = 500_000  # of the gate's sample (index/generations/gate_sample.py), all of them compared
    gate_probes: int = 1000  # ... at least, and up to twenty times as many
    import_rows: float = 16_700.0  # per second, one file at a time (Milvus 2.3.5)
    index_core_seconds: float = 0.0035  # per row, HNSW with M = 16
    served_bytes: int = 4600  # per row in memory: 1024 float32 and the graph


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices in dollars: list prices of one large cloud, to be replaced by your own."""

    cpu_core_hour: float = 0.02  # spot
    gpu_node_hour: float = 3.00  # with one GPU of the assumed class, spot
    thousand_gets: float = 0.0004
    thousand_puts: float = 0.005  # and LISTs
    gigabyte_month: float = 0.023


@dataclass(frozen=True, slots=True)
class Estimate:
    """The cost of embedding an archive of `crops` within `hours` on `nodes` of one type."""

    crops: int
    node_type: str
    nodes: int
    hours: float
    reads: int
    writes: int
    compute_dollars: float
    request_dollars: float
    shard_gigabytes: float

    @property
    def dollars_per_million(self) -> float:
        """Compute and requests per million crops."""
        return (self.compute_dollars + self.request_dollars) / self.crops * 1e6


@dataclass(frozen=True, slots=True)
class NodeType:
    """A type of node: its crops per second and its dollars per hour."""

    name: str
    crops_per_second: float
    dollars_per_hour: float


def node_types(rates: Rates, prices: Prices, *, cores: int = 16) -> tuple[NodeType, ...]:
    """Return CPU nodes of `cores` with fp32 and with bf16, and GPU nodes."""
    cpu = cores * prices.cpu_core_hour
    return (
        NodeType(f"CPU, {cores} cores, fp32", cores * rates.cpu_fp32 * rates.saturated, cpu),
        NodeType(f"CPU, {cores} cores, bf16", cores * rates.cpu_bf16 * rates.saturated, cpu),
        NodeType("one GPU (assumed)", rates.gpu * rates.saturated, prices.gpu_node_hour),
    )


def estimate(
    crops: int, node_type: NodeType, rates: Rates, prices: Prices, *, within: float = 8.0
) -> Estimate:
    """Estimate the nodes that embed `crops` within so many hours, and their cost."""
    node_hours = crops / node_type.crops_per_second / 3600
    nodes = max(1, math.ceil(node_hours / within))
    parts = math.ceil(crops / rates.rows_per_part)
    shards = math.ceil(crops / rates.rows_per_shard)
    lists = math.ceil(crops / 1000)
    reads = crops + 2 * parts + shards  # parts are read to join and to verify them, shards by the loader
    writes = lists + 2 * parts + shards
    return Estimate(
        crops=crops,
        node_type=node_type.name,
        nodes=nodes,
        hours=node_hours / nodes,
        reads=reads,
        writes=writes,
        compute_dollars=node_hours * node_type.dollars_per_hour,
        request_dollars=reads / 1000 * prices.thousand_gets + writes / 1000 * prices.thousand_puts,
        shard_gigabytes=crops * rates.row_bytes / 1e9,
    )


def collision_chance(crops: int) -> float:
    """Return the probability that two of `crops` URIs share one crop_id of 63 bits."""
    return -math.expm1(-crops * (crops - 1) / 2 / 2**63)


def gate_interval(rows: int, rates: Rates) -> float:
    """Return the width of the gate's interval of recall@10 where no probe misses anything.

    3.689 rows may have been missed if none was seen; each stands for rows / gate_rows.
    """
    weight = max(1.0, rows / rates.gate_rows)
    probes = min(20 * rates.gate_probes, max(rates.gate_probes, math.ceil(50 * weight)))
    squared = 1.96**2 / probes
    return math.hypot(squared / (1 + squared), 3.689 * weight / (10 * probes))


def nodes_table(rates: Rates, prices: Prices) -> str:
    """Make the table of nodes and dollars by size and type of node."""
    heads = ("crops", "nodes", "how many", "hours", "M GETs", "M PUTs, LISTs", "compute $", "requests $")
    lines = [
        f"| {' | '.join(heads)} | $ a million |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for crops in SIZES:
        for node_type in node_types(rates, prices):
            result = estimate(crops, node_type, rates, prices)
            cells = (
                f"{crops / 1e6:,.0f} M",
                result.node_type,
                f"{result.nodes:,}",
                f"{result.hours:.1f}",
                f"{result.reads / 1e6:,.1f}",
                f"{result.writes / 1e6:,.2f}",
                f"{result.compute_dollars:,.0f}",
                f"{result.request_dollars:,.0f}",
                f"{result.dollars_per_million:.2f}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rest_table(rates: Rates, prices: Prices) -> str:
    """Make the table of everything except embedding, by size."""
    rows: list[tuple[str, list[str]]] = [
        ("listing, one process", [_hours(n / rates.listed_per_second) for n in SIZES]),
        (
            f"... by tasks on {rates.listing_cores} cores",
            [_hours(n / rates.listed_per_second / rates.listing_cores) for n in SIZES],
        ),
        ("planner: the manifest of all of it", [_hours(n / rates.planned_per_second) for n in SIZES]),
        ("... its memory", [f"{rates.planner_bytes / 1e9:.1f} GB" for _ in SIZES]),
        ("... its local disk, of a full run", [_bytes(n * rates.spooled_bytes) for n in SIZES]),
        ("catalogue: partitions, at least", [f"{n / MAX_PARTITION_ROWS:,.0f}" for n in SIZES]),
        ("crop_ids that a night reads", [_bytes(n * rates.known_bytes) for n in SIZES]),
        ("gate: interval of recall@10, at best", [f"{gate_interval(n, rates):.3f}" for n in SIZES]),
        ("parts, up to 64 a block", [f"{n / rates.rows_per_part:,.0f}" for n in SIZES]),
        ("shards in storage", [_bytes(n * rates.row_bytes) for n in SIZES]),
        (
            "... dollars a month",
            [f"{n * rates.row_bytes / 1e9 * prices.gigabyte_month:,.0f}" for n in SIZES],
        ),
        ("import on Milvus 2.3.5, one file at a time", [_hours(n / rates.import_rows) for n in SIZES]),
        ("HNSW build, core-hours (at least)", [f"{n * rates.index_core_seconds / 3600:,.0f}" for n in SIZES]),
        ("memory of the query nodes, HNSW", [_bytes(n * rates.served_bytes) for n in SIZES]),
        ("chance that two URIs have one hash", [f"{collision_chance(n):.2g}" for n in SIZES]),
    ]
    head = " | ".join(f"{n / 1e6:,.0f} M" for n in SIZES)
    lines = [f"| what | {head} |", "| --- | ---: | ---: | ---: |"]
    return "\n".join(lines + [f"| {what} | {' | '.join(cells)} |" for what, cells in rows])


def with_updated_tables(page: str, rates: Rates | None = None, prices: Prices | None = None) -> str:
    """Return the page with updated tables, each between two marks."""
    rates, prices = rates or Rates(), prices or Prices()
    begin, end = MARKS
    pieces = page.split(begin)
    tables = (nodes_table(rates, prices), rest_table(rates, prices))
    updated = [pieces[0]]
    for piece, table in zip(pieces[1:], tables, strict=True):
        updated.append(f"{begin}\n{table}\n{end}{piece.partition(end)[2]}")
    return "".join(updated)


def _hours(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:,.0f} s"
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.0f} min"


def _bytes(number: float) -> str:
    if number < 1e9:
        return f"{number / 1e6:,.0f} MB"
    return f"{number / 1e12:,.1f} TB" if number >= 1e12 else f"{number / 1e9:,.0f} GB"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(with_updated_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
