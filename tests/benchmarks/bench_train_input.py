"""How many pictures a second reach a training worker, by either way, and how many its step takes.

    python tests/benchmarks/bench_train_input.py [FOLDER OF PICTURES] [--pictures 1500] [--batch 50]

Without a folder, pictures are drawn. Ray gets two logical CPUs more than the machine has, because its tasks
would otherwise wait for the CPU that the worker holds. Prints one JSON document.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import ray
import torch

from clvr_model.network import Architecture, Clvr
from clvr_model.recipe import load_recipe
from clvr_model.synthetic.archive import generate
from clvr_model.synthetic.trips import ArchiveSpec
from clvr_model.training import make_optimizer, train_step, training_mode
from infra.store import open_store
from jobs.train.input import Arrays, Feed
from jobs.train.job import Pictures


def rate(batches: Iterable[Arrays]) -> float:
    """Pictures a second from the first request to the last batch: Ray Data reads far ahead of its reader."""
    begun = time.perf_counter()
    done = sum(len(pictures) for pictures, _ in batches)
    return done / (time.perf_counter() - begun)


def first(batches: Iterable[Arrays]) -> float:
    """Seconds to the first batch."""
    begun = time.perf_counter()
    next(iter(batches))
    return time.perf_counter() - begun


def step_rate(batch: Arrays, precision: str) -> float:
    """Pictures a second of steps on all layers, one thread."""
    torch.set_num_threads(1)
    stage = load_recipe("paper").stages[1]
    network = Clvr.of(Architecture(classes=150)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(network, stage)
    training_mode(network, stage)
    pictures, classes = torch.from_numpy(batch[0][:8]), torch.from_numpy(batch[1][:8])
    train_step(network, optimizer, pictures, classes, precision=precision)
    begun = time.perf_counter()
    for _ in range(2):
        train_step(network, optimizer, pictures, classes, precision=precision)
    return 2 * len(pictures) / (time.perf_counter() - begun)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--pictures", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=50)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or temporary
        if not asked.folder:
            open_store(temporary).create_bucket()
            generate(open_store(temporary), ArchiveSpec(seed=1, models=4, vehicles_per_model=10))
        uris = sorted(str(path) for path in Path(folder).rglob("*.jpg"))[: asked.pictures]
        pictures = Pictures(uris, np.zeros(len(uris), np.int64))
        rows = np.random.default_rng(0).permutation(len(uris)).astype(np.int64)
        cores = os.cpu_count() or 1
        ray.init(num_cpus=cores + 2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        found: dict[str, object] = {"pictures": len(uris), "batch": asked.batch, "cores": cores}
        for way in ("local", "ray", "local", "ray"):
            feed = Feed(way, 1)
            found.setdefault(f"{way}_images_per_second", [])
            found[f"{way}_images_per_second"].append(  # type: ignore[attr-defined]
                round(rate(feed.batches(pictures, rows, asked.batch)))
            )
            found[f"{way}_first_batch_seconds"] = round(first(feed.batches(pictures, rows, asked.batch)), 2)
        ray.shutdown()
        batch = next(Feed("local", 1).batches(pictures, rows, asked.batch))
        for precision in ("fp32", "bf16"):
            found[f"step_images_per_second_{precision}_one_core"] = round(step_rate(batch, precision), 1)
        found["load_average"] = os.getloadavg()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
