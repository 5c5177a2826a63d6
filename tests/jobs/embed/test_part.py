"""One part without Ray: rows go to the shard, failures to the quarantine, both are reported meanwhile."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clvr_model.embeddings import Embeddings
from index.archive.listing import list_crops
from index.runs.accounting import crop_ids
from index.runs.run import Run
from index.runs.shards import read_shards, vectors_of
from index.runs.tombstones import md5_of
from infra.errors import BudgetExceeded
from infra.store import Store, open_store
from jobs.embed.part import ImageEmbedder, PartReport, embed_parts, open_decoders

CROPS = 21


class Means:
    """The mean shade of an image, 1024 times; not a number for black images."""

    batch_size, feature_dim, image_size, fingerprint = 4, 1024, 299, "f"

    def __call__(self, images: Any) -> Embeddings:
        means = images.mean(axis=(1, 2, 3)).astype(np.float32)
        means[means == 0] = np.nan
        count = len(images)
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
        manifest=list_crops(archive).crops.read(),
        archive=archive.uri,
        fingerprint="f",
        model="m",
        settings={},
    )


def embed_part(
    run: Run,
    part: int,
    embedder: ImageEmbedder,
    archive: Store,
    *,
    on_progress: Callable[[PartReport], object] = lambda report: None,
) -> PartReport:
    with open_decoders(archive, embedder, 1) as decoders:
        (report,) = embed_parts(run, [part], embedder, decoders, on_progress=on_progress)
        return report


def test_each_row_has_the_feature_of_its_image(archive: Store, tmp_path: Path) -> None:
    run = run_of(archive, tmp_path)
    reports: list[PartReport] = []
    report = embed_part(run, 0, Means(), archive, on_progress=reports.append)
    summary = run.finish()
    assert (summary.embedded, summary.causes) == (CROPS - 1, {"embed/not-finite": 1})
    for batch in read_shards(run.store, run.shard_keys()):
        shades = [int(Path(uri).stem) * 10 for uri in batch["uri"].to_pylist()]
        assert np.abs(vectors_of(batch)[:, 0] - shades).max() < 2
        assert set(batch["model_id"].to_pylist()) == {7}
    assert [reports[0].embedded + reports[0].quarantined, reports[-1].embedded] == [4, CROPS - 1]
    assert (report.embedded, report.quarantined) == (CROPS - 1, 1)
    assert report.seconds.model_seconds > 0 and report.seconds.decode_seconds > 0 and report.bytes > 0


def test_images_have_the_size_of_the_model(archive: Store, tmp_path: Path) -> None:
    shapes = set()

    class Smaller(Means):
        image_size = 224

        def __call__(self, images: Any) -> Embeddings:
            shapes.add(images.shape[1:])
            return super().__call__(images)

    run = run_of(archive, tmp_path)
    embed_part(run, 0, Smaller(), archive, on_progress=lambda _: None)
    assert run.finish().embedded == CROPS - 1
    assert shapes == {(224, 224, 3)}


def test_part_of_failures_only_reports_progress(archive: Store, tmp_path: Path) -> None:
    for number in range(CROPS):
        archive.put(f"{number:02d}.jpg", b"no picture")
    run = run_of(archive, tmp_path)
    reports: list[PartReport] = []
    embed_part(run, 0, Means(), archive, on_progress=reports.append)
    assert len(reports) >= CROPS // 4
    assert run.finish().causes == {"decode/not-a-picture": CROPS}


def test_error_of_the_progress_callback_leaves_the_part_pending(archive: Store, tmp_path: Path) -> None:
    run = run_of(archive, tmp_path)

    def stop(report: PartReport) -> None:
        raise BudgetExceeded("enough")

    with pytest.raises(BudgetExceeded):
        embed_part(run, 0, Means(), archive, on_progress=stop)
    assert run.pending_parts() == [0]


def test_repeated_part_writes_the_same_bytes(archive: Store, tmp_path: Path) -> None:
    run = run_of(archive, tmp_path)
    written = []
    for _ in range(2):
        embed_part(run, 0, Means(), archive)
        mark = run.folder.part_mark(0)
        written.append([run.store.get(file.key) for file in (mark.shard, mark.quarantine)])
    assert written[0] == written[1]
    run.finish()
    ids = np.concatenate([crop_ids(batch) for batch in read_shards(run.store, run.shard_keys())])
    assert len(set(ids.tolist())) == CROPS - 1


def test_crops_that_were_erased_since_the_run_began_are_not_embedded(
    archive: Store, tmp_path: Path, hide: Callable[..., str]
) -> None:
    run = run_of(archive, tmp_path)
    ids = run.part_manifest(0)["crop_id"].to_pylist()
    hide(run.store, ids[3:5])
    # The same bytes under another name: moved, or uploaded again.
    hide(run.store, [1], [md5_of(archive.get("07.jpg"))])
    embed_part(Run.open(run.store, "r"), 0, Means(), archive)
    summary = Run.open(run.store, "r").finish()
    assert (summary.embedded, summary.quarantined) == (CROPS - 4, 4)
    assert summary.causes == {"embed/not-finite": 1, "manifest/erased": 2, "fetch/erased": 1}
    embedded = [
        one for batch in read_shards(run.store, run.shard_keys()) for one in batch["crop_id"].to_pylist()
    ]
    assert not set(embedded) & {ids[3], ids[4], ids[7]}


def test_a_crop_that_is_erased_while_it_is_embedded_is_not_written(
    archive: Store, tmp_path: Path, hide: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("index.runs.tombstones._MAX_AGE_SECONDS", 0.0)
    run = run_of(archive, tmp_path)
    ids = run.part_manifest(0)["crop_id"].to_pylist()
    reports: list[PartReport] = []

    def erase(report: PartReport) -> None:
        if not reports:
            hide(run.store, ids[:2])
        reports.append(report)

    embed_part(run, 0, Means(), archive, on_progress=erase)
    assert len(reports) > 1
    summary = run.finish()
    assert summary.causes["manifest/erased"] == 2
    assert summary.embedded + summary.quarantined == CROPS
