"""What tracks bring a training, on drawn vehicles: with model labels, and without any label.

    python tests/benchmarks/bench_tracks.py [--seeds 3] [--models 16] [--vehicles 12] [--sightings 8]

EfficientNet-Lite0 from its ImageNet weights, with the lower layers frozen: their maps are computed once, so
that an epoch takes seconds. All arms of a seed use the same images. Figures: rank-1 and mAP, `cross-camera`,
10 repeats, of vehicles that no arm was trained on, and the difference from the first arm of the group with
its 95 % interval by resampled vehicles of all seeds.
"""

import argparse
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measure import Row, add_json_option, machine, save_rows
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clvr_model.backbones.efficientnet_lite import EfficientNetLite
from clvr_model.journeys import Journeys, on_globe
from clvr_model.network import Clvr
from clvr_model.normalization import to_input
from clvr_model.preprocessing import decode
from clvr_model.pretrained import pretrained_network
from clvr_model.recipe import Recipe, load_recipe
from clvr_model.synthetic.archive import encode_crop
from clvr_model.synthetic.trips import ArchiveSpec, SyntheticCrop, synthetic_crops
from clvr_model.training import Batch, drop_last, make_optimizer, stage_order, train_epoch
from clvr_model.weights import load_backbone
from index.evaluation.cmc import LabeledFeatures
from index.evaluation.metrics import metrics_by, rank_k
from index.evaluation.protocols import ProtocolResult, evaluate_protocol
from index.evaluation.track_units import TRACK_PROTOCOLS, rank_tracks, unit_numbers
from index.search.travel_time import EARTH_KM

BATCH = 32
TENSORS = ("maps", "mirrored", "pooled")
NETWORK = "efficientnet_lite0"
METRICS = (rank_k(1), metrics_by("mean")[0])
TRACKS = (
    "identity=track",
    "target.sampling=vehicles",
    "target.loss=softmax+clusters",
    "target.negatives=other_model",
)
LABELLED = {
    "lite": ("lite",),
    "lite + tracks of 2, margin 0.5": ("lite", *TRACKS, "target.images_per_vehicle=2", "target.margin=0.5"),
    "lite + tracks of 4, margin 0.5": ("lite", *TRACKS, "target.images_per_vehicle=4", "target.margin=0.5"),
}
UNLABELLED = {
    "imported, not trained": (),
    "unlabelled": ("unlabelled", "batch=32", "stage1.images_per_vehicle=2"),
    "the same, any other track": (
        "unlabelled",
        "batch=32",
        "stage1.images_per_vehicle=2",
        "identity=vehicle",
        "stage1.negatives=any",
    ),
}
CITY_KM = 3.5  # a drawn trip takes two minutes or more from camera to camera: 5 km at the highest speed


@dataclass(frozen=True)
class Drawn:
    """Drawn crops: their maps below the `top` layers, as they are and mirrored, float32 (n, c, h, w).

    pooled: by the backbone as it was, float32 (n, 1280).
    """

    crops: list[SyntheticCrop]
    maps: Tensor
    mirrored: Tensor
    pooled: Tensor

    @property
    def models(self) -> NDArray[np.int64]:
        return np.array([crop.model_id for crop in self.crops])

    @property
    def vehicles(self) -> NDArray[np.int64]:
        return np.array([crop.vehicle_id for crop in self.crops])

    @property
    def tracks(self) -> NDArray[np.int64]:
        return np.unique([f"{crop.camera}/{crop.track_id}" for crop in self.crops], return_inverse=True)[1]

    @property
    def cameras(self) -> NDArray[np.str_]:
        return np.array([crop.camera_id for crop in self.crops])


class Top(nn.Module):
    """The network behind its frozen layers; `module` is the whole one, as in a distributed wrapper."""

    def __init__(self, network: Clvr) -> None:
        super().__init__()
        self.module = network

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        backbone = self.module.backbone
        assert isinstance(backbone, EfficientNetLite)
        feature, logits = self.module.head(backbone.pooled(maps))
        return feature, logits


def start_of(recipe: Recipe, classes: int) -> Clvr:
    network = Clvr.of(recipe.architecture(classes), seed=recipe.seed)
    load_backbone(network, recipe.pretrained)
    return network.eval()


