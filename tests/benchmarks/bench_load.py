"""Loading a server: bulk import against batched insert, on one server, and where the seconds go.

python tests/benchmarks/bench_load.py [--rows 20000] [--shards 1]
"""

import argparse
import time
from dataclasses import dataclass

from milvus_bench import Bench, bench_server, finished_run, grouped, machine

from index.generations import records
from index.generations.load import LoadOptions, LoadTimes, Target, build
from index.lock import ROWS, held
from index.runs.run import Run


@dataclass(frozen=True, slots=True)
class Outcome:
    """One load."""

    name: str
    rows: int
    times: LoadTimes

    def line(self) -> str:
        """One row of the table."""
        spent = self.times
        return (
            f"| {self.name:<34} | {self.rows / spent.fill:>8,.0f} | {spent.check:>6.1f} | {spent.fill:>6.1f} "
            f"| {spent.index:>6.1f} | {spent.ready:>6.1f} |"
        )


def load(bench: Bench, run: Run, target: Target, name: str, index_type: str = "IVF_FLAT") -> Outcome:
    """Build a generation, and drop it."""
    times = LoadTimes()
    options = LoadOptions(index_type=index_type, target=target, milvus_bucket=bench.bucket)
    with held(bench.own, ROWS, name) as lock:
        generation = build(bench.milvus, bench.own, [run], lock, alias="bench", options=options, times=times)
    records.drop(bench.milvus, bench.own, generation.name)
    return Outcome(name, run.summary.embedded, times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--shards", type=int, default=1)
    asked = parser.parse_args()
    vectors = grouped(asked.rows)
    per_shard = -(-asked.rows // asked.shards)
    with bench_server() as bench:
        print(f"{asked.rows:,} rows in {asked.shards} shards, Milvus 2.3.5; {machine()}")
        own = finished_run(bench.own, "own", vectors, per_shard)
        far = finished_run(bench.foreign, "far", vectors, per_shard)
        load(bench, finished_run(bench.own, "warm", vectors[:2000], 2000), "stream_insert", "warm-up")
        found = [
            load(bench, own, "grpc_v1", "import, shards in its bucket"),
            load(bench, far, "grpc_v1", "import, shards copied to its bucket"),
            load(bench, own, "stream_insert", "insert in batches of 1,000"),
        ]
        begun = time.monotonic()
        for number, shard in enumerate(far.shards()):
            bench.own.copy_from(far.store, shard.key, f"copied-{number}")
        copying = time.monotonic() - begun
        print(f"| {'way':<34} | {'rows/s':>8} | check  | fill   | index  | load   |")
        print(f"| {'-' * 34} | -------: | -----: | -----: | -----: | -----: |")
        print("\n".join(one.line() for one in found))
        size = sum(shard.bytes for shard in far.shards()) / 1e6
        ratio = found[2].times.fill / found[0].times.fill
        print(
            f"seconds; of the copied import {copying:.1f} s is copying {size:,.0f} MB inside the object store"
        )
        print(f"import is {ratio:.2f} times as fast as insert; load at the end {machine()}")


if __name__ == "__main__":
    main()
