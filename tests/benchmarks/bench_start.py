"""How long commands take before their work: the first row of `clvr embed`, and a whole `clvr search`.

    python tests/benchmarks/bench_start.py [--turns 3]

Each command is a process of its own. Embedding ends its first batch of Inception-V3 with random weights; with
an empty cache, the network is converted first. Searches go through 2,000 rows in a Milvus Lite file.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import ray
from bench_embed import draw, model
from bench_search import jpeg, searchable
from measure import Row, add_json_option, machine, save_rows

from index.archive.manifest import crop_id_of
from index.runs.run import list_runs
from index.runs.timings import read_timings
from infra.settings import Settings
from infra.store import open_store
from jobs.runtime.ray_cluster import connect

CROPS = 480
CLVR = "from jobs.cli.main import main; main()"


class Commands:
    """Runs `clvr` in a folder, with a cache of converted networks in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # A local Ray asks for the token that it wrote; a command that joins it sends one only in this mode.
        self.environment = os.environ | {
            "XDG_CACHE_HOME": str(folder / "cache"),
            "RAY_AUTH_MODE": "token",
        }

    def run(self, *arguments: str, code: int = 0) -> None:
        """Run a command to its end."""
        done = subprocess.run(
            [sys.executable, "-c", CLVR, *arguments],
            cwd=self.folder,
            env=self.environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr

    def cpu_seconds(self, *arguments: str, code: int = 0) -> float:
        """Run a command; return the CPU seconds of its process."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.run(*arguments, code=code)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def first_row(self, address: str | None = None) -> tuple[float, float]:
        """Embed the archive anew; return the seconds until the first batch and until the end."""
        started, runs = time.time(), self.folder / f"runs-{time.time()}"
        self.run("embed", "archive", "--checkpoint", "model", "--runs", str(runs), *_ray(address))
        whole = time.time() - started
        (run,) = list_runs(open_store(str(runs)))
        (timings,) = read_timings(run.folder)
        imported = datetime.fromisoformat(timings.started).timestamp() - started
        return imported + timings.startup_seconds, whole


def _ray(address: str | None) -> list[str]:
    return ["--ray", address] if address else []


def bench_embed(commands: Commands, turns: int) -> list[Row]:
    """Measure the first row: with an empty cache, with a full one, and on a cluster that runs."""
    draw(open_store(str(commands.folder / "archive")), CROPS)
    model(commands.folder / "model")
    rows = []

    def add(case: str, results: list[tuple[float, float]]) -> None:
        first, whole = (statistics.median(column) for column in zip(*results, strict=True))
        result = f"first row {first:.1f} s, end {whole:.1f} s"
        rows.append(Row(f"`clvr embed` of {CROPS} crops, {case}", result))
        print(rows[-1], flush=True)

    add("empty cache", [commands.first_row()])
    add("converted network in the cache", [commands.first_row() for _ in range(turns)])
    connect(Settings())
    address = ray.get_runtime_context().gcs_address
    add("the same on a Ray cluster that runs", [commands.first_row(address) for _ in range(turns)])
    ray.shutdown()
    return rows


def bench_search(commands: Commands, turns: int) -> list[Row]:
    """Measure the CPU time of whole searches, of `--help` and of a mistyped path."""
    settings = searchable(commands.folder / "index", 2_000)
    (commands.folder / "probe.jpg").write_bytes(jpeg(np.random.default_rng(1)))
    index = ["--runs", str(settings.runs), "--milvus", str(settings.milvus), "--json"]
    crop = f"crop:{crop_id_of('s3://archive/cam=007/00000007.jpg')}"
    cases: dict[str, Callable[[], float]] = {
        "`clvr search` of an archived crop": lambda: commands.cpu_seconds("search", crop, *index),
        "`clvr search` of an image": lambda: commands.cpu_seconds("search", "probe.jpg", *index),
        "`clvr --help`": lambda: commands.cpu_seconds("--help"),
        "`clvr embed` of a mistyped path": lambda: commands.cpu_seconds(
            "embed", "nowhere", "--checkpoint", "model", code=3
        ),
    }
    rows = []
    for case, measure in cases.items():
        measure()  # fills the cache, and that of the disk
        seconds = [measure() for _ in range(turns)]
        rows.append(Row(case, f"{statistics.median(seconds):.2f} CPU s"))
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    add_json_option(parser)
    args = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        commands = Commands(Path(folder))
        rows = bench_search(commands, args.turns) + bench_embed(commands, args.turns)
    save_rows(rows, args.json)


if __name__ == "__main__":
    main()
