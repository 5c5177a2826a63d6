"""CPU-seconds of an exact scan beside faiss's (when installed) and beside a float32 matrix and partial sort.

python tests/benchmarks/bench_exact.py [--queries 100] [--rows 100000] [--k 10] [--threads 1]
"""

import argparse
import importlib
import time
from collections.abc import Callable

import numpy as np
import torch
from bench_cmc import processor
from numpy.typing import NDArray

from index.distances import choose_kernel
from index.exact import nearest

Found = NDArray[np.int64]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((asked.rows // 20 + 1, 1024), dtype=np.float32)
    vectors = rng.standard_normal((asked.rows, 1024), dtype=np.float32)
    vectors *= 0.5
    vectors += centres[np.arange(asked.rows) % len(centres)]
    queries = vectors[: asked.queries] + rng.standard_normal((asked.queries, 1024), dtype=np.float32) * 0.1
    ids = np.arange(asked.rows)

    def scan() -> Found:
        blocks = ((ids[i : i + 8192], vectors[i : i + 8192]) for i in range(0, asked.rows, 8192))
        return nearest(queries, blocks, asked.k)[0]

    def matrix() -> Found:
        x, y = torch.from_numpy(queries), torch.from_numpy(vectors)
        squared = x.pow(2).sum(1)[:, None] + y.pow(2).sum(1) - 2 * x @ y.T
        return np.asarray(squared.topk(asked.k, largest=False).indices.numpy())

    methods: dict[str, Callable[[], Found]] = {"scan (index.exact)": scan, "float32 matrix, topk": matrix}
    try:
        faiss = importlib.import_module("faiss")
    except ModuleNotFoundError:
        print("faiss is not installed: left out")
    else:
        faiss.omp_set_num_threads(asked.threads)
        flat = faiss.IndexFlatL2(1024)
        flat.add(vectors)
        methods["faiss IndexFlatL2"] = lambda: np.asarray(flat.search(queries, asked.k)[1])

    print(f"{processor()}; torch {torch.__version__}, {asked.threads} thread(s)")
    print(f"fastest float32 product here: {choose_kernel(work=1e12).name}")
    print(f"{asked.queries} queries x {asked.rows} rows x 1024, k = {asked.k}\n")
    print(f"{'what':<24}{'CPU s':>8}{'wall s':>8}{'GFLOP/s':>9}{'same as scan':>14}")
    truth = scan()
    for name, call in methods.items():
        cpu, wall = time.process_time(), time.perf_counter()
        found = call()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        rate = 2e-9 * asked.queries * asked.rows * 1024 / cpu
        print(f"{name:<24}{cpu:>8.2f}{wall:>8.2f}{rate:>9.0f}{(found == truth).mean():>14.4f}")


if __name__ == "__main__":
    main()