@torch.inference_mode()
def draw(spec: ArchiveSpec, *, training: bool, network: Clvr) -> Drawn:
    """Draw the crops of one side and run the frozen layers over them."""
    crops = [crop for crop in synthetic_crops(spec) if crop.training == training]
    backbone = network.backbone
    assert isinstance(backbone, EfficientNetLite)
    size = network.architecture.image_size
    plain, mirrored = [], []
    for start in range(0, len(crops), BATCH):
        images = np.stack([decode(encode_crop(spec, crop), size) for crop in crops[start : start + BATCH]])
        plain.append(backbone.last_map_but_top(to_input(torch.from_numpy(images))))
        if training:
            flipped = np.ascontiguousarray(images[:, :, ::-1])
            mirrored.append(backbone.last_map_but_top(to_input(torch.from_numpy(flipped))))
    maps = [torch.cat(plain).contiguous(), torch.cat(mirrored or plain[:1]).contiguous()]
    return Drawn(crops, *maps, pool(network, maps[0]))


def cached(folder: Path | None, spec: ArchiveSpec, *, training: bool, network: Clvr) -> Drawn:
    """Return `draw`, kept in a folder for the next run."""
    if folder is None:
        return draw(spec, training=training, network=network)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(repr((spec, training)).encode()).hexdigest()[:16]}.safetensors"
    if not path.exists():
        drawn = draw(spec, training=training, network=network)
        save_file({name: getattr(drawn, name) for name in TENSORS}, path)
    tensors = load_file(path)
    crops = [crop for crop in synthetic_crops(spec) if crop.training == training]
    return Drawn(crops, **tensors)


def rush_hours(drawn: Drawn, seed: int) -> NDArray[np.int64]:
    """Return times (n,) of dense traffic: the k-th trips of all vehicles start in a quarter of hour 2 k.

    Drawn trips are spread over days, and a small archive then has hardly two vehicles at the same time.
    """
    times = np.array([crop.captured_at for crop in drawn.crops])
    moved = times.copy()
    rng = np.random.default_rng([seed, 98])
    for vehicle in np.unique(drawn.vehicles):
        rows = np.flatnonzero(drawn.vehicles == vehicle)
        rows = rows[np.argsort(times[rows])]
        trip = np.concatenate([[0], np.cumsum(np.diff(times[rows]) > 20 * 60_000)])
        for number in np.unique(trip):
            part = rows[trip == number]
            moved[part] += int((2 * number + rng.random() / 4) * 3_600_000) - times[part[0]]
    return moved


def journeys_of(drawn: Drawn, spec: ArchiveSpec) -> Journeys:
    """Where and when the tracks were seen, with the cameras at random places of a square."""
    places = np.random.default_rng([spec.seed, 99]).random((spec.cameras + 1, 2)) * CITY_KM / 111.2
    tracks, times = drawn.tracks, rush_hours(drawn, spec.seed)
    count = tracks.max() + 1
    first, last = np.full(count, np.iinfo(np.int64).max), np.full(count, -1)
    np.minimum.at(first, tracks, times)
    np.maximum.at(last, tracks, times)
    cameras = np.zeros(count, np.int64)
    cameras[tracks] = [crop.camera for crop in drawn.crops]
    unknown = np.full(count, -1)
    return Journeys(cameras, first, last, unknown, on_globe(places[:, 0], places[:, 1], EARTH_KM))


def describe_negatives(drawn: Drawn, journeys: Journeys) -> str:
    """Say how many pairs of tracks are proven to show two vehicles, and how many of these show one."""
    tracks, rows = np.unique(drawn.tracks, return_index=True)
    different = journeys.are_different(tracks)
    vehicles = drawn.vehicles[rows]
    same = vehicles[:, None] == vehicles
    np.fill_diagonal(same, val=False)
    return (
        f"a track is proven to differ from {different.sum(axis=1).mean():.1f} of {len(tracks) - 1} others; "
        f"of these pairs {(different & same).sum() / max(different.sum(), 1):.1%} show one vehicle, of all "
        f"pairs {same.mean():.1%}"
    )


