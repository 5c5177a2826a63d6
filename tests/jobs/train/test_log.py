"""The log of a training: one JSON object per line, continued by a resume; the cost of its attempts."""

import json
import time
from pathlib import Path

import pytest

from infra.errors import CorruptObject
from infra.store import Store, open_store
from jobs.train.log import LOG_FILE, TrainLog, cost_of, read_log


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def test_event_is_one_line_and_a_resume_appends_to_the_same_file(folder: Store) -> None:
    TrainLog(folder).write("start", stage=0)
    TrainLog(folder).write("epoch", stage="warmup", loss=1.5, pictures_seen=10)
    assert [(line["event"], line["stage"]) for line in read_log(folder)] == [
        ("start", 0),
        ("epoch", "warmup"),
    ]
    for line in folder.get(LOG_FILE).decode().splitlines():
        json.loads(line)


def test_every_altered_bit_is_noticed_and_a_log_of_an_older_release_is_read(folder: Store) -> None:
    TrainLog(folder).write("start", stage=0)
    data = folder.get(LOG_FILE)
    for bit in range(8 * len(data)):
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        folder.put(LOG_FILE, bytes(altered))
        with pytest.raises(CorruptObject, match=r"log\.jsonl"):
            read_log(folder)
    folder.put(LOG_FILE, data.splitlines(keepends=True)[0])
    assert [line["event"] for line in read_log(folder)] == ["start"]


def test_steps_are_written_with_the_next_epoch_at_the_latest(folder: Store) -> None:
    log = TrainLog(folder)
    log.write("start")
    log.write("step", pictures_seen=1, loss=1.0)
    log.write("epoch", pictures_seen=2, loss=0.5)
    assert [line["event"] for line in read_log(folder)] == ["start", "step", "epoch"]


def test_tensorboard_events_are_written_beside_the_log(folder: Store, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    TrainLog(folder).write("epoch", pictures_seen=10, loss=0.25, stage="target")
    (events,) = (tmp_path / "tensorboard").iterdir()
    deadline = time.monotonic() + 20
    while b"epoch/loss" not in events.read_bytes():  # tensorboardX writes in a thread of its own
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_missing_log_reads_as_empty(folder: Store) -> None:
    assert read_log(folder) == []


def test_cost_counts_every_attempt_up_to_its_last_line() -> None:
    log = [
        {"event": "start", "time": 0.0, "nodes": 2},
        {"event": "epoch", "time": 1800.0},
        {"event": "start", "time": 9000.0, "nodes": 1},
        {"event": "final", "time": 9000.0 + 3600},
    ]
    cost = cost_of(log, price_per_node_hour=3.0)
    assert (cost.hours, cost.node_hours, cost.attempts) == (1.5, 2.0, 2)
    assert cost.money == 6.0
    assert cost_of(log).money is None


def test_empty_log_costs_nothing() -> None:
    assert cost_of([]).node_hours == 0
