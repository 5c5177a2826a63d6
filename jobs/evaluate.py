"""`clvr evaluate`: the CMC of a run by exact L2, by named protocols, and a page of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clvr_model.checkpoint import read_card
from index.protocols import ProtocolResult, evaluate_protocol
from infra.settings import Settings
from jobs.labelled_run import LabelledRun, labelled_run
from jobs.page import Story, write_page
from jobs.progress import console
from jobs.which import find_run

SHOWN_RANKS = (1, 5, 10, 20)


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """What `clvr evaluate` was asked for."""

    run: str
    labels: str | None = None
    protocols: tuple[str, ...] = ("vehicleid-paper", "vehicleid-common")
    repeats: int = 10
    seed: int = 0
    html: Path | None = None
    split: str | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures of a run, each under the name of its protocol."""

    labelled: LabelledRun
    results: tuple[ProtocolResult, ...]

    def figures(self) -> dict[str, Any]:
        """The figures as a machine reads them."""
        return {
            "run": self.labelled.run.run_id,
            "fingerprint": self.labelled.run.fingerprint,
            "labelled": len(self.labelled.features),
            "unlabelled": self.labelled.unlabelled,
            "labelled_without_embedding": self.labelled.lost,
            "protocols": [_figures(result) for result in self.results],
        }

    def table(self) -> str:
        """The figures as a person reads them."""
        lines = [
            f"{'protocol':18} {'probes':>7} {'gallery':>8}"
            + "".join(f"{f'rank-{k}':>14}" for k in SHOWN_RANKS)
        ]
        for result in self.results:
            split = result.splits[0]
            shares = "".join(f"{mean:>8.1%} ±{std:4.1%}" for mean, std in _at(result, SHOWN_RANKS))
            lines.append(f"{result.name:18} {len(split.probes):>7,} {len(split.gallery):>8,}{shares}")
            chance = "".join(
                f"{result.chance[min(k, len(result.chance)) - 1]:>8.1%}      " for k in SHOWN_RANKS
            )
            lines.append(f"{'  by chance':35}{chance}".rstrip())
        return "\n".join(lines)


def evaluate_run(request: EvaluateRequest, settings: Settings) -> Evaluation:
    """Rank by exact L2 over the run's shards; no picture is embedded again.

    Raises BadLabels if no embedded crop has a vehicle id, BadSetting for an unknown protocol.
    """
    run = find_run(request.run, settings)
    labelled = labelled_run(run, request.labels, request.split)
    console.print(
        f"run {run.run_id}: {len(labelled.features):,} crops with a vehicle id, "
        f"{labelled.unlabelled:,} without, {labelled.lost:,} labelled but not embedded"
    )
    results = tuple(
        evaluate_protocol(
            name, labelled.features, labelled.vehicle_ids, repeats=request.repeats, seed=request.seed
        )
        for name in request.protocols
    )
    if request.html:
        write_page(request.html, labelled, results, read_card(run.info.model), _story(run.run_id))
    return Evaluation(labelled, results)


def _story(run_id: str) -> Story:
    return Story(
        title="Who was seen where else",
        lead="Vehicle re-identification by model-level features and plain L2 distance.",
        dataset=f"run {run_id}",
        note="These figures hold for this run, its labels and the protocols named beside them.",
        command=f"clvr evaluate {run_id} --html PAGE",
    )


def _figures(result: ProtocolResult) -> dict[str, Any]:
    split = result.splits[0]
    return {
        "protocol": result.name,
        "rule": result.rule,
        "seed": result.seed,
        "repeats": result.repeats,
        "vehicles": result.vehicles,
        "probes": len(split.probes),
        "gallery": len(split.gallery),
        "excluded_vehicles": result.excluded_vehicles,
        "cmc": {
            f"rank-{k}": {"mean": mean, "std": std}
            for k, (mean, std) in zip(SHOWN_RANKS, _at(result, SHOWN_RANKS), strict=True)
        },
        "map": {"mean": float(result.maps.mean()), "std": float(result.maps.std())},
        "chance_rank_1": float(result.chance[0]),
    }


def _at(result: ProtocolResult, ranks: Sequence[int]) -> list[tuple[float, float]]:
    last = result.curves.shape[1]
    return [(float(result.mean[min(k, last) - 1]), float(result.std[min(k, last) - 1])) for k in ranks]
