"""What whitening brings on photographs, without labels: find other images of a vehicle model.

    python tests/benchmarks/bench_transform.py DATASET [--weights FILE] [--backbone NAME] [--features FILE]

DATASET has `labels.csv` (file or key, model_id) and the images, in `images/` or beside it. The pooled
features of a pretrained backbone that saw none of the models are ranked by L2, each image against all others
of --unseen models, which are drawn --splits times. A transform is fitted to the images that are searched, or
to those of the other models. No label takes part in a fit. Figures: mean and standard deviation over the
draws, and the 95 % interval of the difference from plain L2 by resampled models. --features keeps the
features of a run for the next one.
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np
from measure import Row, add_json_option, machine, save_rows
from numpy.typing import NDArray

from clvr_model.backbones import DEFAULT_BACKBONE
from clvr_model.engines import openvino
from clvr_model.network import Architecture, Clvr
from clvr_model.normalization import to_input
from clvr_model.preprocessing import decode
from clvr_model.weights import load_backbone
from index.evaluation.metrics import metrics_by, rank_k
from index.evaluation.protocols import evaluate_protocol
from index.transforms.fitting import TransformSettings, fit_features
from index.transforms.transform import FeatureTransform, normalized

RESAMPLES = 2000
BATCH = 8
METRICS = (rank_k(1), metrics_by("mean")[0])
Features = NDArray[np.float32]


def labelled_files(folder: Path, per_model: int) -> tuple[list[Path], NDArray[np.int64]]:
    """Return the first images of each model, and the model of each."""
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    seen: dict[str, int] = {}
    paths, models = [], []
    for row in rows:
        seen[row["model_id"]] = seen.get(row["model_id"], 0) + 1
        if seen[row["model_id"]] > per_model:
            continue
        name = row.get("file") or row["key"]
        paths.append(next(path for path in (folder / "images" / name, folder / name) if path.exists()))
        models.append(int(row["model_id"]))
    return paths, np.asarray(models, np.int64)


def pooled_features(paths: list[Path], backbone: str, weights: str, threads: int) -> Features:
    """Return the pooled features (n, d) of images, in float32 by OpenVINO."""
    import torch

    network = Clvr.of(Architecture(classes=2, backbone=backbone)).eval()
    load_backbone(network, weights)
    size = network.architecture.image_size

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = network.backbone

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.backbone(to_input(images))  # type: ignore[no-any-return]

    example = torch.zeros(BATCH, size, size, 3, dtype=torch.uint8)
    with torch.inference_mode():
        traced = torch.jit.trace(Pooled().eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
        model = openvino().convert_model(traced, example_input=example, input=[[BATCH, size, size, 3]])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino().Core().compile_model(model, "CPU", settings)
    started, features = time.monotonic(), []
    for first in range(0, len(paths), BATCH):
        images = np.stack([decode(path.read_bytes(), size) for path in paths[first : first + BATCH]])
        padded = np.concatenate([images, np.zeros((BATCH - len(images), *images.shape[1:]), np.uint8)])
        features.append(next(iter(compiled(padded).values()))[: len(images)].copy())
        if first % (BATCH * 25) == 0:
            print(f"  {first:,} of {len(paths):,} images, {time.monotonic() - started:.0f} s", flush=True)
    return np.concatenate(features)


def whitened(sample: Features, searched: Features, dimensions: int) -> tuple[Features, Features]:
    """Return the searched images whitened by a sample of images, and with fewer dimensions."""
    whole = fit_features(sample, TransformSettings("whiten"))
    if len(sample) < sample.shape[1]:
        reduced = fit_features(sample, TransformSettings("whiten", dimensions))
    else:  # the rows of the matrix are sorted by variance
        assert whole.matrix is not None
        reduced = FeatureTransform("whiten", whole.matrix[:dimensions], whole.offset[:dimensions])
    return whole(searched), reduced(searched)


def variants(searched: Features, others: Features, dimensions: int) -> dict[str, Features]:
    """Return the features of one draw under each name."""
    own, own_reduced = whitened(searched, searched, dimensions)
    elsewhere, elsewhere_reduced = whitened(others, searched, dimensions)
    return {
        "plain L2": searched,
        "L2-normalised": normalized(searched.astype(np.float64)).astype(np.float32),
        "whitened by the searched images": own,
        f"the same, {dimensions} dimensions": own_reduced,
        "whitened by images of other models": elsewhere,
        f"the same, {dimensions} dimensions, by other models": elsewhere_reduced,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--weights", default="random")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--features", type=Path, help="read features from this .npz, or write them there")
    parser.add_argument("--per-model", type=int, default=24, help="maximum images of a model")
    parser.add_argument("--unseen", type=int, default=40, help="models of a draw")
    parser.add_argument("--splits", type=int, default=5, help="draws, seeds 0, 1, …")
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    add_json_option(parser)
    args = parser.parse_args()
    paths, models = labelled_files(args.dataset, args.per_model)
    print(machine(), flush=True)
    if args.features and args.features.exists():
        features = np.load(args.features)["features"]
    else:
        features = pooled_features(paths, args.backbone, args.weights, args.threads)
        if args.features:
            np.savez(args.features, features=features)
    print(f"{len(features):,} images of {len(np.unique(models))} models, {features.shape[1]:,} dimensions")
    values: dict[str, list[NDArray[np.float64]]] = {}
    drawn_models = []
    for seed in range(args.splits):
        known = np.unique(models)
        drawn = np.random.default_rng(seed).choice(known, size=args.unseen, replace=False)
        rows = np.flatnonzero(np.isin(models, drawn))
        others = features[~np.isin(models, drawn)]
        drawn_models.append(models[rows])
        for name, vectors in variants(features[rows], others, args.dimensions).items():
            (ranking,) = evaluate_protocol("leave-one-out", vectors, models[rows]).rankings
            per_probe = np.stack([metric.per_probe(ranking) for metric in METRICS], axis=1)
            values.setdefault(name, []).append(per_probe)
            rank_1, precision = per_probe.mean(axis=0)
            print(f"  seed {seed} {name:45} rank-1 {rank_1:.3f} mAP {precision:.3f}", flush=True)
    save_rows(list(table(values, drawn_models, args)), args.json)


def table(
    values: dict[str, list[NDArray[np.float64]]],
    drawn_models: list[NDArray[np.int64]],
    args: argparse.Namespace,
) -> list[Row]:
    """Return a row a variant: means and deviations over the draws, and intervals against plain L2."""
    _, group = np.unique(np.concatenate(drawn_models), return_inverse=True)
    groups = int(group.max()) + 1
    draws = np.random.default_rng(0).multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)
    counts = draws @ np.bincount(group)
    base = np.concatenate(values["plain L2"])
    rows = []
    for name, parts in values.items():
        means = np.stack([part.mean(axis=0) for part in parts])
        difference = np.concatenate(parts) - base
        texts = []
        for metric, title in enumerate(("rank-1", "mAP")):
            resampled = draws @ np.bincount(group, difference[:, metric]) / counts
            low, high = np.quantile(resampled, (0.025, 0.975))
            interval = "" if name == "plain L2" else f" ({low:+.1%} to {high:+.1%})"
            texts.append(
                f"{title} {means[:, metric].mean():.1%} ±{means[:, metric].std(ddof=1):.1%}{interval}"
            )
        rows.append(Row(f"{args.backbone}: {name}", ", ".join(texts)))
        print(f"{rows[-1].case:60} {rows[-1].result}")
    return rows


if __name__ == "__main__":
    main()