def targets_of(drawn: Drawn) -> Tensor:
    return torch.from_numpy(np.column_stack([np.unique(drawn.models, return_inverse=True)[1], drawn.tracks]))


def fit(recipe: Recipe, drawn: Drawn, network: Clvr, journeys: Journeys) -> Clvr:
    """Train a recipe whose stages are `head` or `top` without other augmentation than mirroring."""
    targets = targets_of(drawn)
    for number, stage in enumerate(recipe.stages):
        top = Top(network)
        optimizer = make_optimizer(network, stage)
        is_frozen = stage.trainable == "head"  # in stages before any that changes the backbone
        sides = (drawn.pooled, drawn.pooled) if is_frozen else (drawn.maps, drawn.mirrored)

        def batches(
            rows: NDArray[np.int64], epoch: int, number: int = number, sides: tuple[Tensor, Tensor] = sides
        ) -> Iterator[Batch]:
            share = 0.5 if recipe.stages[number].horizontal_flip else 0.0
            flips = np.random.default_rng([recipe.seed, number, epoch]).random(len(rows)) < share
            for start in range(0, len(rows), recipe.batch):
                part = torch.from_numpy(rows[start : start + recipe.batch])
                flip = torch.from_numpy(flips[start : start + recipe.batch])
                flip = flip.reshape(-1, *[1] * (sides[0].ndim - 1))
                yield torch.where(flip, sides[1][part], sides[0][part]), targets[part]

        for epoch in range(stage.epochs):
            order = stage_order(
                stage,
                targets[:, 0].numpy(),
                seed=recipe.seed,
                number=number,
                epoch=epoch,
                vehicles=drawn.tracks,
                batch=recipe.batch,
                journeys=journeys,
            )
            rows = order[: drop_last(len(order), recipe.batch)]
            train_epoch(
                network.head if is_frozen else top,
                optimizer,
                batches(rows, epoch),
                stage,
                epoch=epoch,
                steps=len(rows) // recipe.batch,
                journeys=journeys,
            )
    return network.eval()


@torch.no_grad()
def pool(network: Clvr, maps: Tensor) -> Tensor:
    backbone = network.eval().backbone
    assert isinstance(backbone, EfficientNetLite)
    parts = [maps[start : start + BATCH] for start in range(0, len(maps), BATCH)]
    return torch.cat([backbone.pooled(part.to(memory_format=torch.channels_last)) for part in parts])


def evaluate(network: Clvr, test: Drawn, seed: int, *, is_frozen: bool) -> ProtocolResult:
    with torch.inference_mode():
        features = network.head(test.pooled if is_frozen else pool(network, test.maps))[0].numpy()
    return evaluate_protocol("cross-camera", features, test.vehicles, camera_ids=test.cameras, seed=seed)


def by_tracks(network: Clvr, test: Drawn, result: ProtocolResult, *, is_frozen: bool) -> str:
    """Return rank-1 and mAP of the same splits with tracks as units, by each of TRACK_PROTOCOLS."""
    with torch.inference_mode():
        features, logits = network.head(test.pooled if is_frozen else pool(network, test.maps))
    images = LabeledFeatures(features.numpy(), test.vehicles, test.cameras, np.arange(len(features)))
    confidence = logits.softmax(dim=1).amax(dim=1) if logits.shape[1] else torch.ones(len(logits))
    units = unit_numbers(test.vehicles, test.cameras, np.array([crop.track_id for crop in test.crops]))
    texts = []
    for kind in TRACK_PROTOCOLS:
        ranked = [
            rank_tracks(
                images,
                units,
                split,
                kind=kind,
                confidence=confidence.numpy(),
                same_camera_is_junk=False,
                max_rank=1,
            )
            for split in result.splits
        ]
        rank1 = np.mean([each.curve[0] for each in ranked])
        ap = np.mean([each.mean_ap for each in ranked])
        texts.append(f"{kind} {rank1:.1%}, {ap:.1%}")
    return "; ".join(texts)


