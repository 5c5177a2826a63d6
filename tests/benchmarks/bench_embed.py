"""How near the job is to the bare model: embedder, decode, whole parts, and the usual recipe, in one run.

    python tests/benchmarks/bench_embed.py [--crops 600] [--precision fp32] [--only part recipe]

Ratios are taken between neighbours in time: A and B take turns, and the median of the turns counts. CPU
seconds stand beside wall seconds, because a machine that others use stretches the one and hardly the other.
The crops are drawn, the weights random: neither changes the speed.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from clvr_model.checkpoint import Card, Checkpoint, load_checkpoint, save_checkpoint
from clvr_model.embedder import Embedder
from clvr_model.engines import has_bf16
from clvr_model.network import Clvr
from index.archive.listing import list_crops
from index.runs.run import Run
from infra.store import Store, open_store
from jobs.embed.part import embed_part
from jobs.runtime.image_stream import stream_images

TURNS = 3


def measured(rows: int, work: Callable[[], Any]) -> tuple[float, float]:
    """Rows a second of wall time, and of CPU time of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return rows / (time.perf_counter() - wall), rows / (time.process_time() - cpu)


def versus(rows: int, first: Callable[[], Any], second: Callable[[], Any], turns: int = TURNS) -> str:
    """Let two take turns; say their medians and the ratio first / second, by wall and by CPU."""
    pairs = [(measured(rows, first), measured(rows, second)) for _ in range(turns)]
    a, b = ([statistics.median(pair[who][kind] for pair in pairs) for kind in (0, 1)] for who in (0, 1))
    wall = statistics.median(one[0] / other[0] for one, other in pairs)
    cpu = statistics.median(one[1] / other[1] for one, other in pairs)
    return (
        f"{a[0]:8.1f}/s ({a[1]:8.1f}/CPU-s)  against {b[0]:8.1f}/s ({b[1]:8.1f}/CPU-s)"
        f"   ratio {wall:5.2f} wall, {cpu:5.2f} CPU"
    )


