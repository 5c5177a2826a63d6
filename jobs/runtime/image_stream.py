"""Streams of decoded images: threads fetch many at a time, and the thread that fetched one decodes it.

Members of containers are read together, such as 8 MB of a tar file by one request.
"""

import os
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from clvr_model.preprocessing import IMAGE_SIZE, Box, decode
from index.archive.container_kind import Span
from index.archive.reader import ArchiveReader, Fetched
from index.runs.tombstones import ErasedCrops
from infra.errors import (
    ClvrError,
    CorruptObject,
    CredentialsRejected,
    ObjectArchived,
    ObjectChanged,
    ObjectMissing,
    StoreDenied,
    UnreadableImage,
    UnusableKey,
)

_QUARANTINABLE_ERRORS: dict[type[ClvrError], str] = {
    ObjectMissing: "missing",
    ObjectArchived: "archived",
    StoreDenied: "denied",
    ObjectChanged: "changed",
    UnusableKey: "unusable-key",
    CorruptObject: "altered",
}
ERASED = "erased"
"""The cause of an image whose bytes were erased under another name."""


class ErasedContent(ClvrError):
    """An image whose bytes were erased, under whatever name."""

    def __init__(self) -> None:
        super().__init__("a crop of the same bytes was erased")


Loaded = NDArray[np.uint8] | ClvrError


@dataclass(frozen=True, slots=True)
class ImageFailure:
    """Why an image cannot be used: `stage` is fetch or decode, `cause` one word, `detail` one line."""

    stage: str
    cause: str
    detail: str


@dataclass(slots=True)
class StreamTimes:
    """Seconds that threads spent fetching (mostly waiting) and decoding, and the bytes that they fetched."""

    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0
    bytes: int = 0


def stream_images(
    reader: ArchiveReader,
    uris: Sequence[str],
    *,
    etags: Sequence[str] | None = None,
    prefetch: int = 64,
    decoders: int = 1,
    times: StreamTimes | None = None,
    erased: ErasedCrops | None = None,
    size: int = IMAGE_SIZE,
    boxes: NDArray[np.int32] | None = None,
) -> Iterator[tuple[int, NDArray[np.uint8] | ImageFailure]]:
    """Yield `(position in uris, uint8 (size, size, 3) or ImageFailure)`, each position once, in any order.

    size: height and width of the images, which are RGB.
    etags: those of the manifest; an object that changed since is an ImageFailure with cause `changed`.
    prefetch: images (268 KB each at the default size) that are in flight or wait for the caller.
    decoders: images that are decoded at the same time; at most the CPUs that the caller may use.
    erased: an image of the same bytes as an erased crop is an ImageFailure with cause `erased`.
    boxes: (n, 4) left, top, right, bottom in pixels of the part of each image to decode; -1: the whole image.
    Raises errors that do not concern a single image: StoreUnreachable, CredentialsRejected, and StoreDenied
    if the store refuses this client, which after a refused image a listing shows.
    """
    times, erased = times or StreamTimes(), erased or ErasedCrops()
    loader = _Loader(reader, uris, etags, decoders, times, erased, size, boxes)
    results = loader.run(prefetch)
    try:
        for position, result in results:
            if not isinstance(result, ClvrError):
                yield position, result
                continue
            yield position, failure_of(result, reader)
    finally:
        results.close()


def failure_of(error: ClvrError, reader: ArchiveReader) -> ImageFailure:
    """Turn an error of one image into a value; raise any other error.

    A refused image is one only if the store still answers a listing.
    """
    if isinstance(error, CredentialsRejected):
        raise error
    if isinstance(error, StoreDenied):
        reader.store.ensure()
    if isinstance(error, ErasedContent):
        return ImageFailure("fetch", ERASED, error.message)
    if isinstance(error, UnreadableImage):
        return ImageFailure("decode", error.cause, error.message)
    cause = quarantine_cause(error)
    if cause is None:
        raise error
    return ImageFailure("fetch", cause, error.message)


def quarantine_cause(error: ClvrError) -> str | None:
    """Return the cause of an image that cannot be fetched, None for an error that is not of one image."""
    if isinstance(error, CredentialsRejected):
        return None
    causes = (cause for kind, cause in _QUARANTINABLE_ERRORS.items() if isinstance(error, kind))
    return next(causes, None)