def difference(
    base: Sequence[ProtocolResult], other: Sequence[ProtocolResult], tests: Sequence[Drawn], metric: int
) -> tuple[float, float, float]:
    """Return the mean difference over all seeds and its interval by resampled vehicles of each seed."""
    rng = np.random.default_rng(0)
    totals = np.zeros(2000)
    means = []
    for first, second, test in zip(base, other, tests, strict=True):
        probes = np.concatenate([split.probes for split in first.splits])
        vehicle = np.unique(test.vehicles[probes], return_inverse=True)[1]
        gains = np.concatenate(
            [
                METRICS[metric].per_probe(b) - METRICS[metric].per_probe(a)
                for a, b in zip(first.rankings, second.rankings, strict=True)
            ]
        )
        per_vehicle = np.bincount(vehicle, gains) / np.bincount(vehicle)
        means.append(per_vehicle.mean())
        totals += per_vehicle[rng.integers(len(per_vehicle), size=(2000, len(per_vehicle)))].mean(axis=1)
    low, high = np.quantile(totals / len(base), [0.025, 0.975])
    return float(np.mean(means)), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", type=int, default=16)
    parser.add_argument("--vehicles", type=int, default=12, help="of each model; half of them train")
    parser.add_argument("--sightings", type=int, default=8)
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--frozen", action="store_true", help="train the head alone, without mirroring")
    parser.add_argument("--unlabelled", action="store_true", help="the arms without any label")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, help="folder that keeps the maps for the next run")
    add_json_option(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    arms = UNLABELLED if args.unlabelled else LABELLED
    results: dict[str, list[ProtocolResult]] = {name: [] for name in arms}
    tests = []
    for seed in range(args.seeds):
        spec = ArchiveSpec(
            seed=seed,
            models=args.models,
            vehicles_per_model=args.vehicles,
            sightings_per_vehicle=args.sightings,
            days=args.days,
        )
        started = time.process_time()
        begin = start_of(load_recipe("lite"), 2)
        training, test = (cached(args.cache, spec, training=side, network=begin) for side in (True, False))
        tests.append(test)
        counts = np.unique(training.tracks, return_counts=True)[1]
        print(
            f"seed {seed}: {len(training.crops)} crops to train on, {len(counts)} tracks, "
            f"{(counts > 1).sum()} of 2 crops or more; {len(test.crops)} to test on; "
            f"{time.process_time() - started:.0f} CPU-s",
            flush=True,
        )
        journeys = journeys_of(training, spec)
        print(f"  {describe_negatives(training, journeys)}")
        for name, arm in arms.items():
            started = time.process_time()
            network = pretrained_network(NETWORK)[0] if args.unlabelled else None
            is_frozen = args.frozen or not arm
            if arm:
                last = "stage1" if args.unlabelled else "target"
                frozen = [f"{last}.trainable=head"] if args.frozen else []
                recipe = load_recipe(arm[0], [*arm[1:], *frozen, f"seed={seed}"])
                network = network or start_of(recipe, len(np.unique(training.models)))
                network = fit(recipe, training, network, journeys)
            assert network is not None
            result = evaluate(network, test, seed, is_frozen=is_frozen)
            results[name].append(result)
            if name == next(iter(arms)):
                print(f"  by tracks: {by_tracks(network, test, result, is_frozen=is_frozen)}")
            print(
                f"  {name:34} rank-1 {result.mean[0]:6.1%} mAP {result.figure('map')[0]:6.1%} "
                f"{time.process_time() - started:5.0f} CPU-s",
                flush=True,
            )
    base = results[next(iter(arms))]
    rows = []
    for name, found in results.items():
        rank1 = np.array([result.mean[0] for result in found])
        ap = np.array([result.figure("map")[0] for result in found])
        gains = [difference(base, found, tests, metric) for metric in range(2)]
        text = "; ".join(
            f"{title} {values.mean():.1%} ±{values.std(ddof=len(values) > 1):.1%}, "
            f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            for title, values, (mean, low, high) in zip(("rank-1", "mAP"), (rank1, ap), gains, strict=True)
        )
        print(f"{name:34} {text}", flush=True)
        rows.append(Row(name, text))
    print(machine())
    save_rows(rows, args.json)


if __name__ == "__main__":
    main()