def draw(store: Store, crops: int) -> None:
    """Write JPEGs of a crop's usual size, 240 x 180 and about 13 KB; noise over smooth shapes."""
    random = np.random.default_rng(7)
    for number in range(crops):
        coarse = random.integers(0, 256, (12, 16, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((240, 180), Image.Resampling.BICUBIC))
        noisy = (smooth + random.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(buffer := io.BytesIO(), "JPEG", quality=85)
        store.put(f"dt=2026-11-22/cam={number % 4:03d}/{number:06d}.jpg", buffer.getvalue())


def model(folder: Path) -> Checkpoint:
    """Save and load a network of random weights."""
    save_checkpoint(str(folder), Clvr(250, seed=1), Card(label_ids=tuple(range(250))))
    return load_checkpoint(str(folder))


def bench_model(checkpoint: Checkpoint, cache: Path) -> None:
    """The embedder against the plain eager fp32 NCHW network, one thread each."""
    pictures = np.random.default_rng(0).integers(0, 256, (16, 299, 299, 3), np.uint8)
    torch.set_num_threads(1)

    def eager() -> None:
        with torch.inference_mode():
            planes = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().float()
            checkpoint.network((planes - 127.5) / 127.5)

    eager()
    for precision in ("fp32", "bf16") if has_bf16("cpu") else ("fp32",):
        embedder = Embedder(checkpoint, device="cpu", precision=precision, cache=cache)  # type: ignore[arg-type]
        embedder(pictures)
        print(f"embedder {precision} against eager:", versus(16, lambda e=embedder: e(pictures), eager))  # type: ignore[misc]


def bench_pictures(archive: Store, where: str) -> None:
    """Fetch + decode + resize, alone."""
    infos = list(archive.list())
    keys, etags = [info.key for info in infos], [info.etag for info in infos]

    def load(decoders: int) -> None:
        for _ in stream_images(archive, keys, etags=etags, ahead=64, decoders=decoders):
            pass

    for decoders in sorted({1, os.cpu_count() or 1}):
        for _ in range(TURNS):
            wall, cpu = measured(len(keys), lambda: load(decoders))  # noqa: B023  # called at once
        print(
            f"fetch + decode + resize, {where}, {decoders} at a time: {wall:,.0f}/s, {cpu:,.0f}/CPU-s",
            flush=True,
        )


def bench_part(checkpoint: Checkpoint, archive: Store, folder: Path, precision: Any, cache: Path) -> None:
    """A whole part (fetch, decode, embed, write) against the embedder on tensors in memory."""
    embedder = Embedder(checkpoint, device="cpu", precision=precision, cache=cache)
    manifest = list_crops(archive).manifest
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
    keys = [uri.removeprefix(archive.uri_of("")) for uri in manifest["uri"].to_pylist()[:64]]
    sample = np.stack([picture for _, picture in stream_images(archive, keys)])  # type: ignore[misc]

    def bare() -> None:
        for start in range(0, rows, 8):
            at = start % len(sample)
            embedder(sample[at : at + min(8, rows - start)])

    def whole() -> None:
        embed_part(run, 0, embedder, archive)

    bare()
    print(
        f"{precision}, {rows} crops end to end against the bare loop:", versus(rows, whole, bare), flush=True
    )


def worker(arguments: tuple[str, str, str, str, Any, int, bool]) -> tuple[float, float, float]:
    """Do one core's share of the saturated measurement; returns when it began, ended, and its rows."""
    model_uri, archive, folder, cache, precision, number, whole = arguments
    os.sched_setaffinity(0, {number})
    embedder = Embedder(model_uri, device="cpu", precision=precision, cache=Path(cache))
    store = open_store(archive)
    manifest = list_crops(store).manifest
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
    begun = time.time()
    if whole:
        embed_part(run, 0, embedder, store)
    else:
        for _ in range(manifest.num_rows // 8):
            embedder(sample)
    return begun, time.time(), float(manifest.num_rows)


def bench_saturated(
    model_uri: str, archive: Store, folder: Path, precision: Any, cache: Path, cores: int
) -> None:
    """The same with every core busy, one process a core, as the job's actors are."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    with ProcessPoolExecutor(cores) as pool:
        for turn in range(TURNS):
            for whole in (True, False):
                given = [
                    (model_uri, archive.uri, f"{folder}/{turn}", str(cache), precision, core, whole)
                    for core in range(cores)
                ]
                found = list(pool.map(worker, given))
                rates[whole].append(sum(rows / (ended - begun) for begun, ended, rows in found))
    ratio = statistics.median(one / other for one, other in zip(rates[True], rates[False], strict=True))
    one, other = (statistics.median(rates[kind]) for kind in (True, False))
    print(f"{precision}, {cores} cores saturated: {one:.1f}/s against {other:.1f}/s   ratio {ratio:.3f}")


def bench_recipe(archive: Store, folder: Path, precision: Any, turns: int) -> None:
    """`read_images` + the eager network + `write_parquet` on Ray Data against the job, start-up included."""
    import ray

    from infra.settings import load_settings
    from jobs.embed.job import EmbedRequest, embed

    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    uri = str(folder / "model")

    class Eager:
        """What a tutorial would write."""

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
        begun = time.perf_counter()
        ray.data.read_images(archive.uri, size=(299, 299), mode="RGB", include_paths=True).map_batches(
            # Half a core each by Ray's books: with all of them taken, `read_images` would wait for ever.
            Eager,
            batch_size=8,
            num_cpus=0.5,
            compute=ray.data.ActorPoolStrategy(size=cores),
        ).write_parquet(str(folder / f"usual-{time.time()}"))
        return time.perf_counter() - begun

    def ours() -> float:
        begun = time.perf_counter()
        embed(
            EmbedRequest(archive.uri, model=uri, precision=precision),
            load_settings({"runs": str(folder / f"ours-{time.time()}")}),
        )
        return time.perf_counter() - begun

    pairs = [(usual(), ours()) for _ in range(turns)]
    ratio = statistics.median(usual / ours for usual, ours in pairs)
    for usually, our in pairs:
        print(f"usual recipe {rows / usually:.1f}/s, clvr embed {rows / our:.1f}/s, start-up included")
    print(f"{precision}: ratio {ratio:.2f} on {rows} crops", flush=True)
    ray.shutdown()


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crops", type=int, default=200)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--only", nargs="*", default=["model", "pictures", "part", "saturated"])
    parser.add_argument("--turns", type=int, default=2, help="of the usual recipe and the job")
    parser.add_argument("--archive", help="an archive that is there, instead of drawn crops")
    given = parser.parse_args()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clvr-archive"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = model(folder / "model")
        archive = open_store(given.archive or str(folder / "archive"))
        if not given.archive:
            draw(archive, given.crops)
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
        if "model" in given.only:
            bench_model(checkpoint, cache)
        if "pictures" in given.only:
            bench_pictures(archive, "S3" if not archive.local else "local files")
        if "part" in given.only:
            bench_part(checkpoint, archive, folder / "part", given.precision, cache)
        if "saturated" in given.only:
            cores = os.cpu_count() or 1
            bench_saturated(
                str(folder / "model"), archive, folder / "saturated", given.precision, cache, cores
            )
        if "recipe" in given.only:
            bench_recipe(archive, folder, given.precision, given.turns)
        print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
