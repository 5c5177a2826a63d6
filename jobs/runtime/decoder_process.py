"""A process that fetches and decodes crops into shared memory; `jobs.runtime.decoders` starts and feeds it.

It is a process of its own because decoding takes a core, and because an image that ends its decoder must not
end the model. It imports neither torch nor Ray.
"""

import faulthandler
import mmap
import os
import pickle
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from clvr_model.malloc import reuse_freed_blocks
from clvr_model.preprocessing import decode
from index.archive.container_kind import Span
from index.archive.reader import ArchiveReader, Fetched
from index.runs.tombstones import ErasedCrops
from infra.errors import ClvrError
from infra.store import Store
from jobs.runtime.image_stream import ErasedContent, ImageFailure, failure_of

FETCH_THREADS = 32
"""Requests of a process at a time; of a local folder it reads one crop after the other."""

DECODE_SECONDS = 60.0
"""A decoder that works longer on one image is ended."""

READY = "ready"

Decode = Callable[[bytes, int, NDArray[np.uint8]], object]
"""(data, size, array (size, size, 3) to write to); raises UnreadableImage."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The first message to a process."""

    archive: Store
    image_size: int
    decode: Decode
    decode_seconds: float


@dataclass(frozen=True, slots=True)
class SpanStart:
    """A read of a container, which the following jobs without URIs go on with. uris: of its members."""

    span: Span
    uris: list[str]


@dataclass(frozen=True, slots=True)
class Job:
    """Crops that fill consecutive rows of the shared memory.

    uris, etags: of single crops; without them the next `count` members of the present span. erased: of the
    jobs from now on, where it changed.
    """

    number: int
    first_row: int
    count: int
    uris: list[str] = field(default_factory=list)
    etags: list[str] = field(default_factory=list)
    start: SpanStart | None = None
    erased: ErasedCrops | None = None


@dataclass(slots=True)
class Answer:
    """The end of a job: the rows that have no image, counted from its first one, and what it took."""

    number: int
    failures: dict[int, ImageFailure] = field(default_factory=dict)
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0
    bytes: int = 0


@dataclass(slots=True)
class _OpenJob:
    job: Job
    erased: ErasedCrops
    answer: Answer
    unfinished: int


Task = tuple[_OpenJob, int, Fetched | BaseException | None, float]
"""A job, the number of a crop in it, its bytes unless they are still to fetch, and the seconds that took."""


class _Process:
    """Receives jobs in one thread, fetches in others, and decodes in the main thread."""

    def __init__(self, connection: Connection, memory: int) -> None:
        self.connection = connection
        setup: Setup = connection.recv()
        self.reader = ArchiveReader(setup.archive)
        self.decode, self.size = setup.decode, setup.image_size
        self.decode_seconds = setup.decode_seconds
        pixels = np.frombuffer(mmap.mmap(memory, 0), np.uint8)
        self.images = pixels.reshape(-1, self.size, self.size, 3)
        self.tasks: SimpleQueue[Task | BaseException] = SimpleQueue()
        self.to_fetch: SimpleQueue[tuple[_OpenJob, int]] = SimpleQueue()
        # Bytes of crops that were fetched ahead: a hostile one may have 32 MiB.
        self.fetched_slots = threading.Semaphore(FETCH_THREADS)
        self.span_jobs: SimpleQueue[tuple[_OpenJob, int]] = SimpleQueue()
        self.erased = ErasedCrops()

    def serve(self) -> None:
        """Answer jobs until the other side is gone, or an error does not concern a single crop."""
        self.connection.send(READY)
        threads = 0 if self.reader.store.local else FETCH_THREADS
        for work in [self._receive, *[self._fetch] * threads]:
            threading.Thread(target=work, daemon=True).start()
        while True:
            task = self.tasks.get()
            try:
                if isinstance(task, BaseException):
                    raise task
                self._finish(*task)
            except BaseException as error:
                self.connection.send(_picklable(error))
                return

    def _receive(self) -> None:
        try:
            while True:
                self._start(self.connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # the model's process is gone
        except BaseException as error:
            self.tasks.put(error)

    def _start(self, job: Job) -> None:
        if job.erased is not None:
            self.erased = job.erased
        open_job = _OpenJob(job, self.erased, Answer(job.number), job.count)
        if job.start is not None:
            self.span_jobs = SimpleQueue()
            arguments = (job.start, self.span_jobs)
            threading.Thread(target=self._read_span, args=arguments, daemon=True).start()
        for index in range(job.count):
            if not job.uris:
                self.span_jobs.put((open_job, index))
            elif self.reader.store.local:
                self.tasks.put((open_job, index, None, 0.0))
            else:
                self.to_fetch.put((open_job, index))

    def _fetch(self) -> None:
        while True:
            open_job, index = self.to_fetch.get()
            self.fetched_slots.acquire()
            started = time.perf_counter()
            body: Fetched | BaseException
            try:
                body = self.reader.fetch(open_job.job.uris[index], open_job.job.etags[index])
            except BaseException as error:  # the main thread waits for each crop
                body = error
            self.tasks.put((open_job, index, body, time.perf_counter() - started))

    def _read_span(self, start: SpanStart, wanted: "SimpleQueue[tuple[_OpenJob, int]]") -> None:
        """Read a span, and hand out its members as jobs ask for them."""
        left = len(start.uris)
        failure: BaseException | None = None
        started = time.perf_counter()
        try:
            for body in self.reader.fetch_span(start.span, start.uris):
                seconds = time.perf_counter() - started
                open_job, index = wanted.get()
                left -= 1
                self.fetched_slots.acquire()
                self.tasks.put((open_job, index, body, seconds))
                started = time.perf_counter()
        except BaseException as error:
            failure = error
        for _ in range(left):
            open_job, index = wanted.get()
            self.fetched_slots.acquire()
            self.tasks.put((open_job, index, failure or RuntimeError("a span without its end"), 0.0))

    def _finish(
        self, open_job: _OpenJob, index: int, body: Fetched | BaseException | None, seconds: float
    ) -> None:
        """Decode one crop into its row, and answer its job if it was the last one."""
        answer, job = open_job.answer, open_job.job
        answer.fetch_seconds += seconds
        try:
            if body is None:
                started = time.perf_counter()
                body = self.reader.fetch(job.uris[index], job.etags[index])
                answer.fetch_seconds += time.perf_counter() - started
            else:
                self.fetched_slots.release()
            if isinstance(body, BaseException):
                raise body
            if open_job.erased.is_erased_content(body.data):
                raise ErasedContent
            answer.bytes += len(body.data)
            started = time.perf_counter()
            signal.setitimer(signal.ITIMER_REAL, self.decode_seconds)  # which ends a library that hangs
            try:
                self.decode(body.data, self.size, self.images[job.first_row + index])
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                answer.decode_seconds += time.perf_counter() - started
        except ClvrError as error:
            answer.failures[index] = failure_of(error, self.reader)
        open_job.unfinished -= 1
        if not open_job.unfinished:
            self.connection.send(answer)


def _picklable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # our own bytes
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def decode_into(data: bytes, size: int, out: NDArray[np.uint8]) -> None:
    """Decode an image as `preprocessing.decode` does."""
    decode(data, size, out=out)


def main() -> None:
    """Serve the process that started this one. Arguments: the descriptors of a socket and of memory."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the model's process decides when to end
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    reuse_freed_blocks()
    _Process(Connection(int(sys.argv[1])), int(sys.argv[2])).serve()
