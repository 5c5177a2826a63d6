"""Decoder processes of a model: they fetch and decode crops into batches, in memory that both sides share.

A process that dies, or takes too long for an image, is replaced. The crops that it had not answered are
repeated one by one; one that ends its decoder again is a failure, `decode/crashed` or `decode/timeout`.
"""

import mmap
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from index.archive.container_kind import Span
from index.archive.reader import ArchiveReader
from index.runs.tombstones import ErasedCrops
from infra.errors import WorkerLost
from infra.store import Store
from jobs.runtime.decoder_process import (
    DECODE_SECONDS,
    READY,
    Answer,
    Decode,
    Job,
    Setup,
    SpanStart,
    decode_into,
)
from jobs.runtime.image_stream import ImageFailure

BATCHES_AHEAD = 3
MIN_CROPS_AHEAD = 64
"""Crops that are fetched, decoded or wait for the model: so many, or BATCHES_AHEAD batches."""

MIN_JOB_CROPS, MAX_JOB_CROPS = 16, 64
"""Crops of a message: many cost the model's process less, few share the work of many decoders evenly."""

MAX_FAILED_STARTS = 3
CRASHED, TIMEOUT = "crashed", "timeout"
_START = "from jobs.runtime.decoder_process import main; main()"


@dataclass(frozen=True, slots=True)
class CropList:
    """Crops to decode, such as those of a part, with their etags. key: for the caller."""

    key: Any
    uris: list[str]
    etags: list[str]
    erased: ErasedCrops = field(default_factory=ErasedCrops)


@dataclass(slots=True)
class Batch:
    """Crops of one list: images uint8 (n, size, size, 3), and the positions (n,) of the crops in the list.

    failures: by row; such a row holds the pixels of an earlier image. `images` is valid until the next batch
    is taken.
    """

    crops: CropList
    buffer: int
    images: NDArray[np.uint8]
    positions: list[int] = field(default_factory=list)
    failures: dict[int, ImageFailure] = field(default_factory=dict)
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0
    bytes: int = 0
    unanswered: int = 0
    is_closed: bool = False


