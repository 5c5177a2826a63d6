"""`clvr evaluate`: CMC, mAP and mINP of a run by exact L2 and named protocols, and a report."""

import json
from collections.abc import Sequence

import numpy as np
import torch

from clvr_model.checkpoint import read_card
from index.evaluation.breakdowns import (
    by_camera_pair,
    by_day_part,
    by_value,
    classification,
    is_unit_length,
    l2_normalized,
    sample_distances,
)
from index.evaluation.cmc import LabeledFeatures
from index.evaluation.index_recall import IndexCmcLoss, index_loss, ranks_through_index
from index.evaluation.metrics import AP_RULES
from index.evaluation.model_groups import ModelLabels, Oracle, oracles
from index.evaluation.protocols import (
    IMAGE,
    JUNK,
    MAX_GALLERY_ROWS,
    RULES,
    ProtocolResult,
    Ranker,
    applicable_protocols,
    cross_camera_rows,
    evaluate_protocol,
    make_ranker,
    with_rankings,
)
from index.evaluation.rerank import expand_probes, rerank
from index.evaluation.splits import read_splits, write_splits
from index.exact.k_reciprocal import RunBlocks, run_here
from index.generations import records
from index.outputs import record_output
from index.runs.run import Run
from index.transforms.fitting import KINDS
from index.transforms.stored import read_transform
from infra.errors import BadInput, BadSetting
from infra.logging import logger
from infra.settings import Settings
from infra.store import open_store
from jobs.evaluate.dataset import (
    LabelledRun,
    embed_labelled_set,
    evaluation_lists,
    features_of,
    labelled_run,
)
from jobs.evaluate.page import ReportText, write_page
from jobs.evaluate.results import EvaluateRequest, Evaluation, ListEvaluation
from jobs.evaluate.tracks import TRACK, track_results
from jobs.evaluate.transforms import transformed_ranking, transformed_results
from jobs.pages.evaluation_page import BASELINE
from jobs.runtime.resolve import find_run, open_milvus, run_ids_of
from jobs.runtime.result_table import write_result_table

UNITS = (IMAGE, TRACK)
VARIANTS = ("normalised", "query-expansion", "re-ranking")
INDEX_TOP = 1000


def evaluate_run(request: EvaluateRequest, settings: Settings) -> Evaluation:
    """Rank the labelled crops of a run by exact L2, without embedding anything again.

    Raises BadLabels if no embedded crop has a vehicle id or a protocol cannot be drawn, BadSetting for an
    unknown protocol, BadInput for splits of other crops, FingerprintMismatch for a mixed run.
    """
    _check_request(request)
    run = find_run(request.run, settings)
    card = read_card(run.info.model)
    baseline = _embedded_baseline(run, request, settings)
    lists = []
    for chosen in evaluation_lists(request.labels, request.split, settings.plausible_times()):
        labelled = labelled_run(run, chosen)
        suffix = f" of {labelled.name}" if labelled.name else ""
        logger.info(f"run {run.run_id}: {len(labelled.features):,} crops{suffix} with a vehicle id")
        for line in labelled.accounting():
            logger.info(f"  {line}")
        models = labelled.models(card.label_ids)
        lists.append(_evaluate_list(labelled, models, request, settings, baseline))
    evaluation = Evaluation(tuple(lists), request.ap)
    if request.table:
        write_result_table(request.table, evaluation.to_table())
    if request.html:
        record_output(run.store, "page", str(request.html.with_suffix(".json").resolve()))
        write_page(request.html, evaluation, card, _report_text(request, run.run_id))
        request.html.with_suffix(".json").write_text(json.dumps(evaluation.to_json(), indent=2, default=str))
    return evaluation


def _check_request(request: EvaluateRequest) -> None:
    try:
        torch.empty(0, device=request.device)
    except (RuntimeError, AssertionError) as error:
        raise BadSetting(f"no device '{request.device}': {str(error).splitlines()[0]}") from error
    for names, known, kind in (
        (request.protocols, RULES, "protocol"),
        (request.variants, VARIANTS, "variant"),
        (request.transforms, KINDS, "transform"),
        ((request.ap,), AP_RULES, "rule of the average precision"),
        ((request.unit,), UNITS, "unit"),
    ):
        for name in names:
            if name not in known:
                raise BadSetting(f"unknown {kind} '{name}'", remedy=f"use one of: {', '.join(known)}")


