"""Retrieval of vehicle models that a network has not seen: untrained, trained by `lite`, and both together.

    python tests/benchmarks/bench_models.py DATASET [--learn 110] [--seeds 0 1 2] [--cache FOLDER]

DATASET has `images/` and `labels.csv` with the columns file and model_id, or one folder of images per model.
Each seed draws the models to learn and trains on their images; the images of all other models are probe and
gallery in turn (leave-one-out, an image of the same model is a match). Figures are means over the seeds with
a 95 % interval (Student's t); the baseline column has the paired difference to the untrained feature.

Below, whitening is fitted to all images, as to an archive, and compressions to the searched images.

The layers that `lite` does not train run once, on each image and its mirror image; their maps are kept in
memory in float16, and in --cache. The training is that of the recipe otherwise.
"""

import argparse
import csv
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Row, add_json_option, interval, machine, save_rows
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from clvr_model.backbones.efficientnet_lite import EfficientNetLite
from clvr_model.datasets.labelled import read_folder
from clvr_model.ema import ExponentialMovingAverage
from clvr_model.engines import openvino
from clvr_model.network import FEATURE_DIM, Clvr
from clvr_model.normalization import to_input
from clvr_model.preprocessing import decode
from clvr_model.pretrained import projection
from clvr_model.recipe import Recipe, load_recipe
from clvr_model.serving import folded_copy
from clvr_model.training import Batch, cached_batches, drop_last, make_optimizer, stage_order, train_epoch
from clvr_model.weights import load_backbone
from index.evaluation.protocols import evaluate_protocol
from index.transforms.compression import FORMATS, bytes_per_row, fit_compression
from index.transforms.fitting import TransformSettings, fit_features

Floats = NDArray[np.float32]
BATCH = 32
UNTRAINED = "pooled, untrained"


class FromMaps(Clvr):
    """The network from the map below its top layers on: float32 (n, c, h, w) -> feature, logits."""

    backbone: EfficientNetLite

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        feature, logits = self.head(self.backbone.pooled(x))
        return feature, logits


def read_dataset(folder: Path) -> tuple[list[Path], NDArray[np.int64]]:
    """Return the files and the model of each."""
    table = folder / "labels.csv"
    if not table.exists():
        labelled = read_folder(str(folder))
        return [Path(uri) for uri in labelled.uris], labelled.model_ids
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    files = [folder / "images" / row["file"] for row in rows]
    return files, np.array([int(row["model_id"]) for row in rows], np.int64)


class Lower(nn.Module):
    """The layers below the top: uint8 (BATCH, h, w, 3) -> float32 (BATCH, c, h', w')."""

    def __init__(self, network: Clvr) -> None:
        super().__init__()
        self.network = folded_copy(network)

    def forward(self, images: Tensor) -> Tensor:
        return self.network.backbone.last_map_but_top(to_input(images))


class Upper(Lower):
    """The top and the pool: float32 (BATCH, c, h, w) -> (BATCH, pooled_dim)."""

    def forward(self, images: Tensor) -> Tensor:
        return self.network.backbone.pooled(images)


@torch.inference_mode()
def engine(module: nn.Module, example: Tensor) -> Callable[[NDArray[Any]], Floats]:
    """Return a part of the network on one thread of OpenVINO, or else torch, for batches like `example`."""
    package = openvino()
    if package is None:
        return lambda batch: module(torch.from_numpy(batch)).detach().numpy()
    traced = torch.jit.trace(module, example, check_trace=False)
    graph = package.convert_model(traced, example_input=example, input=[list(example.shape)])
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = package.Core().compile_model(graph, "CPU", settings).create_infer_request()
    return lambda batch: next(iter(request.infer([batch]).values()))


def lower_maps(network: FromMaps, files: Sequence[Path], cache: Path | None) -> NDArray[np.float16]:
    """Return float16 (2, n, c, h, w): the maps of the images and of their mirror images."""
    path = cache / f"maps-{network.architecture.backbone}-{len(files)}.npy" if cache else None
    if path and path.exists():
        return np.load(path)
    size = network.architecture.image_size
    run = engine(Lower(network), torch.zeros(BATCH, size, size, 3, dtype=torch.uint8))
    parts = []
    for start in range(0, len(files), BATCH):
        chosen = files[start : start + BATCH]
        pixels = np.zeros((BATCH, size, size, 3), np.uint8)
        for row, file in enumerate(chosen):
            pixels[row] = decode(file.read_bytes(), size)
        views = (pixels, np.ascontiguousarray(pixels[:, :, ::-1]))
        parts.append(np.stack([run(view)[: len(chosen)].astype(np.float16) for view in views]))
        if start % (20 * BATCH) == 0:
            done = f"  lower layers: {start} of {len(files)} images, {time.process_time():.0f} CPU s"
            print(done, flush=True)
    maps = np.concatenate(parts, axis=1)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, maps)
    return maps


