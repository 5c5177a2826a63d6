"""`auto` decides on tracks that the fit did not see, and only beyond chance."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.transforms.choice import MIN_TRACKS, candidates, choose
from index.transforms.fitting import TransformSettings
from index.transforms.statistics import Sampling, Statistics, collect, is_sampled
from index.transforms.tracks import TrackEnds

DIMENSION = 96


def batch_of(features: NDArray[np.float32], cameras: list[str], tracks: list[str]) -> pa.RecordBatch:
    rows = len(features)
    columns = {
        "crop_id": np.arange(rows),
        "embedding": pa.array(list(features), pa.list_(pa.float32())),
        "camera_id": cameras,
        "captured_at": [1000 * row for row in range(rows)],
        "track_id": tracks,
    }
    return pa.record_batch(columns)


def archive(signal: float, tracks: int = 300, crops: int = 3) -> pa.RecordBatch:
    """Tracks whose vehicles differ in many directions of small variance, below noise in a few large ones."""
    rng = np.random.default_rng(1)
    vehicles = np.zeros((tracks, DIMENSION))
    vehicles[:, 8:72] = signal * rng.normal(size=(tracks, 64))
    features = np.repeat(vehicles, crops, axis=0)
    features[:, :8] += 4 * rng.normal(size=(len(features), 8))
    features[:, 8:] += 0.1 * rng.normal(size=(len(features), DIMENSION - 8))
    names = [f"t{row // crops}" for row in range(len(features))]
    cameras = [f"c{row // crops % 4}" for row in range(len(features))]
    return batch_of((features + 1).astype(np.float32), cameras, names)


def decide(batch: pa.RecordBatch) -> tuple[Statistics, str, str]:
    found = collect([batch], Sampling(groups=True, hold_out=True), DIMENSION)
    tried = candidates(TransformSettings("whiten-camera"), has_cameras=True)
    choice = choose(found.fitted, found.tracks, tried)
    return found, choice.kind, choice.reason


def test_whitening_is_chosen_where_it_finds_the_tracks() -> None:
    found, kind, reason = decide(archive(0.3))
    assert kind == "whiten"
    assert "95 % interval" in reason
    assert found.fitted.count + found.held_out.count == 900
    assert 300 < found.held_out.count < 600


def test_plain_features_stay_where_no_track_can_be_found_better() -> None:
    assert decide(archive(0.0))[1:] == ("none", "no transform finds the tracks better beyond chance")


def test_plain_features_stay_without_tracks() -> None:
    batch = archive(0.3)
    at = batch.schema.get_field_index("track_id")
    found, kind, reason = decide(batch.set_column(at, "track_id", pa.array([""] * batch.num_rows)))
    assert kind == "none"
    assert f"at least {MIN_TRACKS}" in reason
    assert found.held_out.count == 0


def test_the_ends_of_tracks_do_not_depend_on_the_division_into_batches() -> None:
    batch = archive(0.3, tracks=60)
    sampling = Sampling(hold_out=True)
    whole = collect([batch], sampling, DIMENSION).tracks
    parts = collect([batch.slice(first, 7) for first in range(0, 180, 7)][::-1], sampling, DIMENSION).tracks
    for one, other in zip(whole.pairs(), parts.pairs(), strict=True):
        np.testing.assert_array_equal(one.crop_id, other.crop_id)
        np.testing.assert_array_equal(one.features, other.features)
    first, last = whole.pairs()
    assert (last.crop_id - first.crop_id == 2).all()


def test_a_sample_of_tracks_is_the_same_in_parts() -> None:
    def ends(tracks: list[int]) -> TrackEnds:
        rows = len(tracks)
        return TrackEnds(
            np.asarray(tracks, np.uint64),
            np.zeros(rows, np.int64),
            np.arange(rows) + 100 * tracks[0],
            np.full(rows, "c"),
            np.zeros((rows, 2), np.float32),
        )

    left, right = ends([5, 5, 3, 9, 9]), ends([1, 3, 7, 7])
    merged = left.merge(right, limit=2)
    assert merged.pairs()[0].track.tolist() == [3, 5]
    assert right.merge(left, limit=2).pairs()[0].track.tolist() == [3, 5]


def test_a_sample_is_drawn_by_the_crop_and_has_its_share() -> None:
    ids = np.arange(100_000)
    chosen = is_sampled(ids, 0.25)
    assert abs(chosen.mean() - 0.25) < 0.01
    np.testing.assert_array_equal(is_sampled(ids[::-1], 0.25)[::-1], chosen)
    assert not (is_sampled(ids, 0.1) & ~chosen).any()
    assert is_sampled(ids, 1.0).all()
    assert Sampling.of(1000, 200).share == 0.2
