"""CPU seconds and memory of exact CMC and mAP at the size of VehicleID's large list.

    python tests/benchmarks/bench_cmc.py [--times 1 10] [--threads 2] [--plain] [--repeats 10]

The features are clustered, so rank-1 is close to that of a trained network. Each vehicle has one probe, as in
the paper. The features are in a memory-mapped file, so the table shows the memory of CMC alone.
The first call of a process loads the compiled loops and chooses the fastest product; that of an installation
compiles the loops. All else is the best of three calls.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import Row, add_json_option, machine, save_rows, start_again
from numpy.typing import NDArray

from index.evaluation.cmc import LabeledFeatures, cmc, cmc_of_splits
from index.evaluation.protocols import draw_splits
from index.exact.products import fastest_product

Call = Callable[[LabeledFeatures, LabeledFeatures], tuple[float, float]]
PROBES, GALLERY, DIMENSION = 2_400, 17_377, 1024
FIRST_CALLS = ("first call of an installation", "first call of a process")


def features_of(vehicles: NDArray[np.int64], path: Path, seed: int) -> np.memmap:
    """Return (n, 1024) features: model, vehicle and noise, non-negative, with a falling spectrum."""
    rng = np.random.default_rng(seed)
    spectrum = (np.arange(DIMENSION, dtype=np.float32) + 4) ** -0.7
    rows = np.memmap(path, np.float32, "w+", shape=(len(vehicles), DIMENSION))
    models = np.random.default_rng(1).standard_normal((250, DIMENSION), dtype=np.float32)
    for start in range(0, len(rows), 4096):
        ids = vehicles[start : start + 4096]
        offsets = np.stack(
            [np.random.default_rng([2, v]).standard_normal(DIMENSION, dtype=np.float32) for v in ids]
        )
        noise = rng.standard_normal(offsets.shape, dtype=np.float32)
        block = (models[ids % 250] + 0.35 * offsets + 0.8 * noise) * spectrum
        rows[start : start + 4096] = np.maximum(block, 0)
    rows.flush()
    return rows


def plain(probes: LabeledFeatures, gallery: LabeledFeatures) -> tuple[float, float]:
    """Rank by the formulas of torchreid's and fast-reid's Python evaluation. Return rank-1 and mAP.

    They keep the full distance matrix, sort each row, and then loop over the probes: remove junk (this data
    has none), accumulate hits, and compute average precision.
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


def counted(probes: LabeledFeatures, gallery: LabeledFeatures) -> tuple[float, float]:
    """Rank by counting. Return rank-1 and mAP."""
    found = cmc(probes, gallery)
    return float(found.curve[0]), found.mean_ap


def faiss_top_50(probes: LabeledFeatures, gallery: LabeledFeatures) -> tuple[float, float]:
    """Search the 50 nearest by faiss, and take rank-1 and the average precision within them."""
    faiss = importlib.import_module("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    flat = faiss.IndexFlatL2(DIMENSION)
    flat.add(np.asarray(gallery.features))
    found = flat.search(np.asarray(probes.features), 50)[1]
    hits = gallery.vehicle_ids[found] == probes.vehicle_ids[:, None]
    shares = hits.cumsum(axis=1) / np.arange(1, 51)
    positives = np.bincount(gallery.vehicle_ids, minlength=len(probes.vehicle_ids))[probes.vehicle_ids]
    return float(hits[:, 0].mean()), float(((shares * hits).sum(axis=1) / positives).mean())


def repeated(repeats: int) -> Call:
    """Return a call that counts `repeats` draws of vehicleid-paper from the same images in one pass."""

    def call(probes: LabeledFeatures, gallery: LabeledFeatures) -> tuple[float, float]:
        features = np.concatenate([probes.features, gallery.features])
        vehicles = np.concatenate([probes.vehicle_ids, gallery.vehicle_ids])
        splits = draw_splits("vehicleid-paper", vehicles, repeats=repeats)
        found = cmc_of_splits(LabeledFeatures(features, vehicles), splits)
        return float(np.mean([one.curve[0] for one in found])), float(np.mean([one.mean_ap for one in found]))

    return call


class Memory:
    """Sample the peak of this process's anonymous memory, less its memory at the start."""

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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="also run the full matrix and sort (1x only)")
    parser.add_argument("--repeats", type=int, default=0, help="also this many repeats in one pass (1x only)")
    parser.add_argument("--first-call", nargs=2, help=argparse.SUPPRESS)
    add_json_option(parser)
    args = parser.parse_args()
    start_again(args.threads)
    torch.set_num_threads(args.threads)
    if args.first_call:
        name, folder = args.first_call
        cpu, mib = measured(name, counted, *read(Path(folder), 1))
        Path(folder, "result").write_text(f"{cpu} {mib}")
        return
    print(f"{machine()}; torch {torch.__version__}, {args.threads} thread(s)")
    product = fastest_product()
    print(f"fastest product: {product.name}\n")
    results: list[Row] = []
    print(
        f"{'what':<30}{'probes':>8}{'gallery':>9}{'CPU s':>9}{'wall s':>9}{'MiB':>7}{'rank-1':>8}{'mAP':>7}"
    )
    for times in args.times:
        probe_ids, gallery_ids = vehicles(times)
        with tempfile.TemporaryDirectory() as folder:
            features_of(probe_ids, Path(folder, "probes"), 3)
            features_of(gallery_ids, Path(folder, "gallery"), 4)
            probes, gallery = read(Path(folder), times)
            runs: dict[str, Call] = {"counting": counted}
            if args.repeats and times == 1:
                runs |= {f"one pass, {n} repeat(s)": repeated(n) for n in (1, args.repeats)}
            if args.plain and times == 1:
                runs["matrix, sort, loop"] = plain
                if importlib.util.find_spec("faiss"):
                    runs["faiss top-50"] = faiss_top_50
            cpu_seconds: dict[str, float] = {}
            texts: dict[str, str] = {}
            if times == 1:
                for name in FIRST_CALLS:
                    cpu_seconds[name], mib = first_call(name, folder)
                    texts[name] = text_of(cpu_seconds[name], mib)
            for name, call in runs.items():
                calls = [measured(name, call, probes, gallery) for _ in range(3)]
                cpu_seconds[name] = min(cpu for cpu, _ in calls)
                texts[name] = text_of(cpu_seconds[name], max(mib for _, mib in calls))
            size = f"{len(probe_ids):,} probes x {len(gallery_ids):,} gallery"
            results += rows_of(size, cpu_seconds, texts)
    save_rows(results, args.json)