class Decoders:
    """Processes that decode for one model, and the shared memory of its batches; they serve many lists.

    archive: the store that holds the crops. processes: crops that are decoded at the same time. decode:
    writes an image into an array; benchmarks and tests give another one. decode_seconds: for one image.
    """

    def __init__(
        self,
        archive: Store,
        *,
        processes: int,
        batch_size: int,
        image_size: int,
        decode: Decode = decode_into,
        decode_seconds: float = DECODE_SECONDS,
    ) -> None:
        self.num_processes, self.batch_size = processes, batch_size
        self.setup = Setup(archive, image_size, decode, decode_seconds)
        self.reader = ArchiveReader(archive)
        self.crops_ahead = max(MIN_CROPS_AHEAD, BATCHES_AHEAD * batch_size)
        buffers = -(-self.crops_ahead // batch_size) + 1  # one is in the model
        # Memory without a name ends with its last process, and the size of /dev/shm does not limit it.
        self.memory = os.memfd_create("clvr-batches")
        os.ftruncate(self.memory, buffers * batch_size * image_size * image_size * 3)
        pixels = np.frombuffer(mmap.mmap(self.memory, 0), np.uint8)
        self.buffers = pixels.reshape(buffers, batch_size, image_size, image_size, 3)
        self.running: list[_Decoder] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def batches(self, lists: Iterable[CropList]) -> Iterator[Batch]:
        """Yield batches, each of crops of one list, and an empty one for an empty list; each crop once.

        lists: taken one ahead, in a thread of its own. The batches of two lists may alternate.
        Raises what `stream_images` raises, what `lists` raises, and WorkerLost if processes do not start.
        """
        while len(self.running) < self.num_processes:
            self.running.append(_Decoder(self.setup, self.memory))
        dispatcher = _Dispatcher(self, iter(lists))
        is_whole = False
        try:
            while (batch := dispatcher.done.get()) is not None:
                if isinstance(batch, BaseException):
                    raise batch
                yield batch
                dispatcher.give_back(batch)
            is_whole = True
        finally:
            dispatcher.stop()
            if not is_whole:
                self._end_processes()

    def close(self) -> None:
        """End the processes."""
        self._end_processes()
        if self.memory >= 0:
            os.close(self.memory)
            self.memory = -1

    def _end_processes(self) -> None:
        for decoder in self.running:
            decoder.end()
        self.running = []


@dataclass(slots=True)
class _Read:
    """Crops of a list that are read in order: single objects, or members of a container by one decoder."""

    of: "_OpenList"
    positions: list[int]
    span: Span | None = None
    taken: int = 0

    @property
    def left(self) -> int:
        return len(self.positions) - self.taken

    def rest(self) -> "_Read":
        """Return what is left, as a read that starts anew."""
        first = self.taken
        span = self.span and Span(self.span.file, list(range(self.left)), self.span.places[first:])
        return _Read(self.of, self.positions[first:], span)


class _OpenList:
    """A list of which some crops have not been handed out."""

    def __init__(self, crops: CropList, reader: ArchiveReader) -> None:
        self.crops = crops
        self.unassigned = len(crops.uris)
        self.batch: Batch | None = None
        self.reads: deque[_Read] = deque()
        in_spans: set[int] = set()
        for span in reader.spans(crops.uris, crops.etags):
            in_spans.update(span.positions)
            local = Span(span.file, list(range(len(span.positions))), span.places)
            self.reads.append(_Read(self, span.positions, local))
        single = [position for position in range(len(crops.uris)) if position not in in_spans]
        if single:
            self.reads.append(_Read(self, single))


@dataclass(slots=True)
class _Sent:
    """A job of a decoder: consecutive rows of a batch."""

    batch: Batch
    first_row: int
    count: int
    is_retry: bool = False


class _Decoder:
    """One process, and what it has not answered."""

    def __init__(self, setup: Setup, memory: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, str(theirs.fileno()), str(memory)],
                pass_fds=(theirs.fileno(), memory),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
            )
        self.connection = Connection(ours.detach())
        with suppress(OSError):  # it died: the selector tells
            self.connection.send(setup)
        self.is_ready = False
        self.sent: dict[int, _Sent] = {}
        self.unanswered = 0
        """Crops that it has not answered, those of `sent`: asked for at each job, so not counted anew."""
        self.read: _Read | None = None
        self.erased: ErasedCrops | None = None
        self.suspects: deque[tuple[Batch, int]] = deque()
        """Rows of crops that a dead process had not answered; each is repeated alone."""

    @property
    def repeats(self) -> bool:
        """Whether it has a crop that a dead process had not answered; such a crop is alone."""
        return len(self.sent) == 1 and next(iter(self.sent.values())).is_retry

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.connection.close()
        self.process.wait()


