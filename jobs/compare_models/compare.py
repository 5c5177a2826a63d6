"""`clvr compare-models`: rank the same splits by several models, feature transforms and compressions."""

import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clvr_model.checkpoint import read_card
from index.evaluation.bootstrap import compare
from index.evaluation.breakdowns import is_unit_length, l2_normalized
from index.evaluation.cmc import Cmc, LabeledFeatures, Split
from index.evaluation.model_groups import ModelLabels
from index.evaluation.protocols import (
    JUNK,
    RULES,
    ProtocolResult,
    applicable_protocols,
    cpu_ranker,
    evaluate_protocol,
    with_rankings,
)
from index.outputs import record_output
from index.runs.run import Run
from index.transforms.compression import FORMATS, Format, bytes_per_row, fit_compression
from index.transforms.fitting import KINDS, TransformSettings
from infra.capacity import Prices
from infra.errors import BadInput, BadSetting
from infra.logging import logger
from infra.settings import Settings
from jobs.compare_models.page import write_page
from jobs.compare_models.results import (
    Accuracy,
    CompareModelsRequest,
    Guard,
    ModelComparison,
    Row,
    guard_of,
    name_of,
    worst,
)
from jobs.compare_models.speed import crops_per_core_second, dollars_per_million
from jobs.evaluate.compare import shared_rows
from jobs.evaluate.dataset import LabelledRun, evaluation_lists, labelled_run
from jobs.evaluate.transforms import fitted_to_gallery, require_cameras
from jobs.runtime.resolve import find_run

DEFAULT_PROTOCOLS = ("cross-camera", "vehicleid-paper", "within-model", "unseen-models")
NORMALISED = "L2-normalised"

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Crops:
    """The labelled crops that all runs share, in the order of the first run."""

    runs: Sequence[Run]
    features: Sequence[Floats]  # (n, d) of each run
    vehicle_ids: NDArray[np.int64]
    camera_ids: NDArray[np.str_]  # '' if unknown
    models: ModelLabels | None
    protocol: str  # of the dataset
    split: Split | None  # of the dataset

    @property
    def cameras(self) -> NDArray[np.str_] | None:
        """The cameras, None if one is unknown."""
        return None if (self.camera_ids == "").any() else self.camera_ids


def compare_models(request: CompareModelsRequest, settings: Settings) -> ModelComparison:
    """Rank the labelled crops that all runs share; nothing is embedded again.

    Each transform and compression is fitted to the gallery of a split, without labels, and applied to its
    probes too. Raises BadSetting for unknown names, BadInput if the runs share no labelled crop, and the
    errors of an evaluation.
    """
    transforms = _checked(request)
    crops = _shared_crops(request, settings)
    for transform in transforms:
        require_cameras(transform, crops.camera_ids)
    logger.info(f"{len(crops.vehicle_ids):,} labelled crops in all runs")
    protocols = _protocols(crops, request)
    rows: list[Row] = []
    for number, (run, model) in enumerate(zip(crops.runs, _names(crops.runs), strict=True)):
        rate = crops_per_core_second(run) if request.measures_speed else None
        plain = rows[0] if rows else None
        for row in _rows_of(crops, number, model, protocols, transforms, request, plain):
            dollars = None if rate is None else dollars_per_million(rate)
            rows.append(replace(row, crops_per_second=rate, dollars=dollars))
            logger.info(f"  {row.name}: rank-1 {row.accuracies[protocols[0].name].rank_1[0]:.1%}")
    for row in rows:
        if row.guard == "failed":
            logger.warning(f"{row.name}: rank-1 falls by more than {request.max_loss:.1%}")
    comparison = ModelComparison(
        rows=rows,
        protocols=protocols,
        crops=len(crops.vehicle_ids),
        max_loss=request.max_loss,
        facts=_facts(request),
    )
    if request.html:
        beside = request.html.with_suffix(".json")
        for path in (request.html, beside):
            record_output(crops.runs[0].store, "page", str(path.resolve()))
        write_page(request.html, comparison, request)
        beside.write_text(json.dumps(comparison.to_json(), indent=2))
    return comparison


