"""Synthetic vectors, a finished run and a Milvus server, for the benchmarks of the index."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.archive.manifest import crop_id_of
from index.milvus.client import Milvus, connect
from index.runs.run import Run
from index.runs.shards import shard_table
from index.schema import EMBEDDING_DIM, MANIFEST_SCHEMA, QUARANTINE_SCHEMA
from infra.servers import MilvusServer, SeaweedFs
from infra.store import Store, open_store

GROUP = 20  # crops a vehicle
PRINT = "be7c4000" * 8


def grouped(rows: int, seed: int = 0) -> NDArray[np.float32]:
    """Draw float32 (rows, 1024): groups of 20 around a centre each, as crops of one vehicle are."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((-(-rows // GROUP), EMBEDDING_DIM), np.float32)
    vectors = np.repeat(centres, GROUP, axis=0)[:rows]
    vectors += 0.5 * random.standard_normal(vectors.shape, np.float32)
    return vectors[random.permutation(rows)]


def finished_run(store: Store, run_id: str, vectors: NDArray[np.float32], rows_per_shard: int) -> Run:
    """Write a run of these vectors (n, 1024)."""
    n = len(vectors)
    uris = [f"s3://archive/dt=2026-11-22/cam=004/{number:09d}.jpg" for number in range(n)]
    columns = {name: [0] * n for name in MANIFEST_SCHEMA.names} | {
        "crop_id": [crop_id_of(uri) for uri in uris],
        "uri": uris,
        "etag": ["e"] * n,
        "camera_id": ["004"] * n,
        "track_id": [""] * n,
    }
    run = Run.create(
        store,
        run_id,
        manifest=pa.table(columns, schema=MANIFEST_SCHEMA),
        archive="s3://archive",
        fingerprint=PRINT,
        model="s3://models/m",
        settings={},
        rows_per_part=rows_per_shard,
        rows_per_shard=rows_per_shard,
    )
    for part in run.pending_parts():
        crops = run.part_manifest(part)
        block = vectors[part * rows_per_shard :][: crops.num_rows]
        shard = shard_table(crops, block, np.zeros(len(block), np.int32), np.ones(len(block), np.float32))
        run.write_part(part, shard, QUARANTINE_SCHEMA.empty_table())
    run.finish()
    return run


@dataclass(frozen=True, slots=True)
class Bench:
    """A running server, a connection, a store in the server's bucket and one in another bucket."""

    server: MilvusServer
    milvus: Milvus
    own: Store
    foreign: Store

    @property
    def bucket(self) -> str:
        """The server's own bucket."""
        return f"s3://{self.server.bucket}"

    def memory_mb(self) -> float:
        """Resident memory of the server's process, in MB."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
                folder = os.readlink(process / "cwd")  # noqa: PTH115
                if b"milvus" in command and b"standalone" in command and folder == str(self.server.folder):
                    pages = int((process / "statm").read_text().split()[1])
                    if pages * 4096 > 50e6:
                        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
            except OSError:
                continue
        return float("nan")


@contextmanager
def bench_server() -> Iterator[Bench]:
    """Start SeaweedFS and Milvus in a temporary folder."""
    with (
        tempfile.TemporaryDirectory(prefix="clvr-bench-") as folder,
        SeaweedFs.start(Path(folder, "s3")) as seaweedfs,
        MilvusServer.start(Path(folder, "milvus"), storage=seaweedfs) as server,
        connect(server.uri, server.token) as milvus,
    ):
        own = open_store(f"s3://{server.bucket}/clvr", seaweedfs.settings)
        foreign = open_store(seaweedfs.create_bucket("runs-elsewhere"), seaweedfs.settings)
        yield Bench(server, milvus, own, foreign)
