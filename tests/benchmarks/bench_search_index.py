"""Searching a server: latency, probes/s and recall of each index type, against faiss-cpu on the same data.

    python tests/benchmarks/bench_search_index.py [--rows 10000] [--types FLAT,HNSW,IVF_FLAT,IVF_SQ8]

Recall is against exact search; the effort grows with k as `clvr search` lets it grow. faiss gets the same.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import faiss
import numpy as np
from milvus_bench import Bench, bench_server, finished_run, grouped, machine
from numpy.typing import NDArray

from index import generations
from index.bulk_load import await_index, load_runs
from index.crops import crop_id_of
from index.exact import nearest
from index.generations import Generation
from index.search import search_generation, search_params

PROBES = 1000
Search = Callable[[NDArray[np.float32], int], NDArray[np.int64]]


def measured(name: str, search: Search, probes: NDArray[np.float32], exact: NDArray[np.int64]) -> str:
    """One row: median latency by nq at top 20, probes/s at nq 100, recall at 10 and 100."""
    cells = []
    for nq in (1, 10, 100, 1000):
        taken = []
        for turn in range(30 if nq == 1 else 5 if nq == 10 else 2):
            block = probes[(turn * nq) % len(probes) :][:nq]
            begun = time.perf_counter()
            search(block, 20)
            taken.append(1000 * (time.perf_counter() - begun))
        cells.append(float(np.median(taken)))
    recalls = [recall(search, probes[:200], exact[:200], k) for k in (10, 100)]
    return (
        f"| {name:<18} | {cells[0]:>8.1f} | {cells[1]:>8.1f} | {cells[2]:>8.0f} | {cells[3]:>8.0f} "
        f"| {100_000 / cells[2]:>8,.0f} | {recalls[0]:.3f} | {recalls[1]:.3f} |"
    )


def recall(search: Search, probes: NDArray[np.float32], exact: NDArray[np.int64], k: int) -> float:
    """Return the mean share of the exact k nearest that were found."""
    found = np.concatenate([search(probes[first : first + 50], k) for first in range(0, len(probes), 50)])
    return float(
        np.mean(
            [len(set(a[:k]) & set(b[:k])) / k for a, b in zip(found.tolist(), exact.tolist(), strict=True)]
        )
    )


def on_milvus(bench: Bench, generation: Generation) -> Search:
    """Search a generation."""

    def search(probes: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        answers = search_generation(bench.milvus, generation, probes, k)
        return np.asarray([[hit.crop_id for hit in hits] for batch in answers for hits in batch])

    return search


def on_faiss(index: faiss.Index, ids: NDArray[np.int64], spec: generations.IndexSpec) -> Search:
    """Search a faiss index with the effort that Milvus gets."""

    def search(probes: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        effort = search_params(spec, k)
        if "ef" in effort:
            index.hnsw.efSearch = effort["ef"]
        if "nprobe" in effort:
            index.nprobe = effort["nprobe"]
        return ids[index.search(probes, k)[1]]

    return search


def built(spec: generations.IndexSpec, vectors: NDArray[np.float32]) -> faiss.Index:
    """Build the same index in faiss."""
    d = vectors.shape[1]
    if spec.type == "HNSW":
        index = faiss.IndexHNSWFlat(d, spec.params["M"])
        index.hnsw.efConstruction = spec.params["efConstruction"]
    elif spec.type.startswith("IVF"):
        kind = "SQ8" if spec.type == "IVF_SQ8" else "Flat"
        index = faiss.index_factory(d, f"IVF{spec.params['nlist']},{kind}")
        index.train(vectors)
    else:
        index = faiss.IndexFlatL2(d)
    index.add(vectors)
    return index


def reindexed(bench: Bench, generation: Generation, spec: generations.IndexSpec) -> Generation:
    """Give a generation another index and load it."""
    other = replace(generation, index=spec)
    bench.milvus.call("release_collection", generation.name)
    bench.milvus.call("drop_index", generation.name, "embedding")
    generations.create_index(bench.milvus, other)
    await_index(bench.milvus, other)
    generations.ensure_loaded(bench.milvus, other)
    return other


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--types", default="FLAT,HNSW,IVF_FLAT,IVF_SQ8")
    asked = parser.parse_args()
    vectors = grouped(asked.rows)
    probes = grouped(asked.rows, seed=0)[: min(PROBES, asked.rows)]
    probes = probes + 0.1 * np.random.default_rng(1).standard_normal(probes.shape, np.float32)
    uris = [f"s3://archive/dt=2026-11-22/cam=004/{number:09d}.jpg" for number in range(asked.rows)]
    ids = np.asarray([crop_id_of(uri) for uri in uris])
    exact, _ = nearest(probes[:200], [(ids, vectors)], 100)
    print(f"{asked.rows:,} x 1024 in groups of 20, L2, top 20; {machine()}")
    print("| index              | nq 1 ms  | nq 10    | nq 100   | nq 1000  | probes/s |  @10  | @100  |")
    print("| ------------------ | -------: | -------: | -------: | -------: | -------: | ----: | ----: |")
    notes = []
    with bench_server() as bench:
        run = finished_run(bench.own, "r", vectors, asked.rows)
        generation = load_runs(
            bench.milvus, bench.own, [run], alias="b", index_type="IVF_FLAT", milvus_bucket=bench.bucket
        )
        for kind in asked.types.split(","):
            spec = generations.index_spec(bench.milvus, kind, asked.rows)
            begun = time.monotonic()
            generation = reindexed(bench, generation, spec)
            served = time.monotonic() - begun
            print(measured(f"Milvus {kind}", on_milvus(bench, generation), probes, exact), flush=True)
            memory = bench.memory_mb()
            begun = time.monotonic()
            local = built(spec, vectors)
            alone = time.monotonic() - begun
            print(measured(f"faiss {kind}", on_faiss(local, ids, spec), probes, exact), flush=True)
            notes.append(
                f"{kind}: built and loaded in {served:.0f} s on the server ({memory:,.0f} MB resident), "
                f"{alone:.0f} s in faiss"
            )
    print("\n".join(notes))
    print(f"at the end: {machine()}")


if __name__ == "__main__":
    main()
