"""Peak memory of `clvr embed` by kind of process and size of the archive.

    python tests/benchmarks/bench_memory.py [--sizes 10000 100000 1000000] [--actors 2] [--rows-per-part 4096]
                                            [--parts-per-block 64]

The job is real: Ray, parts, fetch threads, decoding, shards, accounting. Two things are stubs: the store
answers each key with the same small JPEG from memory, and the network returns zeros. Parts have the same
number of rows at each size, as in archives of more than 130,000 crops; with few rows a part the job has the
parts of a large archive, 244,141 for a billion crops, and with few parts a block its blocks, 3,815. `planner`
makes the manifest before the embedding. After it, the driver ends a run of one shard, and the planner others.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measure import Row, add_json_option, machine, save_rows
from PIL import Image
from stub_archive import SameStore

from clvr_model.embeddings import Embeddings
from infra.settings import load_settings
from jobs.embed import sizes
from jobs.embed.job import embed
from jobs.embed.new_run import EmbedRequest

ROWS_PER_PART = 4096
MIB = 1 << 20


class Zeros:
    """A network that returns zeros."""

    batch_size, feature_dim, image_size, fingerprint = 32, 1024, 299, "stub"

    def __call__(self, pictures: Any) -> Embeddings:
        """Zeros for every picture."""
        count = len(pictures)
        return Embeddings(
            np.zeros((count, 1024), np.float32), np.zeros(count, np.int32), np.ones(count, np.float32)
        )


class Watch:
    """Peaks of RSS by kind of process, read twice a second, and of the object store."""

    def __init__(self) -> None:
        self.peaks: dict[str, float] = defaultdict(float)
        self.stop = threading.Event()
        self.own = str(Path("/proc/self").resolve().name)
        self.session = ""

    def run(self) -> None:
        """Sample until `stop` is set."""
        while not self.stop.wait(0.5):
            now: dict[str, float] = defaultdict(float)
            for place in Path("/proc").iterdir():
                if place.name.isdigit():
                    self._look(place, now)
            for kind, value in now.items():
                self.peaks[kind] = max(self.peaks[kind], value)

    def _look(self, place: Path, now: dict[str, float]) -> None:
        try:
            title = place.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            kind = _kind(title) if place.name != self.own else "driver"
            if not kind or not self._ours(place):
                return
            fields = dict(
                line.split(":", 1)
                for line in place.joinpath("status").read_text().splitlines()
                if ":" in line
            )
            # The kernel's own high-water mark: sampled values would rise with the length of the run alone.
            now[kind] = max(now[kind], int(fields["VmHWM"].split()[0]) / 1024)
            if kind == "raylet":
                now["object store"] = int(fields["RssShmem"].split()[0]) / 1024
        except (OSError, KeyError, ValueError):
            return

    def _ours(self, place: Path) -> bool:
        """Whether a process descends from this one: other Rays may run on the machine."""
        while place.name not in ("0", "1"):
            if place.name == self.own:
                return True
            place = Path("/proc", place.joinpath("stat").read_text().rpartition(")")[2].split()[1])
        return False


def _kind(title: str) -> str:
    if "jobs.runtime.decoder_process" in title:
        return "decoder"
    if title.startswith("ray::"):
        planner = ("discover_and_create", "_finish")
        for name, kind in {"PartActor": "actor", **dict.fromkeys(planner, "planner")}.items():
            if name in title:
                return kind
        return "compacter" if "_write_shard" in title else "other workers"
    return "raylet" if "/raylet/raylet " in title else "gcs" if "gcs_server " in title else ""


def _write_keys(folder: str, crops: int) -> None:
    """Write the key list piece by piece: this process is the driver, whose memory is measured."""
    schema = pa.schema([("uri", pa.string()), ("etag", pa.string())])
    with pq.ParquetWriter(f"{folder}/keys.parquet", schema) as writer:
        for first in range(0, crops, 8192):
            numbers = range(first, min(first + 8192, crops))
            uris = [f"{folder}/archive/dt=2026-11-22/cam=001/{number:09d}.jpg" for number in numbers]
            writer.write_table(pa.table({"uri": uris, "etag": ["e"] * len(uris)}, schema))


def one(crops: int, actors: int, rows_per_part: int, parts_per_block: int) -> None:
    """Embed this many crops that do not exist, and print the peaks as JSON."""
    sizes.MAX_BLOCK_PARTS = parts_per_block
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(buffer := io.BytesIO(), "JPEG")
    with tempfile.TemporaryDirectory() as folder:
        _write_keys(folder, crops)
        watch = Watch()
        thread = threading.Thread(target=watch.run, daemon=True)
        thread.start()
        started = time.monotonic()
        request = EmbedRequest(
            f"{folder}/archive",
            model="stub",
            manifest=f"{folder}/keys.parquet",
            rows_per_part=rows_per_part,
            actors=actors,
        )
        archive = SameStore(f"{folder}/archive", buffer.getvalue())
        summary = embed(
            request, load_settings({"runs": f"{folder}/runs"}), open_embedder=Zeros, archive=archive
        )
        watch.stop.set()
        thread.join()
        assert summary.embedded == crops, summary
        print(json.dumps({"seconds": round(time.monotonic() - started), **watch.peaks}))


def main() -> None:
    """Measure each size in a process and a Ray of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 50_000])
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--rows-per-part", type=int, default=ROWS_PER_PART)
    parser.add_argument("--parts-per-block", type=int, default=sizes.MAX_BLOCK_PARTS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    add_json_option(parser)
    args = parser.parse_args()
    if args.one:
        one(args.one, args.actors, args.rows_per_part, args.parts_per_block)
        return
    print(f"{machine()}\npeak MiB of resident memory (object store: shared memory of the raylet)")
    rows = []
    for size in args.sizes:
        command = [sys.executable, __file__, "--one", str(size), "--actors", str(args.actors)]
        command += ["--rows-per-part", str(args.rows_per_part)]
        command += ["--parts-per-block", str(args.parts_per_block)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peaks = json.loads(done.stdout.splitlines()[-1])
        seconds = peaks.pop("seconds")
        text = ", ".join(f"{kind} {value:.0f}" for kind, value in sorted(peaks.items()))
        print(f"{size:>9,} crops in {seconds} s: {text}", flush=True)
        rows.append(Row(f"{size:,} crops, {args.actors} actors, peak MiB", text))
    save_rows(rows, args.json)


if __name__ == "__main__":
    main()
