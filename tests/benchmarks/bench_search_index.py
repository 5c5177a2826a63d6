"""Latency, throughput, recall and memory of each index type, against faiss on the same data.

    python tests/benchmarks/bench_search_index.py [--lite] [--rows 10000] [--types FLAT,HNSW,IVF_FLAT,IVF_SQ8]

The index is on a Milvus server or, with `--lite`, in a Milvus Lite file. Recall is against exact search.
The search parameters grow with k as in `clvr search`, and faiss gets the same ones. `--sweep` tries other
parameters too.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from measure import Row, add_json_option, machine, save_rows
from milvus_bench import bench_server, finished_run, grouped
from numpy.typing import NDArray

from index.archive.manifest import crop_id_of
from index.generations.load import LoadOptions, load_runs
from index.milvus import collection, index_types
from index.milvus.client import Milvus, connect
from index.milvus.collection import Generation
from index.milvus.index_types import IndexSpec, search_params
from index.milvus.search import search_generation
from index.milvus.waiting import wait_for_index
from index.runs.run import Run
from infra.store import Store, open_store

PROBES = 1000
FOR_RECALL = 200
TURNS = {1: 100, 10: 10, 100: 20, 1000: 2}
HEAD = "\n".join(
    f"| {name:<16} | {' | '.join(f'{text:>13}' for text in nq)} | {' | '.join(recalls)} |"
    for name, nq, recalls in (
        ("ms, probes/s", [f"nq {nq}" for nq in TURNS], (" @10 ", "@100 ")),
        ("-" * 16, ["-" * 12 + ":"] * 4, ("----:", "----:")),
    )
)
Search = Callable[[NDArray[np.float32], int], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Asked:
    """Probes (n, 1024), and the ids of the exact 100 nearest of the first of them."""

    probes: NDArray[np.float32]
    exact: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Place:
    """A generation on a server or in a file, and a function for its memory."""

    name: str
    milvus: Milvus
    generation: Generation
    memory_mb: Callable[[Generation], float]


@dataclass(frozen=True, slots=True)
class Measurement:
    """The seconds of each search at top 20 by nq, and recall@10 and @100."""

    name: str
    seconds: dict[int, list[float]]
    recalls: tuple[float, float]

    def ms(self, nq: int, percentile: int = 50) -> float:
        """Return a percentile of the milliseconds that a search of `nq` probes takes."""
        return 1000 * float(np.percentile(self.seconds[nq], percentile))

    def line(self) -> str:
        """Return one line of the table."""
        cells = [f"{self.ms(nq):>7,.1f} {1000 * nq / self.ms(nq):>5,.0f}" for nq in self.seconds]
        return f"| {self.name:<16} | {' | '.join(cells)} | {self.recalls[0]:.3f} | {self.recalls[1]:.3f} |"

    def rows(self, rows: int, baseline: "Measurement | None") -> Iterator[Row]:
        """Yield rows of the report: latency of 1 and of 100 probes, and the ratio to the baseline's."""
        recalls = f"recall@10 {self.recalls[0]:.3f}, @100 {self.recalls[1]:.3f}"
        for nq, case in ((1, "1 probe"), (100, "100 probes at once")):
            yield Row(
                f"{self.name}, {rows:,} rows, {case}",
                f"p50 {self.ms(nq):,.1f} ms, p95 {self.ms(nq, 95):,.1f} ms; {recalls}",
                f"{baseline.name}: p50 {baseline.ms(nq):,.1f} ms" if baseline else "",
                baseline.ms(nq) / self.ms(nq) if baseline else None,
            )


def measured(name: str, search: Search, asked: Asked) -> Measurement:
    """Measure latency at top 20 by nq, and recall at 10 and 100."""
    seconds = {}
    for nq, turns in TURNS.items():
        taken = []
        for turn in range(turns):
            block = asked.probes[(turn * nq) % len(asked.probes) :][:nq]
            started = time.perf_counter()
            search(block, 20)
            taken.append(time.perf_counter() - started)
        seconds[nq] = taken
    return Measurement(name, seconds, (recall(search, asked, 10), recall(search, asked, 100)))


def recall(search: Search, asked: Asked, k: int) -> float:
    """Return the mean share of the exact k nearest that the search returns."""
    ids = np.concatenate([search(asked.probes[i : i + 50], k) for i in range(0, len(asked.exact), 50)])
    pairs = zip(ids.tolist(), asked.exact.tolist(), strict=True)
    return float(np.mean([len(set(a[:k]) & set(b[:k])) / k for a, b in pairs]))


