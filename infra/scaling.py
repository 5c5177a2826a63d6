"""What a full night costs at a size: nodes, hours, requests and dollars, from rates and prices.

`python -m infra.scaling docs/scaling.md` renews the tables of that page.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

MARKS = ("<!-- made by infra/scaling.py -->", "<!-- end -->")
SIZES = (10_000_000, 100_000_000, 1_000_000_000)


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured on our two-core machine, unless the page says that a figure is an assumption."""

    cpu_fp32: float = 20.0  # crops/s a core, OpenVINO (docs/embedding.md: a part end to end is as fast)
    cpu_bf16: float = 38.0
    gpu: float = 7000.0  # crops/s a GPU: an assumption, no GPU was at hand
    saturated: float = 0.93  # of the bare model's rate with every core busy
    crop_bytes: int = 20_000
    row_bytes: int = 4400  # of a shard
    rows_per_part: int = 4096
    rows_per_shard: int = 122_880
    listed_a_second: float = 66_000.0  # one process
    planner_bytes: int = 613  # a key, beside 400 MB: 964 MiB at most for a million
    import_rows: float = 16_700.0  # a second: 200,000 rows in 12 s, one file after the other (2.3.5)
    index_core_seconds: float = 0.0035  # a row, HNSW M 16: 100,000 in 174 s on two cores
    served_bytes: int = 4600  # a row in memory: 1024 float32 and the graph


@dataclass(frozen=True, slots=True)
class Prices:
    """Dollars: list prices of one large cloud as a starting point. Put your own here."""

    cpu_core_hour: float = 0.02  # spot
    gpu_node_hour: float = 3.00  # one GPU of the class that the rate assumes, spot
    thousand_gets: float = 0.0004
    thousand_puts: float = 0.005  # and LISTs
    gigabyte_month: float = 0.023


@dataclass(frozen=True, slots=True)
class Estimate:
    """A full night over an archive of `crops`, done within `hours` on `nodes` of one kind."""

    crops: int
    kind: str
    nodes: int
    hours: float
    reads: int
    writes: int
    compute_dollars: float
    request_dollars: float
    shard_gigabytes: float

    @property
    def dollars_per_million(self) -> float:
        """Compute and requests, for a million crops."""
        return (self.compute_dollars + self.request_dollars) / self.crops * 1e6


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of node: crops/s of one, and dollars an hour."""

    name: str
    crops_a_second: float
    dollars_an_hour: float


def kinds(rates: Rates, prices: Prices, *, cores: int = 16) -> tuple[Kind, ...]:
    """CPU nodes of `cores` with exact and with reduced precision, and GPU nodes."""
    cpu = cores * prices.cpu_core_hour
    return (
        Kind(f"CPU, {cores} cores, fp32", cores * rates.cpu_fp32 * rates.saturated, cpu),
        Kind(f"CPU, {cores} cores, bf16", cores * rates.cpu_bf16 * rates.saturated, cpu),
        Kind("one GPU (assumed)", rates.gpu * rates.saturated, prices.gpu_node_hour),
    )


def estimate(crops: int, kind: Kind, rates: Rates, prices: Prices, *, within: float = 8.0) -> Estimate:
    """How many nodes embed so many crops within so many hours, and what that costs."""
    node_hours = crops / kind.crops_a_second / 3600
    nodes = max(1, math.ceil(node_hours / within))
    parts = math.ceil(crops / rates.rows_per_part)
    shards = math.ceil(crops / rates.rows_per_shard)
    lists = math.ceil(crops / 1000)
    reads = crops + 2 * parts + shards  # crops; parts when they are joined and proven; shards by the loader
    writes = lists + 2 * parts + shards
    return Estimate(
        crops,
        kind.name,
        nodes,
        node_hours / nodes,
        reads,
        writes,
        node_hours * kind.dollars_an_hour,
        reads / 1000 * prices.thousand_gets + writes / 1000 * prices.thousand_puts,
        crops * rates.row_bytes / 1e9,
    )


def collision_chance(crops: int) -> float:
    """The chance that two of so many URIs share one crop_id of 63 bits."""
    return -math.expm1(-crops * (crops - 1) / 2 / 2**63)


def nodes_table(rates: Rates, prices: Prices) -> str:
    """Nodes and dollars by size and kind of node."""
    heads = ("crops", "nodes", "how many", "hours", "M GETs", "M PUTs, LISTs", "compute $", "requests $")
    lines = [
        f"| {' | '.join(heads)} | $ a million |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for crops in SIZES:
        for kind in kinds(rates, prices):
            one = estimate(crops, kind, rates, prices)
            cells = (
                f"{crops / 1e6:,.0f} M",
                one.kind,
                f"{one.nodes:,}",
                f"{one.hours:.1f}",
                f"{one.reads / 1e6:,.1f}",
                f"{one.writes / 1e6:,.2f}",
                f"{one.compute_dollars:,.0f}",
                f"{one.request_dollars:,.0f}",
                f"{one.dollars_per_million:.2f}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rest_table(rates: Rates, prices: Prices) -> str:
    """Everything that is not embedding, by size."""
    rows: list[tuple[str, list[str]]] = [
        ("listing, one process", [_hours(n / rates.listed_a_second) for n in SIZES]),
        (
            "memory of the process that plans and proves",
            [_bytes(4e8 + n * rates.planner_bytes) for n in SIZES],
        ),
        ("parts, each one block of one Ray Data job", [f"{n / rates.rows_per_part:,.0f}" for n in SIZES]),
        ("shards in storage", [_bytes(n * rates.row_bytes) for n in SIZES]),
        (
            "... dollars a month",
            [f"{n * rates.row_bytes / 1e9 * prices.gigabyte_month:,.0f}" for n in SIZES],
        ),
        ("import on Milvus 2.3.5, one file at a time", [_hours(n / rates.import_rows) for n in SIZES]),
        ("HNSW build, core-hours (at least)", [f"{n * rates.index_core_seconds / 3600:,.0f}" for n in SIZES]),
        ("memory of the query nodes, HNSW", [_bytes(n * rates.served_bytes) for n in SIZES]),
        ("chance that two URIs share a crop_id", [f"{collision_chance(n):.2g}" for n in SIZES]),
    ]
    head = " | ".join(f"{n / 1e6:,.0f} M" for n in SIZES)
    lines = [f"| what | {head} |", "| --- | ---: | ---: | ---: |"]
    return "\n".join(lines + [f"| {what} | {' | '.join(cells)} |" for what, cells in rows])


def renewed(page: str, rates: Rates | None = None, prices: Prices | None = None) -> str:
    """The page with its tables made anew, each between two marks."""
    rates, prices = rates or Rates(), prices or Prices()
    begin, end = MARKS
    pieces = page.split(begin)
    tables = (nodes_table(rates, prices), rest_table(rates, prices))
    made = [pieces[0]]
    for piece, table in zip(pieces[1:], tables, strict=True):
        made.append(f"{begin}\n{table}\n{end}{piece.partition(end)[2]}")
    return "".join(made)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.0f} min"


def _bytes(number: float) -> str:
    return f"{number / 1e12:,.1f} TB" if number >= 1e12 else f"{number / 1e9:,.0f} GB"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