def parse_transform(text: str) -> TransformSettings:
    """Read `KIND` or `KIND:DIMENSIONS`. Raises BadSetting."""
    kind, _, dimensions = text.partition(":")
    if kind not in KINDS or not (dimensions.isdigit() or text == kind):
        raise BadSetting(
            f"unknown transform '{text}'",
            remedy=f"use one of: {', '.join(KINDS)}; whitening may reduce dimensions, as in whiten:256",
        )
    return TransformSettings(kind, int(dimensions) if dimensions else None)


def _checked(request: CompareModelsRequest) -> list[TransformSettings]:
    for names, known, what in (
        (request.protocols, RULES, "protocol"),
        (request.formats, FORMATS, "compression"),
    ):
        for name in names:
            if name not in known:
                raise BadSetting(f"unknown {what} '{name}'", remedy=f"use one of: {', '.join(known)}")
    if not 0 <= request.max_loss <= 1:
        raise BadSetting(
            f"--max-loss is {request.max_loss}, a share from 0 to 1", remedy="give 0.01, or another"
        )
    return [parse_transform(text) for text in dict.fromkeys(request.transforms)]


def _shared_crops(request: CompareModelsRequest, settings: Settings) -> Crops:
    lists = evaluation_lists(request.labels, request.split, settings.plausible_times())
    if len(lists) > 1:
        raise BadInput(
            f"{request.labels} has several test lists", remedy=f"choose one: --split {lists[0].name}"
        )
    labelled = [labelled_run(find_run(run, settings), lists[0]) for run in dict.fromkeys(request.runs)]
    rows = shared_rows(labelled)
    first, chosen = labelled[0], rows[0]
    trained = {model for each in labelled for model in read_card(each.run.info.model).label_ids}
    models = first.models(trained or None)
    return Crops(
        runs=[each.run for each in labelled],
        features=[each.features[own] for each, own in zip(labelled, rows, strict=True)],
        vehicle_ids=first.vehicle_ids[chosen],
        camera_ids=first.camera_ids[chosen],
        models=None if models is None else models.take(chosen),
        protocol=first.protocol,
        split=_shared_split(first, chosen),
    )


def _shared_split(labelled: LabelledRun, chosen: NDArray[np.int64]) -> Split | None:
    """Return the dataset's own split in rows of the shared crops."""
    if labelled.dataset_split is None:
        return None
    new_row = np.full(len(labelled.crops), -1, np.int64)
    new_row[chosen] = np.arange(len(chosen))
    probes, gallery = (
        new_row[rows] for rows in (labelled.dataset_split.probes, labelled.dataset_split.gallery)
    )
    return Split(probes[probes >= 0], gallery[gallery >= 0])


def _protocols(crops: Crops, request: CompareModelsRequest) -> list[ProtocolResult]:
    """Draw the protocols and rank the first run's plain features."""
    names = request.protocols
    if not names and crops.protocol not in ("", "vehicleid-paper"):
        names = (crops.protocol,)
    if not names:
        allowed = applicable_protocols(crops.vehicle_ids, crops.cameras, crops.models, request.repeats)
        names = tuple(name for name in DEFAULT_PROTOCOLS if name in ("vehicleid-paper", *allowed))
    given = {crops.protocol: [crops.split]} if crops.split is not None else {}
    return [
        evaluate_protocol(
            name,
            crops.features[0],
            crops.vehicle_ids,
            camera_ids=crops.cameras,
            models=crops.models,
            repeats=request.repeats,
            seed=request.seed,
            splits=given.get(name),
        )
        for name in dict.fromkeys(names)
    ]


def _names(runs: Sequence[Run]) -> list[str]:
    """Return what the models of the runs are called; equal names get their run."""
    names = []
    for run in runs:
        card = read_card(run.info.model)
        recipe = card.recipe.get("name")
        backbone = str(card.architecture["backbone"])
        names.append(f"{recipe}, {backbone}" if recipe else f"{backbone}, untrained")
    return [
        name if names.count(name) == 1 else f"{name} ({run.run_id})"
        for name, run in zip(names, runs, strict=True)
    ]