def vehicles(times: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the vehicles of probes and gallery."""
    probe_ids = np.arange(PROBES * times)
    others = np.random.default_rng(0).integers(0, len(probe_ids), (GALLERY - PROBES) * times)
    return probe_ids, np.random.default_rng(0).permutation(np.concatenate([probe_ids, others]))


def read(folder: Path, times: int) -> tuple[LabeledFeatures, LabeledFeatures]:
    """Return probes and gallery, whose features are in files of this folder."""
    probe_ids, gallery_ids = vehicles(times)
    probes, gallery = (
        np.memmap(folder / name, np.float32, "r", shape=(len(ids), DIMENSION))
        for name, ids in (("probes", probe_ids), ("gallery", gallery_ids))
    )
    return LabeledFeatures(probes, probe_ids), LabeledFeatures(gallery, gallery_ids)


def measured(name: str, call: Call, probes: LabeledFeatures, gallery: LabeledFeatures) -> tuple[float, float]:
    """Print what a call takes; return its CPU seconds and the MiB of its memory."""
    with Memory() as memory:
        cpu, wall = time.process_time(), time.perf_counter()
        rank_1, mean_ap = call(probes, gallery)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(
        f"{name:<30}{len(probes.vehicle_ids):>8}{len(gallery.vehicle_ids):>9}{cpu:>9.2f}{wall:>9.2f}"
        f"{memory.mib:>7.0f}{rank_1:>8.3f}{mean_ap:>7.3f}",
        flush=True,
    )
    return cpu, memory.mib


def text_of(cpu: float, mib: float) -> str:
    """Return the text of a cell."""
    return f"{cpu:.2f} CPU s, {mib:,.0f} MiB"


def first_call(name: str, folder: str) -> tuple[float, float]:
    """Measure the first call of another process; those of one folder share the compiled loops."""
    subprocess.run(
        [sys.executable, __file__, "--first-call", name, folder],
        env=os.environ | {"NUMBA_CACHE_DIR": f"{folder}/compiled"},
        check=True,
    )
    cpu, mib = map(float, Path(folder, "result").read_text().split())
    return cpu, mib


def rows_of(size: str, cpu_seconds: dict[str, float], texts: dict[str, str]) -> list[Row]:
    """Return the rows of one size: counting against the matrix, many repeats against one."""
    rows = []
    for name in ("counting", *reversed(FIRST_CALLS)):
        case = f"CMC + mAP, {size}" + (f", {name}" if name in FIRST_CALLS else "")
        if name in texts and "matrix, sort, loop" not in texts:
            rows.append(Row(case, texts[name]))
        for baseline in ("matrix, sort, loop", "faiss top-50"):
            if name in texts and baseline in texts:
                ratio = cpu_seconds[baseline] / cpu_seconds[name]
                rows.append(Row(case, texts[name], f"{baseline}: {texts[baseline]}", ratio))
    passes = [name for name in texts if name.startswith("one pass")]
    if len(passes) == 2:
        single, several = passes
        repeats = int(several.split()[2])
        rows.append(
            Row(
                f"`vehicleid-paper`, {repeats} repeats in one pass, {size}",
                texts[several],
                f"{repeats} times one repeat: {repeats * cpu_seconds[single]:.2f} CPU s",
                repeats * cpu_seconds[single] / cpu_seconds[several],
            )
        )
    return rows


if __name__ == "__main__":
    main()
