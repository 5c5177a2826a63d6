"""The request and the results of an evaluation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import TypedDict

from index.evaluation.breakdowns import (
    FALSE_POSITIVE_RATES,
    AttributeAccuracy,
    CameraPair,
    Classification,
    Distances,
    TimeOfDay,
    ValueRanks,
)
from index.evaluation.index_recall import IndexCmcLoss
from index.evaluation.metrics import COMPUTED, REPORTED_RANKS, Metric, metrics_by
from index.evaluation.model_groups import Oracle
from index.evaluation.protocols import IMAGE, ProtocolResult
from index.exact.numba_kernels import TIE_RULE
from jobs.evaluate.dataset import LabelledRun
from jobs.runtime.format import attribute_name
from jobs.runtime.json_fields import FieldsOf

_TABLE_COLUMNS = ("protocol", "features", "unit", "seed", "repeats", "vehicles", "probes", "gallery")


class Spread(TypedDict):
    """Mean and sample standard deviation over the repeats."""

    mean: float
    std: float


MetricFields = TypedDict("MetricFields", {metric.name: Spread for metric in COMPUTED})  # type: ignore[misc]


class ProtocolFields(TypedDict):
    """The figures of one protocol with one kind of features, and those of each metric.

    unit: image or track. seed: null for given splits. cmc: by rank, such as `rank-1`. curve: the mean CMC
    from rank 1 on.
    """

    protocol: str
    features: str
    unit: str
    rule: str
    ties: str
    seed: int | None
    repeats: int
    vehicles: int
    probes: int
    gallery: int
    excluded_vehicles: int
    unmatched_probes: int
    cmc: dict[str, Spread]
    curve: list[float]
    chance_rank_1: float


ProtocolFigures = Annotated[dict[str, Any], FieldsOf(MetricFields, ProtocolFields)]


class OracleCurve(TypedDict):
    """The expected CMC of somebody who recognises the model. known_share: of images whose model is known."""

    recognises: str
    curve: list[float]
    known_share: float


class ListFigures(TypedDict):
    """The figures of one list of images.

    left_out: which labels and crops are not ranked and why. oracles: by protocol. tpr_at_fpr: shares by the
    false positive rate, of the first protocol, like the breakdowns.
    """

    list: str
    labelled: int
    unlabelled: int
    labelled_without_embedding: int
    labels_of_no_crop: int
    left_out: Sequence[str]
    protocols: Sequence[ProtocolFigures]
    oracles: dict[str, Sequence[OracleCurve]]
    tpr_at_fpr: dict[str, float | None] | None
    by_camera_pair: Sequence[Annotated[dict[str, Any], FieldsOf(CameraPair)]]
    by_day_part: Sequence[Annotated[dict[str, Any], FieldsOf(TimeOfDay)]]
    model_classification: Annotated[dict[str, Any], FieldsOf(Classification)] | None
    attribute_classification: Sequence[Annotated[dict[str, Any], FieldsOf(AttributeAccuracy)]]
    by_color: Sequence[Annotated[dict[str, Any], FieldsOf(ValueRanks)]]
    through_index: Annotated[dict[str, Any], FieldsOf(IndexCmcLoss)] | None


class EvaluationFigures(TypedDict):
    """The figures of all lists of an evaluation of one run."""

    run: str
    model: str
    fingerprint: str
    lists: list[ListFigures]


def figures_of(lists: Sequence["ListEvaluation"]) -> EvaluationFigures:
    """Return all figures as JSON values."""
    run = lists[0].labelled.run
    return {
        "run": run.run_id,
        "model": run.info.model,
        "fingerprint": run.fingerprint,
        "lists": [_list_figures(evaluation) for evaluation in lists],
    }


def _list_figures(evaluation: "ListEvaluation") -> ListFigures:
    labelled, distances = evaluation.labelled, evaluation.distances
    return {
        "list": labelled.name,
        "labelled": len(labelled.features),
        "unlabelled": labelled.unlabelled,
        "labelled_without_embedding": labelled.quarantined,
        "labels_of_no_crop": labelled.not_in_run,
        "left_out": labelled.accounting(),
        "protocols": [_protocol_figures(result) for result in (*evaluation.results, *evaluation.variants)],
        "oracles": {
            name: [
                {"recognises": oracle.name, "curve": oracle.curve.tolist(), "known_share": oracle.known}
                for oracle in found
            ]
            for name, found in evaluation.oracles.items()
        },
        "tpr_at_fpr": None
        if distances is None
        else {f"{rate:g}": distances.tpr_at_fpr(rate) for rate in FALSE_POSITIVE_RATES},
        "by_camera_pair": [asdict(pair) for pair in evaluation.camera_pairs],
        "by_day_part": [asdict(part) for part in evaluation.day_parts],
        "model_classification": None if evaluation.models is None else asdict(evaluation.models),
        "attribute_classification": [asdict(attribute) for attribute in evaluation.attributes],
        "by_color": [asdict(part) for part in evaluation.by_color],
        "through_index": None if evaluation.index is None else asdict(evaluation.index),
    }


def _protocol_figures(result: ProtocolResult) -> ProtocolFigures:
    fields: ProtocolFields = {
        "protocol": result.name,
        "features": result.features,
        "unit": result.unit,
        "rule": result.rule,
        "ties": TIE_RULE,
        "seed": None if result.has_user_splits else result.seed,
        "repeats": result.repeats,
        "vehicles": result.vehicles,
        "probes": result.probes,
        "gallery": result.gallery,
        "excluded_vehicles": result.excluded_vehicles,
        "unmatched_probes": result.without_positive,
        "cmc": {
            f"rank-{k}": _spread(figure)
            for k, figure in zip(REPORTED_RANKS, _at(result, REPORTED_RANKS), strict=True)
        },
        "curve": [float(share) for share in result.mean],
        "chance_rank_1": float(result.chance[0]),
    }
    return {**fields, **{metric.name: _spread(result.figure(metric.name)) for metric in COMPUTED}}


def _spread(figure: tuple[float, float]) -> Spread:
    mean, std = figure
    return {"mean": mean, "std": std}


def table_of(lists: Sequence["ListEvaluation"], ap: str = "mean") -> str:
    """Return the main figures as text, with the average precision by one of `AP_RULES`."""
    return "\n\n".join("\n".join(_list_lines(evaluation, metrics_by(ap))) for evaluation in lists)


def _list_lines(evaluation: "ListEvaluation", metrics: Sequence[Metric]) -> Iterator[str]:
    if evaluation.labelled.name:
        yield f"list {evaluation.labelled.name}"
    measures = (*(f"rank-{k}" for k in REPORTED_RANKS), *(metric.title for metric in metrics))
    yield f"{'protocol':18} {'probes':>7} {'gallery':>8}" + "".join(f"{name:>14}" for name in measures)
    for result in evaluation.results:
        yield _row(f"{result.name:18} {result.probes:>7,} {result.gallery:>8,}", result, metrics)
        yield _curve_row("by chance", result.chance)
        for oracle in evaluation.oracles.get(result.name, ()):
            known = "" if oracle.known == 1 else f", {oracle.known:.0%} known"
            yield _curve_row(f"perfect {oracle.name}{known}", oracle.curve)
        for variant in evaluation.variants:
            if variant.name == result.name:
                yield f"  {variant.features}{_gallery_note(variant)}:"
                yield _row(" " * 35, variant, metrics)
    if evaluation.distances is not None:
        rates = ((rate, evaluation.distances.tpr_at_fpr(rate)) for rate in FALSE_POSITIVE_RATES)
        shown = ", ".join(f"{share:.1%} at {rate:g}" for rate, share in rates if share is not None)
        yield f"verification, {evaluation.results[0].name}, first repeat: TPR {shown or '-'} FPR"
    if evaluation.models is not None:
        models = evaluation.models
        yield (
            f"models: {models.micro:.1%} of {models.pictures:,} images predicted correctly, "
            f"{models.macro:.1%} as the mean over {len(models.classes)} models (chance {models.chance:.1%})"
        )
    for attribute in evaluation.attributes:
        name = attribute_name(attribute.name)
        yield (
            f"{name}s: {attribute.micro:.1%} of {attribute.pictures:,} images predicted correctly, "
            f"{attribute.macro:.1%} as the mean over {len(attribute.values)} values "
            f"(chance {attribute.chance:.1%})"
        )
    if evaluation.index is not None:
        loss = evaluation.index
        pairs = zip(loss.ranks, loss.exact, loss.found, strict=True)
        shown = ", ".join(f"rank-{k} {indexed:.1%} of exact {exact:.1%}" for k, exact, indexed in pairs)
        yield f"through {loss.generation}, {evaluation.results[0].name}, first repeat: {shown}"
        if loss.short:
            yield f"  {loss.short:,} probes had too few gallery images in {loss.top:,} hits: missed"


def _gallery_note(result: ProtocolResult) -> str:
    return "" if result.unit == IMAGE else f" ({result.gallery:,} tracks in the gallery)"


def _curve_row(name: str, curve: NDArray[np.float64]) -> str:
    shares = "".join(f"{curve[min(k, len(curve)) - 1]:>8.1%}      " for k in REPORTED_RANKS)
    return f"  {name:33}{shares}".rstrip()


def _row(start: str, result: ProtocolResult, metrics: Sequence[Metric]) -> str:
    figures = [*_at(result, REPORTED_RANKS), *(result.figure(metric.name) for metric in metrics)]
    return start + "".join(f"{mean:>8.1%} ±{std:4.1%}" for mean, std in figures)


def _at(result: ProtocolResult, ranks: Sequence[int]) -> list[tuple[float, float]]:
    last = result.curves.shape[1]
    return [(float(result.mean[min(k, last) - 1]), float(result.std[min(k, last) - 1])) for k in ranks]


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """A request of `clvr evaluate`."""

    run: str
    labels: str | None = None
    protocols: tuple[str, ...] = ()  # empty: that of the dataset, or all that apply
    repeats: int = 10
    seed: int = 0
    html: Path | None = None
    table: str | None = None
    split: str | None = None
    splits: Path | None = None  # read if it exists, written otherwise
    variants: tuple[str, ...] = ("normalised",)
    index: bool = False
    workers: int = 0
    device: str = "cpu"
    ap: str = "mean"  # of `AP_RULES`, in tables and pages; JSON has all
    baseline: str | None = None  # a checkpoint that ranks the same splits, to show beside
    max_quarantine_rate: float = 0.01  # of the baseline's run, if it has to be embedded
    transforms: tuple[str, ...] = ()  # kinds, each reported beside plain L2
    unit: str = IMAGE  # of `UNITS`: track reports tracks beside images


@dataclass(frozen=True, slots=True)
class ListEvaluation:
    """The figures of one list of images, by protocol."""

    labelled: LabelledRun
    results: tuple[ProtocolResult, ...]
    variants: tuple[ProtocolResult, ...] = ()  # the same splits with other features or re-ranking
    distances: Distances | None = None  # of the first protocol
    camera_pairs: tuple[CameraPair, ...] = ()
    day_parts: tuple[TimeOfDay, ...] = ()
    models: Classification | None = None
    attributes: tuple[AttributeAccuracy, ...] = ()
    by_color: tuple[ValueRanks, ...] = ()  # probes of the first protocol by their true color
    index: IndexCmcLoss | None = None
    oracles: Mapping[str, Sequence[Oracle]] = field(default_factory=dict)  # by protocol


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The figures of all lists of an evaluation."""

    lists: tuple[ListEvaluation, ...]
    ap: str = "mean"  # the rule of the average precision in tables and pages

    @property
    def labelled(self) -> LabelledRun:
        """The images of the first list."""
        return self.lists[0].labelled

    @property
    def results(self) -> tuple[ProtocolResult, ...]:
        """The results of the first list, with plain features."""
        return self.lists[0].results

    def to_json(self) -> EvaluationFigures:
        """Return all figures."""
        return figures_of(self.lists)

    def to_table(self) -> pa.Table:
        """Return a row per list, protocol and kind of features, with `<metric>_mean` and `<metric>_std`."""
        rows = []
        for figures in self.to_json()["lists"]:
            for protocol in figures["protocols"]:
                spreads = {**protocol["cmc"], **{metric.name: protocol[metric.name] for metric in COMPUTED}}
                row = {"list": figures["list"], **{name: protocol[name] for name in _TABLE_COLUMNS}}
                for name, spread in spreads.items():
                    row |= {f"{name}_mean": spread["mean"], f"{name}_std": spread["std"]}
                rows.append(row)
        return pa.Table.from_pylist(rows)

    def to_text(self) -> str:
        """Return the main figures."""
        return table_of(self.lists, self.ap)
