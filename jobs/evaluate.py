"""`clvr evaluate`: the CMC of a run by exact L2, by named protocols, and a page of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.labels import with_labels
from index.protocols import ProtocolResult, evaluate_protocol
from index.runs import Run
from index.shards import read_shards, vectors_of
from infra.errors import BadLabels
from infra.settings import Settings
from jobs.labels import read_label_table
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


@dataclass(frozen=True, slots=True)
class LabelledRun:
    """The embedded crops of a run that carry a vehicle id, in the order of the shards."""

    run: Run
    crops: pa.Table  # crop_id, uri, camera_id, captured_at, model_id (predicted), model_confidence
    features: NDArray[np.float32]  # (n, 1024)
    vehicle_ids: NDArray[np.int64]  # (n,)
    true_model_ids: NDArray[np.int64]  # (n,), -1 where unknown
    unlabelled: int
    lost: int  # labelled crops that have no embedding


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
    labelled = labelled_run(run, request.labels)
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
    return Evaluation(labelled, results)


def labelled_run(run: Run, labels: str | None = None) -> LabelledRun:
    """Join a finished run's shards with vehicle ids, from its manifest or from a label table.

    Memory: the features of the labelled crops, 4 KB each. Raises BadLabels if none is labelled.
    """
    manifest = run.manifest()
    if labels is not None:
        manifest, _ = with_labels(manifest, read_label_table(labels), archive=run.info.archive)
    known = manifest.filter(pc.is_valid(manifest["vehicle_id"]))
    if not known.num_rows:
        raise BadLabels(f"no crop of run {run.run_id} has a vehicle id", remedy="give --labels")
    ids = known["crop_id"].to_numpy()
    order = np.argsort(ids)
    batches, features, places = [], [], []
    for batch in read_shards(run.store, run.shard_keys(), fingerprint=run.fingerprint):
        crop_ids = batch.column("crop_id").to_numpy()
        place = order[np.minimum(np.searchsorted(ids, crop_ids, sorter=order), len(ids) - 1)]
        rows = np.flatnonzero(ids[place] == crop_ids)
        features.append(vectors_of(batch)[rows])
        places.append(place[rows])
        batches.append(batch.drop_columns(["embedding"]).take(pa.array(rows)))
    if not sum(map(len, places)):
        raise BadLabels(f"no embedded crop of run {run.run_id} has a vehicle id", remedy="check the labels")
    place = np.concatenate(places)
    return LabelledRun(
        run=run,
        crops=pa.Table.from_batches(batches),
        features=np.concatenate(features),
        vehicle_ids=known["vehicle_id"].to_numpy()[place],
        true_model_ids=pc.fill_null(known["model_id"], -1).to_numpy()[place].astype(np.int64),
        unlabelled=run.summary.embedded - len(place),
        lost=known.num_rows - len(place),
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
