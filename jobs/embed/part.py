"""Embedding of one part of a run: fetch, decode, embed, write; it runs without Ray."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clvr_model.embedder import Embeddings
from index.archive.reader import ArchiveReader
from index.runs.accounting import QuarantinedCrop, quarantine_table
from index.runs.run import Run
from index.runs.shards import shard_table
from index.runs.timings import STAGES, StageSeconds
from index.runs.tombstones import ErasedCrops, read_tombstones
from infra.store import Store
from jobs.runtime.image_stream import ImageFailure, StreamTimes, stream_images

PREFETCH_BATCHES = 3
MIN_PREFETCH = 64


class ImageEmbedder(Protocol):
    """The interface of `clvr_model.embedder.Embedder` that a part uses; benchmarks give a stub instead."""

    batch_size: int
    feature_dim: int
    fingerprint: str
    image_size: int

    def __call__(self, images: NDArray[np.uint8], /) -> Embeddings:
        """uint8 (n, image_size, image_size, 3) -> one row per image."""


@dataclass(slots=True)
class PartReport:
    """Counts and times of one part so far."""

    part: int
    embedded: int = 0
    quarantined: int = 0
    bytes: int = 0
    seconds: StageSeconds = field(default_factory=StageSeconds)
    causes: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Batch:
    """Images in one array, and the row of the part that each belongs to."""

    images: NDArray[np.uint8]
    rows: list[int] = field(default_factory=list)


class _StageTimer:
    """Measures stages that follow each other: each call ends a stage, and the next one starts."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.last = time.perf_counter()

    def end(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] += now - self.last
        self.last = now


def embed_part(
    run: Run,
    part: int,
    embedder: ImageEmbedder,
    archive: Store,
    *,
    decoders: int = 1,
    on_progress: Callable[[PartReport], object] = lambda report: None,
) -> PartReport:
    """Embed the crops of one part and write its shard and quarantine rows; repeatable with the same result.

    archive: the store that contains the manifest's URIs. decoders: images that are decoded at the same time.
    on_progress is called with the report so far after each batch, and may raise to stop the part.
    Raises StoreUnreachable if the archive or the run folder does not answer within all retries, and
    StoreDenied if the archive refuses this client.
    """
    manifest = run.part_manifest(part)
    num_rows = manifest.num_rows
    features = np.zeros((num_rows, embedder.feature_dim), np.float32)
    model_ids = np.zeros(num_rows, np.int32)
    confidences = np.zeros(num_rows, np.float32)
    attributes: dict[str, tuple[NDArray[Any], NDArray[np.float32]]] = {}
    failures: dict[int, ImageFailure] = {}
    embedded = 0
    stream_times, timer = StreamTimes(), _StageTimer()

    def snapshot() -> PartReport:
        return PartReport(
            part,
            embedded=embedded,
            quarantined=len(failures),
            bytes=stream_times.bytes,
            seconds=StageSeconds(
                **{f"{stage}_seconds": seconds for stage, seconds in timer.seconds.items()},
                fetch_seconds=stream_times.fetch_seconds,
                decode_seconds=stream_times.decode_seconds,
            ),
            causes=dict(Counter(f"{failure.stage}/{failure.cause}" for failure in failures.values())),
        )

    erased = read_tombstones(run.store)
    for batch in _batches(manifest, archive, embedder, failures, stream_times, decoders, erased):
        timer.end("waiting")
        if batch.rows:
            output = embedder(batch.images[: len(batch.rows)])
            features[batch.rows] = output.features
            model_ids[batch.rows] = output.model_id
            confidences[batch.rows] = output.confidence
            for name, predicted in output.attributes.items():
                unknown = np.full(num_rows, "", object), np.zeros(num_rows, np.float32)
                values, sure = attributes.setdefault(name, unknown)
                values[batch.rows], sure[batch.rows] = predicted.values, predicted.confidence
            non_finite = np.flatnonzero(~np.isfinite(output.features).all(axis=1))
            for row in non_finite:
                failures[batch.rows[row]] = ImageFailure(
                    "embed", "not-finite", "a feature of the crop is not a finite number"
                )
            embedded += len(batch.rows) - len(non_finite)
        timer.end("model")
        on_progress(snapshot())
    timer.end("waiting")

    good = np.array([row for row in range(num_rows) if row not in failures], np.int64)
    run.write_part(
        part,
        shard_table(
            manifest.take(good),
            features[good],
            model_ids[good],
            confidences[good],
            {name: (values[good], sure[good]) for name, (values, sure) in attributes.items()},
        ),
        _quarantine(manifest, failures),
    )
    timer.end("writing")
    on_progress(report := snapshot())
    return report


def _batches(
    manifest: pa.Table,
    archive: Store,
    embedder: ImageEmbedder,
    failures: dict[int, ImageFailure],
    times: StreamTimes,
    decoders: int,
    erased: ErasedCrops,
) -> Iterator[_Batch]:
    """Yield batches of the embedder's size, and an empty batch after as many failures, to report progress."""
    size = embedder.batch_size
    uris = manifest["uri"].to_pylist()
    etags = manifest["etag"].to_pylist()
    prefetch = max(MIN_PREFETCH, PREFETCH_BATCHES * size)
    batch: _Batch | None = None
    failed = 0
    reader = ArchiveReader(archive)
    stream = stream_images(
        reader,
        uris,
        etags=etags,
        prefetch=prefetch,
        decoders=decoders,
        times=times,
        erased=erased,
        size=embedder.image_size,
    )
    for row, image in stream:
        if isinstance(image, ImageFailure):
            failures[row] = image
            failed += 1
        else:
            batch = batch or _Batch(np.empty((size, *image.shape), np.uint8))
            batch.images[len(batch.rows)] = image
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
    crops = manifest.take(pa.array(rows, pa.int64()))
    return quarantine_table(
        QuarantinedCrop(crop_id, uri, failure.stage, failure.cause, failure.detail)
        for crop_id, uri, failure in zip(
            crops["crop_id"].to_pylist(),
            crops["uri"].to_pylist(),
            (failures[row] for row in rows),
            strict=True,
        )
    )
