"""CPU-seconds and memory of exact CMC + mAP at the size of VehicleID's large list, and at ten times that.

    python tests/benchmarks/bench_cmc.py [--times 1 10] [--threads 2] [--plain] [--repeats 10]

The features are clustered, so that true matches are found about as often as by a trained network; one probe a
vehicle, as in the paper. They live in a memory-mapped file: the memory in the table is what CMC itself takes.
"""

import argparse
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from index.evaluation.cmc import Labelled, cmc, cmc_of_splits
from index.evaluation.protocols import draw
from index.exact.products import choose_kernel

Call = Callable[[Labelled, Labelled], tuple[float, float]]
PROBES, GALLERY, DIMENSION = 2_400, 17_377, 1024


def features_of(vehicles: NDArray[np.int64], path: Path, seed: int) -> np.memmap:
    """Non-negative, as behind a ReLU: a model, a vehicle of it, and noise, with a falling spectrum."""
    rng = np.random.default_rng(seed)
    spectrum = (np.arange(DIMENSION, dtype=np.float32) + 4) ** -0.7
    rows = np.memmap(path, np.float32, "w+", shape=(len(vehicles), DIMENSION))
    models = np.random.default_rng(1).standard_normal((250, DIMENSION), dtype=np.float32)
    for start in range(0, len(rows), 4096):
        some = vehicles[start : start + 4096]
        own = np.stack(
            [np.random.default_rng([2, v]).standard_normal(DIMENSION, dtype=np.float32) for v in some]
        )
        noise = rng.standard_normal(own.shape, dtype=np.float32)
        rows[start : start + 4096] = np.maximum((models[some % 250] + 0.35 * own + 0.8 * noise) * spectrum, 0)
    rows.flush()
    return rows


def plain(probes: Labelled, gallery: Labelled) -> tuple[float, float]:
    """The arithmetic of torchreid's and fast-reid's Python evaluation, written from their formulas.

    The full distance matrix, a full sort, and for each probe in turn: junk by vehicle and camera (nobody's
    here), the cumulated hits, average precision and the inverse negative penalty.
    """
    x, y = torch.from_numpy(np.asarray(probes.features)), torch.from_numpy(np.asarray(gallery.features))
    distances = (x.pow(2).sum(1)[:, None] + y.pow(2).sum(1)).addmm_(x, y.T, beta=1, alpha=-2).numpy()
    order = np.argsort(distances, axis=1)
    hits = (gallery.vehicle_ids[order] == probes.vehicle_ids[:, None]).astype(np.int32)
    cameras = np.ones(len(gallery.vehicle_ids), dtype=np.int32)
    first, precisions = [], []
    for row in range(len(hits)):
        junk = (gallery.vehicle_ids[order[row]] == probes.vehicle_ids[row]) & (cameras[order[row]] == 0)
        kept = hits[row][~junk]
        cumulated = kept.cumsum()
        first.append(kept[0])
        share = cumulated / (np.arange(len(kept)) + 1.0)
        precisions.append((share * kept).sum() / kept.sum())
    return float(np.mean(first)), float(np.mean(precisions))


def counted(probes: Labelled, gallery: Labelled) -> tuple[float, float]:
    """Ours. Returns rank-1 and mAP."""
    found = cmc(probes, gallery)
    return float(found.curve[0]), found.map


def repeated(repeats: int) -> Call:
    """Ours, of `repeats` draws of vehicleid-paper from the same pictures in one pass."""

    def call(probes: Labelled, gallery: Labelled) -> tuple[float, float]:
        features = np.concatenate([probes.features, gallery.features])
        vehicles = np.concatenate([probes.vehicle_ids, gallery.vehicle_ids])
        splits = draw("vehicleid-paper", vehicles, repeats=repeats)
        found = cmc_of_splits(Labelled(features, vehicles), splits)
        return float(np.mean([one.curve[0] for one in found])), float(np.mean([one.map for one in found]))

    return call


class Memory:
    """The largest anonymous memory of this process, sampled; what it held before is subtracted."""

    def __enter__(self) -> "Memory":
        self.start = self.most = self._now()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.mib = (self.most - self.start) / 1024

    def _watch(self) -> None:
        while not self.ended.wait(0.02):
            self.most = max(self.most, self._now())

    def _now(self) -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0])


def processor() -> str:
    """The processor's name and the number of cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(names)} cores"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="also run the full matrix and sort (1x only)")
    parser.add_argument("--repeats", type=int, default=0, help="also so many repeats in one pass (1x only)")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print(f"{processor()}; torch {torch.__version__}, {asked.threads} thread(s)")
    kernel = choose_kernel(work=1e12)
    print(f"fastest float32 product here: {kernel.name}\n")
    print(
        f"{'what':<22}{'probes':>8}{'gallery':>9}{'CPU s':>9}{'wall s':>9}{'MiB':>7}{'rank-1':>8}{'mAP':>7}"
    )
    for times in asked.times:
        probe_ids = np.arange(PROBES * times)
        gallery_ids = np.random.default_rng(0).permutation(
            np.concatenate(
                [probe_ids, np.random.default_rng(0).integers(0, len(probe_ids), (GALLERY - PROBES) * times)]
            )
        )
        with tempfile.TemporaryDirectory() as folder:
            probes = Labelled(features_of(probe_ids, Path(folder, "probes"), 3), probe_ids)
            gallery = Labelled(features_of(gallery_ids, Path(folder, "gallery"), 4), gallery_ids)
            # The first call of a process loads or compiles the loops, and asks which product pays.
            runs: dict[str, Call] = {"first call": counted} if times == asked.times[0] else {}
            runs["counting (index.cmc)"] = counted
            if asked.repeats and times == 1:
                runs |= {f"one pass, {n} repeat(s)": repeated(n) for n in (1, asked.repeats)}
            if asked.plain and times == 1:
                runs["matrix, sort, loop"] = plain
            for name, call in runs.items():
                with Memory() as memory:
                    cpu, wall = time.process_time(), time.perf_counter()
                    rank_1, mean_ap = call(probes, gallery)
                    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
                print(
                    f"{name:<22}{len(probe_ids):>8}{len(gallery_ids):>9}{cpu:>9.2f}{wall:>9.2f}"
                    f"{memory.mib:>7.0f}{rank_1:>8.3f}{mean_ap:>7.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