class _Loader:
    """Threads that fetch and decode. Each image that the caller takes lets them request the next position."""

    def __init__(
        self,
        reader: ArchiveReader,
        uris: Sequence[str],
        etags: Sequence[str] | None,
        decoders: int,
        times: StreamTimes,
        erased: ErasedCrops,
        size: int,
        boxes: NDArray[np.int32] | None,
    ) -> None:
        self.reader = reader
        self.uris = uris
        self.etags = etags
        self.times = times
        self.erased = erased
        self.size = size
        self.boxes = boxes
        self.lock = threading.Lock()
        self.decoders = decoders
        # More decoding threads than CPUs slow each other down.
        self.decode_slots = threading.Semaphore(decoders)
        self.requested: SimpleQueue[int | None] = SimpleQueue()
        self.requested_spans: SimpleQueue[Span] = SimpleQueue()
        self.stopped = threading.Event()
        self.results: SimpleQueue[tuple[int, Loaded | BaseException]] = SimpleQueue()

    def run(self, prefetch: int) -> Generator[tuple[int, Loaded], None, None]:
        """Yield (position, image or ClvrError). Raises any other exception of a thread."""
        spans = self.reader.spans(self.uris, self.etags)
        in_spans = {position for span in spans for position in span.positions}
        single = [position for position in range(len(self.uris)) if position not in in_spans]
        # Reads of a local disk hardly wait, so a few threads suffice.
        num_threads = min(self.decoders + 1 if self.reader.store.local else prefetch, len(single))
        slots = threading.Semaphore(prefetch)  # of the images of spans
        threads = [
            threading.Thread(target=self._work, name=f"load-{number}", daemon=True)
            for number in range(num_threads)
        ]
        for number in range(min(self.decoders + 1, len(spans))):
            name, arguments = f"load-container-{number}", (slots,)
            threads.append(
                threading.Thread(target=self._work_on_spans, args=arguments, name=name, daemon=True)
            )
        positions = iter(single)
        for position in islice(positions, prefetch):
            self.requested.put(position)
        for span in spans:
            self.requested_spans.put(span)
        for thread in threads:
            thread.start()
        try:
            for _ in range(len(self.uris)):
                position, result = self.results.get()
                if position in in_spans:
                    slots.release()
                else:
                    following = next(positions, None)
                    if following is not None:
                        self.requested.put(following)
                if isinstance(result, BaseException) and not isinstance(result, ClvrError):
                    raise result
                yield position, result
        finally:
            self.stopped.set()
            slots.release(prefetch + len(in_spans))
            self._cancel(num_threads)

    def _cancel(self, num_threads: int) -> None:
        try:
            while True:
                self.requested.get_nowait()
        except Empty:
            pass
        for _ in range(num_threads):
            self.requested.put(None)

    def _work(self) -> None:
        while (position := self.requested.get()) is not None:
            try:
                result: Loaded | BaseException = self._load(position)
            except BaseException as error:  # the caller waits for a result of each position
                result = error
            self.results.put((position, result))

    def _work_on_spans(self, slots: threading.Semaphore) -> None:
        """Read spans of containers one after the other, and decode their images as the caller takes them."""
        while not self.stopped.is_set():
            try:
                span = self.requested_spans.get_nowait()
            except Empty:
                return
            bodies = self._bodies(span)
            for position in span.positions:
                started = time.perf_counter()
                body = next(bodies)
                with self.lock:
                    self.times.fetch_seconds += time.perf_counter() - started
                slots.acquire()
                if self.stopped.is_set():
                    return
                try:
                    result: Loaded | BaseException = (
                        body if isinstance(body, BaseException) else self._decoded(position, body.data)
                    )
                except BaseException as error:
                    result = error
                self.results.put((position, result))

    def _bodies(self, span: Span) -> Iterator[Fetched | BaseException]:
        """Yield as many bodies as the span has positions; the caller waits for a result of each."""
        num_read = 0
        try:
            for body in self.reader.fetch_span(span, self.uris):
                num_read += 1
                yield body
        except Exception as error:
            for _ in range(len(span.positions) - num_read):
                yield error

    def _load(self, position: int) -> Loaded:
        started = time.perf_counter()
        etag = self.etags[position] if self.etags is not None else ""
        fetched = self.reader.fetch(self.uris[position], etag)
        with self.lock:
            self.times.fetch_seconds += time.perf_counter() - started
        return self._decoded(position, fetched.data)

    def _decoded(self, position: int, data: bytes) -> Loaded:
        if self.erased.is_erased_content(data):
            raise ErasedContent
        with self.decode_slots:
            started = time.perf_counter()
            try:
                return decode(data, self.size, self._box(position))
            finally:
                with self.lock:
                    self.times.decode_seconds += time.perf_counter() - started
                    self.times.bytes += len(data)

    def _box(self, position: int) -> Box | None:
        if self.boxes is None or self.boxes[position, 0] < 0:
            return None
        left, top, right, bottom = self.boxes[position].tolist()
        return left, top, right, bottom


def available_cpus() -> int:
    """Return the CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))
