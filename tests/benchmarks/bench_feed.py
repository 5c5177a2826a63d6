"""Speed of the feed of a model: crops that are fetched, decoded and written, with a stub of the network.

    python tests/benchmarks/bench_feed.py [--turns 3] [--processes 2]

The baseline is a plain loop of one thread that fetches and decodes one crop after the other. The ratio of a
rate is to the loop's rate times the decoder processes; that of CPU time is the loop's to that of the model's
process and the decoders together, for which 1 is as good as can be. The S3 server runs on the same machine.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from bench_embed import draw, start_decoders
from measure import Row, add_json_option, machine, save_rows
from numpy.typing import NDArray
from stub_archive import skip_decoding

from clvr_model.embeddings import Embeddings
from clvr_model.preprocessing import decode
from index.archive.listing import list_crops
from index.archive.manifest import normalize_manifest
from index.archive.reader import ArchiveReader
from index.runs.run import Run
from infra.servers import SeaweedFs
from infra.store import Store, open_store
from jobs.embed.actor import SWITCH_SECONDS
from jobs.embed.part import embed_parts
from jobs.runtime.decoders import CropList, Decoders

BATCH, SIZE = 256, 299  # those of a GPU
PART_ROWS = 2048
GPU_SECONDS = 1e-4  # a crop
KINDS = ((11, (240, 180), 84, 8192), (56, (640, 480), 87, 2048))
"""KB of a crop, its size, its quality as JPEG, and crops."""


class StubModel:
    """A network that returns features at once, or sleeps as long as a GPU would compute."""

    batch_size, feature_dim, fingerprint, image_size = BATCH, 1024, "stub", SIZE

    def __init__(self, seconds_per_crop: float = 0.0) -> None:
        self.seconds_per_crop = seconds_per_crop
        self.features = np.random.default_rng(0).normal(size=(BATCH, 1024)).clip(0).astype(np.float32)
        self.started = self.ended = self.busy = 0.0

    def __call__(self, images: NDArray[np.uint8]) -> Embeddings:
        """Return the same outputs for all images."""
        count, started = len(images), time.perf_counter()
        if self.seconds_per_crop:
            time.sleep(self.seconds_per_crop * count)
        self.started, self.ended = self.started or started, time.perf_counter()
        self.busy += self.ended - started
        return Embeddings(self.features[:count], np.zeros(count, np.int32), np.ones(count, np.float32))

    @property
    def idle(self) -> float:
        """The share of the time from the first batch to the last one in which it had none."""
        return 1 - self.busy / (self.ended - self.started)


@dataclass(frozen=True, slots=True)
class Result:
    """Crops a second, and CPU us a crop in this process and in the decoders."""

    rate: float
    own: float
    decoders: float = 0.0


class Feed:
    """The crops of an archive."""

    def __init__(self, archive: Store, runs: Path) -> None:
        self.archive, self.runs = archive, runs
        self.manifest: pa.Table = normalize_manifest(list_crops(archive).crops.read())
        self.rows: int = self.manifest.num_rows
        self.uris, self.etags = (self.manifest[name].to_pylist() for name in ("uri", "etag"))

    def plain_loop(self) -> Result:
        """Fetch and decode one crop after the other into a batch."""
        reader, batch = ArchiveReader(self.archive), np.empty((BATCH, SIZE, SIZE, 3), np.uint8)
        wall, cpu = time.perf_counter(), time.process_time()
        for number, (uri, etag) in enumerate(zip(self.uris, self.etags, strict=True)):
            batch[number % BATCH] = decode(reader.fetch(uri, etag).data)
        cpu = time.process_time() - cpu
        return Result(self.rows / (time.perf_counter() - wall), 1e6 * cpu / self.rows)

    def embed(self, decoders: Decoders, model: StubModel) -> Result:
        """Embed all crops into a run of its own."""
        run = Run.create(
            open_store(f"{self.runs}/{time.time()}"),
            "bench",
            manifest=self.manifest,
            archive=self.archive.uri,
            fingerprint=model.fingerprint,
            model="m",
            settings={},
            rows_per_part=PART_ROWS,
        )
        start_decoders(decoders, CropList(0, self.uris[:BATCH], self.etags[:BATCH]))
        before, wall, cpu = seconds_of(decoders), time.perf_counter(), time.process_time()
        reports = list(embed_parts(run, run.pending_parts(), model, decoders))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        assert sum(report.embedded for report in reports) == self.rows, reports
        return Result(
            self.rows / wall, 1e6 * cpu / self.rows, 1e6 * (seconds_of(decoders) - before) / self.rows
        )


def seconds_of(decoders: Decoders) -> float:
    """Return the CPU seconds of the processes so far."""
    ticks = 0
    for decoder in decoders.running:
        fields = Path(f"/proc/{decoder.process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def bench(feed: Feed, source: str, kilobytes: int, processes: int, turns: int) -> list[Row]:
    """Measure one archive."""
    sizes: dict[str, Any] = {"processes": processes, "batch_size": BATCH, "image_size": SIZE}
    with Decoders(feed.archive, **sizes) as decoders:
        pairs = [(feed.plain_loop(), feed.embed(decoders, StubModel())) for _ in range(turns)]
    loop, whole = (
        {name: statistics.median(getattr(pair[who], name) for pair in pairs) for name in Result.__slots__}
        for who in (0, 1)
    )
    ratio = statistics.median(fed.rate / processes / plain.rate for plain, fed in pairs)
    cpu_ratio = statistics.median(plain.own / (fed.own + fed.decoders) for plain, fed in pairs)
    case = f"{kilobytes} KB, {source}, {processes} decoders"
    cpu_text = f"{whole['own']:.0f} us a crop in the model's process, {whole['decoders']:.0f} us in decoders"
    rows = [
        Row(case, f"{whole['rate']:,.0f}/s", f"plain loop: {loop['rate']:,.0f}/s", ratio),
        Row(f"{case}, CPU time", cpu_text, f"plain loop: {loop['own']:.0f} us", cpu_ratio),
    ]
    if kilobytes == KINDS[0][0]:
        with Decoders(feed.archive, **sizes, decode=skip_decoding) as decoders:
            models = [StubModel(GPU_SECONDS) for _ in range(turns)]
            rates = [feed.embed(decoders, model).rate for model in models]
        idle = statistics.median(model.idle for model in models)
        text = f"{statistics.median(rates):,.0f}/s, the model is idle {idle:.1%} of the time"
        rows.append(Row(f"{source}, decoding at no cost, a model of 0.1 ms a crop", text))
    for row in rows:
        print(row, flush=True)
    return rows


def main() -> None:
    """Measure local files and S3, small and large crops."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    add_json_option(parser)
    args = parser.parse_args()
    print(machine(), flush=True)
    sys.setswitchinterval(SWITCH_SECONDS)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, SeaweedFs.start(Path(folder, "s3")) as server:
        for kilobytes, size, quality, crops in KINDS:
            for source, archive in (
                ("local files", open_store(f"{folder}/archive-{kilobytes}")),
                ("S3", open_store(server.create_bucket(f"archive-{kilobytes}"), server.settings)),
            ):
                draw(archive, crops, size, quality)
                feed = Feed(archive, Path(folder, "runs"))
                rows += bench(feed, source, kilobytes, args.processes, args.turns)
    save_rows(rows, args.json)


if __name__ == "__main__":
    main()
