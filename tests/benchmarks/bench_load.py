"""Loading a Milvus server: bulk import against batched insert on one server, and the time of each step.

python tests/benchmarks/bench_load.py [--rows 20000] [--shards 1]
"""

import argparse
import time
from dataclasses import dataclass

from measure import Row, add_json_option, machine, save_rows
from milvus_bench import Bench, bench_server, finished_run, grouped

from index.generations import records
from index.generations.load import LoadOptions, LoadTimes, Target, build_generation
from index.lock import ROWS, acquire
from index.runs.run import Run


@dataclass(frozen=True, slots=True)
class Outcome:
    """One load, and the seconds of its steps."""

    name: str
    rows: int
    times: LoadTimes

    def line(self) -> str:
        """Return one line of the table."""
        times = self.times
        return (
            f"| {self.name:<34} | {self.rows / times.fill:>8,.0f} | {times.check:>6.1f} | {times.fill:>6.1f} "
            f"| {times.index:>6.1f} | {times.ready:>6.1f} |"
        )

    def text(self) -> str:
        """Return the speed of filling and the seconds of each step."""
        times = self.times
        return (
            f"{self.rows / times.fill:,.0f} rows/s (check {times.check:.1f} s, fill {times.fill:.1f} s, "
            f"index {times.index:.1f} s, load {times.ready:.1f} s)"
        )


def load(bench: Bench, run: Run, target: Target, name: str, index_type: str = "IVF_FLAT") -> Outcome:
    """Build a generation, measure it and drop it."""
    times = LoadTimes()
    options = LoadOptions(index_type=index_type, target=target, milvus_bucket=bench.bucket)
    with acquire(bench.own, ROWS, name) as lock:
        generation = build_generation(
            bench.milvus, bench.own, [run], lock, alias="bench", options=options, times=times
        )
    records.drop(bench.milvus, bench.own, generation.name)
    return Outcome(name, run.summary.embedded, times)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--shards", type=int, default=1)
    add_json_option(parser)
    args = parser.parse_args()
    vectors = grouped(args.rows)
    per_shard = -(-args.rows // args.shards)
    with bench_server() as bench:
        print(f"{args.rows:,} rows in {args.shards} shards, Milvus 2.3.5; {machine()}")
        own = finished_run(bench.own, "own", vectors, per_shard)
        far = finished_run(bench.foreign, "far", vectors, per_shard)
        load(bench, finished_run(bench.own, "warm", vectors[:2000], 2000), "stream_insert", "warm-up")
        outcomes = [
            load(bench, own, "grpc_v1", "import, shards in its bucket"),
            load(bench, far, "grpc_v1", "import, shards copied to its bucket"),
            load(bench, own, "stream_insert", "insert in batches of 1,000"),
        ]
        started = time.monotonic()
        for number, shard in enumerate(far.shards()):
            bench.own.copy_from(far.store, shard.key, f"copied-{number}")
        copying = time.monotonic() - started
        print(f"| {'way':<34} | {'rows/s':>8} | check  | fill   | index  | load   |")
        print(f"| {'-' * 34} | -------: | -----: | -----: | -----: | -----: |")
        print("\n".join(outcome.line() for outcome in outcomes))
        size = sum(shard.bytes for shard in far.shards()) / 1e6
        insert = outcomes[-1]
        print(f"seconds; the second import copies {size:,.0f} MB inside the object store in {copying:.1f} s")
        print(f"import fills {insert.times.fill / outcomes[0].times.fill:.2f} times as fast as insert")
    rows = [
        Row(
            f"{args.rows:,} rows, IVF_FLAT: {outcome.name}",
            outcome.text(),
            f"{insert.name}: {insert.rows / insert.times.fill:,.0f} rows/s",
            insert.times.fill / outcome.times.fill,
        )
        for outcome in outcomes[:-1]
    ]
    save_rows([*rows, Row(f"{args.rows:,} rows, IVF_FLAT: {insert.name}", insert.text())], args.json)


if __name__ == "__main__":
    main()
