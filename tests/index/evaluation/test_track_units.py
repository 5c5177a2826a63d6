"""Tracks as probes and gallery against a plain count, probe by probe and track by track."""

import numpy as np
import pytest

from index.evaluation.cmc import LabeledFeatures, Split
from index.evaluation.protocols import draw_splits
from index.evaluation.track_units import TRACK_PROTOCOLS, rank_tracks, unit_numbers
from infra.errors import UnmatchedProbe


class World:
    """60 images of 8 vehicles by 3 cameras, on tracks of one to four images, some without a track."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.vehicles = rng.integers(0, 8, 60)
        self.cameras = rng.integers(0, 3, 60).astype(np.str_)
        self.tracks = np.array([f"{number}" if number else "" for number in rng.integers(0, 3, 60)])
        # Few values give equal distances; zero is a feature without a direction.
        centers = rng.integers(-1, 2, (8, 3))
        self.features = (centers[self.vehicles] + rng.integers(-1, 2, (60, 3))).astype(np.float32)
        self.confidence = rng.random(60).astype(np.float32)

    @property
    def images(self) -> LabeledFeatures:
        return LabeledFeatures(self.features, self.vehicles, self.cameras, np.arange(60))

    def track_of(self, image: int) -> tuple:
        track = self.tracks[image]
        return (self.vehicles[image], self.cameras[image], track) if track else (image,)

    def unit(self, image: int) -> np.ndarray:
        feature = self.features[image].astype(np.float64)
        length = np.sqrt((feature**2).sum())
        return feature / length if length else feature

    def mean(self, images: list[int], *, is_weighted: bool) -> np.ndarray:
        weights = [max(float(self.confidence[image]), 1e-6) if is_weighted else 1.0 for image in images]
        total = sum(weight * self.unit(image) for weight, image in zip(weights, images, strict=True))
        length = np.sqrt((total**2).sum())
        return total / length if length > 1e-300 else total

    def expected(self, kind: str, split: Split, *, junk: bool) -> list[tuple[list[int], int]]:
        """Ranks of the positive tracks and the tracks ranked, for each probe."""
        found = []
        for part in split.one_gallery_each:
            tracks: dict[tuple, list[int]] = {}
            for image in sorted(part.gallery.tolist()):
                tracks.setdefault(self.track_of(image), []).append(image)
            for probe in part.probes.tolist():
                feature = self.unit(probe)
                if kind.startswith("track"):
                    members = [i for i in range(60) if self.track_of(i) == self.track_of(probe)]
                    feature = self.mean(members, is_weighted="weighted" in kind)
                entries = []
                for key, members in tracks.items():
                    is_same = self.vehicles[members[0]] == self.vehicles[probe]
                    if key == self.track_of(probe):
                        continue
                    if junk and is_same and self.cameras[members[0]] == self.cameras[probe]:
                        continue
                    if "nearest" in kind:
                        distance = min(((feature - self.unit(image)) ** 2).sum() for image in members)
                    else:
                        mean = self.mean(members, is_weighted="weighted" in kind)
                        distance = ((feature - mean) ** 2).sum()
                    entries.append((round(float(distance), 9), members[0], is_same))
                entries.sort(key=lambda entry: entry[:2])
                ranks = [rank for rank, entry in enumerate(entries, start=1) if entry[2]]
                found.append((ranks, len(entries)))
        return found


@pytest.mark.parametrize("kind", TRACK_PROTOCOLS)
@pytest.mark.parametrize("protocol", ["veri", "cross-camera"])
def test_ranks_of_tracks_equal_a_plain_count(kind: str, protocol: str) -> None:
    for seed in range(3):
        world = World(seed)
        rng = np.random.default_rng(seed)
        # Without ties: the plain count sums in another order.
        world.features = rng.normal(size=(60, 3)).astype(np.float32)
        units = unit_numbers(world.vehicles, world.cameras, world.tracks)
        (split,) = draw_splits(protocol, world.vehicles, world.cameras, repeats=1, seed=seed)
        result = rank_tracks(
            world.images,
            units,
            split,
            kind=kind,
            confidence=world.confidence,
            same_camera_is_junk=protocol == "veri",
            max_rank=10,
        )
        expected = world.expected(kind, split, junk=protocol == "veri")
        ranking = result.ranking
        assert ranking.num_positives.tolist() == [len(ranks) for ranks, _ in expected]
        assert ranking.positive_ranks.tolist() == [rank for ranks, _ in expected for rank in ranks]
        assert ranking.gallery_sizes.tolist() == [size for _, size in expected]
        first = [ranks[0] == 1 for ranks, _ in expected if ranks]
        assert result.curve[0] == pytest.approx(np.mean(first))  # VeRi's HIT@1


def test_equal_distances_rank_by_the_first_image_of_a_track() -> None:
    features = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], np.float32)
    images = LabeledFeatures(features, np.array([5, 7, 5, 9]), np.array(["a", "b", "b", "b"]), np.arange(4))
    units = unit_numbers(images.vehicle_ids, images.camera_ids, np.array(["1", "2", "3", "4"]))
    for kind in TRACK_PROTOCOLS:
        result = rank_tracks(
            images,
            units,
            Split(np.array([0]), np.array([3, 2, 1])),
            kind=kind,
            confidence=np.ones(4, np.float32),
            same_camera_is_junk=False,
            max_rank=3,
        )
        assert result.ranking.positive_ranks.tolist() == [2]


def test_a_track_of_one_image_is_ranked_as_the_image() -> None:
    world = World(3)
    world.tracks[:] = ""
    units = unit_numbers(world.vehicles, world.cameras, world.tracks)
    assert len(np.unique(units)) == 60
    split = Split(np.array([0]), np.arange(1, 60)[world.vehicles[1:] != world.vehicles[0]])
    with pytest.raises(UnmatchedProbe):
        rank_tracks(
            world.images,
            units,
            split,
            kind=TRACK_PROTOCOLS[0],
            confidence=world.confidence,
            same_camera_is_junk=False,
            max_rank=3,
        )
