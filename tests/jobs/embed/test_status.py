"""`clvr status` of an unfinished run counts the written parts, and its counts add up."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index.runs.accounting import QuarantinedCrop, quarantine_table
from index.runs.run import Run
from index.runs.shards import shard_table
from index.schema import EMBEDDING_DIM, MANIFEST_SCHEMA, UNKNOWN_TIME
from infra.settings import load_settings
from infra.store import open_store
from jobs.embed.status import run_status

ROWS, ROWS_PER_PART = 10, 4


@pytest.fixture
def run(tmp_path: Path) -> Run:
    crop = {"etag": "e", "size": 1, "last_modified": 0, "camera_id": "", "captured_at": UNKNOWN_TIME}
    crop |= {"track_id": "", "vehicle_id": None, "model_id": None}
    rows = [{"crop_id": number, "uri": f"/archive/{number}.jpg", **crop} for number in range(ROWS)]
    return Run.create(
        open_store(str(tmp_path / "runs")),
        "unfinished",
        manifest=pa.Table.from_pylist(rows, MANIFEST_SCHEMA),
        archive="/archive",
        fingerprint="f" * 64,
        model="model",
        settings={},
        rows_per_part=ROWS_PER_PART,
    )


def do_part(run: Run, part: int) -> None:
    """Embed all crops of a part but the first, which is not a picture."""
    crops = run.part_manifest(part)
    good, bad = crops.slice(1), crops.slice(0, 1).select(["crop_id", "uri"]).to_pylist()
    vectors = np.ones((good.num_rows, EMBEDDING_DIM), dtype=np.float32)
    shard = shard_table(good, vectors, np.zeros(len(vectors), np.int32), np.ones(len(vectors), np.float32))
    broken = quarantine_table(QuarantinedCrop(**row, stage="decode", cause="truncated") for row in bad)
    run.write_part(part, shard, broken)


@pytest.mark.parametrize(
    ("done", "embedded", "quarantined", "pending"),
    [([], 0, 0, 10), ([0], 3, 1, 6), ([2], 1, 1, 8), ([0, 2], 4, 2, 4), ([0, 1, 2], 7, 3, 0)],
)
def test_status_of_an_unfinished_run_counts_the_written_parts(
    run: Run, tmp_path: Path, done: list[int], embedded: int, quarantined: int, pending: int
) -> None:
    for part in done:
        do_part(run, part)
    status = run_status("unfinished", load_settings({"runs": str(tmp_path / "runs")}))
    assert not status.finished
    assert (status.embedded, status.quarantined, status.pending) == (embedded, quarantined, pending)
    assert status.listed == status.embedded + status.quarantined + status.duplicates + status.pending
    assert f"pending {pending}" in status.to_text()