def as_input(maps: NDArray[np.float16]) -> Tensor:
    return torch.from_numpy(maps.astype(np.float32)).contiguous(memory_format=torch.channels_last)


def pooled_of(network: FromMaps, maps: NDArray[np.float16]) -> Tensor:
    """Return the pooled features (n, pooled_dim) of maps (n, c, h, w)."""
    run = engine(Upper(network), torch.zeros(BATCH, *maps.shape[1:]))
    parts = []
    for start in range(0, len(maps), BATCH):
        part = maps[start : start + BATCH].astype(np.float32)
        padded = np.concatenate([part, np.zeros((BATCH - len(part), *part.shape[1:]), np.float32)])
        parts.append(torch.from_numpy(run(padded)[: len(part)].copy()))
    return torch.cat(parts)


def features(network: FromMaps, maps: NDArray[np.float16]) -> tuple[Tensor, Tensor]:
    """Return pooled and dense features of maps (n, c, h, w), each of unit length."""
    pooled = pooled_of(network, maps)
    return functional.normalize(pooled), dense(network, pooled)


@torch.inference_mode()
def dense(network: FromMaps, pooled: Tensor) -> Tensor:
    """Return dense features of unit length."""
    return functional.normalize(network.head.eval()(pooled)[0])


class Training:
    """The recipe on the images of the learned models, from the maps."""

    def __init__(self, recipe: Recipe, maps: NDArray[np.float16], classes: NDArray[np.int64]) -> None:
        self.recipe, self.maps, self.classes = recipe, maps, classes
        self.network = FromMaps.of(recipe.architecture(int(classes.max()) + 1), seed=recipe.seed)
        load_backbone(self.network, recipe.pretrained)
        self.frozen = pooled_of(self.network, maps[0])
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(self, number: int) -> float:
        """Run a stage; return its CPU seconds."""
        stage, started = self.recipe.stages[number], time.process_time()
        optimizer = make_optimizer(self.network, stage)
        average = ExponentialMovingAverage.of(self.network, stage)
        count = drop_last(len(self.classes), self.recipe.batch)
        for epoch in range(stage.epochs):
            order = stage_order(stage, self.classes, seed=self.recipe.seed, number=number, epoch=epoch)
            order = order[:count]
            batches: Iterator[Batch] = (
                cached_batches((self.frozen, torch.from_numpy(self.classes)), order, self.recipe.batch)
                if stage.trainable == "head"
                else self._batches(order, number, epoch)
            )
            result = train_epoch(
                self.network.head if stage.trainable == "head" else self.network,
                optimizer,
                batches,
                stage,
                epoch=epoch,
                average=average,
                steps=count // self.recipe.batch,
            )
            print(
                f"  {stage.name} {epoch + 1}: loss {result.loss:.3f}, {result.accuracy:.1%}, "
                f"{time.process_time() - started:.0f} CPU s",
                flush=True,
            )
        if average:
            average.install()
        return time.process_time() - started

    def _batches(self, order: NDArray[np.int64], number: int, epoch: int) -> Iterator[Batch]:
        rng = np.random.default_rng([self.recipe.seed, number, epoch, 1])
        for start in range(0, len(order), self.recipe.batch):
            rows = order[start : start + self.recipe.batch]
            flips = self.recipe.stages[number].horizontal_flip * rng.integers(0, 2, len(rows))
            yield as_input(self.maps[flips, rows]), torch.from_numpy(self.classes[rows])


