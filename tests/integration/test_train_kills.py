"""A killed `clvr train` resumes, and gives the weights of an uninterrupted one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clvr_model.checkpoint import load_checkpoint
from clvr_model.synthetic.archive import generate, write_labels
from clvr_model.synthetic.trips import ArchiveSpec
from infra.store import open_store
from jobs.train.log import read_log

pytestmark = pytest.mark.integration

RECIPE = ["--recipe", "demo", "--weights", "random", "--set", "batch=2", "--set", "warmup.epochs=1"]
RECIPE += ["--set", "target.epochs=3", "--set", "reestimate_statistics=4", "--set", "target.flip=true"]


class Training:
    """A `clvr train` of a synthetic archive into a private folder or bucket."""

    def __init__(self, folder: Path, archive: Path, to: str = "", *more: str) -> None:
        self.folder, self.archive = folder, archive
        self.to = to or str(folder / "model")
        self.more = more
        self.environment: dict[str, str] = {}

    def start(self) -> subprocess.Popen[str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("CLVR_", "AWS_"))}
        data = [str(self.archive / "labels/labels.parquet"), "--root", str(self.archive / "archive")]
        command = ["train", *data, "--to", self.to, *RECIPE, "--log-every", "1", "--json", *self.more]
        self.folder.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", *command],
            cwd=self.folder,
            env={**clean, "RAY_worker_niceness": "0", **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def log(self) -> list[dict[str, Any]]:
        """Return the lines of the log that are written so far."""
        root = Path(self.to) / "training"
        names = [each.name for each in root.iterdir()] if root.is_dir() else []
        return read_log(open_store(str(root / names[0]))) if names else []


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=420)
    assert process.returncode == 0, err
    result: dict[str, Any] = json.loads(out)
    return result


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise AssertionError(process.communicate()[1])
        time.sleep(0.05)


def descendants(pid: int) -> dict[int, str]:
    """Return all descendants of a process, with their command lines."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # ended in between
    below: dict[int, str] = {}
    last = {pid}
    while last:
        last = {child for child, parent in parents.items() if parent in last and child not in below}
        below |= {child: names[child] for child in last}
    return below


def train_workers(process: subprocess.Popen[str]) -> list[int]:
    """Return the Ray Train workers in the local Ray of a driver."""
    return sorted(pid for pid, name in descendants(process.pid).items() if "RayTrainWorker" in name)


def kill_driver(process: subprocess.Popen[str]) -> None:
    """Kill a driver as the out-of-memory killer would, and wait for its local Ray to end."""
    behind = descendants(process.pid)
    process.kill()
    process.communicate()
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in behind) and time.monotonic() < end:
        time.sleep(0.2)


def in_target(training: Training, epochs: int) -> Callable[[], bool]:
    """Return a condition: `epochs` epochs of all layers are done, and the next one has started."""

    def reached() -> bool:
        lines = [line for line in training.log() if line.get("stage") == "target"]
        done = sum(line["event"] == "epoch" for line in lines)
        return done >= epochs and bool(lines)

    return reached


@pytest.fixture(scope="module")
def archive_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic archive of 12 crops of two models."""
    folder = tmp_path_factory.mktemp("archive_folder")
    spec = ArchiveSpec(seed=5, models=2, vehicles_per_model=2, sightings_per_vehicle=3, cameras=3)
    open_store(str(folder / "archive")).create_bucket()
    generate(open_store(str(folder / "archive")), spec)
    write_labels(open_store(str(folder / "labels")), spec)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(archive_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of an uninterrupted training with two workers."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    result = finish(Training(folder, archive_folder, "", "--workers", "2").start())
    card = load_checkpoint(result["uri"]).card
    return {**result, "weights": card.weights_sha256, "history": card.metrics["history"]}


def compare(result: dict[str, Any], uninterrupted: dict[str, Any]) -> None:
    card = load_checkpoint(result["uri"]).card
    for epoch, expected in zip(card.metrics["history"], uninterrupted["history"], strict=True):
        assert epoch["stage"] == expected["stage"]
        for name in ("epoch", "loss", "accuracy", "pictures", "held_loss", "held_accuracy"):
            assert epoch[name] == pytest.approx(expected[name], rel=1e-6), name
    assert card.label_ids == load_checkpoint(uninterrupted["uri"]).card.label_ids
    assert card.weights_sha256 == uninterrupted["weights"]


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_resumes_after_the_last_whole_epoch(
    archive_folder: Path, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    training = Training(tmp_path, archive_folder, "", "--workers", "2")
    process = training.start()
    wait_for(in_target(training, 1), process)
    os.kill(train_workers(process)[0], signal.SIGKILL)
    compare(finish(process), uninterrupted)
    starts = [line for line in training.log() if line["event"] == "start"]
    assert len(starts) == 2
    # Ray Train takes note of a report within two seconds, in which a kill goes one epoch further back.
    assert starts[1]["stage"] == 1


@pytest.mark.slow
def test_a_killed_driver_is_continued_by_the_same_command(
    archive_folder: Path, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    training = Training(tmp_path, archive_folder, "", "--workers", "2")
    process = training.start()
    wait_for(in_target(training, 1), process)
    kill_driver(process)
    compare(finish(training.start()), uninterrupted)
    assert sum(line["event"] == "start" for line in training.log()) == 2


@pytest.mark.slow
def test_training_resumes_after_sigterm_at_the_same_step(
    archive_folder: Path, uninterrupted: dict[str, Any], tmp_path: Path
) -> None:
    training = Training(tmp_path, archive_folder, "", "--workers", "2")
    process = training.start()
    wait_for(in_target(training, 0), process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert "the same command continues" in err
    stop = next(line for line in training.log() if line["event"] == "stop")
    compare(finish(training.start()), uninterrupted)
    start = [line for line in training.log() if line["event"] == "start"][1]
    for name in ("stage", "epoch", "pictures"):
        assert start[name] == stop[name]
