"""One part, without Ray: rows to the shard, failures to the quarantine, and word of both on the way."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clvr_model.embedder import Embeddings
from index.archive.listing import list_archive
from index.runs.accounting import crop_ids
from index.runs.run import Run
from index.runs.shards import read_shards, vectors_of
from infra.errors import BudgetExceeded
from infra.store import Store, open_store
from jobs.embed.part import PartReport, embed_part

CROPS = 21


class Means:
    """The mean shade of a picture, 1024 times; black ones make it fail like a broken network."""

    batch_size, feature_dim, fingerprint = 4, 1024, "f"

    def __call__(self, pictures: Any) -> Embeddings:
        means = pictures.mean(axis=(1, 2, 3)).astype(np.float32)
        means[means == 0] = np.nan
        count = len(pictures)
        features = np.repeat(means[:, None], 1024, axis=1)
        return Embeddings(features, np.full(count, 7, np.int32), np.full(count, 0.5, np.float32))


@pytest.fixture
def archive(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "archive"))
    for number in range(CROPS):
        Image.fromarray(np.full((20, 30, 3), number * 10, np.uint8)).save(buffer := io.BytesIO(), "JPEG")
        store.put(f"{number:02d}.jpg", buffer.getvalue())
    return store


def run_of(archive: Store, tmp_path: Path) -> Run:
    return Run.create(
        open_store(str(tmp_path / "runs")),
        "r",
        manifest=list_archive(archive),
        archive=archive.uri,
        fingerprint="f",
        model="m",
        settings={},
    )


def test_each_row_has_the_feature_of_its_own_picture(archive: Store, tmp_path: Path) -> None:
    run = run_of(archive, tmp_path)
    heard: list[PartReport] = []
    report = embed_part(run, 0, Means(), archive, on_progress=heard.append)
    summary = run.finish()
    assert (summary.embedded, summary.causes) == (CROPS - 1, {"embed/not-finite": 1})
    for batch in read_shards(run.store, run.shard_keys()):
        shades = [int(Path(uri).stem) * 10 for uri in batch["uri"].to_pylist()]
        assert np.abs(vectors_of(batch)[:, 0] - shades).max() < 2
        assert set(batch["model_id"].to_pylist()) == {7}
    assert [heard[0].embedded + heard[0].quarantined, heard[-1].embedded] == [4, CROPS - 1]
    assert (report.embedded, report.quarantined) == (CROPS - 1, 1)
    assert report.model_seconds > 0 and report.decode_seconds > 0 and report.bytes > 0


def test_a_part_of_nothing_but_failures_speaks_on_the_way_too(archive: Store, tmp_path: Path) -> None:
    for number in range(CROPS):
        archive.put(f"{number:02d}.jpg", b"no picture")
    run = run_of(archive, tmp_path)
    heard: list[PartReport] = []
    embed_part(run, 0, Means(), archive, on_progress=heard.append)
    assert len(heard) >= CROPS // 4
    assert run.finish().causes == {"decode/not-a-picture": CROPS}


def test_an_order_to_stop_leaves_the_part_pending(archive: Store, tmp_path: Path) -> None:
    run = run_of(archive, tmp_path)

    def stop(report: PartReport) -> None:
        raise BudgetExceeded("enough")

    with pytest.raises(BudgetExceeded):
        embed_part(run, 0, Means(), archive, on_progress=stop)
    assert run.pending_parts() == [0]


def test_done_twice_is_done_once(archive: Store, tmp_path: Path) -> None:
    run = run_of(archive, tmp_path)
    keys = run.folder.part_keys(0)
    written = []
    for _ in range(2):
        embed_part(run, 0, Means(), archive)
        written.append([run.store.get(key) for key in keys])
    assert written[0] == written[1]
    run.finish()
    ids = np.concatenate([crop_ids(batch) for batch in read_shards(run.store, run.shard_keys())])
    assert len(set(ids.tolist())) == CROPS - 1
