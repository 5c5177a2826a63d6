"""Experiment trackers of a training, MLflow and Weights & Biases: parameters, figures by epoch, checkpoint.

Rank 0 reports to them, with the tracker's own variables (`MLFLOW_TRACKING_URI`, `WANDB_MODE`, …) for address
and token. A continued training continues its run. A tracker that fails costs its figures, not the training.
"""

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, Protocol

from infra.errors import BadSetting
from infra.logging import logger
from jobs.train.job import TrainJob

TRAINING_TAG = "clvr.training"
CHECKPOINT_TAG = "clvr.checkpoint"
DEFAULT_EXPERIMENT = "clvr"
STATUS = {"final": "FINISHED", "stop": "KILLED", "error": "FAILED"}
"""The status in MLflow's words with which an event ends a run."""

_MAX_PARAMETER = 500  # characters that every MLflow server takes
_MAX_BATCH = 100  # parameters of one request to it


class Tracker(Protocol):
    """One run of one tracker."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Report figures after so many images."""

    def end(self, event: str) -> None:
        """End the run: with `final`, `stop` or `error`."""


def require_trackers(names: Collection[str]) -> None:
    """Raise BadSetting for an unknown tracker, and for one whose package is not installed."""
    for name in names:
        if name not in _TRACKERS:
            raise BadSetting(f"--track is {name!r}", remedy=f"choose one of {', '.join(_TRACKERS)}")
        if find_spec(name) is None:
            raise BadSetting(
                f"--track {name} needs the package {name}, which is not installed",
                remedy="Install it: pip install 'clvr-archive[tracking]'.",
            )


class Trackers:
    """The trackers of a training, as a part of its log."""

    def __init__(self, job: TrainJob) -> None:
        self._runs: dict[str, Tracker] = {}
        self._images = 0
        parameters = flat_parameters(job.recipe)
        training = job.folder.rstrip("/").rpartition("/")[2]
        for name in job.trackers:
            self._attempt(name, partial(self._open, name, training, job.checkpoint, parameters))

    def _open(self, name: str, training: str, checkpoint: str, parameters: Mapping[str, str]) -> None:
        self._runs[name] = _TRACKERS[name](training, checkpoint, parameters)

    def add(self, event: str, values: Mapping[str, Any]) -> None:
        """Report an event of the log; steps are left out."""
        self._images = values.get("pictures_seen", self._images)
        figures = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and name != "pictures_seen"
        }
        for name, run in list(self._runs.items()):
            if event in ("epoch", "final"):
                self._attempt(name, partial(run.log, figures, self._images))
            if event in STATUS:
                self._attempt(name, partial(run.end, event))

    def _attempt(self, name: str, report: Callable[[], None]) -> None:
        try:
            report()
        except Exception as error:  # of a client, of whatever class; a tracker is no reason to stop
            self._runs.pop(name, None)
            line = (str(error).splitlines() or [type(error).__name__])[0]
            logger.warning(f"{name} gets no more figures of this training: {line[:200]}")


class MlflowTracker:
    """A run of MLflow, in the experiment `MLFLOW_EXPERIMENT_NAME` or `clvr`."""

    def __init__(self, training: str, checkpoint: str, parameters: Mapping[str, str]) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        runs = self._client.search_runs([experiment], f"tags.`{TRAINING_TAG}` = '{training}'", max_results=1)
        if runs:
            self._run = runs[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        tags = {TRAINING_TAG: training, CHECKPOINT_TAG: checkpoint}
        self._run = self._client.create_run(experiment, tags=tags, run_name=training).info.run_id
        described = [Param(name, value) for name, value in parameters.items()]
        for start in range(0, len(described), _MAX_BATCH):
            self._client.log_batch(self._run, params=described[start : start + _MAX_BATCH])

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Report figures after so many images."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in figures.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def end(self, event: str) -> None:
        """End the run."""
        self._client.set_terminated(self._run, STATUS[event])


class WandbTracker:
    """A run of Weights & Biases, in the project `WANDB_PROJECT` or `clvr`."""

    def __init__(self, training: str, checkpoint: str, parameters: Mapping[str, str]) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or DEFAULT_EXPERIMENT,
            id=training,
            resume="allow",
            config={**parameters, CHECKPOINT_TAG: checkpoint},
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Report figures after so many images."""
        self._run.log({**figures, "pictures_seen": step})

    def end(self, event: str) -> None:
        """End the run."""
        self._run.finish(exit_code=int(event != "final"))


_TRACKERS: dict[str, type[MlflowTracker] | type[WandbTracker]] = {
    "mlflow": MlflowTracker,
    "wandb": WandbTracker,
}


def flat_parameters(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested values by dotted names, as texts: {'stages.0.epochs': '10'}."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = {str(position): item for position, item in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= flat_parameters(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)[:_MAX_PARAMETER]
    return flat
