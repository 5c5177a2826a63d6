"""Retrieval leaves out the probe's own camera and track, and groups the crops of a track."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from index.filters import Filters
from index.generations.units import TrackOfCrop
from index.milvus.search import Hit
from index.search.probe import Probe, Sighting, merge_probes
from index.search.retrieval import Rules, retrieve, select
from index.search.travel_time import CameraMap
from infra.errors import BadInput, BadSetting


def hit(crop_id: int, distance: float, camera: str = "a", track: str = "", captured_at: int = 0) -> Hit:
    return Hit(0, crop_id, distance, f"s3://x/{crop_id}", camera, track, captured_at, 0, 1.0)


class LineSource:
    """Crops on a line, match at the position `distance`; records the number, depth and filter of searches."""

    name, fingerprint, transform = "line", "f", None

    def __init__(self, crops: Sequence[Hit]) -> None:
        self.crops = crops
        self.calls: list[tuple[int, int, tuple[str, ...]]] = []

    def nearest(self, features: NDArray[np.float32], top: int, filters: Filters) -> list[list[Hit]]:
        self.calls.append((len(features), top, filters.not_cameras))
        return [
            sorted(
                (
                    replace(crop, distance=abs(float(place[0]) - crop.distance))
                    for crop in self.crops
                    if crop.camera_id not in filters.not_cameras
                ),
                key=lambda crop: (crop.distance, crop.crop_id),
            )[:top]
            for place in features
        ]

    def vectors(self, crop_ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        return {crop.crop_id: np.array([crop.distance], np.float32) for crop in self.crops}

    def sightings(self, crop_ids: Sequence[int]) -> dict[int, Sighting]:
        return {}

    def tracks(self, crop_ids: Sequence[int]) -> dict[int, TrackOfCrop]:
        return {}


def probe(place: float, *sightings: Sighting) -> Probe:
    return Probe(f"p{place}", np.array([place], np.float32), sightings)


def ids(matches: Sequence[object]) -> list[int]:
    return [match.hit.crop_id for match in matches]  # type: ignore[attr-defined]


def test_the_probes_own_crop_camera_and_track_are_left_out() -> None:
    start = probe(0, Sighting("a", "t1", 0, crop_id=1))
    hits = [hit(1, 0, "b"), hit(2, 1, "a"), hit(3, 2, "a", "t1"), hit(4, 3, "b", "t1"), hit(5, 4, "b")]
    assert ids(select(start, hits, Rules())) == [4, 5]
    assert ids(select(start, hits, Rules(same_camera=True))) == [2, 4, 5]
    assert ids(select(start, hits, Rules(same_camera=True, same_track=True))) == [2, 3, 4, 5]


def test_a_track_is_grouped_on_its_own_camera_only() -> None:
    hits = [hit(1, 1, "a", "7"), hit(2, 2, "a", "7"), hit(3, 3, "b", "7"), hit(4, 4, "a"), hit(5, 5, "a")]
    matches = select(probe(0), hits, Rules())
    assert [(match.hit.crop_id, match.crops) for match in matches] == [(1, 2), (3, 1), (4, 1), (5, 1)]
    assert ids(select(probe(0), hits, Rules(group_by_track=False))) == [1, 2, 3, 4, 5]


def test_two_rows_of_a_crop_are_one_crop() -> None:
    hits = [hit(1, 0.1, "b", "t"), hit(1, 0.1, "b", "t"), hit(2, 0.2, "b", "t"), hit(3, 0.3, "b")]
    matches = select(probe(0.0), [*hits, hits[-1]], Rules())
    assert [(match.hit.crop_id, match.crops) for match in matches] == [(1, 2), (3, 1)]


def test_unknown_cameras_and_tracks_of_a_probe_exclude_nothing() -> None:
    assert ids(select(probe(0, Sighting("", "", -1)), [hit(1, 1, "")], Rules())) == [1]


def test_matches_are_within_the_maximum_distance() -> None:
    assert ids(select(probe(0), [hit(1, 1), hit(2, 2.5)], Rules(max_distance=2))) == [1]


def test_matches_with_impossible_travel_are_marked_or_dropped() -> None:
    cameras = CameraMap({"a": (0, 0), "b": (0, 1)}, max_speed_kmh=100)
    start = probe(0, Sighting("a", "", 0))
    hits = [hit(1, 1, "b", captured_at=60_000), hit(2, 2, "b", captured_at=2 * 3_600_000)]
    marked = select(start, hits, Rules(cameras=cameras))
    assert [match.travel.possible for match in marked if match.travel] == [False, True]
    assert ids(select(start, hits, Rules(cameras=cameras, drop_impossible=True))) == [2]


def test_a_probe_whose_camera_fills_the_result_is_searched_again_without_it() -> None:
    crops = [hit(number, number, "own") for number in range(500)]
    crops += [hit(1000 + number, 600 + number, "far") for number in range(50)]
    line = LineSource(crops)
    first, second = retrieve(
        line, [probe(0, Sighting("own", "x", 0)), probe(700, Sighting("other", "y", 0))], Rules(top=5)
    )
    assert ids(first) == [1000, 1001, 1002, 1003, 1004]
    assert ids(second) == [1049, 1048, 1047, 1046, 1045]
    assert [call[0] for call in line.calls] == [2, 1]
    assert line.calls[1][2] == ("own",)


def test_a_track_of_many_crops_does_not_hide_the_next() -> None:
    crops = [hit(number, number / 100, "b", "long") for number in range(400)]
    crops += [hit(1000 + number, 10 + number, "b", f"t{number}") for number in range(10)]
    (matches,) = retrieve(LineSource(crops), [probe(0)], Rules(top=5))
    assert ids(matches) == [0, 1000, 1001, 1002, 1003]
    assert [match.rank for match in matches] == [1, 2, 3, 4, 5]


def test_an_archive_with_too_few_crops_gives_all_of_them() -> None:
    line = LineSource([hit(1, 1, "b"), hit(2, 2, "a")])
    (matches,) = retrieve(line, [probe(0, Sighting("a", "", 0))], Rules(top=5))
    assert ids(matches) == [1]
    assert len(line.calls) == 1


def test_probes_searched_together_get_the_same_matches_as_alone() -> None:
    rng = np.random.default_rng(0)
    crops = [
        hit(number, float(rng.uniform(0, 100)), f"c{rng.integers(4)}", f"t{rng.integers(60)}")
        for number in range(600)
    ]
    probes = [probe(float(rng.uniform(0, 100)), Sighting(f"c{rng.integers(4)}", "t1", 0)) for _ in range(20)]
    together = retrieve(LineSource(crops), probes, Rules(top=12))
    for single, matches in zip(probes, together, strict=True):
        # The number of crops per track depends on the depth; the matches do not.
        assert ids(matches) == ids(retrieve(LineSource(crops), [single], Rules(top=12))[0])


def test_reranking_searches_deeper_than_it_returns() -> None:
    line = LineSource([hit(number, number, "b") for number in range(300)])
    (matches,) = retrieve(line, [probe(0)], Rules(top=3, rerank_depth=50))
    assert [match.rank for match in matches] == [1, 2, 3]
    assert line.calls[0][1] >= 50


def test_merged_probes_have_the_mean_feature_and_all_sightings() -> None:
    both = merge_probes("both", [probe(1, Sighting("a", "t", 0, 1)), probe(3, Sighting("b", "u", 5, 2))])
    assert both.features.tolist() == [2.0]
    assert both.cameras == ("a", "b")
    assert both.crop_ids == {1, 2}
    with pytest.raises(BadInput):
        merge_probes("none", [])


@pytest.mark.parametrize("wrong", [{"top": 0}, {"max_distance": 0.0}, {"drop_impossible": True}], ids=str)
def test_invalid_rules_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BadSetting):
        Rules(**wrong)  # type: ignore[arg-type]
