"""Speed of embedding against the bare model: embedder, decoding, whole parts, and the usual Ray Data recipe.

    python tests/benchmarks/bench_embed.py [--crops 600] [--precision bf16] [--only part recipe]

A and B take turns, and the ratio is the median over the turns. Ratios of CPU seconds are given too, because
other processes distort them less than wall time. The crops are synthetic and the weights random; neither
changes the speed.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from measure import Row, add_json_option, machine, save_rows
from PIL import Image

from clvr_model.checkpoint import Card, Checkpoint, load_checkpoint, save_checkpoint
from clvr_model.embedder import Embedder
from clvr_model.engines import has_bf16
from clvr_model.network import Clvr
from index.archive.listing import list_crops
from index.archive.manifest import normalize_manifest
from index.archive.packing import pack_folder
from index.archive.reader import ArchiveReader
from index.runs.run import Run
from index.runs.tombstones import ErasedCrops
from infra.servers import SeaweedFs
from infra.store import Store, open_store
from jobs.embed.part import embed_parts, open_decoders
from jobs.runtime.decoders import CropList, Decoders
from jobs.runtime.image_stream import stream_images

TURNS = 3
ROWS: list[Row] = []
DRAWN = 512  # further crops have the same bytes
ROW_GROUP_ROWS = 500  # of a Parquet file of crops


def measured(rows: int, work: Callable[[], Any]) -> tuple[float, float]:
    """Return rows a second of wall time, and of CPU time of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return rows / (time.perf_counter() - wall), rows / (time.process_time() - cpu)


def versus(
    case: str,
    rows: int,
    first: Callable[[], Any],
    baseline: str,
    second: Callable[[], Any],
    turns: int = TURNS,
) -> None:
    """Let two take turns; print and record their medians and the ratio first / second, by wall and by CPU."""
    pairs = [(measured(rows, first), measured(rows, second)) for _ in range(turns)]
    a, b = ([statistics.median(pair[who][kind] for pair in pairs) for kind in (0, 1)] for who in (0, 1))
    wall, cpu = (statistics.median(x[kind] / y[kind] for x, y in pairs) for kind in (0, 1))
    print(
        f"{case}: {a[0]:.1f}/s ({a[1]:.1f}/CPU-s), {baseline}: {b[0]:.1f}/s ({b[1]:.1f}/CPU-s); "
        f"ratio {wall:.2f} wall, {cpu:.2f} CPU",
        flush=True,
    )
    ROWS.append(Row(case, f"{a[1]:.1f}/CPU-s", f"{baseline}: {b[1]:.1f}/CPU-s", cpu))


