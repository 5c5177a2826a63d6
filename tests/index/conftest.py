"""Real parts for the tests of the index: a Milvus Lite file, and finished runs in a local store."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from index.manifest import crop_id_of
from index.milvus import Milvus, connect
from index.runs import Run
from index.schemas import MANIFEST_SCHEMA, QUARANTINE_SCHEMA
from index.shards import shard_table
from infra.store import Store, open_store

FINGERPRINT = "aa11bb22" * 8

MakeRun = Callable[..., Run]


@pytest.fixture
def milvus(tmp_path: Path) -> Iterator[Milvus]:
    with connect(str(tmp_path / "index.db")) as connection:
        yield connection


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def make_run(store: Store) -> MakeRun:
    """Make a finished run: crops first..first+rows of one archive, in groups of 10 look-alikes."""

    def make(
        run_id: str,
        rows: int = 300,
        *,
        first: int = 0,
        fingerprint: str = FINGERPRINT,
        seed: int = 0,
        rows_per_shard: int = 100_000,
        look: Callable[[NDArray[np.int64], int], NDArray[np.float32]] = look_alikes,
    ) -> Run:
        run = Run.create(
            store,
            run_id,
            manifest=manifest(rows, first),
            archive="s3://archive",
            fingerprint=fingerprint,
            model="s3://models/m",
            settings={},
            rows_per_part=rows_per_shard,
            rows_per_shard=rows_per_shard,
        )
        for part in run.pending_parts():
            crops = run.part_manifest(part)
            n = crops.num_rows
            # What a crop looks like depends on its own number, so two runs agree about it.
            vectors = look(crops["size"].to_numpy(), seed)
            shard = shard_table(
                crops, vectors, (crops["size"].to_numpy() % 7).astype(np.int32), np.full(n, 0.5, np.float32)
            )
            run.write_part(part, shard, QUARANTINE_SCHEMA.empty_table())
        run.finish()
        return run

    return make


def manifest(rows: int, first: int) -> pa.Table:
    numbers = range(first, first + rows)
    uris = [f"s3://archive/cam-{number % 5}/{number:06d}.jpg" for number in numbers]
    columns = {
        "crop_id": [crop_id_of(uri) for uri in uris],
        "uri": uris,
        "etag": [f"{number:x}" for number in numbers],
        "size": list(numbers),
        "last_modified": [0] * rows,
        "camera_id": [f"cam-{number % 5}" for number in numbers],
        "captured_at": [number * 1000 if number % 10 else -1 for number in numbers],
        "track_id": [f"t{number // 10}" if number % 3 else "" for number in numbers],
        "vehicle_id": [None] * rows,
        "model_id": [None] * rows,
    }
    return pa.table(columns, schema=MANIFEST_SCHEMA)


def look_alikes(numbers: NDArray[np.int64], seed: int) -> NDArray[np.float32]:
    vectors = [
        np.random.default_rng((seed, number // 10)).normal(size=1024)
        + 0.3 * np.random.default_rng((seed, number // 10, number)).normal(size=1024)
        for number in numbers.tolist()
    ]
    return np.asarray(vectors, np.float32)
