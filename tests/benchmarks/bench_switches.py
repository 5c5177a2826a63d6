"""What each switch of a recipe brings to vehicle models that the training has not seen.

    python tests/benchmarks/bench_switches.py DATASET [--images 12] [--seeds 0 1 2] [--cache FOLDER]
        [--arm pooling=gem …]

An arm is the recipe `lite` with other values, separated by commas. Each seed draws the models to learn, as
in `bench_models.py`; all arms of a seed use the same images, order and initial weights. Figures are those of
the dense feature (leave-one-out, an image of the same model is a match), means over the seeds with a 95 %
interval (Student's t); the baseline column has the paired difference from `lite` as it is.

Augmentation of pixels is no arm: the layers that `lite` does not train run once, and their maps are kept.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from bench_models import (
    FromMaps,
    Training,
    draw_models,
    features,
    figures_of,
    lower_maps,
    read_dataset,
)
from measure import Row, add_json_option, interval, machine, save_rows
from numpy.typing import NDArray

from clvr_model.recipe import load_recipe
from clvr_model.weights import load_backbone

ARMS = (
    "classifier=dense",
    "bnneck=false",
    "l2_normalized=false",
    "feature_relu=true",
    "warmup.label_smoothing=0,target.label_smoothing=0",
    "target.horizontal_flip=false",
    "target.schedule=constant",
    "warmup.sampling=balanced,target.sampling=balanced",
    "target.ema_decay=0.99",
    "pooling=gem",
    "last_stride=1",
    "classifier=dense,bnneck=false,l2_normalized=false,feature_relu=true",
)


def train(arm: str, args: argparse.Namespace, seed: int, maps: NDArray[np.float16], models: NDArray[np.int64]
          ) -> tuple[float, float, float]:  # fmt: skip
    """Train one arm on what a seed draws; return rank-1, mAP and CPU seconds."""
    overrides = [f"seed={seed}", *args.set, *(arm.split(",") if arm else [])]
    recipe = load_recipe("lite", overrides)
    rows, test = draw_models(models, learn=args.learn, images=args.images, seed=seed)
    classes = np.unique(models[rows], return_inverse=True)[1].astype(np.int64)
    training = Training(recipe, maps[:, rows], classes)
    cpu = sum(training.run(number) for number in range(len(recipe.stages)))
    _, dense = features(training.network, np.ascontiguousarray(maps[0, test]))
    label = f"lite,{arm}" if arm else "lite"
    rank1, mean_precision = figures_of({label: dense}, models[test])[label]
    return rank1, mean_precision, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--learn", type=int, default=110, help="number of models to train on")
    parser.add_argument("--images", type=int, default=12, help="training images of a model (0: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arm", action="append", help="overrides of the recipe, separated by commas")
    parser.add_argument("--set", action="append", default=[], help="override of every arm")
    parser.add_argument("--cache", type=Path, help="folder for the maps of the lower layers")
    add_json_option(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    files, models = read_dataset(args.dataset)
    print(f"{machine()}\n{len(files)} images of {len(np.unique(models))} models", flush=True)
    first = load_recipe("lite", args.set)
    network = FromMaps.of(first.architecture(1))
    load_backbone(network, first.pretrained)
    maps = lower_maps(network, files, args.cache)
    arms = ["", *(args.arm or ARMS)]
    figures = np.array([[train(arm, args, seed, maps, models) for arm in arms] for seed in args.seeds])
    rows = []
    for number, arm in enumerate(arms):
        rank1, mean_precision, cpu = figures[:, number].T
        gain = figures[:, number] - figures[:, 0]
        result = f"rank-1 {interval(rank1)}, mAP {interval(mean_precision)}, {cpu.mean():,.0f} CPU s"
        against = f"rank-1 {signed(gain[:, 0])}, mAP {signed(gain[:, 1])}" if arm else ""
        rows.append(Row(f"`{arm}`" if arm else "`lite`", result, against))
        print(f"{rows[-1].case:70} {result}   {against}")
    save_rows(rows, args.json)


def signed(differences: NDArray[np.float64]) -> str:
    """Format a mean difference with its sign, and its interval."""
    return ("+" if differences.mean() >= 0 else "") + interval(differences)


if __name__ == "__main__":
    main()
