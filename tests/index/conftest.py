"""Real parts for the tests of the index: a Milvus Lite file, and finished runs in a local store."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from index.milvus.client import Milvus, connect
from index.runs.run import Run
from infra.store import Store

FINGERPRINT = "aa11bb22" * 8

MakeRun = Callable[..., Run]


@pytest.fixture
def milvus(tmp_path: Path) -> Iterator[Milvus]:
    with connect(str(tmp_path / "index.db")) as connection:
        yield connection


@pytest.fixture
def make_run(store: Store, make_finished_run: MakeRun, look_alikes: Callable[..., Any]) -> MakeRun:
    """Make a finished run: crops first..first+rows of one archive, in groups of 10 look-alikes."""

    def make(
        run_id: str,
        rows: int = 300,
        *,
        first: int = 0,
        fingerprint: str = FINGERPRINT,
        seed: int = 0,
        rows_per_shard: int = 100_000,
        attributes: bool = False,
        look: Callable[[NDArray[np.int64], int], NDArray[np.float32]] = look_alikes,
    ) -> Run:
        numbers = range(first, first + rows)
        return make_finished_run(
            store,
            run_id,
            numbers,
            fingerprint=fingerprint,
            rows_per_shard=rows_per_shard,
            look=lambda of_crops: look(of_crops, seed),
            attributes=attributes,
            uri=[f"s3://archive/cam-{number % 5}/{number:06d}.jpg" for number in numbers],
            camera_id=[f"cam-{number % 5}" for number in numbers],
            captured_at=[number * 1000 if number % 10 else -1 for number in numbers],
            track_id=[f"t{number // 10}" if number % 3 else "" for number in numbers],
        )

    return make