class _Dispatcher:
    """Hands out jobs and collects the answers, in a thread, so that the model waits for neither."""

    def __init__(self, decoders: Decoders, lists: Iterator[CropList]) -> None:
        self.decoders = decoders
        self.done: SimpleQueue[Batch | BaseException | None] = SimpleQueue()
        self.free: deque[int] = deque(range(len(decoders.buffers)))
        self.lists = lists
        share = decoders.crops_ahead // len(decoders.running)
        self.max_unanswered = max(2 * MIN_JOB_CROPS, share)  # of a decoder
        self.job_crops = min(max(MIN_JOB_CROPS, share // 4), MAX_JOB_CROPS)
        self.open: list[_OpenList] = []
        self.jobs = 0
        self.failed_starts = 0
        self.stopped, self.lock = False, threading.Lock()
        self.wake_up = os.eventfd(0, os.EFD_NONBLOCK)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.wake_up, selectors.EVENT_READ)
        for decoder in decoders.running:
            self.selector.register(decoder.connection, selectors.EVENT_READ, decoder)
        self.ahead = ThreadPoolExecutor(1, thread_name_prefix="next-list")
        self.next_list: Future[_OpenList | None] | None = self._open_next()
        self.thread = threading.Thread(target=self._run, name="decoders", daemon=True)
        self.thread.start()

    def give_back(self, batch: Batch) -> None:
        """Let the memory of a batch be used again."""
        if batch.positions:
            self.free.append(batch.buffer)
            self._wake()

    def stop(self) -> None:
        """End the thread."""
        self._wake(stop=True)
        self.thread.join()
        self.ahead.shutdown(wait=False, cancel_futures=True)
        self.selector.close()
        os.close(self.wake_up)

    def _wake(self, *, stop: bool = False) -> None:
        with self.lock:
            if not self.stopped:
                self.stopped = stop
                os.eventfd_write(self.wake_up, 1)

    def _open_next(self) -> "Future[_OpenList | None]":
        def open_next() -> _OpenList | None:
            crops = next(self.lists, None)
            return _OpenList(crops, self.decoders.reader) if crops is not None else None

        future = self.ahead.submit(open_next)
        future.add_done_callback(lambda _: self._wake())
        return future

    def _run(self) -> None:
        try:
            while not self.stopped and self._advance():
                for key, _ in self.selector.select():
                    if key.data is None:
                        os.eventfd_read(self.wake_up)
                    else:
                        self._receive(key.data)
            self.done.put(None)
        except BaseException as error:  # the model's thread waits for it
            self.done.put(error)

    def _advance(self) -> bool:
        """Hand out what can be handed out; return whether anything is left."""
        while self._assign_one():
            pass
        return bool(self.next_list or self.open or any(one.sent or one.suspects for one in self._running))

    @property
    def _running(self) -> list[_Decoder]:
        return self.decoders.running

    def _assign_one(self) -> bool:
        """Send a job to the decoder that has least to do, if there is one for it."""
        for decoder in sorted(self._running, key=lambda one: one.unanswered):
            if not decoder.is_ready:
                continue
            if decoder.suspects or decoder.repeats:
                if not decoder.sent:
                    self._send_suspect(decoder)
            elif decoder.unanswered < self.max_unanswered and self._send_job(decoder):
                return True
        return False

    def _send_suspect(self, decoder: _Decoder) -> None:
        batch, row = decoder.suspects.popleft()
        position = batch.positions[row]
        uri, etag = batch.crops.uris[position], batch.crops.etags[position]
        self._send(decoder, _Sent(batch, row, 1, is_retry=True), uris=[uri], etags=[etag])

    def _send_job(self, decoder: _Decoder) -> bool:
        read = decoder.read or self._next_read()
        batch = self._batch_of(read.of) if read else None
        if read is None or batch is None:
            return False
        count = min(self.job_crops, read.left, self.decoders.batch_size - len(batch.positions))
        positions = read.positions[read.taken : read.taken + count]
        crops, is_start = read.of.crops, read.taken == 0
        job = _Sent(batch, len(batch.positions), count)
        batch.positions += positions
        batch.unanswered += count
        batch.images = self.decoders.buffers[batch.buffer][: len(batch.positions)]
        read.taken += count
        read.of.unassigned -= count
        if len(batch.positions) == self.decoders.batch_size or not read.of.unassigned:
            batch.is_closed, read.of.batch = True, None
        if not read.of.unassigned:
            self.open.remove(read.of)
        if read.span is not None or not read.left:
            with suppress(ValueError):
                read.of.reads.remove(read)
        if read.span is None:
            uris, etags = ([column[place] for place in positions] for column in (crops.uris, crops.etags))
            self._send(decoder, job, uris=uris, etags=etags)
            return True
        decoder.read = read if read.left else None
        start = SpanStart(read.span, [crops.uris[place] for place in read.positions]) if is_start else None
        self._send(decoder, job, start=start)
        return True

    def _next_read(self) -> _Read | None:
        """Return a read that no decoder has, of the first list that has one."""
        while True:
            for one in self.open:
                if one.reads:
                    return one.reads[0]
            if len(self.open) > 1 or self.next_list is None or not self.next_list.done():
                return None
            opened = self.next_list.result()
            self.next_list = None if opened is None else self._open_next()
            if opened is None:
                return None
            if opened.unassigned:
                self.open.append(opened)
            else:
                self.done.put(Batch(opened.crops, 0, self.decoders.buffers[0][:0], is_closed=True))

    def _batch_of(self, crops: _OpenList) -> Batch | None:
        if crops.batch is None and self.free:
            buffer = self.free.popleft()
            crops.batch = Batch(crops.crops, buffer, self.decoders.buffers[buffer][:0])
        return crops.batch

    def _send(
        self,
        decoder: _Decoder,
        sent: _Sent,
        *,
        uris: list[str] | None = None,
        etags: list[str] | None = None,
        start: SpanStart | None = None,
    ) -> None:
        self.jobs += 1
        decoder.sent[self.jobs] = sent
        decoder.unanswered += sent.count
        erased = sent.batch.crops.erased
        job = Job(
            self.jobs,
            sent.batch.buffer * self.decoders.batch_size + sent.first_row,
            sent.count,
            uris or [],
            etags or [],
            start,
            None if erased is decoder.erased else erased,
        )
        decoder.erased = erased
        with suppress(OSError):  # it died: the selector tells, and then its jobs are repeated
            decoder.connection.send(job)

    def _receive(self, decoder: _Decoder) -> None:
        try:
            answer: Answer | BaseException | str = decoder.connection.recv()
        except (EOFError, OSError):
            self._replace(decoder)
            return
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, Answer):
            sent = decoder.sent.pop(answer.number)
            decoder.unanswered -= sent.count
            self._finish(sent, answer)
        elif answer == READY:
            decoder.is_ready, self.failed_starts = True, 0

    def _finish(self, sent: _Sent, answer: Answer) -> None:
        batch = sent.batch
        batch.failures |= {sent.first_row + index: failure for index, failure in answer.failures.items()}
        batch.fetch_seconds += answer.fetch_seconds
        batch.decode_seconds += answer.decode_seconds
        batch.bytes += answer.bytes
        batch.unanswered -= sent.count
        if batch.is_closed and not batch.unanswered:
            self.done.put(batch)

    def _replace(self, dead: _Decoder) -> None:
        """Start another process in the place of a dead one; its crops are repeated one by one."""
        self.selector.unregister(dead.connection)
        with suppress(subprocess.TimeoutExpired):
            dead.process.wait(1)  # else the status would be that of `end`
        dead.end()
        status = dead.process.returncode
        reason, cause = f"its decoder ended with status {status}", CRASHED
        if status == -signal.SIGALRM:
            reason, cause = f"its decoder took more than {self.decoders.setup.decode_seconds:g} s", TIMEOUT
        self.failed_starts += not dead.is_ready
        if self.failed_starts > MAX_FAILED_STARTS:
            raise WorkerLost(
                f"decoder processes do not start: status {status}",
                remedy="check the memory of the node and the log of its Ray worker",
            )
        decoder = _Decoder(self.decoders.setup, self.decoders.memory)
        decoder.suspects = dead.suspects
        if dead.read is not None:
            dead.read.of.reads.appendleft(dead.read.rest())
        for sent in dead.sent.values():
            if sent.is_retry:
                failure = ImageFailure("decode", cause, f"{reason}, two times")
                self._finish(sent, Answer(0, {0: failure}))
            else:
                rows = range(sent.first_row, sent.first_row + sent.count)
                decoder.suspects.extend((sent.batch, row) for row in rows)
        self._running[self._running.index(dead)] = decoder
        self.selector.register(decoder.connection, selectors.EVENT_READ, decoder)
