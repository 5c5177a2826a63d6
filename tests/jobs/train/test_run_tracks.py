"""Tracks of embedded runs as training data, and `clvr train --tracks`."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clvr_model.checkpoint import Card, load_checkpoint, save_checkpoint
from clvr_model.datasets.labelled import LabeledImages
from clvr_model.network import Architecture, Clvr
from clvr_model.synthetic.trips import ArchiveSpec, synthetic_crops
from index.archive.manifest import crop_id_of
from index.outputs import list_outputs
from index.runs.run import Run
from index.runs.tombstones import anonymous_ids
from index.search.travel_time import CameraMap
from index.transforms.track_figures import camera_ranks, figures_of
from infra.errors import BadLabels
from infra.settings import load_settings
from infra.store import Store, open_store
from jobs.runtime.format import labels_used
from jobs.train import run_tracks
from jobs.train.run_tracks import journeys_of, merged, passes, read_tracks, track_ends

Make = Callable[..., Run]


def test_a_pass_ends_with_its_camera_its_track_and_a_long_pause() -> None:
    cameras = ["a", "a", "a", "b", "b", "a", "a", "a"]
    tracks = ["1", "1", "2", "1", "1", "1", "1", "1"]
    times = np.array([0, 1000, 1000, 0, 900, 61_001, 62_000, 300_000])
    numbers = passes(cameras, tracks, times)
    assert numbers[0] == numbers[1] and numbers[3] == numbers[4] and numbers[5] == numbers[6]
    assert len({numbers[0], numbers[3], numbers[5]}) == 3
    assert [numbers[2], numbers[7]] == [-1, -1]  # one crop each
    # Of a long pass, the first and the last crop and some between.
    long = passes(["a"] * 100, ["1"] * 100, 100 * np.arange(100)[::-1])
    assert (long >= 0).sum() == run_tracks.MAX_CROPS_PER_TRACK
    assert long[0] == long[99] >= 0
    assert not len(passes([], [], np.empty(0, np.int64)))


@pytest.fixture
def make(store: Store, make_finished_run: Make) -> Make:
    def run(run_id: str, first: int = 0, rows: int = 60, **options: object) -> Run:
        numbers = range(first, first + rows)
        columns = {
            "camera_id": [f"c{number // 3 % 4}" for number in numbers],
            "track_id": [f"t{number // 3}" for number in numbers],
            "captured_at": [1_000 * number for number in numbers],
        }
        return make_finished_run(store, run_id, numbers, **(columns | options))

    return run


def test_crops_that_no_load_would_take_are_not_trained_on(
    store: Store, make: Make, hide: Callable[..., str]
) -> None:
    first = make("r1", rows_per_shard=25)
    make("r2", first=54, rows=12)  # has the last six crops again
    settings = load_settings({"runs": store.uri})
    erased = first.manifest()["crop_id"].to_pylist()
    hide(store, [erased[0], erased[3], erased[4]])
    found = read_tracks(["r1", "r2"], settings)
    numbers = sorted(int(uri.rpartition("/")[2][:6]) for uri in found.uris)
    # Track 0 has two crops left, of track 1 one is left, which is no track; each other crop is there once.
    assert numbers == [1, 2, *range(6, 66)]
    assert set(np.bincount(found.vehicle_ids)) == {2, 3}
    assert set(found.model_ids) == {-1}
    for uri, track, time in zip(found.uris, found.track_ids, found.captured_at, strict=True):
        number = int(uri.rpartition("/")[2][:6])
        assert (track, time) == (f"t{number // 3}", 1_000 * number)


def test_of_many_crops_whole_stretches_of_time_are_drawn(store: Store, make: Make) -> None:
    rows = 600
    times = [30_000 * number for number in range(rows)]  # 20 crops in ten minutes
    make("r1", rows=rows, captured_at=times, rows_per_shard=90)
    found = read_tracks(["r1"], load_settings({"runs": store.uri}), max_crops=200)
    slots, counts = np.unique(found.captured_at // 600_000, return_counts=True)
    assert 2 <= len(slots) <= 20
    # A slot has all its crops, less those of a track that another slot cuts down to one crop.
    assert set(counts) <= {18, 19, 20}


def test_runs_without_tracks_are_refused(store: Store, make: Make) -> None:
    make("r1", track_id=[""] * 60)
    with pytest.raises(BadLabels, match="no track of two crops"):
        read_tracks(["r1"], load_settings({"runs": store.uri}))


def test_a_labelled_image_in_a_run_has_its_label_and_its_track(store: Store, make: Make) -> None:
    make("r1")
    tracks = read_tracks(["r1"], load_settings({"runs": store.uri}))
    labelled = LabeledImages(
        ["s3://other/1.jpg", "s3://archive/000004.jpg", "s3://other/2.jpg"], np.array([7, 8, 9])
    )
    both = merged(labelled, tracks)
    assert len(both) == 62 and len(set(both.uris)) == 62
    assert both.model_ids.tolist() == [7, 8, 9, *[-1] * 59]
    row_of = {uri: row for row, uri in enumerate(both.uris)}
    of = {number: both.vehicle_ids[row_of[f"s3://archive/{number:06d}.jpg"]] for number in range(60)}
    assert of[3] == of[4] == of[5] != of[6]
    assert len(set(both.vehicle_ids)) == 22  # 20 tracks, and the two images that are in none
    assert both.captured_at[1] == 4_000 and both.captured_at[0] == -1
    facts = journeys_of(both, CameraMap({"c0": (50.0, 8.0), "c1": (51.0, 8.0)}))
    assert facts.models[of[3]] == 8
    # Tracks 0 and 1 are 111 km and a second apart; of track 2, the camera's position is unknown.
    assert facts.are_different(np.array([of[0], of[3], of[6]])).tolist() == [
        [False, True, False],
        [True, False, False],
        [False, False, False],
    ]


def test_the_ends_of_held_out_tracks_are_their_first_and_last_crops(store: Store, make: Make) -> None:
    make("r1")
    ends = track_ends(read_tracks(["r1"], load_settings({"runs": store.uri})), limit=5)
    first, last = (np.array([int(uri[-10:-4]) for uri in part.uris]) for part in (ends.first, ends.last))
    assert len(ends) == 5
    assert (first % 3 == 0).all() and (last == first + 2).all()
    assert ends.cameras.tolist() == [f"c{number // 3 % 4}" for number in first]
    assert ends.uris == [*ends.first.uris, *ends.last.uris]


def test_figures_of_tracks_equal_a_plain_count() -> None:
    rng = np.random.default_rng(3)
    cameras = np.array(["a"] * 7 + ["b"] * 5 + ["c"])
    features = rng.normal(size=(26, 4)).astype(np.float32)
    expected = []
    for track in range(12):  # that of camera c has no rival
        distances = {
            other: float(((features[track].astype(float) - features[13 + other]) ** 2).sum())
            for other in range(13)
            if cameras[other] == cameras[track]
        }
        expected.append(sum(distance <= distances[track] for distance in distances.values()))
    assert camera_ranks(features, cameras) == expected
    figures = figures_of(expected, [1] * 12)
    assert figures is not None and figures.tracks == 12 and figures.rank1 == 1
    assert figures.rank1_before == np.mean([rank == 1 for rank in expected])
    assert figures.low <= figures.mrr - figures.mrr_before <= figures.high
    assert figures_of([], []) is None


def test_train_learns_from_the_tracks_of_a_run_alone(
    clvr, archive: Path, make_finished_run: Make, tmp_path: Path
) -> None:
    spec = ArchiveSpec(seed=5, models=3, vehicles_per_model=4, sightings_per_vehicle=4, cameras=4)
    crops = list(synthetic_crops(spec))
    runs = open_store(str(tmp_path / "runs"))
    runs.create_bucket()
    uris = [open_store(str(archive / "archive")).uri_of(crop.key) for crop in crops]
    make_finished_run(
        runs,
        "r1",
        range(len(crops)),
        uri=uris,
        camera_id=[crop.camera_id for crop in crops],
        track_id=[crop.track_id for crop in crops],
        captured_at=[crop.captured_at for crop in crops],
    )
    start = Clvr.of(Architecture(0, backbone="efficientnet_lite0", feature_relu=False, l2_normalized=True))
    save_checkpoint(str(tmp_path / "start"), start, Card(label_ids=(), labels_used="none"))
    # Ten thousand kilometers apart: nearly all tracks of two cameras in a week are proven to differ.
    places = "".join(f"{number:03d},{30 * number - 75},{90 * number - 225}\n" for number in range(1, 5))
    (tmp_path / "cameras.csv").write_text(f"camera_id,lat,lon\n{places}")
    command = ["train", "--tracks", "r1", "--from", "start", "--output", "model", "--json"]
    command += ["--camera-positions", "cameras.csv", "--runs", str(tmp_path / "runs")]
    short = ["batch=8", "train_share=0.5", "stage1.images_per_vehicle=2", "stage1.trainable=head"]
    command += [part for text in (*short, "stage1.horizontal_flip=false") for part in ("--set", text)]
    done = clvr(*command, timeout=900)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["labels_used"], result["classes"], result["accuracy"]) == ("none", 0, None)
    tracks = result["tracks"]
    assert tracks["tracks"] >= 2 and 0 <= tracks["rank1_before"] <= 1 and tracks["low"] <= tracks["high"]
    checkpoint = load_checkpoint(str(tmp_path / "model"))
    assert checkpoint.label_ids == ()
    card = checkpoint.card
    history = card.metrics["history"]
    assert len(history) == 5 and history[0]["loss"] > 0
    assert all("held_track_rank1" in epoch and "start_track_ranks" not in epoch for epoch in history)
    trained = checkpoint.network.state_dict()
    moved = [name for name, tensor in start.state_dict().items() if not tensor.equal(trained[name])]
    assert moved == ["head.dense.weight", "head.dense.bias"]
    page = open_store(str(tmp_path / "model")).get("report.html").decode()
    assert labels_used(card) == "none: trained on tracks"
    assert "Tracks found" in page and "Accuracy by vehicle model" not in page

    # A purge finds the training by the crops of the run that it shows.
    (output,) = list_outputs(runs)
    assert output.kind == "training"
    used = read_tracks(["r1"], load_settings({"runs": str(tmp_path / "runs")}))
    ids = np.array([crop_id_of(uri) for uri in used.uris])
    assert set(output.crops) == set(anonymous_ids(runs, ids).tolist())

    again = clvr(*command, timeout=900)
    assert json.loads(again.stdout) == result


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tracks", "r1"], "has no labels to learn from anew"),
        ([], "no labelled images are given"),
        (["--tracks", "r1", "--recipe", "lite"], "learns from no tracks"),
        (["--tracks", "r1", "--from", "start", "--weights", "random"], "both name the first weights"),
        (["--tracks", "r1", "--from", "start", "--hold-out", "models"], "nobody knows the models"),
    ],
)
def test_requests_that_contradict_themselves_are_refused(arguments: list[str], message: str) -> None:
    from infra.errors import BadSetting
    from jobs.train.train import TrainRequest, requested_recipe

    options = dict(zip(arguments[::2], arguments[1::2], strict=True))
    request = TrainRequest(
        data=None,
        output="model",
        recipe=options.get("--recipe"),
        tracks=tuple(filter(None, [options.get("--tracks")])),
        start=options.get("--from"),
        weights=options.get("--weights"),
        hold_out=options.get("--hold-out", "images"),
    )
    with pytest.raises(BadSetting, match=message):
        requested_recipe(request)
