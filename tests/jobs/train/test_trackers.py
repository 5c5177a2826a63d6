"""Experiment trackers: what they are told, and that a training does without them."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from infra.errors import BadSetting
from jobs.train import trackers
from jobs.train.job import Images, TrainJob
from jobs.train.trackers import Trackers, flat_parameters, require_trackers

ROOT = Path(__file__).parents[3]
IMAGES = Images([], np.zeros(0, np.int64))
PROGRAM = """
import json, sys
import numpy as np
from jobs.train.job import Images, TrainJob
from jobs.train.trackers import Trackers
recipe = {f"value{number}": number for number in range(150)}
images = Images([], np.zeros(0, np.int64))
job = TrainJob(recipe, (), images, images, "runs/training/abc", trackers=("mlflow",), checkpoint="s3://m/1")
first = Trackers(job)
first.add("epoch", {"pictures_seen": 10, "loss": 2.0, "stage": "warmup"})
first.add("stop", {})
second = Trackers(job)
second.add("epoch", {"pictures_seen": 20, "loss": 1.0})
second.add("final", {"held_accuracy": 0.5})
from mlflow.tracking import MlflowClient
(run,) = MlflowClient().search_runs(["1"])
logged = MlflowClient().get_metric_history(run.info.run_id, "loss")
history = [(metric.step, metric.value) for metric in logged]
json.dump([run.info.status, len(run.data.params), run.data.tags["clvr.checkpoint"], history], sys.stdout)
"""


def test_nested_values_have_dotted_names() -> None:
    values = {"batch": 8, "stages": [{"epochs": 1}, {"epochs": 2}], "pretrained": "x" * 600}
    assert flat_parameters(values) == {
        "batch": "8",
        "stages.0.epochs": "1",
        "stages.1.epochs": "2",
        "pretrained": "x" * 500,
    }


def test_a_tracker_that_is_unknown_or_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadSetting, match="'comet'"):
        require_trackers(["comet"])
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(BadSetting, match="needs the package mlflow") as caught:
        require_trackers(["mlflow"])
    assert "clvr-archive[tracking]" in caught.value.remedy


def test_a_tracker_that_fails_is_left_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[object] = []

    class Lost:
        def __init__(self, *about: object) -> None:
            raise ConnectionError("no server")

    class Fails:
        def __init__(self, *about: object) -> None:
            told.append(about)

        def log(self, figures: Mapping[str, float], step: int) -> None:
            told.append((dict(figures), step))
            if step > 10:
                raise ConnectionError("gone")

        def end(self, event: str) -> None:
            told.append(event)

    monkeypatch.setattr(trackers, "_TRACKERS", {"mlflow": Lost, "wandb": Fails})
    job = TrainJob({"name": "demo"}, (), IMAGES, IMAGES, "runs/abc", trackers=("mlflow", "wandb"))
    running = Trackers(job)
    for seen in (10, 20, 30):
        running.add("step", {"pictures_seen": seen, "loss": 3.0})
        running.add("epoch", {"pictures_seen": seen, "loss": 2.0, "stage": "warmup"})
    running.add("final", {})
    assert told == [("abc", "", {"name": "demo"}), ({"loss": 2.0}, 10), ({"loss": 2.0}, 20)]


@pytest.mark.slow
def test_mlflow_has_one_run_of_a_training_that_was_continued(tmp_path: Path) -> None:
    packages = ["mlflow-skinny>=3", "sqlalchemy", "alembic"]
    target = tmp_path / "packages"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", target, *packages], check=True)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{target}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout) == ["FINISHED", 150, "s3://m/1", [[10, 2.0], [20, 1.0]]]
