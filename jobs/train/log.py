"""What a training leaves to read while it runs: `log.jsonl`, TensorBoard events and Ray's metrics."""

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from infra.errors import ObjectMissing
from infra.store import Store
from jobs.runtime.metrics import TRAIN_IMAGES, TRAIN_LOSS, TRAIN_RATE, TRAIN_WAIT_SECONDS, count, set_gauge


@dataclass(frozen=True, slots=True)
class Cost:
    """hours: wall time of all attempts together. node_hours: that, times the nodes of each attempt."""

    hours: float
    node_hours: float
    attempts: int
    price_per_node_hour: float | None = None

    @property
    def money(self) -> float | None:
        """In the unit of the price; None without one."""
        return None if self.price_per_node_hour is None else self.node_hours * self.price_per_node_hour


def cost_of(log: Sequence[dict[str, Any]], price_per_node_hour: float | None = None) -> Cost:
    """Add up the attempts: each from its `start` to the last line before the next one.

    What a killed attempt did after its last line is not in the log, and not counted.
    """
    starts = [place for place, line in enumerate(log) if line["event"] == "start"]
    hours = node_hours = 0.0
    for begin, end in pairwise([*starts, len(log)]):
        seconds = max(0.0, log[end - 1]["time"] - log[begin]["time"])
        hours += seconds / 3600
        node_hours += seconds / 3600 * log[begin].get("nodes", 1)
    return Cost(hours, node_hours, len(starts), price_per_node_hour)


LOG_FILE = "log.jsonl"
BOARD_FOLDER = "tensorboard"
FLUSH_SECONDS = 15.0  # into a bucket
FLUSH_SECONDS_LOCALLY = 1.0


class TrainLog:
    """One JSON object a line: `event` is start, step, epoch, final, stop or error. Only worker 0 writes it.

    A resumed training goes on in the same file; of an epoch that was run twice, the later lines count.
    """

    def __init__(self, folder: Store) -> None:
        self.folder = folder
        self.lines: list[str] = []
        with contextlib.suppress(ObjectMissing):
            self.lines = folder.get(LOG_FILE).decode().splitlines()
        self.flushed = 0.0
        self.every = FLUSH_SECONDS_LOCALLY if folder.local else FLUSH_SECONDS
        self.board = _TensorBoard(folder)

    def write(self, event: str, **values: Any) -> None:
        """Append a line; steps reach the store now and then, everything else at once."""
        self.lines.append(json.dumps({"event": event, "time": round(time.time(), 3), **values}))
        self.board.add(event, values)
        if event != "step" or time.monotonic() - self.flushed > self.every:
            self.folder.put(LOG_FILE, ("\n".join(self.lines) + "\n").encode())
            self.board.flush()
            self.flushed = time.monotonic()


def read_log(folder: Store) -> list[dict[str, Any]]:
    """The lines of a training's log, oldest first; none where there is no log."""
    try:
        lines = folder.get(LOG_FILE).decode().splitlines()
    except ObjectMissing:
        return []
    return [json.loads(line) for line in lines]


class _TensorBoard:
    """Events for TensorBoard, where tensorboardX is installed; written locally, and copied to a bucket."""

    def __init__(self, folder: Store) -> None:
        self.folder = folder
        self.writer: Any = None
        self.temporary: TemporaryDirectory[str] | None = None
        try:
            from tensorboardX import SummaryWriter  # type: ignore[import-untyped]
        except ImportError:
            return
        if folder.local:
            self.path = Path(folder.uri) / BOARD_FOLDER
        else:
            self.temporary = TemporaryDirectory(prefix="clvr-tensorboard-")
            self.path = Path(self.temporary.name)
        # Its own flush may overtake what is still in its queue.
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
                self.folder.put(f"{BOARD_FOLDER}/{file.name}", file)


class TrainMetrics:
    """Exports the figures of one worker as Prometheus series."""

    def __init__(self, rank: int) -> None:
        self.rank = str(rank)

    def step(self, stage: str, *, pictures: int, waited: float, rate: float, loss: float) -> None:
        """Count one step."""
        tags = {"stage": stage, "rank": self.rank}
        count(TRAIN_IMAGES, pictures, **tags)
        count(TRAIN_WAIT_SECONDS, waited, **tags)
        set_gauge(TRAIN_RATE, rate, **tags)
        set_gauge(TRAIN_LOSS, loss, **tags)
