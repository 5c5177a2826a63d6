"""Probes a second of a sweep by the index and by the exact scan, for several batch sizes (nq).

    python tests/benchmarks/bench_sweep.py [--rows 20000] [--probes 512] [--folder FOLDER]

Matches are filtered as in `clvr sweep`: the probe's own camera is excluded, and each track counts once. The
probes are archived crops, so no image is embedded; bench_search.py measures that. Where faiss is installed,
IndexFlatL2 searches the same rows from memory, without rules.
"""

import argparse
import importlib
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from bench_search import searchable
from measure import Row, add_json_option, machine, save_rows

from index.filters import Filters
from index.milvus.client import connect
from index.milvus.collection import live_generation
from index.runs.tombstones import TombstoneWatch
from index.search.milvus_source import MilvusSource
from index.search.probe import Probe
from index.search.retrieval import Rules, retrieve
from index.search.scan_source import ScanSource
from jobs.runtime.resolve import find_run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--probes", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="see bench_search.py")
    add_json_option(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        settings = searchable(args.folder or Path(folder), args.rows)
        run = find_run("latest", settings)
        scan = ScanSource([run])
        ids = run.manifest()["crop_id"].to_pylist()[: args.probes]
        vectors, sightings = scan.vectors(ids), scan.sightings(ids)
        probes = [Probe(str(crop_id), vectors[crop_id], (sightings[crop_id],)) for crop_id in ids]
        print(f"{machine()}\n{args.rows:,} rows, {len(probes)} probes, {args.threads} thread(s)")
        print(f"{'probes/s at nq':<28}" + "".join(f"{nq:>10}" for nq in SIZES))
        with connect(settings.milvus) as milvus:
            generation = live_generation(milvus, settings.alias)
            assert generation is not None
            index = MilvusSource(milvus, generation, TombstoneWatch([run.store]))
            rates: dict[str, list[float]] = {}
            for name, source in (("index (Milvus Lite)", index), ("exact scan of the shards", scan)):
                rates[name] = [rate(source, probes, nq) for nq in SIZES]
                print(f"{name:<28}" + "".join(f"{value:>10,.0f}" for value in rates[name]))
        lite, exact = rates.values()
        for nq, by_scan, by_index in zip(SIZES, exact, lite, strict=True):
            case = f"exact scan of {args.rows:,} rows, {nq} probes at once, {args.threads} thread(s)"
            baseline = f"Milvus Lite: {by_index:,.0f} probes/s"
            results.append(Row(case, f"{by_scan:,.0f} probes/s", baseline, by_scan / by_index))
        results += beside_faiss(probes, scan, args.threads)
        window = Filters(captured_to=args.rows * 1000 // 10)
        narrow = scan.nearest(np.stack([probe.features for probe in probes[:64]]), 20, window)
        print(
            f"a tenth of the time: {scan.stats.groups_skipped} of {scan.stats.groups} row groups unread, "
            f"{scan.stats.rows_compared:,} of {scan.stats.rows:,} rows compared ({len(narrow)} probes)"
        )
    save_rows(results, args.json)


SIZES = (1, 16, 128, 512)


def rate(source: MilvusSource | ScanSource, probes: list[Probe], nq: int) -> float:
    """Return the probes answered a second in calls of nq, over at least one call and about a second."""
    rules, done, started = Rules(top=20), 0, time.perf_counter()
    while time.perf_counter() - started < 1 or not done:
        first = done % max(1, len(probes) - nq + 1)
        batch = probes[first : first + nq]
        retrieve(source, batch, rules)
        done += len(batch)
    return done / (time.perf_counter() - started)


def beside_faiss(probes: list[Probe], scan: ScanSource, threads: int) -> list[Row]:
    """Compare the scan's nearest neighbours with those of faiss, for the same rows and cores."""
    try:
        faiss = importlib.import_module("faiss")
    except ModuleNotFoundError:
        print("faiss is not installed: skipped")
        return []
    faiss.omp_set_num_threads(threads)
    blocks = list(scan._blocks(Filters()))
    ids, vectors = np.concatenate([ids for ids, _ in blocks]), np.concatenate([block for _, block in blocks])
    flat = faiss.IndexFlatL2(vectors.shape[1])
    flat.add(vectors)
    features = np.stack([probe.features for probe in probes])
    started = time.perf_counter()
    faiss_ids = ids[flat.search(features, 20)[1]]
    faiss_seconds = time.perf_counter() - started
    started = time.perf_counter()
    hits = scan.nearest(features, 20, Filters())
    scan_ids = np.array([[hit.crop_id for hit in row] for row in hits])
    scan_seconds = time.perf_counter() - started
    print(
        f"nearest neighbours, nq {len(probes)}: faiss IndexFlatL2 in memory {faiss_seconds:.2f} s, "
        f"scan from Parquet with its lookups {scan_seconds:.2f} s, equal {(scan_ids == faiss_ids).mean():.4f}"
    )
    case = f"exact scan from Parquet, {len(probes)} probes, no rules"
    baseline = f"faiss IndexFlatL2 from memory: {faiss_seconds:.2f} s"
    return [Row(case, f"{scan_seconds:.2f} s", baseline, faiss_seconds / scan_seconds)]


if __name__ == "__main__":
    main()