def _embedded_baseline(run: Run, request: EvaluateRequest, settings: Settings) -> Run | None:
    """Return a run of the same archive by the baseline's checkpoint; it is embedded if there is none."""
    if request.baseline is None:
        return None
    run_id = embed_labelled_set(request.baseline, run.info.archive, settings, request.max_quarantine_rate)
    return find_run(run_id, settings)


def _baseline_name(run: Run) -> str:
    card = read_card(run.info.model)
    name = card.recipe.get("name") or f"{card.architecture['backbone']}, untrained"
    return f"{BASELINE}: {name}"


def _evaluate_list(
    labelled: LabelledRun,
    models: ModelLabels | None,
    request: EvaluateRequest,
    settings: Settings,
    baseline: Run | None = None,
) -> ListEvaluation:
    if request.workers:
        # Imported late: without workers an evaluation needs no Ray.
        from jobs.evaluate.ray_ranker import make_ray_blocks, make_ray_ranker

        rank, run = make_ray_ranker(request.workers, settings), make_ray_blocks(settings)
    else:
        rank, run = make_ranker(request.device), run_here
    results = _protocols(labelled, models, request, rank)
    first = results[0]
    junk = first.name in JUNK
    images = labelled.images()
    return ListEvaluation(
        labelled=labelled,
        results=results,
        variants=(
            *(_baseline_results(labelled, results, baseline, rank) if baseline else ()),
            *_variants(labelled, results, request.variants, rank, run),
            *transformed_results(labelled, results, request.transforms, rank),
            *(track_results(labelled, results) if request.unit == TRACK else ()),
        ),
        distances=sample_distances(images, first.splits[0], junk=junk, seed=request.seed),
        camera_pairs=tuple(by_camera_pair(images)),
        day_parts=tuple(by_day_part(first.splits[0], first.rankings[0], labelled.captured_at)),
        models=classification(
            labelled.crops["model_id"].to_numpy().astype(np.int64), labelled.true_model_ids
        ),
        attributes=tuple(labelled.attribute_accuracies()),
        by_color=(
            ()
            if labelled.colors is None
            else tuple(by_value(first.splits[0], first.rankings[0], labelled.colors))
        ),
        index=_through_index(labelled, first, settings) if request.index else None,
        oracles={result.name: oracles_of(labelled, models, result) for result in results} if models else {},
    )


def oracles_of(labelled: LabelledRun, models: ModelLabels, result: ProtocolResult) -> list[Oracle]:
    """Return what perfect recognisers of the model, and of model and color, reach on a protocol's splits.

    Within a group, the recogniser of that group is chance itself, and is left out.
    """
    known = {"within-model": ("model",), "within-model-color": ("model", "model and color")}
    found = oracles(
        result.splits,
        labelled.vehicle_ids,
        models,
        junk_cameras=labelled.cameras if result.name in JUNK else None,
        max_rank=result.curves.shape[1],
    )
    return [oracle for oracle in found if oracle.name not in known.get(result.name, ())]


def _protocols(
    labelled: LabelledRun, models: ModelLabels | None, request: EvaluateRequest, rank: Ranker
) -> tuple[ProtocolResult, ...]:
    splits = {labelled.protocol: [labelled.dataset_split]} if labelled.dataset_split else {}
    names: Sequence[str] = request.protocols
    path = request.splits
    if path is not None and labelled.name:
        path = path.with_name(f"{path.stem}-{labelled.name}{path.suffix}")
    if path is not None and path.exists():
        splits = read_splits(path, labelled.crop_ids)
        names = names or tuple(splits)
        missing = [name for name in names if name not in splits]
        if missing:
            raise BadInput(
                f"{path} has no split of {', '.join(missing)}", remedy=f"it has: {', '.join(splits)}"
            )
        logger.info(f"  splits read from {path}")
    if not names:
        names = default_protocols(labelled, models, request.repeats)
    results = tuple(
        evaluate_protocol(
            name,
            labelled.features,
            labelled.vehicle_ids,
            camera_ids=labelled.cameras,
            models=models,
            repeats=request.repeats,
            seed=request.seed,
            splits=splits.get(name),
            rank=rank,
        )
        for name in names
    )
    if path is not None and not path.exists():
        record_output(labelled.run.store, "table", str(path.resolve()))
        write_splits(path, {result.name: result.splits for result in results}, labelled.crop_ids)
        logger.info(f"  splits written to {path}")
    return results


