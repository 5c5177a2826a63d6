"""A stream of decoded pictures: many fetches in flight, each decoded by the thread that fetched it."""

import os
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from clvr_model.preprocessing import decode
from index.archive.reader import ArchiveReader
from infra.errors import ClvrError, ObjectChanged, ObjectMissing, StoreDenied, UnreadablePicture

QUARANTINABLE_ERRORS: dict[type[ClvrError], str] = {
    ObjectMissing: "missing",
    StoreDenied: "denied",
    ObjectChanged: "changed",
}
# That many refusals before the first object means that it is us who are refused, not an object.
PERMANENT_ERRORS = 8

Answer = NDArray[np.uint8] | ClvrError


@dataclass(frozen=True, slots=True)
class ImageFailure:
    """Why one picture is not to be had: `stage` is fetch or decode, `cause` one word, `detail` one line."""

    stage: str
    cause: str
    detail: str


@dataclass(slots=True)
class LoadTimes:
    """Seconds that threads spent in fetching (mostly waiting) and in decoding, and the bytes that came."""

    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0
    bytes: int = 0


def stream_images(
    reader: ArchiveReader,
    uris: Sequence[str],
    *,
    etags: Sequence[str] | None = None,
    ahead: int = 64,
    decoders: int = 1,
    times: LoadTimes | None = None,
) -> Iterator[tuple[int, NDArray[np.uint8] | ImageFailure]]:
    """Yield `(position in uris, uint8 (299, 299, 3) RGB or Failure)`, every position once, in any order.

    etags: what the manifest saw; an object that has changed since is a Failure with cause `changed`.
    At most `ahead` pictures (268 KB each) are on their way or waiting; `decoders` of them are decoded at a
    time: as many as the caller has cores for it. What is not one picture's fault is raised instead:
    StoreUnreachable, and StoreDenied where the store refuses us rather than an object.
    """
    loader = _Loader(reader, uris, etags, decoders, times or LoadTimes())
    answers = loader.run(ahead)
    denied = arrived = 0
    try:
        for position, answer in answers:
            if not isinstance(answer, ClvrError):
                arrived += 1
                yield position, answer
                continue
            if isinstance(answer, StoreDenied):
                denied += 1
                reader.store.ensure()
                if not arrived and denied >= PERMANENT_ERRORS:
                    raise answer
            yield position, _failure(answer)
    finally:
        answers.close()


def available_cpus() -> int:
    """The cores that this process may run on: what a reader may take that has a machine to itself."""
    return len(os.sched_getaffinity(0))


class _Loader:
    """Threads that fetch and decode. A position is asked for only when an earlier picture was taken."""

    def __init__(
        self,
        reader: ArchiveReader,
        uris: Sequence[str],
        etags: Sequence[str] | None,
        decoders: int,
        times: LoadTimes,
    ) -> None:
        self.reader = reader
        self.uris = uris
        self.etags = etags
        self.times = times
        self.lock = threading.Lock()
        self.decoders = decoders
        # More threads than cores would take the cores from each other: a fifth of the speed was lost so.
        self.turn = threading.Semaphore(decoders)
        self.wanted: SimpleQueue[int | None] = SimpleQueue()
        self.answers: SimpleQueue[tuple[int, Answer | BaseException]] = SimpleQueue()

    def run(self, ahead: int) -> Generator[tuple[int, Answer], None, None]:
        """Yield (position, picture or an error that concerns it alone or nobody knows)."""
        # A local read hardly waits.
        count = min(self.decoders + 1 if self.reader.store.local else ahead, len(self.uris))
        threads = [threading.Thread(target=self._work, name=f"load-{n}", daemon=True) for n in range(count)]
        positions = iter(range(len(self.uris)))
        for position in islice(positions, ahead):
            self.wanted.put(position)
        for thread in threads:
            thread.start()
        try:
            for _ in range(len(self.uris)):
                position, answer = self.answers.get()
                following = next(positions, None)
                if following is not None:
                    self.wanted.put(following)
                if isinstance(answer, BaseException) and not isinstance(answer, ClvrError):
                    raise answer
                yield position, answer
        finally:
            self._dismiss(count)

    def _dismiss(self, threads: int) -> None:
        try:
            while True:
                self.wanted.get_nowait()
        except Empty:
            pass
        for _ in range(threads):
            self.wanted.put(None)

    def _work(self) -> None:
        while (position := self.wanted.get()) is not None:
            try:
                answer: Answer | BaseException = self._load(position)
            except BaseException as error:  # a lost answer would leave the caller waiting for ever
                answer = error
            self.answers.put((position, answer))

    def _load(self, position: int) -> Answer:
        begun = time.perf_counter()
        fetched = self.reader.fetch(self.uris[position])
        arrived = time.perf_counter()
        expected = self.etags[position] if self.etags is not None else ""
        if expected and fetched.etag != expected:
            raise ObjectChanged(f"etag {fetched.etag} now, {expected} when it was listed")
        with self.turn:
            started = time.perf_counter()
            try:
                return decode(fetched.data)
            finally:
                with self.lock:
                    self.times.fetch_seconds += arrived - begun
                    self.times.decode_seconds += time.perf_counter() - started
                    self.times.bytes += len(fetched.data)


def _failure(error: ClvrError) -> ImageFailure:
    """Turn an error of one picture into a row; raise one that is not of one picture."""
    if isinstance(error, UnreadablePicture):
        return ImageFailure("decode", error.cause, error.message)
    cause = QUARANTINABLE_ERRORS.get(type(error))
    if cause is None:
        raise error
    return ImageFailure("fetch", cause, error.message)