def on_milvus(milvus: Milvus, generation: Generation) -> Search:
    """Search a generation as `clvr search` does, with all output fields."""

    def search(probes: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        batches = search_generation(milvus, generation, probes, k)
        rows = [[hit.crop_id for hit in hits] for batch in batches for hits in batch]
        return np.asarray([ids + [-1] * (k - len(ids)) for ids in rows])

    return search


def bare(milvus: Milvus, generation: Generation, effort: dict[str, int]) -> Search:
    """Search with these search parameters, for the ids alone."""

    def search(probes: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        results: Any = milvus.call(
            "search",
            generation.name,
            data=list(probes),
            anns_field="embedding",
            limit=k,
            search_params={"metric_type": "L2", "params": effort},
            output_fields=["crop_id"],
            timeout=300,
        )
        # A search that probes too few lists returns fewer than k hits.
        return np.asarray([[hit.id for hit in hits] + [-1] * (k - len(hits)) for hits in results])

    return search


def on_faiss(index: Any, ids: NDArray[np.int64], spec: IndexSpec) -> Search:
    """Search a faiss index with the search parameters that Milvus gets."""

    def search(probes: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        effort = search_params(spec, k)
        if "ef" in effort:
            index.hnsw.efSearch = effort["ef"]
        if "nprobe" in effort:
            index.nprobe = effort["nprobe"]
        neighbours: NDArray[np.int64] = ids[index.search(probes, k)[1]]
        return neighbours

    return search


def built(spec: IndexSpec, vectors: NDArray[np.float32]) -> Any:
    """Build the same index in faiss."""
    d = vectors.shape[1]
    index: Any
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


def reindexed(milvus: Milvus, generation: Generation, spec: IndexSpec) -> Generation:
    """Give a generation another index and load it."""
    other = replace(generation, index=spec)
    if spec == generation.index:
        return generation
    milvus.call("release_collection", generation.name)
    milvus.call("drop_index", generation.name, "embedding")
    collection.create_index(milvus, other)
    wait_for_index(milvus, other)
    collection.ensure_loaded(milvus, other)
    return other


def efforts(spec: IndexSpec) -> list[dict[str, int]]:
    """Return the search parameters that a sweep tries."""
    if spec.type == "HNSW":
        return [{"ef": ef} for ef in (128, 256, 512, 800, 1600)]
    lists = spec.params.get("nlist", 0)
    return [{"nprobe": lists // share} for share in (32, 16, 8, 4, 2) if lists]


def sweep(place: Place, generation: Generation, asked: Asked) -> Iterator[str]:
    """Yield one line for each effort: recall at 10 and 100, and ms for 100 probes at top 100."""
    for effort in efforts(generation.index):
        search = bare(place.milvus, generation, effort)
        if effort.get("ef", 100) < 100:
            continue
        started = time.perf_counter()
        search(asked.probes[:100], 100)
        milliseconds = 1000 * (time.perf_counter() - started)
        recalls = ", ".join(f"recall@{k} {recall(search, asked, k):.3f}" for k in (10, 100))
        yield f"  {generation.index.type} {effort}: {recalls}, nq 100 at top 100 {milliseconds:,.0f} ms"


@contextmanager
def on_a_server(vectors: NDArray[np.float32], kind: str) -> Iterator[Place]:
    """Import the vectors into a real server."""
    with bench_server() as bench:
        run = finished_run(bench.own, "r", vectors, len(vectors))
        generation = load_runs(
            bench.milvus,
            bench.own,
            [run],
            alias="b",
            options=LoadOptions(index_type=kind, milvus_bucket=bench.bucket),
        )
        yield Place("Milvus", bench.milvus, generation, lambda _: bench.memory_mb())


@contextmanager
def in_a_file(vectors: NDArray[np.float32], kind: str, folder: str | None) -> Iterator[Place]:
    """Insert the vectors into Milvus Lite, or open the file that a folder already holds."""
    with tempfile.TemporaryDirectory(prefix="clvr-bench-") as scratch:
        path = Path(folder or scratch)
        store = _open_folder(path / "runs")
        with connect(str(path / "index.db")) as milvus:
            existing = collection.list_generations(milvus)
            if existing:
                generation = existing[-1]
                collection.ensure_loaded(milvus, generation)
            else:
                done = [name for name in store.folders("runs") if store.head(f"runs/{name}/done.json")]
                run = Run.open(store, "r") if done else finished_run(store, "r", vectors, len(vectors))
                generation = load_runs(milvus, store, [run], alias="b", options=LoadOptions(index_type=kind))
            yield Place("Lite", milvus, generation, lambda _: _resident(path / "index.db"))


def _open_folder(path: Path) -> Store:
    path.mkdir(parents=True, exist_ok=True)
    return open_store(str(path))


def _resident(db: Path) -> float:
    """Return the resident MB of a process that opens a copy of the file, loads it and searches once."""
    with tempfile.TemporaryDirectory(prefix="clvr-bench-", dir=db.parent) as scratch:
        copy = Path(scratch, "copy.db")
        # Hard links suffice: this process has the lock on the file, and a search writes nothing.
        subprocess.run(["/bin/cp", "-al", db, copy], check=True)
        (copy / "LOCK").unlink(missing_ok=True)
        done = subprocess.run([sys.executable, __file__, "--open", copy], capture_output=True, text=True)
        return float(done.stdout.split()[-1]) if done.returncode == 0 else float("nan")


def _open_and_search(path: str) -> None:
    with connect(path) as milvus:
        generation = collection.list_generations(milvus)[-1]
        collection.ensure_loaded(milvus, generation)
        list(search_generation(milvus, generation, np.zeros((1, 1024), np.float32), 20))
        status = Path("/proc/self/status").read_text()
        print(float(status.partition("VmRSS:")[2].split()[0]) / 1e3)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--types")
    parser.add_argument("--lite", action="store_true")
    parser.add_argument("--no-faiss", action="store_true")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--folder", help="Keep a local index in this folder, or reuse the one in it.")
    parser.add_argument("--open", help=argparse.SUPPRESS)
    add_json_option(parser)
    args = parser.parse_args()
    if args.open:
        _open_and_search(args.open)
        return
    kinds = (args.types or ("" if args.lite else "FLAT,") + "HNSW,IVF_FLAT,IVF_SQ8").split(",")
    vectors = grouped(args.rows)
    probes = vectors[: min(PROBES, args.rows)]
    probes = probes + 0.1 * np.random.default_rng(1).standard_normal(probes.shape, np.float32)
    uris = [f"s3://archive/dt=2026-11-22/cam=004/{number:09d}.jpg" for number in range(args.rows)]
    ids = np.asarray([crop_id_of(uri) for uri in uris])
    flat = built(IndexSpec("FLAT", {}), vectors)
    wanted = Asked(probes, ids[flat.search(probes[:FOR_RECALL], 100)[1]])
    del flat
    print(f"{args.rows:,} x 1024 in groups of 20, L2, top 20; {machine()}\n{HEAD}", flush=True)
    notes: list[str] = []
    rows: list[Row] = []
    started = time.monotonic()
    with in_a_file(vectors, kinds[0], args.folder) if args.lite else on_a_server(vectors, kinds[0]) as place:
        notes.append(f"the first load took {time.monotonic() - started:,.0f} s, index included")
        generation = place.generation
        for kind in kinds:
            spec = index_types.index_spec(place.milvus.capabilities, kind, args.rows)
            started = time.monotonic()
            generation = reindexed(place.milvus, generation, spec)
            served = time.monotonic() - started
            on_server = measured(f"{place.name} {kind}", on_milvus(place.milvus, generation), wanted)
            print(on_server.line(), flush=True)
            if args.sweep:
                for line in sweep(place, generation, wanted):
                    print(line, file=sys.stderr, flush=True)
            note = (
                f"{kind}: {served:,.0f} s to index and load, {place.memory_mb(generation):,.0f} MB resident"
            )
            by_faiss = None
            if not args.no_faiss:
                started = time.monotonic()
                local = built(spec, vectors)
                note += f"; faiss built it in {time.monotonic() - started:,.0f} s"
                by_faiss = measured(f"faiss {kind}", on_faiss(local, ids, spec), wanted)
                print(by_faiss.line(), flush=True)
                del local
            rows += on_server.rows(args.rows, by_faiss)
            notes.append(note)
            print(note, file=sys.stderr, flush=True)
    print("\n".join(notes))
    save_rows(rows, args.json)


if __name__ == "__main__":
    main()