def draw(store: Store, crops: int, size: tuple[int, int] = (240, 180), quality: int = 85) -> None:
    """Write JPEGs, by default of a crop's usual size, about 13 KB; noise over smooth shapes."""
    random = np.random.default_rng(7)
    images: list[bytes] = []
    for _ in range(min(crops, DRAWN)):
        coarse = random.integers(0, 256, (12, 16, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
        noisy = (smooth + random.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(buffer := io.BytesIO(), "JPEG", quality=quality)
        images.append(buffer.getvalue())
    for number in range(crops):
        store.put(f"dt=2026-11-22/cam={number % 4:03d}/{number:06d}.jpg", images[number % len(images)])


def model(folder: Path) -> Checkpoint:
    """Save and load a network of random weights."""
    save_checkpoint(str(folder), Clvr(250, seed=1), Card(label_ids=tuple(range(250))))
    return load_checkpoint(str(folder))


def bench_model(checkpoint: Checkpoint, cache: Path) -> None:
    """Compare the embedder with the eager fp32 NCHW network, one thread each."""
    images = np.random.default_rng(0).integers(0, 256, (16, 299, 299, 3), np.uint8)
    torch.set_num_threads(1)

    def eager() -> None:
        with torch.inference_mode():
            planes = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float()
            checkpoint.network((planes - 127.5) / 127.5)

    eager()
    for precision in ("fp32", "bf16") if has_bf16("cpu") else ("fp32",):
        embedder = Embedder(checkpoint, device="cpu", precision=precision, cache=cache)  # type: ignore[arg-type]
        embedder(images)
        versus(
            f"embedder, {precision}, one core", 16, lambda e=embedder: e(images), "eager fp32, NCHW", eager
        )  # type: ignore[misc]


def bench_decode(archive: Store, source: str) -> None:
    """Measure fetching, decoding and resizing alone."""
    infos = list(archive.list())
    reader, uris = ArchiveReader(archive), [archive.uri_of(info.key) for info in infos]
    etags = [info.etag for info in infos]

    def load(decoders: int) -> None:
        for _ in stream_images(reader, uris, etags=etags, prefetch=64, decoders=decoders):
            pass

    for decoders in sorted({1, os.cpu_count() or 1}):
        wall, cpu = max(measured(len(uris), lambda: load(decoders)) for _ in range(TURNS))  # noqa: B023  # called at once
        case = f"fetch + decode + resize, {source}, {decoders} thread(s)"
        print(f"{case}: {wall:,.0f}/s, {cpu:,.0f}/CPU-s", flush=True)
        ROWS.append(Row(case, f"{wall:,.0f}/s, {cpu:,.0f}/CPU-s"))


def bench_containers(crops: int, folder: Path) -> None:
    """Compare tar and Parquet files with single objects, on a real S3 server on this machine."""
    with SeaweedFs.start(folder / "s3") as server:
        single, packed, tables = (
            open_store(server.create_bucket(name), server.settings) for name in ("single", "packed", "tables")
        )
        draw(single, crops)
        pack_folder(single, packed, "dt=2026-11-22", ErasedCrops())
        infos = sorted(single.list(), key=lambda info: info.key)
        rows = pa.table({"image": [single.get(info.key) for info in infos], "name": [i.key for i in infos]})
        sink = io.BytesIO()
        pq.write_table(rows, sink, row_group_size=ROW_GROUP_ROWS, compression="none")
        tables.put("0.parquet", sink.getvalue())
        streams = []
        for store in (packed, tables, single):
            manifest = normalize_manifest(list_crops(store).crops.read())
            uris, etags = (manifest[name].to_pylist() for name in ("uri", "etag"))
            streams.append(partial(_drain, ArchiveReader(store), uris, etags))
        for number, (store, noun) in enumerate(((packed, "tar file"), (tables, "Parquet file"))):
            reads = len(ArchiveReader(store).spans(*streams[number].args[1:]))
            case = f"fetch + decode + resize, {noun} on S3, {reads} reads for {crops:,} crops"
            versus(case, crops, streams[number], "single objects on S3", streams[2])


def _drain(reader: ArchiveReader, uris: list[str], etags: list[str]) -> None:
    for _ in stream_images(reader, uris, etags=etags, prefetch=64, decoders=os.cpu_count() or 1):
        pass


def bench_part(checkpoint: Checkpoint, archive: Store, folder: Path, precision: Any, cache: Path) -> None:
    """Compare a whole part (fetch, decode, embed, write) with the embedder on arrays in memory."""
    embedder = Embedder(checkpoint, device="cpu", precision=precision, cache=cache)
    manifest = list_crops(archive).crops.read()
    rows = manifest.num_rows
    run = Run.create(
        open_store(str(folder)),
        "bench",
        manifest=manifest,
        archive=archive.uri,
        fingerprint=embedder.fingerprint,
        model="m",
        settings={},
    )
    reader, uris = ArchiveReader(archive), manifest["uri"].to_pylist()[:64]
    sample = np.stack([picture for _, picture in stream_images(reader, uris)])  # type: ignore[misc]

    def bare() -> None:
        for start in range(0, rows, 8):
            first = start % len(sample)
            embedder(sample[first : first + min(8, rows - start)])

    with open_decoders(archive, embedder, 1) as decoders:

        def whole() -> None:
            list(embed_parts(run, [0], embedder, decoders))

        whole()
        versus(f"a part end to end, {precision}, {rows} crops, one core", rows, whole, "bare embedder", bare)


def worker(arguments: tuple[str, str, str, str, Any, int, bool]) -> tuple[float, float, float]:
    """Do one core's share of the saturated measurement; return its start, its end and its rows."""
    model_uri, archive, folder, cache, precision, number, whole = arguments
    os.sched_setaffinity(0, {number})
    embedder = Embedder(model_uri, device="cpu", precision=precision, cache=Path(cache))
    store = open_store(archive)
    manifest = list_crops(store).crops.read()
    run = Run.create(
        open_store(f"{folder}/{number}"),
        "bench",
        manifest=manifest,
        archive=store.uri,
        fingerprint=embedder.fingerprint,
        model="m",
        settings={},
    )
    sample = np.random.default_rng(0).integers(0, 256, (8, 299, 299, 3), np.uint8)
    embedder(sample)
    with open_decoders(store, embedder, 1) as decoders:
        uris, etags = (manifest[name].to_pylist()[:8] for name in ("uri", "etag"))
        start_decoders(decoders, CropList(0, uris, etags))
        started = time.time()
        if whole:
            list(embed_parts(run, [0], embedder, decoders))
        else:
            for _ in range(manifest.num_rows // 8):
                embedder(sample)
        return started, time.time(), float(manifest.num_rows)


def start_decoders(decoders: Decoders, crops: CropList) -> None:
    """Decode a few crops until all processes have started."""
    while not decoders.running or not all(one.is_ready for one in decoders.running):
        for _ in decoders.batches([crops]):
            pass


def bench_saturated(
    model_uri: str, archive: Store, folder: Path, precision: Any, cache: Path, cores: int
) -> None:
    """Compare part and embedder with each core busy, one process a core, as with the job's actors."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    with ProcessPoolExecutor(cores) as pool:
        for turn in range(TURNS):
            for whole in (True, False):
                arguments = [
                    (model_uri, archive.uri, f"{folder}/{turn}", str(cache), precision, core, whole)
                    for core in range(cores)
                ]
                spans = list(pool.map(worker, arguments))
                rates[whole].append(sum(rows / (finished - started) for started, finished, rows in spans))
    ratio = statistics.median(x / y for x, y in zip(rates[True], rates[False], strict=True))
    part, bare = (statistics.median(rates[kind]) for kind in (True, False))
    print(
        f"{precision}, {cores} cores saturated: {part:.1f}/s, bare {bare:.1f}/s; ratio {ratio:.3f}",
        flush=True,
    )
    case = f"a part end to end, {precision}, {cores} cores saturated"
    ROWS.append(Row(case, f"{part:.1f}/s", f"bare embedder: {bare:.1f}/s", ratio))


def bench_recipe(archive: Store, folder: Path, precision: Any, turns: int) -> None:
    """`read_images` + the eager network + `write_parquet` on Ray Data against the job, start-up included."""
    import ray

    from infra.settings import load_settings
    from jobs.embed.job import embed
    from jobs.embed.new_run import EmbedRequest

    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    uri = str(folder / "model")

    class Eager:
        """The network as a tutorial would use it."""

        def __init__(self) -> None:
            self.network = load_checkpoint(uri).network

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            with torch.inference_mode():
                planes = torch.from_numpy(np.stack(list(batch["image"]))).permute(0, 3, 1, 2).float()
                features, logits = self.network((planes - 127.5) / 127.5)
            return {"path": batch["path"], "embedding": features.numpy(), "model": logits.argmax(1).numpy()}

    cores = os.cpu_count() or 1
    rows = sum(1 for _ in archive.list())

    def usual() -> float:
        started = time.perf_counter()
        ray.data.read_images(archive.uri, size=(299, 299), mode="RGB", include_paths=True).map_batches(
            # Half a logical core each: if the actors take all, `read_images` waits without end (ray#44687).
            Eager,
            batch_size=8,
            num_cpus=0.5,
            compute=ray.data.ActorPoolStrategy(size=cores),
        ).write_parquet(str(folder / f"usual-{time.time()}"))
        return time.perf_counter() - started

    def ours() -> float:
        started = time.perf_counter()
        embed(
            EmbedRequest(archive.uri, model=uri, precision=precision),
            load_settings({"runs": str(folder / f"ours-{time.time()}")}),
        )
        return time.perf_counter() - started

    pairs = [(usual(), ours()) for _ in range(turns)]
    ratio = statistics.median(recipe / job for recipe, job in pairs)
    for recipe, job in pairs:
        print(f"usual recipe {rows / recipe:.1f}/s, clvr embed {rows / job:.1f}/s, start-up included")
    print(f"{precision}: ratio {ratio:.2f} on {rows} crops", flush=True)
    recipe, job = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    case = f"`clvr embed`, {precision}, {rows} crops, start-up included"
    ROWS.append(
        Row(
            case,
            f"{rows / job:.1f}/s",
            f"`read_images`, eager, `write_parquet`: {rows / recipe:.1f}/s",
            ratio,
        )
    )
    ray.shutdown()


def main() -> None:
    """Measure the chosen subjects."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crops", type=int, default=96)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--only", nargs="*", default=["model", "decode", "containers", "part", "saturated"])
    parser.add_argument("--turns", type=int, default=2, help="of `recipe`: the usual recipe and the job")
    parser.add_argument("--archive", help="URI of an existing archive, instead of synthetic crops")
    add_json_option(parser)
    args = parser.parse_args()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clvr-archive"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = model(folder / "model")
        archive = open_store(args.archive or str(folder / "archive"))
        if not args.archive:
            draw(archive, args.crops)
        print(machine(), flush=True)
        if "model" in args.only:
            bench_model(checkpoint, cache)
        if "decode" in args.only:
            bench_decode(archive, "S3" if not archive.local else "local files")
        if "containers" in args.only:
            bench_containers(args.crops, folder)
        if "part" in args.only:
            bench_part(checkpoint, archive, folder / "part", args.precision, cache)
        if "saturated" in args.only:
            cores = os.cpu_count() or 1
            bench_saturated(
                str(folder / "model"), archive, folder / "saturated", args.precision, cache, cores
            )
        if "recipe" in args.only:
            bench_recipe(archive, folder, args.precision, args.turns)
    save_rows(ROWS, args.json)


if __name__ == "__main__":
    main()
