"""The log of a training (`log.jsonl`, TensorBoard events, Prometheus series), and its cost by that log."""

import contextlib
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from infra.errors import CorruptObject, ObjectMissing
from infra.store import Store
from jobs.runtime.metrics import TRAIN_IMAGES, TRAIN_LOSS, TRAIN_RATE, TRAIN_WAIT_SECONDS, count, set_gauge
from jobs.train.trackers import Trackers

LOG_FILE = "log.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
FLUSH_SECONDS = 15.0  # into a bucket
LOCAL_FLUSH_SECONDS = 1.0


class TrainLog:
    """One JSON object per line: `event` is start, step, epoch, final, stop or error. Rank 0 writes it.

    The last line is the digest of the others. A resumed training appends to the same file; for an epoch that
    ran twice, the later lines count.
    """

    def __init__(self, folder: Store, trackers: Trackers | None = None) -> None:
        self.folder = folder
        self.trackers = trackers
        self.lines: list[str] = []
        with contextlib.suppress(ObjectMissing):
            self.lines = _unsealed_lines(folder)
        self.last_flush = 0.0
        self.flush_seconds = LOCAL_FLUSH_SECONDS if folder.local else FLUSH_SECONDS
        self.tensorboard = _TensorBoard(folder)

    def write(self, event: str, **values: Any) -> None:
        """Append a line. Steps reach the store every few seconds, other events at once."""
        self.lines.append(json.dumps({"event": event, "time": round(time.time(), 3), **values}))
        self.tensorboard.add(event, values)
        if self.trackers is not None:
            self.trackers.add(event, values)
        if event != "step" or time.monotonic() - self.last_flush > self.flush_seconds:
            self.folder.put(LOG_FILE, _joined([*self.lines, _digest_line(self.lines)]))
            self.tensorboard.flush()
            self.last_flush = time.monotonic()


class _TensorBoard:
    """Events for TensorBoard, if tensorboardX is installed; written locally, and copied to a bucket."""

    def __init__(self, folder: Store) -> None:
        self.folder = folder
        self.writer: Any = None
        self.temporary: TemporaryDirectory[str] | None = None
        try:
            from tensorboardX import SummaryWriter  # type: ignore[import-untyped]
        except ImportError:
            return
        if folder.local:
            self.path = Path(folder.uri) / TENSORBOARD_FOLDER
        else:
            self.temporary = TemporaryDirectory(prefix="clvr-tensorboard-")
            self.path = Path(self.temporary.name)
        # flush() does not wait for the writer's queue, so let the writer flush every second.
        self.writer = SummaryWriter(str(self.path), flush_secs=1)

    def add(self, event: str, values: dict[str, Any]) -> None:
        if self.writer is None or event not in ("step", "epoch"):
            return
        for name, value in values.items():
            if isinstance(value, float):
                self.writer.add_scalar(f"{event}/{name}", value, values["pictures_seen"])

    def flush(self) -> None:
        if self.writer is None:
            return
        self.writer.flush()
        if self.temporary is not None:
            for file in self.path.iterdir():
                self.folder.put(f"{TENSORBOARD_FOLDER}/{file.name}", file)


def read_log(folder: Store) -> list[dict[str, Any]]:
    """Return the lines of a training's log, oldest first; empty without a log. Raises CorruptObject."""
    try:
        return [json.loads(line) for line in _unsealed_lines(folder)]
    except ObjectMissing:
        return []


def _unsealed_lines(folder: Store) -> list[str]:
    """Return the lines without the last one, the digest of the others; logs of older releases have none."""
    data = folder.get(LOG_FILE)
    try:
        lines = data.decode().splitlines()
        last = json.loads(lines[-1]) if lines else {}
        if {"sha256", "digest"}.isdisjoint((*last, last.get("event"))):
            [json.loads(line) for line in lines]
            return lines
        if _joined([*lines[:-1], _digest_line(lines[:-1])]) != data:
            raise ValueError("its lines do not have the digest that it carries")
    except (ValueError, TypeError, AttributeError) as failure:
        raise CorruptObject(
            f"{folder.uri_of(LOG_FILE)} was altered: {failure}",
            remedy="Delete it: the report and the costs then start anew, the training does not.",
        ) from failure
    return lines[:-1]


def _digest_line(lines: Sequence[str]) -> str:
    return json.dumps({"event": "digest", "sha256": hashlib.sha256(_joined(lines)).hexdigest()})


def _joined(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


class TrainMetrics:
    """Exports the figures of one worker as Prometheus series."""

    def __init__(self, rank: int) -> None:
        self.rank = str(rank)

    def step(self, stage: str, *, images: int, wait_seconds: float, rate: float, loss: float) -> None:
        """Count one step."""
        tags = {"stage": stage, "rank": self.rank}
        count(TRAIN_IMAGES, images, **tags)
        count(TRAIN_WAIT_SECONDS, wait_seconds, **tags)
        set_gauge(TRAIN_RATE, rate, **tags)
        set_gauge(TRAIN_LOSS, loss, **tags)


@dataclass(frozen=True, slots=True)
class TrainingCost:
    """hours: wall time of all attempts. node_hours: the hours of each attempt times its nodes."""

    hours: float
    node_hours: float
    attempts: int
    price_per_node_hour: float | None = None

    @property
    def money(self) -> float | None:
        """The cost in the unit of the price; None without a price."""
        return None if self.price_per_node_hour is None else self.node_hours * self.price_per_node_hour


def cost_of(log: Sequence[dict[str, Any]], price_per_node_hour: float | None = None) -> TrainingCost:
    """Add up the attempts in a log: each lasts from its `start` to the last line before the next `start`.

    The work of a killed attempt after its last line is not in the log, and not counted.
    """
    starts = [number for number, line in enumerate(log) if line["event"] == "start"]
    hours = node_hours = 0.0
    for start, end in pairwise([*starts, len(log)]):
        attempt_hours = max(0.0, log[end - 1]["time"] - log[start]["time"]) / 3600
        hours += attempt_hours
        node_hours += attempt_hours * log[start].get("nodes", 1)
    return TrainingCost(hours, node_hours, len(starts), price_per_node_hour)
