"""One part of a run: fetch, decode, embed, write. Without Ray, so that it can be measured alone."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clvr_model.embedder import Embeddings
from index.archive.reader import ArchiveReader
from index.runs.accounting import QuarantinedCrop, quarantine_table
from index.runs.run import Run
from index.runs.shards import shard_table
from infra.store import Store
from jobs.runtime.image_stream import ImageFailure, LoadTimes, stream_images

PREFETCH_BATCHES = 3
MIN_PREFETCH = 64


class EmbedsPictures(Protocol):
    """What a part needs of `clvr_model.embedder.Embedder`; benchmarks give a stub instead."""

    batch_size: int
    feature_dim: int
    fingerprint: str

    def __call__(self, images: NDArray[np.uint8]) -> Embeddings:
        """uint8 (n, 299, 299, 3) -> one row a picture."""


@dataclass(slots=True)
class PartReport:
    """What became of one part so far.

    waiting, model and writing seconds add up to the wall time of the part; fetch and decode seconds are
    those of the threads beside it, so they may add up to more.
    """

    part: int
    embedded: int = 0
    quarantined: int = 0
    bytes: int = 0
    waiting_seconds: float = 0.0
    model_seconds: float = 0.0
    writing_seconds: float = 0.0
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0
    causes: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Batch:
    """Pictures in one array, and the row of the part that each belongs to."""

    pictures: NDArray[np.uint8]
    rows: list[int] = field(default_factory=list)


def embed_part(
    run: Run,
    part: int,
    embedder: EmbedsPictures,
    archive: Store,
    *,
    decoders: int = 1,
    on_progress: Callable[[PartReport], object] = lambda report: None,
) -> PartReport:
    """Embed the crops of one part and write its shard and quarantine rows; repeatable, same result each time.

    archive: the store that the manifest's URIs lie under. decoders: how many pictures are decoded at a time.
    on_progress is told now and then how far the part is, and may raise to stop it. Raises StoreUnreachable
    when the archive or the run folder is out of reach for longer than all retries, StoreDenied when the
    archive refuses us.
    """
    manifest = run.part_manifest(part)
    report, times = PartReport(part), LoadTimes()
    features = np.zeros((manifest.num_rows, embedder.feature_dim), np.float32)
    model_ids = np.zeros(manifest.num_rows, np.int32)
    confidences = np.zeros(manifest.num_rows, np.float32)
    failures: dict[int, ImageFailure] = {}
    clock = time.perf_counter()
    for batch in _batches(manifest, archive, embedder.batch_size, failures, times, decoders):
        report.waiting_seconds += (ready := time.perf_counter()) - clock
        if batch.rows:
            embedded = embedder(batch.pictures[: len(batch.rows)])
            features[batch.rows] = embedded.features
            model_ids[batch.rows] = embedded.model_id
            confidences[batch.rows] = embedded.confidence
            strange = np.flatnonzero(~np.isfinite(embedded.features).all(axis=1))
            for row in strange:
                failures[batch.rows[row]] = ImageFailure(
                    "embed", "not-finite", "a feature of it is not a finite number"
                )
            report.embedded += len(batch.rows) - len(strange)
        report.model_seconds += (clock := time.perf_counter()) - ready
        on_progress(_snapshot(report, failures, times))
    report.waiting_seconds += (ready := time.perf_counter()) - clock

    good = np.array([row for row in range(manifest.num_rows) if row not in failures], np.int64)
    run.write_part(
        part,
        shard_table(manifest.take(good), features[good], model_ids[good], confidences[good]),
        _quarantine(manifest, failures),
    )
    report.writing_seconds = time.perf_counter() - ready
    on_progress(report := _snapshot(report, failures, times))
    return report


def _snapshot(report: PartReport, failures: dict[int, ImageFailure], times: LoadTimes) -> PartReport:
    return replace(
        report,
        quarantined=len(failures),
        bytes=times.bytes,
        fetch_seconds=times.fetch_seconds,
        decode_seconds=times.decode_seconds,
        causes=dict(Counter(f"{failure.stage}/{failure.cause}" for failure in failures.values())),
    )


def _batches(
    manifest: pa.Table,
    archive: Store,
    size: int,
    failures: dict[int, ImageFailure],
    times: LoadTimes,
    decoders: int,
) -> Iterator[_Batch]:
    """Yield batches of `size` pictures, and one without any after as many failures in a row."""
    uris = manifest["uri"].to_pylist()
    etags = manifest["etag"].to_pylist()
    ahead = max(MIN_PREFETCH, PREFETCH_BATCHES * size)
    batch: _Batch | None = None
    failed = 0
    stream = stream_images(
        ArchiveReader(archive), uris, etags=etags, ahead=ahead, decoders=decoders, times=times
    )
    for row, picture in stream:
        if isinstance(picture, ImageFailure):
            failures[row] = picture
            failed += 1
        else:
            batch = batch or _Batch(np.empty((size, *picture.shape), np.uint8))
            batch.pictures[len(batch.rows)] = picture
            batch.rows.append(row)
        if batch and len(batch.rows) == size:
            yield batch
            batch, failed = None, 0
        elif failed == size:
            yield _Batch(np.empty((0, 0, 0, 3), np.uint8))
            failed = 0
    if batch:
        yield batch


def _quarantine(manifest: pa.Table, failures: dict[int, ImageFailure]) -> pa.Table:
    rows = sorted(failures)
    taken = manifest.take(pa.array(rows, pa.int64()))
    return quarantine_table(
        QuarantinedCrop(crop_id, uri, failure.stage, failure.cause, failure.detail)
        for crop_id, uri, failure in zip(
            taken["crop_id"].to_pylist(),
            taken["uri"].to_pylist(),
            (failures[row] for row in rows),
            strict=True,
        )
    )