def interpolated(start: dict[str, Tensor], end: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return the weights between two states. Source: Wortsman et al., WiSE-FT, CVPR 2022."""
    return {
        name: torch.lerp(value, end[name], share) if value.is_floating_point() else end[name]
        for name, value in start.items()
    }


def joined(*parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=1) / len(parts) ** 0.5


def smaller(name: str, archive: Tensor, test: NDArray[np.int64], dimensions: Sequence[int]
            ) -> Iterator[tuple[str, Tensor]]:  # fmt: skip
    """Yield transformed and compressed features of the searched images, named by their bytes a row."""
    features = archive.numpy()
    whitened = fit_features(features, TransformSettings("whiten"))
    reduced = {size: fit_features(features, TransformSettings("whiten", size)) for size in dimensions}
    variants = {name: features[test], f"{name}, whitened": whitened(features[test])}
    variants |= {f"{name}, whitened to {size}": fit(features[test]) for size, fit in reduced.items()}
    for label, values in variants.items():
        if label != name:
            yield f"{label}, {bytes_per_row(values.shape[1]):,} bytes", torch.from_numpy(values)
        for kind in FORMATS:
            decoded = fit_compression(values, kind)(values)
            yield (
                f"{label}, {kind}, {bytes_per_row(values.shape[1], kind):,} bytes",
                torch.from_numpy(decoded),
            )


def draw_models(
    models: NDArray[np.int64], *, learn: int, images: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the images of `learn` drawn models, at most `images` of each (0: all), and all of the others."""
    rng = np.random.default_rng(seed)
    known = rng.permutation(np.unique(models))
    learned, unseen = np.sort(known[:learn]), known[learn:]
    rows = np.flatnonzero(np.isin(models, learned))
    if images:
        rows = np.sort(
            np.concatenate([rng.permutation(np.flatnonzero(models == model))[:images] for model in learned])
        )
    return rows, np.flatnonzero(np.isin(models, unseen))


def one_seed(args: argparse.Namespace, seed: int, maps: NDArray[np.float16], models: NDArray[np.int64],
             frozen: Tensor) -> tuple[dict[str, tuple[float, float]], float]:  # fmt: skip
    """Train on drawn models; return rank-1 and mAP of each feature on the others, and CPU seconds."""
    rows, test = draw_models(models, learn=args.learn, images=args.images, seed=seed)
    recipe = load_recipe("lite", [f"seed={seed}", *args.set])
    learned = np.unique(models[rows])
    unseen = len(np.unique(models[test]))
    print(f"seed {seed}: {len(rows)} images of {len(learned)} models; {len(test)} of {unseen}", flush=True)
    untrained = functional.normalize(frozen[test])
    small = dict(smaller("pooled, untrained", functional.normalize(frozen), test, args.dimensions))
    if args.skip_training:
        return figures_of({UNTRAINED: untrained, **small}, models[test]), 0.0
    classes = np.searchsorted(learned, models[rows]).astype(np.int64)
    training = Training(recipe, maps[:, rows], classes)
    network = training.network
    unseen_maps = np.ascontiguousarray(maps[0, test])
    cpu = training.run(0)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    matrix = torch.from_numpy(projection(frozen.shape[1], FEATURE_DIM))
    found = {
        UNTRAINED: untrained,
        "pooled, untrained, as `clvr model import` stores it": functional.normalize(untrained @ matrix.T),
        "dense, head alone trained": dense(network, frozen[test]),
    }
    cpu += training.run(1)
    end = {name: value.clone() for name, value in network.state_dict().items()}
    pooled, trained = features(network, unseen_maps)
    everything = dense(network, pooled_of(network, maps[0]))
    found |= {
        "dense": trained,
        "pooled": pooled,
        "pooled and dense": joined(pooled, trained),
        "pooled, untrained and trained": joined(untrained, pooled),
        "pooled untrained, dense trained": joined(untrained, trained),
    }
    for share in args.interpolate:
        network.load_state_dict(interpolated(start, end, share))
        pooled, trained = features(network, unseen_maps)
        found |= {
            f"dense, weights {share:g} of the way": trained,
            f"pooled, weights {share:g} of the way": pooled,
        }
    found |= small | dict(smaller("dense", everything, test, args.dimensions))
    return figures_of(found, models[test]), cpu


def figures_of(features: dict[str, Tensor], models: NDArray[np.int64]) -> dict[str, tuple[float, float]]:
    """Print and return rank-1 and mAP of each feature, all images in turn against all others."""
    figures = {}
    for name, values in features.items():
        result = evaluate_protocol("leave-one-out", values.numpy(), models)
        figures[name] = float(result.mean[0]), result.figure("map")[0]
        print(f"  {name:58} rank-1 {figures[name][0]:.1%}  mAP {figures[name][1]:.1%}", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--learn", type=int, default=110, help="number of models to train on")
    parser.add_argument("--images", type=int, default=0, help="training images of a model (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--interpolate", type=float, nargs="*", default=[0.5])
    parser.add_argument("--dimensions", type=int, nargs="*", default=[256, 128])
    parser.add_argument("--set", action="append", default=[], help="override of the recipe")
    parser.add_argument("--skip-training", action="store_true", help="the untrained features alone")
    parser.add_argument("--cache", type=Path, help="folder for the maps of the lower layers")
    add_json_option(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    files, models = read_dataset(args.dataset)
    print(f"{machine()}\n{len(files)} images of {len(np.unique(models))} models", flush=True)
    recipe = load_recipe("lite", args.set)
    network = FromMaps.of(recipe.architecture(1))
    load_backbone(network, recipe.pretrained)
    maps = lower_maps(network, files, args.cache)
    frozen = pooled_of(network, maps[0])
    runs = [one_seed(args, seed, maps, models, frozen) for seed in args.seeds]
    rows = []
    for name in runs[0][0]:
        rank1, mean_precision = zip(*(figures[name] for figures, _ in runs), strict=True)
        gains = [figures[name][0] - figures[UNTRAINED][0] for figures, _ in runs]
        against = "" if name == UNTRAINED else f"rank-1 {interval(gains)} above untrained"
        rows.append(Row(name, f"rank-1 {interval(rank1)}, mAP {interval(mean_precision)}", against))
    seconds = [cpu for _, cpu in runs]
    if not args.skip_training:
        rows.append(Row("training of one seed from the lower layers' maps", f"{np.mean(seconds):,.0f} CPU s"))
    for row in rows:
        print(f"{row.case:50} {row.result}   {row.baseline}")
    save_rows(rows, args.json)


if __name__ == "__main__":
    main()
