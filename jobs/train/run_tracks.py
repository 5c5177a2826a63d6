"""The tracks of embedded runs as training data: crops that nobody labelled, one vehicle a track.

A track here is one pass: crops of one camera and track_id without a long pause, because trackers use their
numbers again. Erased, superseded, vanished and quarantined crops take no part, as in a load.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from clvr_model.datasets.labelled import UNKNOWN_MODEL, LabeledImages
from clvr_model.journeys import Journeys, on_globe
from index.generations.load_plan import PlannedShard, plan_load
from index.schema import UNKNOWN_TIME
from index.search.travel_time import EARTH_KM, CameraMap
from index.transforms.statistics import is_sampled
from index.transforms.tracks import track_hashes
from infra.errors import BadLabels
from infra.logging import logger
from infra.settings import Settings
from jobs.runtime.resolve import find_runs

MAX_CROPS = 100_000
"""Crops to train on by default; of more, whole stretches of time are drawn."""

PAUSE_MS = 60_000
"""A longer pause ends a pass: the camera's tracker uses the number again."""

MAX_CROPS_PER_TRACK = 16
"""Of a longer track, so many are taken, evenly spread: a waiting vehicle gives hundreds of equal crops."""

MAX_ENDS = 512
"""Held-out tracks that measure the training."""

_SLOT_MS = 600_000
_BATCH_ROWS = 65_536
_COLUMNS = ("crop_id", "uri", "camera_id", "track_id", "captured_at")


@dataclass(frozen=True, slots=True, eq=False)
class TrackEnds:
    """The first and the last crop of m held-out tracks, and the camera of each (m,)."""

    first: LabeledImages
    last: LabeledImages
    cameras: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.cameras)

    @property
    def uris(self) -> list[str]:
        """The first crops of all tracks, then the last ones: (2 m,)."""
        return [*self.first.uris, *self.last.uris]


def read_tracks(run_ids: Sequence[str], settings: Settings, *, max_crops: int = MAX_CROPS) -> LabeledImages:
    """Return the crops of the tracks of finished runs of one model that have two crops or more, and a time.

    The number of the track is the vehicle's. Of more than about `max_crops` crops, stretches of ten minutes
    are drawn by a hash, with all their crops: tracks of the same time show which vehicles differ. Reads each
    shard once, without its features; memory for the drawn crops.
    Raises BadLabels if no track is left, and what `plan_load` raises.
    """
    plan = plan_load(find_runs(run_ids, settings), latest_wins=True, verify=False)
    share = min(1.0, max_crops / max(plan.rows, 1))
    uris: list[str] = []
    cameras: list[str] = []
    tracks: list[str] = []
    times: list[NDArray[np.int64]] = []
    for columns in _drawn(plan.shards, share):
        uris += columns[0]
        cameras += columns[1]
        tracks += columns[2]
        times.append(columns[3])
    captured_at = np.concatenate([np.empty(0, np.int64), *times])
    numbers = passes(cameras, tracks, captured_at)
    kept = np.flatnonzero(numbers >= 0)
    if not len(kept):
        raise BadLabels(
            f"the runs {', '.join(plan.run_ids)} have no track of two crops with a camera and a time",
            remedy="embed with a --key-pattern that has {camera_id}, {track_id} and {captured_at}",
        )
    vehicles = np.unique(numbers[kept], return_inverse=True)[1].astype(np.int64)
    found = LabeledImages(
        uris=[uris[row] for row in kept],
        model_ids=np.full(len(kept), UNKNOWN_MODEL, np.int64),
        vehicle_ids=vehicles,
        camera_ids=[cameras[row] for row in kept],
        track_ids=[tracks[row] for row in kept],
        captured_at=captured_at[kept],
    )
    sampled = "" if share == 1 else f", drawn from {plan.rows:,}"
    logger.info(
        f"{len(found):,} crops of {int(vehicles.max()) + 1:,} tracks of two or more{sampled}, without a label"
    )
    return found


