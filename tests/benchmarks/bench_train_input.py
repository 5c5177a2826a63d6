"""Images a second that reach a training worker by each input way, and that its training step takes.

    python tests/benchmarks/bench_train_input.py [FOLDER OF IMAGES] [--images 1500] [--batch 50]

Without a folder, the images are synthetic. Ray gets two more logical CPUs than the machine has, because its
tasks would otherwise wait for the CPU of the worker.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import ray
import torch
from measure import Row, add_json_option, machine, save_rows

from clvr_model.engines import has_bf16
from clvr_model.network import Architecture, Clvr
from clvr_model.recipe import load_recipe
from clvr_model.synthetic.archive import generate
from clvr_model.synthetic.trips import ArchiveSpec
from clvr_model.training import make_optimizer, train_step, training_mode
from infra.store import open_store
from jobs.train.input import Arrays, ImageLoader
from jobs.train.job import Images


def rate(batches: Iterable[Arrays]) -> float:
    """Return images a second from the first request to the last batch, as Ray Data reads far ahead."""
    started = time.perf_counter()
    images = sum(len(batch) for batch, _ in batches)
    return images / (time.perf_counter() - started)


def first(batches: Iterable[Arrays]) -> float:
    """Return the seconds to the first batch."""
    started = time.perf_counter()
    next(iter(batches))
    return time.perf_counter() - started


def step_rate(batch: Arrays, precision: str) -> float:
    """Return images a second of steps on all layers, one thread."""
    torch.set_num_threads(1)
    stage = load_recipe("paper").stages[1]
    network = Clvr.of(Architecture(classes=150)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(network, stage)
    training_mode(network, stage)
    images, classes = torch.from_numpy(batch[0][:8]), torch.from_numpy(batch[1][:8])
    train_step(network, optimizer, images, classes, precision=precision)
    started = time.perf_counter()
    for _ in range(2):
        train_step(network, optimizer, images, classes, precision=precision)
    return 2 * len(images) / (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=50)
    add_json_option(parser)
    args = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or temporary
        if not args.folder:
            open_store(temporary).create_bucket()
            generate(open_store(temporary), ArchiveSpec(seed=1, models=4, vehicles_per_model=10))
        uris = sorted(str(path) for path in Path(folder).rglob("*.jpg"))[: args.images]
        images = Images(uris, np.zeros(len(uris), np.int64))
        rows = np.random.default_rng(0).permutation(len(uris)).astype(np.int64)
        cores = os.cpu_count() or 1
        ray.init(num_cpus=cores + 2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        results = []
        rates: dict[str, list[float]] = {"local": [], "ray": []}
        waits: dict[str, float] = {}
        for backend in ("local", "ray", "local", "ray"):
            loader = ImageLoader(backend, 1)
            rates[backend].append(rate(loader.batches(images, rows, args.batch)))
            waits[backend] = first(loader.batches(images, rows, args.batch))
        ray.shutdown()
        for way in rates:
            rate_text = " and ".join(f"{value:,.0f}" for value in rates[way])
            text = f"{rate_text} images/s in two runs, first batch after {waits[way]:.2f} s"
            results.append(Row(f"`--input {way}`, {len(uris)} images, batches of {args.batch}", text))
        batch = next(ImageLoader("local", 1).batches(images, rows, args.batch))
        for precision in ("fp32", "bf16") if has_bf16("cpu") else ("fp32",):
            step = step_rate(batch, precision)
            ratio = statistics.median(rates["local"]) / step
            baseline = f"`--input local` delivers {statistics.median(rates['local']):,.0f} images/s"
            results.append(
                Row(f"step on all layers, {precision}, one core", f"{step:.1f} images/s", baseline, ratio)
            )
    for row in results:
        print(f"{row.case}: {row.result} {row.baseline}")
    save_rows(results, args.json)


if __name__ == "__main__":
    main()
