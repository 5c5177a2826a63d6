"""The exact scan against faiss's IndexFlatL2 and Lance's flat scan (where installed), in one run.

    python tests/benchmarks/bench_exact.py [--rows 10000 100000 500000] [--probes 1 16 64 512 2048] [--k 10]
    python tests/benchmarks/bench_exact.py --avx2            # as on a processor without AVX-512 and bfloat16
    python tests/benchmarks/bench_exact.py --memory          # peak memory by rows, one process each

The vectors resemble the network's: non-negative, in groups of 20 around a common mean. From memory, both
search the same array, and faiss has copied it before the clock starts. From Parquet, faiss reads the file,
copies it into its index and searches; the scan compares while it reads. Lance searches a dataset of its own
format for one probe at a time, so it is compared with a scan for one.

`equal` is the share of places at which both return the same id. faiss orders by float32 and the scan by
float64, so two distances that float32 cannot tell apart may swap places. `settled` is the same share after
the first k + 8 of faiss are reordered by float64 distance, then id.
"""

import argparse
import gc
import importlib
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
from measure import AVX2, Row, add_json_option, machine, save_rows, start_again
from numpy.typing import NDArray

from index.exact.knn import nearest
from index.exact.products import fastest_product
from index.parquet import open_parquet
from index.runs.shards import vectors_of, write_shard
from index.schema import SHARD_SCHEMA
from index.search.scan_source import prefetch
from infra.store import Store, open_store

Found = NDArray[np.int64]
DIMENSION = 1024


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--probes", type=int, nargs="+", default=[1, 16, 64, 512, 2048])
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--avx2", action="store_true", help="forbid AVX-512, AMX and bfloat16 to all libraries"
    )
    parser.add_argument("--parquet-rows", type=int, default=100_000, help="at most so many rows from Parquet")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    add_json_option(parser)
    args = parser.parse_args()
    start_again(args.threads, AVX2 if args.avx2 else None)
    torch.set_num_threads(args.threads)
    pa.set_cpu_count(args.threads)
    if args.one:
        one_scan(args.one)
    elif args.memory:
        memory(args.rows)
    else:
        save_rows(tables(args), args.json)


def tables(args: argparse.Namespace) -> list[Row]:
    """Print scan and faiss side by side, by rows, probes and k; return the rows."""
    faiss, lance = _faiss(args.threads), None if args.avx2 else _optional("lance")
    print(f"{machine()}; torch {torch.__version__}, {args.threads} thread(s)")
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in peaks().items())
    chosen = f"{rates} GFLOP/s; chosen: {fastest_product().name}"
    print(f"peak of one product: {chosen}\n")
    # The first call of a process compiles or loads the loops and chooses the fastest product.
    sample = features(8192, seed=2)
    for count in (1, 64, 512):
        nearest(sample[:count], [(np.arange(8192), sample)], 20)
    results = [Row(f"peak of one product, {args.threads} thread(s)", chosen)]
    print(f"{'':<48}{'CPU seconds':^20}{'wall seconds':^20}")
    print(
        f"{'from':<9}{'rows':>9}{'nq':>6}{'k':>5}{'GFLOP/s':>9}{'share':>10}"
        f"{'scan':>10}{'faiss':>10}{'scan':>10}{'faiss':>10}{'times':>7}{'equal':>9}{'settled':>9}"
    )
    for rows in args.rows:
        vectors = features(rows, seed=0)
        with tempfile.TemporaryDirectory() as folder:
            store = open_store(folder)
            if rows <= args.parquet_rows:
                write(store, vectors)
            for count in args.probes:
                probes = features(count, seed=1, like=vectors)
                for k in args.k:
                    from_parquet = rows <= args.parquet_rows and k == args.k[0]
                    results += compare(faiss, vectors, probes, k, store if from_parquet else None)
                    if lance and from_parquet and count == 1:
                        results.append(compare_lance(lance, vectors, probes, k, store, folder))
    return results


def scan_parquet(store: Store, probes: NDArray[np.float32], k: int) -> Found:
    """Return the ids of the k nearest rows of the shard."""
    with prefetch(blocks(store)) as read:
        return nearest(probes, read, k)[0]


