"""Recipes against each other from one start on one small archive: what does each switch bring?

    python tests/benchmarks/bench_ablation.py [--weights FILE] [--arm paper --arm strong,last_stride=2 …]
    python tests/benchmarks/bench_ablation.py --labels LABELS.csv --root FOLDER --models 24 …

An arm is a recipe and its overrides, separated by commas. Every arm sees the same pictures, split and first
weights. Printed after each stage: accuracy on held-out pictures, and rank-1 and mAP (`vehicleid-paper`, 10
draws) among those that no stage has seen. Without --labels they are drawn vehicles of the same models.
With it, every second of the first 2 x --models vehicle models is learned, and a picture of one of the others
is to find pictures of its model: fine-grained retrieval of unseen classes, where no vehicle was labelled.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from clvr_model.augmentation import augment
from clvr_model.datasets.labelled import LabeledImages, read_table, split_per_class
from clvr_model.datasets.vehicleid import list_test_splits, read_vehicleid
from clvr_model.ema import ExponentialMovingAverage
from clvr_model.network import Clvr
from clvr_model.preprocessing import decode, to_input
from clvr_model.recipe import Recipe, load_recipe
from clvr_model.synthetic.archive import generate, write_labels
from clvr_model.synthetic.trips import ArchiveSpec
from clvr_model.training import (
    Batch,
    cached_batches,
    drop_last,
    make_optimizer,
    pooled_features,
    reestimate_batch_statistics,
    stage_order,
    train_epoch,
)
from clvr_model.validation import predict, score
from clvr_model.weights import load_backbone
from index.evaluation.protocols import evaluate_protocol
from infra.store import open_store

PASS = 16  # pictures at once where nothing is learnt


class Pictures:
    """Labelled pictures, decoded once and kept."""

    def __init__(self, labelled: LabeledImages, known: list[int]) -> None:
        store = open_store("/")
        self.pixels = np.stack([decode(store.get(uri.lstrip("/"))) for uri in labelled.uris])
        self.classes = np.searchsorted(known, labelled.model_ids).astype(np.int64)
        self.sought = labelled.model_ids if labelled.vehicle_ids is None else labelled.vehicle_ids

    def batches(
        self, rows: NDArray[np.int64], size: int, change: Callable[..., NDArray[np.uint8]] | None = None
    ) -> Iterator[Batch]:
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            pixels = self.pixels[part] if change is None else change(self.pixels[part], part)
            yield torch.from_numpy(pixels), torch.from_numpy(self.classes[part])


def fit(arm: str, common: list[str], training: Pictures, held: Pictures, test: Pictures) -> None:
    name, *overrides = arm.split(",")
    recipe = load_recipe(name, [*common, *overrides])
    classes = int(training.classes.max()) + 1
    network = Clvr.of(recipe.architecture(classes), seed=recipe.seed)
    load_backbone(network, recipe.pretrained)
    network.to(memory_format=torch.channels_last)
    everything = np.arange(len(training.classes))
    if recipe.reestimate_statistics:
        sample = np.linspace(0, len(everything) - 1, recipe.reestimate_statistics).astype(np.int64)
        reestimate_batch_statistics(network, training.batches(np.unique(sample), PASS))
    for number, stage in enumerate(recipe.stages):
        begun = time.process_time()
        optimizer = make_optimizer(network, stage)
        average = ExponentialMovingAverage.of(network, stage)

        def order(epoch: int, number: int = number) -> NDArray[np.int64]:
            chosen = recipe.stages[number]
            rows = stage_order(chosen, training.classes, seed=recipe.seed, number=number, epoch=epoch)
            return rows[: drop_last(len(rows), recipe.batch)]

        if stage.cacheable:
            cache = pooled_features(network, training.batches(everything, PASS), precision=recipe.precision)

            def batches(epoch: int, cache: Batch = cache) -> Iterator[Batch]:
                return cached_batches(cache, order(epoch), recipe.batch)
        else:

            def batches(epoch: int, number: int = number) -> Iterator[Batch]:  # type: ignore[misc]
                def change(pixels: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint8]:
                    chosen = recipe.stages[number]
                    return augment(pixels, rows, chosen, seed=recipe.seed, number=number, epoch=epoch)

                return training.batches(order(epoch), recipe.batch, change)

        for epoch in range(stage.epochs):
            train_epoch(
                network.head if stage.cacheable else network,
                optimizer,
                batches(epoch),
                stage,
                epoch=epoch,
                precision=recipe.precision,
                average=average,
                steps=max(1, len(everything) // recipe.batch),
            )
        if average:
            average.install()
        report(arm, f"{stage.name} x{stage.epochs}", network, recipe, held, test, time.process_time() - begun)


def report(
    arm: str, stage: str, network: Clvr, recipe: Recipe, held: Pictures, test: Pictures, cpu: float
) -> None:
    rows = np.arange(len(held.classes))
    predictions = predict(network, held.batches(rows, PASS), precision=recipe.precision)
    found = score(predictions, held.classes, network.architecture.classes)
    with torch.inference_mode():
        features = [
            network(to_input(pixels))[0] for pixels, _ in test.batches(np.arange(len(test.classes)), PASS)
        ]
    ranked = evaluate_protocol("vehicleid-paper", torch.cat(features).numpy(), test.sought)
    rank1, mean_precision = float(ranked.mean[0]), float(ranked.maps.mean())
    print(
        f"{arm:40} {stage:14} accuracy {found.micro:6.1%}  loss {found.loss:6.3f}  "
        f"rank-1 {rank1:6.1%}  mAP {mean_precision:6.1%}  {cpu:6.0f} CPU-s",
        flush=True,
    )


def drawn(given: argparse.Namespace, folder: str) -> tuple[LabeledImages, LabeledImages]:
    """A made-up archive below `folder`: pictures to learn models from, and vehicles to find again."""
    spec = ArchiveSpec(
        seed=given.seed,
        models=given.models,
        vehicles_per_model=given.vehicles,
        sightings_per_vehicle=given.sightings,
    )
    store = open_store(folder)
    generate(store, spec, layout="vehicleid")
    write_labels(store, spec, layout="vehicleid")
    return read_vehicleid(folder), read_vehicleid(folder, list_test_splits(folder)[-1])


def photographed(given: argparse.Namespace) -> tuple[LabeledImages, LabeledImages]:
    """Labelled photographs: those of every second model to learn from, those of the others to find again."""
    labelled = read_table(given.labels, root=given.root)
    chosen = labelled.classes[: 2 * given.models]
    parts = (np.isin(labelled.model_ids, chosen[first::2]) for first in (0, 1))
    learned, unseen = (labelled.take(np.flatnonzero(part)) for part in parts)
    few = np.concatenate(
        [np.flatnonzero(unseen.model_ids == model)[: given.unseen] for model in unseen.classes]
    )
    return learned, unseen.take(few)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="random")
    parser.add_argument("--arm", action="append")
    parser.add_argument("--set", action="append", default=[], help="for every arm")
    parser.add_argument("--labels", default="", help="a table of labelled photographs, instead of drawing")
    parser.add_argument("--root", default="", help="where the table's keys are")
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--unseen", type=int, default=20, help="photographs of each unseen model, at most")
    parser.add_argument("--vehicles", type=int, default=8, help="drawn of each model")
    parser.add_argument("--sightings", type=int, default=6, help="drawn of each vehicle")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        learned, unseen = photographed(given) if given.labels else drawn(given, folder)
        known = learned.classes
        training, held = (Pictures(part, known) for part in split_per_class(learned))
        test = Pictures(unseen, known)
    print(
        f"{len(training.classes)} pictures of {len(known)} models to train on, {len(held.classes)} held out, "
        f"{len(test.classes)} of {len(np.unique(test.sought))} unseen to find again",
        flush=True,
    )
    for arm in given.arm or ["paper", "strong"]:
        fit(arm, [f"pretrained={given.weights}", *given.set], training, held, test)


if __name__ == "__main__":
    main()