def default_protocols(
    labelled: LabelledRun, models: ModelLabels | None, repeats: int = 10
) -> tuple[str, ...]:
    """Return the protocol of the dataset, or both directions of VehicleID and what else the labels allow."""
    if labelled.protocol not in ("", "vehicleid-paper"):
        return (labelled.protocol,)
    allowed = applicable_protocols(labelled.vehicle_ids, labelled.cameras, models, repeats)
    rows = cross_camera_rows(labelled.cameras, repeats)
    if rows > MAX_GALLERY_ROWS:
        logger.info(
            f"  cross-camera is left out: its galleries take {8 * rows / 1e9:,.1f} GB of memory; "
            "--protocol cross-camera asks for it"
        )
    return ("vehicleid-paper", "vehicleid-common", *allowed)


def _baseline_results(
    labelled: LabelledRun, results: Sequence[ProtocolResult], baseline: Run, rank: Ranker
) -> list[ProtocolResult]:
    """Rank the same splits by the features of the baseline."""
    images = labelled.images(features_of(baseline, labelled.crop_ids))
    name = _baseline_name(baseline)
    return [_ranked_again(result, images, rank, name) for result in results]


def _ranked_again(result: ProtocolResult, images: LabeledFeatures, rank: Ranker, name: str) -> ProtocolResult:
    """Rank the splits of a protocol by other features of the same images."""
    ranked = rank(
        images,
        result.splits,
        max_rank=result.curves.shape[1],
        same_camera_is_junk=result.name in JUNK,
        skip_unmatched=True,
    )
    return with_rankings(result, ranked, name)


def _variants(
    labelled: LabelledRun,
    results: Sequence[ProtocolResult],
    variants: Sequence[str],
    rank: Ranker,
    run: RunBlocks,
) -> list[ProtocolResult]:
    """Rank the same splits in other ways; each variant is reported next to plain L2, never instead.

    Features that have length 1 as they are have no variant `normalised`: it would repeat plain L2.
    """
    rankings = []
    unit_length = l2_normalized(labelled.features) if variants else labelled.features
    normalises = "normalised" in variants and not is_unit_length(labelled.features)
    for result in results:
        junk = result.name in JUNK
        if normalises:
            rankings.append(_ranked_again(result, labelled.images(unit_length), rank, "L2-normalised"))
        first = result.splits[:1]
        if "query-expansion" in variants:
            ranked = [expand_probes(labelled.images(), split, junk=junk) for split in first]
            rankings.append(with_rankings(result, ranked, "query expansion of 5, first repeat"))
        if "re-ranking" in variants:
            ranked = [rerank(labelled.images(unit_length), split, junk=junk, run=run) for split in first]
            label = "L2-normalised, k-reciprocal re-ranking 20/6/0.3, first repeat"
            rankings.append(with_rankings(result, ranked, label))
    return rankings


def _through_index(labelled: LabelledRun, result: ProtocolResult, settings: Settings) -> IndexCmcLoss:
    from index.milvus.collection import ensure_loaded, require_live

    run = labelled.run
    with open_milvus(settings) as milvus:
        generation = require_live(milvus, settings.alias, run.fingerprint)
        if run.run_id not in run_ids_of(generation, settings):
            raise BadInput(
                f"run {run.run_id} is not in generation {generation.name}", remedy="load and promote it first"
            )
        record = records.read(open_store(settings.runs), generation.name)
        if record is not None and record.unit == "track":
            raise BadInput(
                f"{generation.name} is of tracks, and these figures compare crops",
                remedy="leave out --through-index; `--unit track` has figures of tracks, by exact search",
            )
        ensure_loaded(milvus, generation)
        split, junk = result.splits[0], result.name in JUNK
        images, exact = labelled.images(), result.rankings[0]
        transform = read_transform(open_store(settings.runs), generation.fingerprint, generation.transform)
        if transform is not None:
            images, exact = transformed_ranking(labelled, transform, split, junk=junk)
        ranks, short = ranks_through_index(
            milvus,
            generation,
            images,
            labelled.crop_ids,
            split,
            top=INDEX_TOP,
            junk=junk,
        )
    return index_loss(generation.name, exact, ranks, short, INDEX_TOP)


def _report_text(request: EvaluateRequest, run_id: str) -> ReportText:
    labels = f" --labels {request.labels}" if request.labels else ""
    split = f" --split {request.split}" if request.split else ""
    return ReportText(
        title="Evaluation of vehicle re-identification",
        summary="Learned features, compared by plain L2 distance.",
        dataset=f"run {run_id}",
        note="These figures are valid for this run, its labels and the named protocols only.",
        command=f"clvr evaluate {run_id}{labels}{split} --html {request.html}",
    )
