"""Training recipes against each other, from the same weights on the same small archive.

    python tests/benchmarks/bench_ablation.py [--weights FILE] [--arm paper --arm strong,last_stride=2 …]
    python tests/benchmarks/bench_ablation.py --labels LABELS.csv --root FOLDER --models 24 …

An arm is a recipe and its overrides, separated by commas. All arms use the same images, split and initial
weights. After each stage the benchmark prints accuracy on the validation images, and rank-1 and mAP
(`vehicleid-paper`, 10 repeats) on images that no stage has used. Without --labels these are synthetic
vehicles of the same models. With --labels, every second of the first 2 x --models vehicle models is trained
on, and an image of another model must retrieve images of its model: fine-grained retrieval of unseen
classes without vehicle labels.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from measure import Row, add_json_option, machine, save_rows
from numpy.typing import NDArray

from clvr_model.augmentation import augment
from clvr_model.datasets.labelled import LabeledImages, read_table, split_per_class
from clvr_model.datasets.vehicleid import list_test_splits, read_vehicleid
from clvr_model.ema import ExponentialMovingAverage
from clvr_model.network import Clvr
from clvr_model.normalization import to_input
from clvr_model.preprocessing import decode
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

EVAL_BATCH = 16


class Images:
    """LabeledImages images, decoded once."""

    def __init__(self, labelled: LabeledImages, models: list[int]) -> None:
        store = open_store("/")
        self.pixels = np.stack([decode(store.get(uri.lstrip("/"))) for uri in labelled.uris])
        self.classes = np.searchsorted(models, labelled.model_ids).astype(np.int64)
        self.targets = labelled.model_ids if labelled.vehicle_ids is None else labelled.vehicle_ids

    def batches(
        self, rows: NDArray[np.int64], size: int, change: Callable[..., NDArray[np.uint8]] | None = None
    ) -> Iterator[Batch]:
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            pixels = self.pixels[part] if change is None else change(self.pixels[part], part)
            yield torch.from_numpy(pixels), torch.from_numpy(self.classes[part])


def fit(arm: str, common: list[str], training: Images, validation: Images, test: Images) -> Row:
    """Train one arm and print its figures after each stage; return those of the last stage."""
    row = Row(arm, "")
    name, *overrides = arm.split(",")
    recipe = load_recipe(name, [*common, *overrides])
    classes = int(training.classes.max()) + 1
    network = Clvr.of(recipe.architecture(classes), seed=recipe.seed)
    load_backbone(network, recipe.pretrained)
    network.to(memory_format=torch.channels_last)
    everything = np.arange(len(training.classes))
    if recipe.reestimate_statistics:
        sample = np.linspace(0, len(everything) - 1, recipe.reestimate_statistics).astype(np.int64)
        reestimate_batch_statistics(network, training.batches(np.unique(sample), EVAL_BATCH))
    for number, stage in enumerate(recipe.stages):
        started = time.process_time()
        optimizer = make_optimizer(network, stage)
        average = ExponentialMovingAverage.of(network, stage)

        def order(epoch: int, number: int = number) -> NDArray[np.int64]:
            chosen = recipe.stages[number]
            rows = stage_order(chosen, training.classes, seed=recipe.seed, number=number, epoch=epoch)
            return rows[: drop_last(len(rows), recipe.batch)]

        if stage.cacheable:
            cache = pooled_features(
                network, training.batches(everything, EVAL_BATCH), precision=recipe.precision
            )

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
        cpu = time.process_time() - started
        row = report(arm, f"{stage.name} x{stage.epochs}", network, recipe, validation, test, cpu)
    return row


def report(
    arm: str, stage: str, network: Clvr, recipe: Recipe, validation: Images, test: Images, cpu: float
) -> Row:
    """Print and return accuracy, rank-1 and mAP after a stage."""
    rows = np.arange(len(validation.classes))
    predictions = predict(network, validation.batches(rows, EVAL_BATCH), precision=recipe.precision)
    accuracy = score(predictions, validation.classes, network.architecture.classes)
    with torch.inference_mode():
        features = [
            network(to_input(pixels))[0]
            for pixels, _ in test.batches(np.arange(len(test.classes)), EVAL_BATCH)
        ]
    ranked = evaluate_protocol("vehicleid-paper", torch.cat(features).numpy(), test.targets)
    rank1, mean_precision = float(ranked.mean[0]), float(ranked.means["map"].mean())
    print(
        f"{arm:40} {stage:14} accuracy {accuracy.micro:6.1%}  loss {accuracy.loss:6.3f}  "
        f"rank-1 {rank1:6.1%}  mAP {mean_precision:6.1%}  {cpu:6.0f} CPU-s",
        flush=True,
    )
    return Row(
        f"`{arm}`, {stage}",
        f"validation accuracy {accuracy.micro:.1%}, rank-1 {rank1:.1%}, mAP {mean_precision:.1%}, "
        f"{cpu:,.0f} CPU s",
    )


def synthetic(args: argparse.Namespace, folder: str) -> tuple[LabeledImages, LabeledImages]:
    """Draw an archive below `folder`; return training images and test vehicles."""
    spec = ArchiveSpec(
        seed=args.seed,
        models=args.models,
        vehicles_per_model=args.vehicles,
        sightings_per_vehicle=args.sightings,
    )
    store = open_store(folder)
    generate(store, spec, layout="vehicleid")
    write_labels(store, spec, layout="vehicleid")
    return read_vehicleid(folder).with_known_model(), read_vehicleid(folder, list_test_splits(folder)[-1])


def photographs(args: argparse.Namespace) -> tuple[LabeledImages, LabeledImages]:
    """Return photographs of every second model for training, and some of the other models as the test set."""
    labelled = read_table(args.labels, root=args.root)
    chosen = labelled.classes[: 2 * args.models]
    masks = (np.isin(labelled.model_ids, chosen[first::2]) for first in (0, 1))
    seen, unseen = (labelled.take(np.flatnonzero(mask)) for mask in masks)
    rows = np.concatenate(
        [np.flatnonzero(unseen.model_ids == model)[: args.unseen] for model in unseen.classes]
    )
    return seen, unseen.take(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default="random")
    parser.add_argument("--arm", action="append")
    parser.add_argument("--set", action="append", default=[], help="override of every arm")
    parser.add_argument(
        "--labels", default="", help="a table of labelled photographs, instead of synthetic images"
    )
    parser.add_argument("--root", default="", help="folder or URI that the table's keys are below")
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--unseen", type=int, default=20, help="maximum photographs of each unseen model")
    parser.add_argument("--vehicles", type=int, default=8, help="synthetic vehicles of each model")
    parser.add_argument("--sightings", type=int, default=6, help="synthetic images of each vehicle")
    parser.add_argument("--seed", type=int, default=1)
    add_json_option(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        seen, unseen = photographs(args) if args.labels else synthetic(args, folder)
        models = seen.classes
        training, validation = (Images(part, models) for part in split_per_class(seen))
        test = Images(unseen, models)
    print(
        f"{machine()}\n{len(training.classes)} training images of {len(models)} models, "
        f"{len(validation.classes)} validation images, "
        f"{len(test.classes)} test images of {len(np.unique(test.targets))} classes",
        flush=True,
    )
    common = [f"pretrained={args.weights}", *args.set]
    save_rows(
        [fit(arm, common, training, validation, test) for arm in args.arm or ["paper", "strong"]], args.json
    )


if __name__ == "__main__":
    main()
