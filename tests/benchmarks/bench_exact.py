"""An exact scan beside faiss's IndexFlatL2 (where installed): from memory, and from Parquet, in one run.

    python tests/benchmarks/bench_exact.py [--rows 10000 100000] [--queries 1 64 512] [--k 20 100]
    python tests/benchmarks/bench_exact.py --memory          # peak memory by rows, one process each

Vectors are like the network's: not negative, in groups of 20 around a common mean. From memory both get the
same array, and faiss has copied it before the clock starts. From Parquet both begin with the file: faiss must
read it, copy it into its index, and search; the scan compares while it reads.

`equal` is the share of places with the same id as faiss has. It orders by float32, the scan by float64, so
where two distances are equal but for float32's rounding they may stand in another order; `settled` is the
same share after faiss's first k + 8 were ordered by float64 distance, then id.
"""

import argparse
import gc
import importlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from bench_cmc import processor
from numpy.typing import NDArray

from index.exact.knn import nearest
from index.parquet import opened
from index.runs.shards import vectors_of, write_shard
from index.schema import SHARD_SCHEMA
from index.search.scan_source import ahead
from infra.store import Store, open_store

Found = NDArray[np.int64]
DIMENSION = 1024


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 64, 512, 2048])
    parser.add_argument("--k", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    pa.set_cpu_count(asked.threads)
    if asked.one:
        one_scan(asked.one)
    elif asked.memory:
        memory(asked.rows)
    else:
        tables(asked)


def tables(asked: argparse.Namespace) -> None:
    """Scan and faiss beside each other, by rows, probes and k."""
    faiss = _faiss(asked.threads)
    print(f"{processor()}; torch {torch.__version__}, {asked.threads} thread(s)")
    print(f"peak of one product: {', '.join(f'{name} {rate:.0f}' for name, rate in peaks().items())} GFLOP/s")
    print(f"load average {os.getloadavg()[0]:.1f}\n")
    print(f"{'':<48}{'CPU seconds':^20}{'wall seconds':^20}")
    print(
        f"{'from':<9}{'rows':>9}{'nq':>6}{'k':>5}{'GFLOP/s':>9}{'share':>10}"
        f"{'scan':>10}{'faiss':>10}{'scan':>10}{'faiss':>10}{'times':>7}{'equal':>9}{'settled':>9}"
    )
    for rows in asked.rows:
        vectors = features(rows, seed=0)
        with tempfile.TemporaryDirectory() as folder:
            store = open_store(folder)
            write(store, vectors)
            for count in asked.queries:
                queries = features(count, seed=1, like=vectors)
                for k in asked.k:
                    compare(faiss, vectors, queries, k, store)


def compare(
    faiss: Any, vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int, store: Store
) -> None:
    """Two lines: from memory, from Parquet."""
    ids = np.arange(len(vectors))
    steps = range(0, len(vectors), 8192)

    def from_memory() -> Found:
        return nearest(queries, ((ids[i : i + 8192], vectors[i : i + 8192]) for i in steps), k)[0]

    def from_parquet() -> Found:
        with ahead(blocks(store)) as read:
            return nearest(queries, read, k)[0]

    def faiss_from_parquet() -> Found:
        flat = faiss.IndexFlatL2(DIMENSION)
        read = []
        for some, block in blocks(store):
            flat.add(block)
            read.append(some)
        return np.asarray(np.concatenate(read)[flat.search(queries, k)[1]])

    flat: Any = faiss.IndexFlatL2(DIMENSION) if faiss else None
    if flat is not None:
        flat.add(vectors)
    ways: dict[str, tuple[Callable[[], Found], Callable[[], Found]]] = {
        "memory": (from_memory, lambda: np.asarray(flat.search(queries, k)[1])),
        "Parquet": (from_parquet, faiss_from_parquet),
    }
    work = 2e-9 * len(queries) * len(vectors) * DIMENSION
    for name, (ours, theirs) in ways.items():
        # In turns, the better of two: what else runs on the machine must not decide.
        mine, other = [clocked(ours)], [clocked(theirs)] if faiss else []
        if mine[0][1] < 2:
            mine.append(clocked(ours))
            other += [clocked(theirs)] if faiss else []
        found, cpu, wall = mine[0][2], min(each[0] for each in mine), min(each[1] for each in mine)
        line = f"{name:<9}{len(vectors):>9,}{len(queries):>6}{k:>5}"
        line += f"{work / cpu:>9.0f}{work / cpu / peaks()['float32']:>10.0%}"
        if faiss:
            their_cpu, their_wall = min(each[0] for each in other), min(each[1] for each in other)
            deeper = np.asarray(flat.search(queries, k + 8)[1]) if flat is not None else found
            settled = (by_float64(queries, vectors, deeper)[:, :k] == found).mean()
            line += (
                f"{cpu:>10.3f}{their_cpu:>10.3f}{wall:>10.3f}{their_wall:>10.3f}{their_cpu / cpu:>7.2f}"
                f"{(other[0][2] == found).mean():>9.5f}{settled:>9.5f}"
            )
        print(line, flush=True)


def clocked(call: Callable[[], Found]) -> tuple[float, float, Found]:
    """CPU seconds, wall seconds, and what was found."""
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    found = call()
    return time.process_time() - cpu, time.perf_counter() - wall, found


def by_float64(queries: NDArray[np.float32], vectors: NDArray[np.float32], ids: Found) -> Found:
    """Each row of ids (q, m) ordered by float64 distance, then id."""
    ordered = np.empty_like(ids)
    for row, some in enumerate(ids):
        off = vectors[some].astype(np.float64) - queries[row]
        ordered[row] = some[np.lexsort((some, np.einsum("ij,ij->i", off, off)))]
    return ordered


def features(rows: int, *, seed: int, like: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Vectors (rows, 1024) like the network's; `like`: close to some of these, as a probe is."""
    rng = np.random.default_rng(seed)
    if like is not None:
        some = like[rng.integers(0, len(like), rows)]
        return np.maximum(some + 0.05 * rng.standard_normal(some.shape, dtype=np.float32), 0)
    spread = 0.3 / np.sqrt(np.arange(1, DIMENSION + 1, dtype=np.float32))[:, None]
    mixed = rng.standard_normal((DIMENSION, DIMENSION), dtype=np.float32) * spread
    centres = rng.standard_normal((rows // 20 + 1, DIMENSION), dtype=np.float32) @ mixed
    vectors = np.empty((rows, DIMENSION), np.float32)
    for start in range(0, rows, 10_000):
        part = slice(start, min(start + 10_000, rows))
        own = rng.standard_normal((part.stop - start, DIMENSION), dtype=np.float32) @ mixed
        vectors[part] = np.maximum(centres[np.arange(start, part.stop) % len(centres)] + own / 2 + 0.3, 0)
    return vectors


def write(store: Store, vectors: NDArray[np.float32]) -> None:
    """A shard as `clvr embed` writes it."""

    def batches() -> Any:
        for start in range(0, len(vectors), 8192):
            block = vectors[start : start + 8192]
            ids = np.arange(start, start + len(block))
            offsets = np.arange(0, block.size + 1, DIMENSION, dtype=np.int32)
            made = {
                "crop_id": pa.array(ids),
                "embedding": pa.ListArray.from_arrays(pa.array(offsets), pa.array(block.ravel())),
                "uri": pa.array([f"s3://archive/{each:09d}.jpg" for each in ids]),
                "camera_id": pa.array(["001"] * len(ids)),
                "track_id": pa.array([""] * len(ids)),
                "captured_at": pa.array(ids * 1000),
                "model_id": pa.array(np.zeros(len(ids), np.int32)),
                "model_confidence": pa.array(np.ones(len(ids), np.float32)),
            }
            columns = [made[name] for name in SHARD_SCHEMA.names]
            yield pa.RecordBatch.from_arrays(columns, schema=SHARD_SCHEMA)

    write_shard(store, "shard.parquet", batches(), fingerprint="bench", run_id="bench")


def blocks(store: Store) -> Any:
    """The shard's ids and vectors, a row group at a time, on one thread."""
    with opened(store, "shard.parquet") as file:
        for batch in file.iter_batches(8192, columns=["crop_id", "embedding"], use_threads=False):
            yield batch.column("crop_id").to_numpy(), vectors_of(batch)


def peaks() -> dict[str, float]:
    """GFLOP/s of the products of torch, 512 x 1024 x 4096, the best of some."""
    if not _PEAKS:
        left, right = torch.randn(512, 1024), torch.randn(4096, 1024)
        whole = (left * 30).to(torch.int8), (right * 30).to(torch.int8)
        half = left.bfloat16(), right.bfloat16()
        ways: dict[str, Callable[[], Any]] = {
            "float32": lambda: torch.mm(left, right.T),
            "bfloat16": lambda: torch.mm(half[0], half[1].T),
            "int8": lambda: torch._int_mm(whole[0], whole[1].T),
        }
        for name, call in ways.items():
            taken = []
            for _ in range(5):
                started = time.process_time()
                call()
                taken.append(time.process_time() - started)
            _PEAKS[name] = 2e-9 * 512 * 1024 * 4096 / min(taken)
    return _PEAKS


_PEAKS: dict[str, float] = {}


def memory(rows: list[int]) -> None:
    """Peak memory of a process that scans an archive from Parquet, by its rows."""
    for each in rows:
        subprocess.run([sys.executable, __file__, "--one", str(each)], check=True)


def one_scan(rows: int) -> None:
    """Write an archive of made-up rows bit by bit, scan it, and say how much memory that took."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        queries = np.abs(rng.standard_normal((512, DIMENSION), dtype=np.float32))
        some = np.abs(rng.standard_normal((8192, DIMENSION), dtype=np.float32))
        write(store, some)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        def again() -> Any:
            for number in range(-(-rows // 8192)):
                for ids, vectors in blocks(store):
                    yield ids + number * 8192, vectors

        with ahead(again()) as read:
            nearest(queries, read, 20)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{rows:>9,} rows: peak {after / 1024:,.0f} MiB, {(after - before) / 1024:,.0f} MiB of it by the scan"
    )


def _faiss(threads: int) -> Any:
    try:
        faiss = importlib.import_module("faiss")
    except ModuleNotFoundError:
        print("faiss is not installed: left out")
        return None
    faiss.omp_set_num_threads(threads)
    return faiss


if __name__ == "__main__":
    main()
