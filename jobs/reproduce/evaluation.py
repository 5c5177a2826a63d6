"""The figures of one list by one method, kept as a document, so that a repeat evaluates no list again."""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass

from clvr_model.checkpoint import Card
from index.documents import JsonDocument
from index.evaluation.protocols import ProtocolResult, evaluate_protocol
from index.runs.run import Run
from infra.errors import ObjectMissing
from infra.logging import logger
from infra.store import Store
from jobs.evaluate.dataset import EvaluationList, LabelledRun, labelled_run
from jobs.evaluate.evaluate import oracles_of
from jobs.pages.published import DIRECTIONS
from jobs.pages.table1_page import Figure
from jobs.reproduce.lists import digest_of
from jobs.reproduce.request import Method, ReproduceRequest


@dataclass(frozen=True, slots=True)
class OracleFigures:
    """What a perfect recogniser reaches. known_share: of the images whose model (and color) is known."""

    recognises: str
    rank_1: float
    rank_5: float
    known_share: float


@dataclass(frozen=True, slots=True)
class ProtocolFigures:
    """The figures of one protocol: mean and sample standard deviation over the draws."""

    protocol: str
    rule: str
    probes: int
    gallery: int
    vehicles: int
    excluded_vehicles: int
    draws: int
    rank_1: Figure
    rank_5: Figure
    map: Figure
    chance_rank_1: float
    chance_rank_5: float
    oracles: tuple[OracleFigures, ...]


@dataclass(frozen=True, slots=True)
class ListFigures(JsonDocument):
    """The figures of one list by one method."""

    NOUN = "list's figures of clvr reproduce"
    REMEDY = "Delete it and repeat the command, which evaluates this list again."

    method: str
    run_id: str
    list_name: str
    images: int  # that are ranked
    vehicles: int
    not_ranked: int
    with_model: int  # images whose true model is known
    of_trained_models: int  # of these, images whose model is a class of the network
    protocols: tuple[ProtocolFigures, ...]


def protocols_of(chosen: EvaluationList) -> tuple[str, ...]:
    """Return both directions of VehicleID, and the dataset's own protocol if it is another."""
    return (*DIRECTIONS, *({chosen.protocol} - {*DIRECTIONS, ""}))


def evaluate_list(
    folder: Store, request: ReproduceRequest, method: Method, run: Run, card: Card, chosen: EvaluationList
) -> ListFigures:
    """Return the figures of a list, from an earlier call or computed.

    Raises BadLabels for a list that a protocol cannot be drawn from, CorruptObject for altered figures.
    """
    document = [run.run_id, digest_of(chosen), protocols_of(chosen), request.repeats, request.seed]
    digest = hashlib.sha256(json.dumps(document).encode()).hexdigest()[:16]
    key = f"evaluations/{method.name}-{chosen.name or 'list'}-{digest}.json"
    with suppress(ObjectMissing):
        return ListFigures.read(folder, key)
    logger.info(f"{method.title}: list {chosen.name}")
    labelled = labelled_run(run, chosen)
    known = labelled.true_model_ids
    figures = ListFigures(
        method=method.name,
        run_id=run.run_id,
        list_name=chosen.name,
        images=len(labelled.features),
        vehicles=len(set(labelled.vehicle_ids.tolist())),
        not_ranked=labelled.quarantined + labelled.not_in_run,
        with_model=int((known >= 0).sum()),
        of_trained_models=sum(model in set(card.label_ids) for model in known.tolist()),
        protocols=tuple(
            _figures(ranked(labelled, card, name, request.repeats, request.seed), labelled, card)
            for name in protocols_of(chosen)
        ),
    )
    folder.put(key, figures.to_json())
    return figures


def ranked(labelled: LabelledRun, card: Card, protocol: str, repeats: int, seed: int) -> ProtocolResult:
    """Rank a list by one protocol, as `clvr evaluate` does; draw n does not depend on the number of draws."""
    has_roles = labelled.dataset_split is not None and protocol == labelled.protocol
    return evaluate_protocol(
        protocol,
        labelled.features,
        labelled.vehicle_ids,
        camera_ids=labelled.cameras,
        models=labelled.models(card.label_ids),
        repeats=repeats,
        seed=seed,
        splits=[labelled.dataset_split] if has_roles and labelled.dataset_split else None,
    )


def _figures(result: ProtocolResult, labelled: LabelledRun, card: Card) -> ProtocolFigures:
    models = labelled.models(card.label_ids)
    last = result.curves.shape[1]

    def at(rank: int) -> Figure:
        place = min(rank, last) - 1
        return Figure(float(result.mean[place]), float(result.std[place]))

    return ProtocolFigures(
        protocol=result.name,
        rule=result.rule,
        probes=result.probes,
        gallery=result.gallery,
        vehicles=result.vehicles,
        excluded_vehicles=result.excluded_vehicles,
        draws=result.repeats,
        rank_1=at(1),
        rank_5=at(5),
        map=Figure(*result.figure("map")),
        chance_rank_1=float(result.chance[0]),
        chance_rank_5=float(result.chance[min(5, last) - 1]),
        oracles=tuple(
            OracleFigures(
                oracle.name, float(oracle.curve[0]), float(oracle.curve[min(5, last) - 1]), oracle.known
            )
            for oracle in (oracles_of(labelled, models, result) if models else ())
        ),
    )
