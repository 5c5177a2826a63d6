"""`clvr evaluate --compare`: two runs of the same images on the same splits, with a paired bootstrap."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from clvr_model.checkpoint import read_card
from index.evaluation.bootstrap import Difference, compare
from index.evaluation.metrics import AP_RULES
from index.evaluation.model_groups import ModelLabels
from index.evaluation.protocols import RULES, ProtocolResult, evaluate_protocol
from infra.errors import BadInput, BadLabels, BadSetting
from infra.logging import logger
from infra.settings import Settings
from jobs.evaluate.dataset import LabelledRun, evaluation_lists, labelled_run
from jobs.evaluate.results import EvaluateRequest
from jobs.runtime.resolve import find_run


class MeasureDifference(TypedDict):
    """One measure of both runs, and the difference b - a with its 95 % interval."""

    measure: str
    a: float
    b: float
    low: float
    high: float
    difference: float


class ComparisonFigures(TypedDict):
    """The ids of run A and run B, and their differences by protocol."""

    runs: tuple[str, str]
    protocols: dict[str, list[MeasureDifference]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences of two runs by protocol: the second run minus the first."""

    runs: tuple[str, str]
    differences: dict[str, list[Difference]]

    def to_json(self) -> ComparisonFigures:
        """Return the runs and the differences by protocol."""
        return {
            "runs": self.runs,
            "protocols": {
                name: [_difference_json(row) for row in rows] for name, rows in self.differences.items()
            },
        }

    def to_text(self) -> str:
        """Return one table per protocol."""
        lines = [f"A = {self.runs[0]}, B = {self.runs[1]}; 95 % interval of B - A by resampled vehicles"]
        for name, rows in self.differences.items():
            lines.append(f"{name:18} {'A':>8} {'B':>8} {'B - A':>8}   95 % interval")
            for row in rows:
                verdict = "" if row.is_significant else "   may be chance"
                lines.append(
                    f"  {row.measure:16} {row.a:>8.1%} {row.b:>8.1%} {row.difference:>+8.1%}"
                    f"   {row.ci_low:+.1%} to {row.ci_high:+.1%}{verdict}"
                )
        return "\n".join(lines)


def _difference_json(difference: Difference) -> MeasureDifference:
    return {
        "measure": difference.measure,
        "a": difference.a,
        "b": difference.b,
        "low": difference.ci_low,
        "high": difference.ci_high,
        "difference": difference.difference,
    }


def compare_runs(request: EvaluateRequest, other: str, settings: Settings) -> Comparison:
    """Rank both runs on splits of the labelled crops that both have embedded.

    Raises BadInput if they share no labelled crop, and the errors of an evaluation.
    """
    names = request.protocols or ("vehicleid-paper",)
    unknown = [name for name in names if name not in RULES]
    if unknown:
        raise BadSetting(f"unknown protocol '{unknown[0]}'", remedy=f"use one of: {', '.join(RULES)}")
    if request.transforms:
        raise BadSetting("--compare compares plain L2", remedy="leave out --transform, or evaluate each run")
    if request.ap not in AP_RULES:
        raise BadSetting(f"--ap is {request.ap!r}", remedy=f"choose one of {', '.join(AP_RULES)}")
    lists = evaluation_lists(request.labels, request.split, settings.plausible_times())
    if len(lists) > 1:
        raise BadInput(
            f"{request.labels} has several test lists", remedy=f"choose one: --split {lists[0].name}"
        )
    a, b = (labelled_run(find_run(run, settings), lists[0]) for run in (request.run, other))
    rows_a, rows_b = shared_rows((a, b))
    logger.info(
        f"{len(rows_a):,} labelled crops in both runs; {len(a.features) - len(rows_a):,} of A alone and "
        f"{len(b.features) - len(rows_b):,} of B alone are excluded"
    )
    vehicles = a.vehicle_ids[rows_a]
    trained = {model for run in (a, b) for model in read_card(run.run.info.model).label_ids}
    models = a.models(trained)
    models = None if models is None else models.take(rows_a)
    differences = {}
    for name in names:
        first = _ranked(name, a, rows_a, models, request)
        second = _ranked(name, b, rows_b, models, request)
        differences[name] = compare(first, second, vehicles, ap=request.ap, seed=request.seed)
    return Comparison((a.run.run_id, b.run.run_id), differences)


def shared_rows(runs: Sequence[LabelledRun]) -> list[NDArray[np.int64]]:
    """Return the rows of the crops that all runs share, for each run, in the order of the first one.

    So the splits equal those of the first run alone, if it has no further crops. Raises BadInput if they
    share none, BadLabels if a crop has another vehicle id in another run.
    """
    first = runs[0]
    shared = first.crop_ids
    for run in runs[1:]:
        shared = shared[np.isin(shared, run.crop_ids)]
    if not len(shared):
        names = ", ".join(run.run.run_id for run in runs)
        raise BadInput(f"runs {names} share no labelled crop", remedy="compare runs of the same archive")
    rows = []
    for run in runs:
        order = np.argsort(run.crop_ids)
        rows.append(order[np.searchsorted(run.crop_ids, shared, sorter=order)])
        num_different = int((run.vehicle_ids[rows[-1]] != first.vehicle_ids[rows[0]]).sum())
        if num_different:
            raise BadLabels(
                f"{num_different:,} crops have another vehicle id in run {run.run.run_id} than in "
                f"{first.run.run_id}",
                remedy="give --labels, to use the same vehicle ids for both",
            )
    return rows


def _ranked(
    name: str, run: LabelledRun, rows: Any, models: ModelLabels | None, request: EvaluateRequest
) -> ProtocolResult:
    return evaluate_protocol(
        name,
        run.features[rows],
        run.vehicle_ids[rows],
        camera_ids=None if run.cameras is None else run.cameras[rows],
        models=models,
        repeats=request.repeats,
        seed=request.seed,
    )