def compare_lance(
    lance: Any, vectors: NDArray[np.float32], probes: NDArray[np.float32], k: int, store: Store, folder: str
) -> Row:
    """Print and return a row of one probe; the baseline is Lance's search of its own dataset, unindexed."""
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIMENSION)
    lance.write_dataset(
        pa.table({"crop_id": np.arange(len(vectors)), "embedding": values}), f"{folder}/lance"
    )

    def from_lance() -> Found:
        search = {"column": "embedding", "q": probes[0], "k": k, "metric": "l2"}
        columns = ["crop_id", "_distance"]
        rows = lance.dataset(f"{folder}/lance").to_table(nearest=search, columns=columns)
        return np.asarray(rows["crop_id"])[None]

    turns = [(clocked(lambda: scan_parquet(store, probes, k)), clocked(from_lance)) for _ in range(6)]
    (scan, theirs), neighbours = (min(each[0] for each in way) for way in zip(*turns, strict=True)), turns[0]
    equal = (neighbours[0][2] == neighbours[1][2]).mean()
    print(f"{'Lance':<9}{len(vectors):>9,}{1:>6}{k:>5}{'':>19}{scan:>10.3f}{theirs:>10.3f}{equal:>36.5f}")
    case = f"{len(vectors):,} rows from Parquet, 1 probes, k = {k}"
    return Row(case, f"{scan:.3f} CPU s", f"Lance flat scan: {theirs:.3f} CPU s", theirs / scan)


def compare(
    faiss: Any, vectors: NDArray[np.float32], probes: NDArray[np.float32], k: int, store: Store | None
) -> list[Row]:
    """Print and return a row from memory, and with a store one from Parquet."""
    results = []
    ids = np.arange(len(vectors))
    steps = range(0, len(vectors), 8192)

    def from_memory() -> Found:
        return nearest(probes, ((ids[i : i + 8192], vectors[i : i + 8192]) for i in steps), k)[0]

    def from_parquet() -> Found:
        assert store is not None
        return scan_parquet(store, probes, k)

    def faiss_from_parquet() -> Found:
        assert store is not None
        flat = faiss.IndexFlatL2(DIMENSION)
        read = []
        for block_ids, block in blocks(store):
            flat.add(block)
            read.append(block_ids)
        return np.asarray(np.concatenate(read)[flat.search(probes, k)[1]])

    flat: Any = faiss.IndexFlatL2(DIMENSION) if faiss else None
    if flat is not None:
        flat.add(vectors)
    ways: dict[str, tuple[Callable[[], Found], Callable[[], Found]]] = {
        "memory": (from_memory, lambda: np.asarray(flat.search(probes, k)[1])),
        "Parquet": (from_parquet, faiss_from_parquet),
    }
    if store is None:
        del ways["Parquet"]
    work = 2e-9 * len(probes) * len(vectors) * DIMENSION
    for name, (scan, baseline) in ways.items():
        # In turns, the best of several, because other processes may slow one of them.
        scans, baselines = [clocked(scan)], [clocked(baseline)] if faiss else []
        for _ in range(min(5, int(1.5 / scans[0][1]))):
            scans.append(clocked(scan))
            baselines += [clocked(baseline)] if faiss else []
        neighbours, cpu, wall = scans[0][2], min(c for c, _, _ in scans), min(w for _, w, _ in scans)
        line = f"{name:<9}{len(vectors):>9,}{len(probes):>6}{k:>5}"
        line += f"{work / cpu:>9.0f}{work / cpu / peaks()['float32']:>10.0%}"
        row = Row(f"{len(vectors):,} rows from {name}, {len(probes)} probes, k = {k}", f"{cpu:.3f} CPU s")
        if faiss:
            faiss_cpu, faiss_wall = min(c for c, _, _ in baselines), min(w for _, w, _ in baselines)
            deeper = np.asarray(flat.search(probes, k + 8)[1]) if flat is not None else neighbours
            settled = (by_float64(probes, vectors, deeper)[:, :k] == neighbours).mean()
            line += (
                f"{cpu:>10.3f}{faiss_cpu:>10.3f}{wall:>10.3f}{faiss_wall:>10.3f}{faiss_cpu / cpu:>7.2f}"
                f"{(baselines[0][2] == neighbours).mean():>9.5f}{settled:>9.5f}"
            )
            row = Row(row.case, row.result, f"faiss IndexFlatL2: {faiss_cpu:.3f} CPU s", faiss_cpu / cpu)
        print(line, flush=True)
        results.append(row)
    return results