def _drawn(
    shards: Sequence[PlannedShard], share: float
) -> Iterator[tuple[list[str], list[str], list[str], NDArray[np.int64]]]:
    """Yield URIs, cameras, tracks and times of the drawn crops of known tracks and times."""
    for shard in shards:
        for batch in shard.batches(_BATCH_ROWS, _COLUMNS):
            times = np.asarray(batch.column("captured_at").to_numpy(), np.int64)
            tracks = batch.column("track_id").to_pylist()
            is_known = (times != UNKNOWN_TIME) & np.array([bool(track) for track in tracks], bool)
            rows = np.flatnonzero(is_known & is_sampled(times // _SLOT_MS, share))
            uris, cameras = batch.column("uri").to_pylist(), batch.column("camera_id").to_pylist()
            yield (
                [uris[row] for row in rows],
                [cameras[row] for row in rows],
                [tracks[row] for row in rows],
                times[rows],
            )


def passes(
    cameras: Sequence[str], tracks: Sequence[str], captured_at: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the number of the pass of each crop (n,), -1 for crops that are left out.

    A pass is of one camera and track, without a pause of more than PAUSE_MS. Left out are passes of one crop,
    and crops of long passes beyond MAX_CROPS_PER_TRACK, evenly spread; its first and its last crop stay.
    """
    numbers = np.full(len(captured_at), -1, np.int64)
    if not len(numbers):
        return numbers
    keys = track_hashes(cameras, tracks)
    order = np.lexsort((captured_at, keys))
    starts = np.ones(len(order), bool)
    starts[1:] = (keys[order][1:] != keys[order][:-1]) | (np.diff(captured_at[order]) > PAUSE_MS)
    bounds = np.append(np.flatnonzero(starts), len(order))
    for number, (start, end) in enumerate(pairwise(bounds)):
        if end - start > 1:
            count = min(end - start, MAX_CROPS_PER_TRACK)
            numbers[order[np.linspace(start, end - 1, count).round().astype(int)]] = number
    return numbers


def merged(labelled: LabeledImages, tracks: LabeledImages) -> LabeledImages:
    """Return labelled images and crops of tracks as one: an image in both has its label and its track.

    Labelled images beyond the tracks keep their own tracks or vehicles, if they are known; each other one
    stands for itself. Boxes are those of labelled images.
    """
    row_of = {uri: row for row, uri in enumerate(labelled.uris)}
    rows = np.array([row_of.get(uri, -1) for uri in tracks.uris], np.int64)
    is_new = np.flatnonzero(rows < 0)
    count = len(labelled)
    vehicles = np.arange(count) if labelled.vehicle_ids is None else labelled.vehicle_ids.copy()
    assert tracks.vehicle_ids is not None and tracks.captured_at is not None  # noqa: S101 (of read_tracks)
    track_numbers = tracks.vehicle_ids + int(vehicles.max(initial=-1)) + 1
    cameras = list(labelled.camera_ids or [""] * count)
    times = np.full(count, UNKNOWN_TIME, np.int64)
    known = np.flatnonzero(rows >= 0)
    vehicles[rows[known]] = track_numbers[known]
    times[rows[known]] = tracks.captured_at[known]
    for row in known.tolist():
        cameras[rows[row]] = (tracks.camera_ids or [])[row]
    new = tracks.take(is_new)
    boxes = None
    if labelled.boxes is not None:
        boxes = np.concatenate([labelled.boxes, np.full((len(new), 4), -1, np.int32)])
    return LabeledImages(
        uris=[*labelled.uris, *new.uris],
        model_ids=np.concatenate([labelled.model_ids, new.model_ids]),
        vehicle_ids=np.concatenate([vehicles, track_numbers[is_new]]),
        camera_ids=[*cameras, *(new.camera_ids or [])],
        model_names=labelled.model_names,
        boxes=boxes,
        captured_at=np.concatenate([times, new.captured_at if new.captured_at is not None else times[:0]]),
        colors=labelled.colors and [*labelled.colors, *[""] * len(new)],
        body_types=labelled.body_types and [*labelled.body_types, *[""] * len(new)],
    )


def journeys_of(images: LabeledImages, cameras: CameraMap | None) -> Journeys:
    """Return where and when the tracks of images were seen, by the number that is their vehicle's."""
    assert images.vehicle_ids is not None  # noqa: S101 (tracks are numbered)
    tracks, count = images.vehicle_ids, int(images.vehicle_ids.max(initial=-1)) + 1
    times = np.full(len(images), UNKNOWN_TIME) if images.captured_at is None else images.captured_at
    first, last = np.full(count, np.iinfo(np.int64).max), np.full(count, UNKNOWN_TIME, np.int64)
    np.minimum.at(first, tracks, times)
    np.maximum.at(last, tracks, times)
    names, numbers = np.unique(images.camera_ids or [""] * len(images), return_inverse=True)
    camera, models = np.zeros(count, np.int64), np.full(count, UNKNOWN_MODEL, np.int64)
    camera[tracks] = numbers
    np.maximum.at(models, tracks, images.model_ids)
    known = cameras.positions if cameras else {}
    places = np.array([known.get(str(name), (np.nan, np.nan)) for name in names], np.float64).reshape(-1, 2)
    unknown = np.flatnonzero(names == "")
    first[np.isin(camera, unknown)] = UNKNOWN_TIME  # two unknown cameras are not one
    limits = {"max_kmh": cameras.max_speed_kmh, "clock_ms": 1000 * cameras.clock_seconds} if cameras else {}
    return Journeys(
        cameras=camera,
        first_ms=first,
        last_ms=last,
        models=models,
        positions=on_globe(places[:, 0], places[:, 1], EARTH_KM),
        **limits,
    )


def track_ends(held_out: LabeledImages, limit: int = MAX_ENDS) -> TrackEnds:
    """Return the ends of held-out tracks that have a time, at most `limit`, spread over their numbers."""
    assert held_out.vehicle_ids is not None  # noqa: S101 (tracks are numbered)
    times = held_out.captured_at if held_out.captured_at is not None else np.full(len(held_out), UNKNOWN_TIME)
    order = np.lexsort((times, held_out.vehicle_ids))
    order = order[times[order] != UNKNOWN_TIME]
    _, starts, counts = np.unique(held_out.vehicle_ids[order], return_index=True, return_counts=True)
    pairs = np.flatnonzero(counts > 1)
    pairs = pairs[np.unique(np.linspace(0, len(pairs) - 1, min(limit, len(pairs))).round().astype(int))]
    first, last = order[starts[pairs]], order[starts[pairs] + counts[pairs] - 1]
    part = held_out.take(first)
    return TrackEnds(part, held_out.take(last), np.asarray(part.camera_ids or [""] * len(part), np.str_))
