"""Probes a second of a sweep's answers, by how many are asked at once: by the index and by the exact scan.

    python tests/benchmarks/bench_sweep.py [--rows 10000] [--probes 512] [--folder kept]

Answers are what `clvr sweep` writes: rules applied, own camera left out, one a pass. Probes are archived
crops, so nothing is embedded; a picture costs what bench_search.py says. Where faiss is installed, the plain
neighbours of IndexFlatL2 over the same rows stand beside, without any rule and from memory.
"""

import argparse
import importlib
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from bench_search import searchable

from index.filters import Filters
from index.milvus.client import connect
from index.milvus.collection import live_generation
from index.search.milvus_source import MilvusSource
from index.search.probe import Probe
from index.search.retrieval import Rules, retrieve
from index.search.scan_source import ScanSource
from jobs.runtime.resolve import find_run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--probes", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="see bench_search.py")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as folder:
        settings = searchable(asked.folder or Path(folder), asked.rows)
        run = find_run("latest", settings)
        scan = ScanSource([run])
        ids = run.manifest()["crop_id"].to_pylist()[: asked.probes]
        vectors, sightings = scan.vectors(ids), scan.sightings(ids)
        probes = [Probe(str(each), vectors[each], (sightings[each],)) for each in ids]
        load = os.getloadavg()[0]
        print(f"{asked.rows:,} rows, {len(probes)} probes, {asked.threads} thread(s); load {load:.1f}")
        print(f"{'probes/s at nq':<28}" + "".join(f"{nq:>10}" for nq in SIZES))
        with connect(settings.milvus) as milvus:
            generation = live_generation(milvus, settings.alias)
            assert generation is not None
            index = MilvusSource(milvus, generation)
            for name, source in (("index (Milvus Lite)", index), ("exact scan of the shards", scan)):
                rates = [rate(source, probes, nq) for nq in SIZES]
                print(f"{name:<28}" + "".join(f"{each:>10,.0f}" for each in rates))
        beside_faiss(probes, scan, asked.threads)
        window = Filters(captured_to=asked.rows * 1000 // 10)
        narrow = scan.nearest(np.stack([each.features for each in probes[:64]]), 20, window)
        print(
            f"a tenth of the time: {scan.stats.groups_skipped} of {scan.stats.groups} row groups unread, "
            f"{scan.stats.rows_compared:,} of {scan.stats.rows:,} rows compared ({len(narrow)} probes)"
        )
        print(f"load average {os.getloadavg()[0]:.1f}")


SIZES = (1, 16, 128, 512)


def rate(source: MilvusSource | ScanSource, probes: list[Probe], nq: int) -> float:
    """Probes answered a second, in calls of nq; at least one call and about a second."""
    rules, done, started = Rules(top=20), 0, time.perf_counter()
    while time.perf_counter() - started < 1 or not done:
        first = done % max(1, len(probes) - nq + 1)
        retrieve(source, probes[first : first + nq], rules)
        done += nq
    return done / (time.perf_counter() - started)


def beside_faiss(probes: list[Probe], scan: ScanSource, threads: int) -> None:
    """The scan's plain neighbours against faiss's, same rows and cores."""
    try:
        faiss = importlib.import_module("faiss")
    except ModuleNotFoundError:
        print("faiss is not installed: left out")
        return
    faiss.omp_set_num_threads(threads)
    blocks = list(scan._blocks(Filters()))
    ids, vectors = np.concatenate([ids for ids, _ in blocks]), np.concatenate([block for _, block in blocks])
    flat = faiss.IndexFlatL2(vectors.shape[1])
    flat.add(vectors)
    queries = np.stack([probe.features for probe in probes])
    started = time.perf_counter()
    theirs = ids[flat.search(queries, 20)[1]]
    faiss_seconds = time.perf_counter() - started
    started = time.perf_counter()
    hits = scan.nearest(queries, 20, Filters())
    ours = np.array([[hit.crop_id for hit in row] for row in hits])
    scan_seconds = time.perf_counter() - started
    print(
        f"plain neighbours, nq {len(probes)}: faiss IndexFlatL2 in memory {faiss_seconds:.2f} s, "
        f"scan from Parquet with its lookups {scan_seconds:.2f} s, equal {(ours == theirs).mean():.4f}"
    )


if __name__ == "__main__":
    main()
