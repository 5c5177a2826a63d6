"""Latency of one probe from bytes to ranked matches, split into embed and search, and through the page.

    python tests/benchmarks/bench_search.py [--rows 20000] [--probes 40] [--folder FOLDER]

`--folder` keeps the index for the next call: 100,000 rows take minutes to build. The index is a Milvus Lite
file with synthetic vectors in groups of 20. The network is Inception-V3 with random weights, which is as
fast as a trained one. `page` is the time from upload to JSON.
"""

import argparse
import io
import socket
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow as pa
import uvicorn
from measure import Row, add_json_option, machine, save_rows
from PIL import Image

from clvr_model.checkpoint import Card, save_checkpoint
from clvr_model.network import Clvr
from clvr_model.preprocessing import decode
from index.archive.manifest import crop_id_of
from index.generations.load import load_runs
from index.generations.promotion import promote
from index.milvus.client import connect
from index.runs.run import Run
from index.runs.shards import shard_table
from index.schema import MANIFEST_SCHEMA, QUARANTINE_SCHEMA
from index.search.retrieval import Rules
from infra.settings import Settings
from infra.store import open_store
from jobs.search.searcher import Searcher
from jobs.serve.app import make_app
from jobs.serve.request import ServeRequest, make_policy


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--probes", type=int, default=40)
    parser.add_argument("--folder", type=Path)
    add_json_option(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        settings = searchable(args.folder or Path(folder), args.rows)
        print(f"{machine()}\n{args.rows:,} rows ready in {time.perf_counter() - started:.0f} s")
        searcher = Searcher(settings, threads=0)
        rng = np.random.default_rng(1)
        images = [jpeg(rng) for _ in range(args.probes + 3)]
        rules = Rules(top=20)
        embed, search = [], []
        for data in images:
            started = time.perf_counter()
            probe = searcher.image_probe("probe", decode(data))
            embedded = time.perf_counter()
            searcher.search([probe], rules)
            embed.append(embedded - started)
            search.append(time.perf_counter() - embedded)
        page = through_page(searcher, [jpeg(rng) for _ in range(args.probes + 3)])
        searcher.close()
    print(f"{'ms':<10}{'p50':>8}{'p95':>8}")
    both = np.add(embed, search)
    rows = []
    for name, taken in (("embed", embed), ("search", search), ("together", both), ("page", page)):
        p50, p95 = np.percentile(1000 * np.asarray(taken)[3:], (50, 95))  # the first three warm up
        print(f"{name:<10}{p50:>8.1f}{p95:>8.1f}")
        rows.append(Row(f"{name}, {args.rows:,} rows, Milvus Lite", f"p50 {p50:.0f} ms, p95 {p95:.0f} ms"))
    save_rows(rows, args.json)


def jpeg(rng: np.random.Generator) -> bytes:
    """Return an image of the usual size of a crop."""
    small = rng.integers(0, 255, (16, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((320, 256)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def searchable(folder: Path, rows: int) -> Settings:
    """Open the live generation of synthetic vectors in a folder, or build it."""
    settings = Settings(runs=str(folder / "data"), milvus=str(folder / "milvus.db"))
    if (folder / "ready").exists():
        if (folder / "ready").read_text() != str(rows):
            raise SystemExit(f"{folder} holds {(folder / 'ready').read_text()} rows, not {rows}")
        return settings
    (folder / "data").mkdir(parents=True)
    card = save_checkpoint(str(folder / "model"), Clvr(10).eval(), Card(label_ids=tuple(range(10))))
    uris = [f"s3://archive/cam={n % 40:03d}/{n:08d}.jpg" for n in range(rows)]
    manifest = pa.table(
        {
            "crop_id": [crop_id_of(uri) for uri in uris],
            "uri": uris,
            "etag": [""] * rows,
            "size": range(rows),
            "last_modified": [0] * rows,
            "camera_id": [f"{n % 40:03d}" for n in range(rows)],
            "captured_at": [n * 1000 for n in range(rows)],
            "track_id": [f"t{n // 3}" for n in range(rows)],
            "vehicle_id": [None] * rows,
            "model_id": [None] * rows,
        },
        schema=MANIFEST_SCHEMA,
    )
    runs = open_store(str(folder / "data"))
    run = Run.create(
        runs,
        "r",
        manifest=manifest,
        archive="s3://archive",
        fingerprint=card.fingerprint,
        model=str(folder / "model"),
        settings={},
        rows_per_part=20_000,
    )
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((rows // 20 + 1, 1024), dtype=np.float32)
    for part in run.pending_parts():
        crops = run.part_manifest(part)
        group = crops["size"].to_numpy() % len(centres)
        vectors = centres[group] + 0.5 * rng.standard_normal((len(group), 1024), dtype=np.float32)
        shard = shard_table(crops, vectors, np.zeros(len(group), np.int32), np.ones(len(group), np.float32))
        run.write_part(part, shard, QUARANTINE_SCHEMA.empty_table())
    run.finish()
    with connect(settings.milvus) as milvus:
        generation = load_runs(milvus, runs, [run], alias=settings.alias)
        promote(milvus, runs, generation.name, force="benchmark")
    (folder / "ready").write_text(str(rows))
    return settings


def through_page(searcher: Searcher, images: list[bytes]) -> list[float]:
    """Return the seconds from each upload to its whole JSON response."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = make_app(searcher, make_policy(ServeRequest()))
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    taken = []
    for data in images:
        head = b'--X\r\nContent-Disposition: form-data; name="picture"; filename="p.jpg"\r\n\r\n'
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/search",
            head + data + b"\r\n--X--\r\n",
            {"Content-Type": "multipart/form-data; boundary=X"},
        )
        started = time.perf_counter()
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            answer.read()
        taken.append(time.perf_counter() - started)
    server.should_exit = True
    return taken


if __name__ == "__main__":
    main()