def _rows_of(
    crops: Crops,
    number: int,
    model: str,
    protocols: Sequence[ProtocolResult],
    transforms: Sequence[TransformSettings],
    request: CompareModelsRequest,
    first: Row | None,
) -> Iterator[Row]:
    """Yield the rows of a run: plain, L2-normalised unless that is the same, transformed; each compressed.

    The reference of a compression is the same row without it, that of another row the run's plain features,
    and that of these the plain features of the first run.
    """
    features = crops.features[number]
    variants: list[TransformSettings | str] = [""]
    if not is_unit_length(features):
        variants.append(NORMALISED)
    plain: Row | None = None
    formats = [name for name in FORMATS if name in request.formats]
    for variant in (*variants, *transforms):
        label = variant if isinstance(variant, str) else _transform_name(variant)
        ranked = _ranked(crops, features, variant, protocols, formats)
        uncompressed: Row | None = None
        for format in ("", *formats):
            reference = uncompressed or plain or first
            results, dimension = ranked[format]
            accuracies = {
                result.name: _accuracy(
                    result, reference, crops.vehicle_ids, request, is_compressed=bool(format)
                )
                for result in results
            }
            row = Row(
                name=name_of(model, label, format),
                run=crops.runs[number].run_id,
                transform=label,
                format=format,
                dimension=dimension,
                bytes=bytes_per_row(dimension, format),
                crops_per_second=None,
                dollars=None,
                reference=reference.name if reference else "",
                accuracies=accuracies,
                guard=worst(each.guard for each in accuracies.values()) if format else "",
            )
            uncompressed = uncompressed or row
            plain = plain or row
            yield row


def _transform_name(settings: TransformSettings) -> str:
    return f"{settings.kind} to {settings.dimensions}" if settings.dimensions else settings.kind


def _ranked(
    crops: Crops,
    features: Floats,
    variant: TransformSettings | str,
    protocols: Sequence[ProtocolResult],
    formats: Sequence[Format],
) -> dict[str, tuple[list[ProtocolResult], int]]:
    """Return the results by protocol, and the dimension, of each format; "" is float32."""
    found: dict[str, tuple[list[ProtocolResult], int]] = {format: ([], 0) for format in ("", *formats)}
    for protocol in protocols:
        rankings: dict[str, list[Cmc]] = {format: [] for format in found}
        dimension = 0
        for split in protocol.splits:
            values = _varied(crops, features, variant, split)
            dimension = values.shape[1]
            for format in found:
                decoded = fit_compression(values[split.gallery], format)(values) if format else values
                images = LabeledFeatures(decoded, crops.vehicle_ids, crops.cameras, np.arange(len(decoded)))
                rankings[format] += cpu_ranker(
                    images,
                    [split],
                    max_rank=protocol.curves.shape[1],
                    same_camera_is_junk=protocol.name in JUNK,
                    skip_unmatched=True,
                )
        for format, ranked in rankings.items():
            results, _ = found[format]
            results.append(with_rankings(protocol, ranked, format))
            found[format] = results, dimension
    return found


def _varied(crops: Crops, features: Floats, variant: TransformSettings | str, split: Split) -> Floats:
    if isinstance(variant, str):
        return l2_normalized(features) if variant else features
    transform = fitted_to_gallery(features, crops.camera_ids, variant, split)
    return transform(features, crops.camera_ids.tolist())


def _accuracy(
    result: ProtocolResult,
    reference: Row | None,
    vehicle_ids: NDArray[np.int64],
    request: CompareModelsRequest,
    *,
    is_compressed: bool,
) -> Accuracy:
    if reference is None:
        return Accuracy(result)
    changes = compare(reference.accuracies[result.name].result, result, vehicle_ids, seed=request.seed)
    by_measure = {change.measure: change for change in changes}
    probes = np.concatenate([split.probes for split in result.splits])
    vehicles = len(np.unique(vehicle_ids[probes]))
    rank_1 = by_measure["rank-1"]
    guard: Guard = guard_of(rank_1, vehicles, request.max_loss) if is_compressed else ""
    return Accuracy(result, rank_1, by_measure["mAP"], guard)


def _facts(request: CompareModelsRequest) -> dict[str, str]:
    facts = {"seed": str(request.seed), "repeats": str(request.repeats)}
    if request.measures_speed:
        facts |= {
            "speed": f"CPU seconds of one core, {os.cpu_count()} cores, {platform.machine()}",
            "price": f"${Prices().cpu_core_hour} a core-hour, and requests",
        }
    return facts
