"""Embedding of the parts of a run: decode, embed, write; it runs without Ray.

Three threads share the work of a model. One reads the next part and hands its crops to decoder processes. The
caller's thread only runs the model. A third one collects the outputs, and writes each part that is whole.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clvr_model.embeddings import Embeddings
from index.runs.accounting import QuarantinedCrop, quarantine_table
from index.runs.run import Run
from index.runs.shards import shard_table
from index.runs.timings import StageSeconds
from index.runs.tombstones import TombstoneWatch
from infra.store import Store
from jobs.runtime.decoders import Batch, CropList, Decoders
from jobs.runtime.image_stream import ImageFailure

MAX_OUTPUTS_AHEAD = 16
"""Batches of outputs that wait to be written; behind a store that is slow, the model waits too."""


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
    """Counts and times of one part so far. finished: whether it is written."""

    part: int
    embedded: int = 0
    quarantined: int = 0
    bytes: int = 0
    seconds: StageSeconds = field(default_factory=StageSeconds)
    causes: dict[str, int] = field(default_factory=dict)
    finished: bool = False


class _Part:
    """A part in progress: its manifest, and the outputs of the model by row."""

    def __init__(self, run: Run, number: int, feature_dim: int) -> None:
        self.run, self.number = run, number
        self.manifest = run.part_manifest(number)
        rows = self.manifest.num_rows
        self.features = np.zeros((rows, feature_dim), np.float32)
        self.model_ids = np.zeros(rows, np.int32)
        self.confidences = np.zeros(rows, np.float32)
        self.attributes: dict[str, tuple[NDArray[Any], NDArray[np.float32]]] = {}
        self.failures: dict[int, ImageFailure] = {}
        self.left = rows
        self.embedded = self.bytes = 0
        self.seconds = StageSeconds()

    def add(self, batch: Batch, output: Embeddings | None, seconds: StageSeconds) -> None:
        """Take a batch, and what the model made of it; None where no crop of the batch has an image."""
        self.left -= len(batch.positions)
        self.bytes += batch.bytes
        self.seconds += seconds
        self.failures |= {batch.positions[row]: failure for row, failure in batch.failures.items()}
        if output is None:
            return
        has_image: NDArray[np.bool_] | slice = slice(None)  # which copies nothing
        if batch.failures:
            has_image = np.ones(len(batch.positions), bool)
            has_image[list(batch.failures)] = False
        rows = np.array(batch.positions)[has_image]
        features = output.features[has_image]
        self.features[rows] = features
        self.model_ids[rows] = output.model_id[has_image]
        self.confidences[rows] = output.confidence[has_image]
        for name, predicted in output.attributes.items():
            unknown = np.full(self.manifest.num_rows, "", object), np.zeros_like(self.confidences)
            values, sure = self.attributes.setdefault(name, unknown)
            values[rows], sure[rows] = predicted.values[has_image], predicted.confidence[has_image]
        non_finite = np.flatnonzero(~np.isfinite(features).all(axis=1))
        for row in rows[non_finite]:
            self.failures[int(row)] = ImageFailure(
                "embed", "not-finite", "a feature of the crop is not a finite number"
            )
        self.embedded += len(rows) - len(non_finite)

    def write(self) -> None:
        """Write the shard and the quarantine rows; repeatable with the same result."""
        good: NDArray[np.int64] | slice = slice(None)
        crops = self.manifest
        if self.failures:
            good = np.array([row for row in range(crops.num_rows) if row not in self.failures], np.int64)
            crops = crops.take(good)
        self.run.write_part(
            self.number,
            shard_table(
                crops,
                self.features[good],
                self.model_ids[good],
                self.confidences[good],
                {name: (values[good], sure[good]) for name, (values, sure) in self.attributes.items()},
            ),
            _quarantine(self.manifest, self.failures),
        )

    def report(self, *, finished: bool) -> PartReport:
        """Return counts and times so far."""
        return PartReport(
            self.number,
            embedded=self.embedded,
            quarantined=len(self.failures),
            bytes=self.bytes,
            seconds=self.seconds,
            causes=dict(Counter(f"{failure.stage}/{failure.cause}" for failure in self.failures.values())),
            finished=finished,
        )


class _Outputs:
    """A thread that collects the outputs of the model, and writes the parts."""

    def __init__(self, on_progress: Callable[[PartReport], object]) -> None:
        self.on_progress = on_progress
        self.pending: deque[Future[PartReport | None]] = deque()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="write-parts")
        self.failed = False

    def add(self, batch: Batch, output: Embeddings | None, seconds: StageSeconds) -> None:
        """Hand over a batch."""
        self.pending.append(self.thread.submit(self._take, batch, output, seconds))

    def finished(self, *, at_most: int) -> Iterator[PartReport]:
        """Yield the reports of parts that were written; wait until `at_most` batches are left.

        Raises the error of the thread.
        """
        while len(self.pending) > at_most or (self.pending and self.pending[0].done()):
            report = self.pending.popleft().result()
            if report is not None:
                yield report

    def close(self) -> None:
        """End the thread after its present batch."""
        self.thread.shutdown(cancel_futures=True)

    def _take(self, batch: Batch, output: Embeddings | None, seconds: StageSeconds) -> PartReport | None:
        if self.failed:
            return None
        try:
            part: _Part = batch.crops.key
            part.add(batch, output, seconds)
            self.on_progress(part.report(finished=False))
            if part.left:
                return None
            part.write()
            report = part.report(finished=True)
            self.on_progress(report)
        except BaseException:
            self.failed = True  # the batches behind it must not finish a part
            raise
        return report


def embed_parts(
    run: Run,
    parts: Iterable[int],
    embedder: ImageEmbedder,
    decoders: Decoders,
    *,
    on_progress: Callable[[PartReport], object] = lambda report: None,
) -> Iterator[PartReport]:
    """Embed parts and write their shard and quarantine rows; yield the report of each when it is written.

    parts: taken one or two ahead, in a thread of its own. decoders: of the embedder's sizes.
    on_progress is called with the report so far after each batch and at the end of a part, in another thread,
    and may raise to stop. Raises StoreUnreachable if the archive or the run folder does not answer within all
    retries, StoreDenied if the archive refuses this client, and WorkerLost.
    """
    tombstones = TombstoneWatch([run.store])

    def lists() -> Iterator[CropList]:
        for number in parts:
            part = _Part(run, number, embedder.feature_dim)
            uris, etags = (part.manifest[name].to_pylist() for name in ("uri", "etag"))
            yield CropList(part, uris, etags, tombstones.current())

    outputs = _Outputs(on_progress)
    try:
        last = time.perf_counter()
        for batch in decoders.batches(lists()):
            waited, writing = time.perf_counter() - last, time.perf_counter()
            yield from outputs.finished(at_most=MAX_OUTPUTS_AHEAD)
            started = time.perf_counter()
            has_image = len(batch.failures) < len(batch.positions)
            output = embedder(batch.images) if has_image else None
            last = time.perf_counter()
            seconds = StageSeconds(
                waiting_seconds=waited,
                writing_seconds=started - writing,
                model_seconds=last - started,
                fetch_seconds=batch.fetch_seconds,
                decode_seconds=batch.decode_seconds,
            )
            outputs.add(batch, output, seconds)
        yield from outputs.finished(at_most=0)
    finally:
        outputs.close()


def open_decoders(archive: Store, embedder: ImageEmbedder, processes: int) -> Decoders:
    """Start decoders for a model."""
    return Decoders(
        archive, processes=processes, batch_size=embedder.batch_size, image_size=embedder.image_size
    )


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
