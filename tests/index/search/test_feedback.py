"""Confirmed and rejected crops: the rule of the ranks, journeys and companions."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from index.archive.reassigned import ReassignedIds
from index.filters import Filters
from index.generations.units import TrackOfCrop
from index.milvus.search import Hit
from index.search.companions import find_companions
from index.search.feedback import GAMMA, Feedback, retrieve_with
from index.search.journey import Stop, journey_of
from index.search.probe import Probe, Sighting
from index.search.retrieval import Rules
from index.search.travel_time import CameraMap
from infra.errors import BadInput, BadSetting


class VectorSource:
    """Crops with vectors, searched exactly."""

    name, fingerprint, transform = "vectors", "f", None

    def __init__(self, vectors: NDArray[np.float32], crops: Sequence[Hit] | None = None) -> None:
        self.rows = dict(enumerate(vectors))
        self.hits = crops or [hit(number) for number in self.rows]

    def nearest(self, features: NDArray[np.float32], top: int, filters: Filters) -> list[list[Hit]]:
        return [
            sorted(
                (
                    Hit(**{**_fields(crop), "distance": float(np.linalg.norm(self.rows[crop.crop_id] - row))})
                    for crop in self.hits
                ),
                key=lambda crop: crop.distance,
            )[:top]
            for row in features
        ]

    def select(self, filters: Filters, limit: int) -> list[Hit]:
        return [
            crop
            for crop in self.hits
            if crop.camera_id in filters.cameras
            and (filters.captured_from or 0) <= crop.captured_at < (filters.captured_to or 0)
        ][:limit]

    def vectors(self, crop_ids: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        return {crop_id: self.rows[crop_id] for crop_id in crop_ids}

    def sightings(self, crop_ids: Sequence[int]) -> dict[int, Sighting]:
        return {}

    def tracks(self, crop_ids: Sequence[int]) -> dict[int, TrackOfCrop]:
        return {}

    def track_crops(self, camera_id: str, track_id: str) -> list[int]:
        return []

    def reassigned(self) -> ReassignedIds:
        return ReassignedIds()

    def erased_ids(self, crop_ids: Sequence[int], *, now: bool = False) -> set[int]:
        return set()


def _fields(crop: Hit) -> dict[str, object]:
    return {name: getattr(crop, name) for name in Hit.__slots__}


def hit(crop_id: int, camera: str = "a", track: str = "", captured_at: int = 0) -> Hit:
    return Hit(0, crop_id, 0.0, f"s3://x/{crop_id}", camera, track, captured_at, 0, 1.0)


def archived(source: VectorSource, *crop_ids: int) -> list[Probe]:
    return [
        Probe(str(crop_id), source.rows[crop_id], (Sighting("a", "", 5, crop_id),)) for crop_id in crop_ids
    ]


def test_the_ranks_are_near_the_confirmed_and_far_from_the_rejected() -> None:
    rng = np.random.default_rng(3)
    source = VectorSource(rng.normal(size=(60, 16)).astype(np.float32))
    confirmed, rejected = (0, 1, 2), (3, 4)
    feedback = Feedback.of("case", archived(source, *confirmed), archived(source, *rejected))
    matches = retrieve_with(source, feedback, Rules(top=55))

    mean = np.mean([source.rows[crop] for crop in confirmed], axis=0)
    others = np.mean([source.rows[crop] for crop in rejected], axis=0)

    def score(crop_id: int) -> float:
        row = source.rows[crop_id]
        return float((1 + GAMMA) * ((row - mean) ** 2).sum() - GAMMA * ((row - others) ** 2).sum())

    found = [match.hit.crop_id for match in matches]
    assert found == sorted(set(range(60)) - {*confirmed, *rejected}, key=score)
    assert [match.rank for match in matches] == list(range(1, 56))
    for match in matches:
        expected = np.linalg.norm(source.rows[match.hit.crop_id] - mean)
        assert match.hit.distance == pytest.approx(expected, rel=1e-5)


def test_a_rejected_look_alike_moves_its_own_kind_back() -> None:
    # Two kinds of vehicles at equal distances from the confirmed one, on either side.
    source = VectorSource(np.array([[0, 0], [1, 0.1], [-1, -0.1], [1, 0]], np.float32))
    without = retrieve_with(source, Feedback.of("case", archived(source, 0)), Rules(top=3))
    assert without[0].hit.crop_id == 3
    away = Feedback.of("case", archived(source, 0), archived(source, 3))
    assert [match.hit.crop_id for match in retrieve_with(source, away, Rules(top=3))] == [2, 1]


def test_rejected_crops_alone_are_no_probe_and_a_largest_distance_is_that_of_the_mean() -> None:
    source = VectorSource(np.array([[0, 0], [3, 0], [4, 0], [9, 0]], np.float32))
    with pytest.raises(BadInput):
        Feedback.of("case", [], archived(source, 1))
    feedback = Feedback.of("case", archived(source, 0), archived(source, 3))
    near = retrieve_with(source, feedback, Rules(top=3, max_distance=3.5))
    assert [(match.hit.crop_id, match.hit.distance) for match in near] == [(1, 3.0)]


def test_features_of_unit_length_are_confirmed_as_a_mean_of_unit_length() -> None:
    rows = np.eye(4, dtype=np.float32)
    source = VectorSource(rows)
    feedback = Feedback.of("case", archived(source, 0, 1), archived(source, 2))
    assert np.linalg.norm(feedback.anchor) == pytest.approx(1)


CITY = CameraMap({"a": (52.0, 13.0), "b": (52.1, 13.0), "c": (53.0, 13.0)})
MINUTE = 60_000


def test_a_journey_is_in_order_and_names_impossible_legs() -> None:
    journey = journey_of(
        [
            Sighting("c", "t3", 20 * MINUTE, 4),
            Sighting("a", "t1", 0, 1),
            Sighting("a", "t1", 2_000, 2),
            Sighting("b", "t2", 10 * MINUTE, 3),
            Sighting("nowhere", "", 40 * MINUTE, 5),
            Sighting("b", "", -1, 6),
        ],
        CITY,
    )
    assert [(stop.camera_id, stop.crop_ids) for stop in journey.stops] == [
        ("a", (1, 2)),
        ("b", (3,)),
        ("c", (4,)),
        ("nowhere", (5,)),
    ]
    first, second, third = journey.legs
    assert first.km == pytest.approx(11.12, abs=0.01)
    assert first.seconds == 598
    assert first.kmh == pytest.approx(11.12 / 598 * 3600, rel=0.01)
    assert (first.possible, second.possible, third.possible) == (True, False, None)
    assert (journey.impossible, journey.untimed) == (1, (6,))


def test_two_places_at_the_same_time_are_impossible_and_have_no_speed() -> None:
    (leg,) = journey_of([Sighting("a", "", 5, 1), Sighting("c", "", 5, 2)], CITY).legs
    assert (leg.possible, leg.kmh, leg.seconds) == (False, None, 0)
    (leg,) = journey_of([Sighting("a", "", 5, 1), Sighting("a", "", 5, 2)], CITY).legs
    assert (leg.possible, leg.kmh) == (True, 0)


def stop(camera: str, minute: int, crop_id: int) -> Stop:
    return Stop(camera, f"own{minute}", minute * MINUTE, minute * MINUTE, (crop_id,))


def test_companions_were_near_several_stops() -> None:
    vectors = np.zeros((9, 4), np.float32)
    vectors[[1, 4, 7], 0] = [10, 10.1, 10.2]  # the companion, one crop a stop
    vectors[[2, 5], 1] = [10, 10.3]  # another one, at two stops
    vectors[8, 2] = 30  # seen once
    crops = [
        hit(0, "a", "own0", 0),
        hit(1, "a", "x1", 20_000),
        hit(2, "a", "y1", 10_000),
        hit(3, "b", "own10", 10 * MINUTE),
        hit(4, "b", "x2", 10 * MINUTE + 20_000),
        hit(5, "b", "y2", 10 * MINUTE - 10_000),
        hit(6, "c", "own20", 20 * MINUTE),
        hit(7, "c", "x3", 20 * MINUTE),
        hit(8, "c", "z", 20 * MINUTE),
    ]
    source = VectorSource(vectors, crops)
    stops = [stop("a", 0, 0), stop("b", 10, 3), stop("c", 20, 6)]
    found = find_companions(source, stops, window_seconds=60, max_distance=1, exclude={0, 3, 6})
    assert [(one.stops, [crop.crop_id for crop in one.crops]) for one in found] == [
        ((0, 1, 2), [1, 4, 7]),
        ((0, 1), [2, 5]),
    ]
    assert found[0].seconds == pytest.approx(40 / 3)
    assert not find_companions(source, stops, window_seconds=5, max_distance=1, exclude={0, 3, 6})
    with pytest.raises(BadSetting):
        find_companions(source, stops, window_seconds=0, max_distance=1)


def test_one_pass_is_no_companion_at_two_stops_of_one_camera() -> None:
    crops = [hit(0, "a", "own", 0), hit(1, "a", "x", 30_000)]
    source = VectorSource(np.zeros((2, 4), np.float32), crops)
    stops = [stop("a", 0, 0), stop("a", 1, 0)]
    assert not find_companions(source, stops, window_seconds=60, max_distance=1, exclude={0})