def clocked(call: Callable[[], Found]) -> tuple[float, float, Found]:
    """Return CPU seconds, wall seconds and the result of a call."""
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def by_float64(probes: NDArray[np.float32], vectors: NDArray[np.float32], ids: Found) -> Found:
    """Return ids (q, m) with each row ordered by float64 distance, then id."""
    ordered = np.empty_like(ids)
    for row, candidates in enumerate(ids):
        delta = vectors[candidates].astype(np.float64) - probes[row]
        ordered[row] = candidates[np.lexsort((candidates, np.einsum("ij,ij->i", delta, delta)))]
    return ordered


def features(rows: int, *, seed: int, like: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Return vectors (rows, 1024) like the network's; with `like`, close to rows of it, as probes are."""
    rng = np.random.default_rng(seed)
    if like is not None:
        rows_of_like = like[rng.integers(0, len(like), rows)]
        return np.maximum(rows_of_like + 0.05 * rng.standard_normal(rows_of_like.shape, dtype=np.float32), 0)
    spread = 0.3 / np.sqrt(np.arange(1, DIMENSION + 1, dtype=np.float32))[:, None]
    mixed = rng.standard_normal((DIMENSION, DIMENSION), dtype=np.float32) * spread
    centres = rng.standard_normal((rows // 20 + 1, DIMENSION), dtype=np.float32) @ mixed
    vectors = np.empty((rows, DIMENSION), np.float32)
    for start in range(0, rows, 10_000):
        part = slice(start, min(start + 10_000, rows))
        offsets = rng.standard_normal((part.stop - start, DIMENSION), dtype=np.float32) @ mixed
        vectors[part] = np.maximum(centres[np.arange(start, part.stop) % len(centres)] + offsets / 2 + 0.3, 0)
    return vectors


def write(store: Store, vectors: NDArray[np.float32]) -> None:
    """Write a shard as `clvr embed` does."""

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
    """Yield the shard's ids and vectors, a row group at a time."""
    with open_parquet(store, "shard.parquet") as file:
        for batch in file.batches(8192, ["crop_id", "embedding"]):
            yield batch.column("crop_id").to_numpy(), vectors_of(batch)


def peaks() -> dict[str, float]:
    """Return GFLOP/s of torch's products, 512 x 1024 x 4096, the best of five."""
    if not _PEAKS:
        left, right = torch.randn(512, 1024), torch.randn(4096, 1024)
        half = left.bfloat16(), right.bfloat16()
        ways: dict[str, Callable[[], Any]] = {
            "float32": lambda: torch.mm(left, right.T),
            "bfloat16": lambda: torch.mm(half[0], half[1].T),
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
    """Print the peak memory of a process that scans an archive from Parquet, by its rows."""
    for count in rows:
        subprocess.run([sys.executable, __file__, "--one", str(count)], check=True)


def one_scan(rows: int) -> None:
    """Scan an archive of synthetic rows and print how much memory that takes."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        probes = np.abs(rng.standard_normal((512, DIMENSION), dtype=np.float32))
        write(store, np.abs(rng.standard_normal((8192, DIMENSION), dtype=np.float32)))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        def again() -> Any:
            for number in range(-(-rows // 8192)):
                for ids, vectors in blocks(store):
                    yield ids + number * 8192, vectors

        with prefetch(again()) as read:
            nearest(probes, read, 20)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{rows:>9,} rows: peak {after / 1024:,.0f} MiB, {(after - before) / 1024:,.0f} MiB of it by the scan"
    )


def _faiss(threads: int) -> Any:
    faiss = _optional("faiss")
    if faiss:
        faiss.omp_set_num_threads(threads)
    return faiss


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        print(f"{name} is not installed: left out")
        return None


if __name__ == "__main__":
    main()
