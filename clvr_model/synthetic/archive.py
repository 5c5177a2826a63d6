"""A synthetic archive: drawn vehicles under the keys of a real archive, with labels in VehicleID's layout.

The spec and an image's number determine the image, so any worker can draw any range of images, and draw it
again. The hierarchy is VehicleID's: many vehicles share a model and a color, and differ in small marks only.
"""

import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

import numpy as np
import simplejpeg

from clvr_model.synthetic.camera import Camera, light_at, make_camera
from clvr_model.synthetic.parts import COLORS, VehicleModel, make_model
from clvr_model.synthetic.render import ImageArray, Neighbour, draw
from clvr_model.synthetic.trips import (
    ArchiveSpec,
    SyntheticCrop,
    camera_positions,
    synthetic_crop,
    synthetic_crops,
)
from clvr_model.synthetic.vehicle import Vehicle, make_vehicle
from infra.store import Store

Layout = Literal["archive", "vehicleid"]

TEST_LISTS: Final = ("small", "medium", "large")
MIN_LIST_VEHICLES: Final = 2  # one vehicle has nothing to be confused with

_PUTS_IN_FLIGHT: Final = 32
_LABEL_ROWS: Final = 65_536


@dataclass(frozen=True, slots=True)
class ArchiveSummary:
    """Counts of the objects that `generate` wrote."""

    images: int
    spoiled: int
    bytes: int
    seconds: float


def render_crop(spec: ArchiveSpec, crop: SyntheticCrop) -> ImageArray:
    """Draw one crop: RGB uint8 (height, width, 3)."""
    rng = _rng(spec, 1, crop.index)
    camera = _camera(spec, crop.camera)
    moment = crop.moment
    overcast = float(_rng(spec, 5, moment.toordinal()).beta(0.7, 0.7))
    light = light_at(moment.hour + moment.minute / 60, overcast, camera)
    neighbour = None
    if rng.random() < 0.22:
        other = _vehicle(spec, int(rng.integers(min(spec.vehicles, 64))))
        lane = float(rng.choice([-1, 1]) * rng.uniform(3.0, 4.0))
        neighbour = Neighbour(other, np.array([rng.uniform(-9, 7), lane, 0.0]))
    vehicle = _vehicle(spec, crop.vehicle_id - 1)
    return draw(vehicle, camera, light, rng, sides=(spec.min_side, spec.max_side), neighbour=neighbour)


def encode_crop(spec: ArchiveSpec, crop: SyntheticCrop) -> bytes:
    """Return the object of one crop: a JPEG, or a damaged one at the rate of `spec.spoiled_share`."""
    quality = _camera(spec, crop.camera).quality
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(render_crop(spec, crop)), quality, "RGB", "420")
    damage = _spoiled(spec, crop)
    if damage is None:
        return bytes(data)
    return (b"", bytes(data[: len(data) // 2]), b"<html><body>503 Service Unavailable</body></html>")[damage]


def generate(
    store: Store,
    spec: ArchiveSpec,
    *,
    layout: Layout = "archive",
    progress: Callable[[int], None] | None = None,
    start: int = 0,
    stop: int | None = None,
) -> ArchiveSummary:
    """Write images `start` to `stop` (default all) without labels, which `write_labels` writes.

    Repeating a range writes the same bytes under the same keys. `progress` is called with the number of
    images written since its last call. Raises BadSetting for a range outside the archive, and the
    errors of Store.put.
    """
    started, written, spoiled, size = time.monotonic(), 0, 0, 0
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(4) as pool:
        for crop in synthetic_crops(spec, start, stop):
            data = encode_crop(spec, crop)
            waiting.append(pool.submit(store.put, key_of(crop, layout), data))
            written, size, spoiled = (
                written + 1,
                size + len(data),
                spoiled + (_spoiled(spec, crop) is not None),
            )
            if len(waiting) >= _PUTS_IN_FLIGHT:
                waiting.popleft().result()
                if progress:
                    progress(1)
        while waiting:
            waiting.popleft().result()
            if progress:
                progress(1)
    return ArchiveSummary(written, spoiled, size, time.monotonic() - started)


def key_of(crop: SyntheticCrop, layout: Layout = "archive") -> str:
    """Return a crop's key: by day and camera, or VehicleID's image/0000001.jpg."""
    return crop.key if layout == "archive" else f"image/{crop.image}.jpg"


def write_labels(
    store: Store, spec: ArchiveSpec, *, prefix: str = "", layout: Layout = "archive"
) -> list[str]:
    """Write the labels of every image, and return the keys written under `prefix`.

    labels.parquet has one row per image: key, image, vehicle_id, model_id, model_name, colour_id, color,
    body_type, camera_id, track_id, captured_at, split ('train' or 'test') and test_list: the smallest of the
    lists small, medium and large that has the image, '' for training vehicles. The lists hold a third, two
    thirds and all of the other vehicles; with fewer than MIN_LIST_VEHICLES in the small one, all are in the
    large one. The other files are VehicleID's: img2vid, model_attr, color_attr, model_names and color_names
    below attribute/, and train_list and test_list_<n> below train_test_split/, where, as in VehicleID, only
    training vehicles have a model. cameras.csv has the position of each camera.
    """
    training, testing = _by_split(spec)
    sizes = sorted({*_list_sizes(testing)} - {0})
    crops = spec.sightings_per_vehicle

    def listed(vehicles: list[int]) -> Iterator[str]:
        return (f"{v * crops + i + 1:07d} {v + 1}" for v in vehicles for i in range(crops))

    cameras = camera_positions(spec)
    positions = ["camera_id,lat,lon", *(f"{name},{lat},{lon}" for name, (lat, lon) in cameras.items())]
    files: dict[str, Iterator[str]] = {
        "attribute/img2vid.txt": listed([*training, *testing]),
        "attribute/model_attr.txt": (f"{v + 1} {v // spec.vehicles_per_model}" for v in training),
        "attribute/color_attr.txt": (f"{v + 1} {_colour(spec, v)}" for v in training),
        "attribute/model_names.txt": (f"{_model_name(spec, m)} {m}" for m in range(spec.models)),
        "attribute/color_names.txt": (f"{name} {number}" for number, name in enumerate(COLORS)),
        "train_test_split/train_list.txt": listed(training),
        "cameras.csv": iter(positions),
    }
    for count in sizes:
        files[f"train_test_split/test_list_{count}.txt"] = listed(testing[:count])
    for name, lines in files.items():
        store.put(prefix + name, "".join(f"{line}\n" for line in lines).encode())
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "labels.parquet"
        _write_table(table, spec, layout, _lists_of(testing))
        store.put(prefix + "labels.parquet", table)
    return [prefix + name for name in (*files, "labels.parquet")]


def _list_sizes(testing: list[int]) -> tuple[int, int, int]:
    small, medium, large = (-(-len(testing) * share // 3) for share in (1, 2, 3))
    return small, medium, large


def _lists_of(testing: list[int]) -> dict[int, str]:
    """Vehicle number -> the smallest list that has it."""
    sizes = _list_sizes(testing)
    if sizes[0] < MIN_LIST_VEHICLES:
        return dict.fromkeys(testing, TEST_LISTS[-1])
    return {
        vehicle: next(name for name, size in zip(TEST_LISTS, sizes, strict=True) if place < size)
        for place, vehicle in enumerate(testing)
    }


def _write_table(path: Path, spec: ArchiveSpec, layout: Layout, lists: Mapping[int, str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ("model_name", "color", "body_type")
    texts = ("key", "image", "camera_id", "track_id", "split", "test_list", *names)
    numbers = {
        "vehicle_id": pa.int64(),
        "model_id": pa.int32(),
        "colour_id": pa.int32(),
        "captured_at": pa.int64(),
    }
    schema = pa.schema([*((name, pa.string()) for name in texts), *numbers.items()])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, spec.images, _LABEL_ROWS):
            rows = [
                {
                    "key": key_of(crop, layout),
                    "image": crop.image,
                    "vehicle_id": crop.vehicle_id,
                    "model_id": crop.model_id,
                    "colour_id": _colour(spec, crop.vehicle_id - 1),
                    "camera_id": crop.camera_id,
                    "track_id": crop.track_id,
                    "captured_at": crop.captured_at,
                    "split": "train" if crop.training else "test",
                    "test_list": lists.get(crop.vehicle_id - 1, ""),
                    "model_name": _model_name(spec, crop.model_id),
                    "color": COLORS[_colour(spec, crop.vehicle_id - 1)],
                    "body_type": _model(spec, crop.model_id).body.style,
                }
                for crop in synthetic_crops(spec, start, min(start + _LABEL_ROWS, spec.images))
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _by_split(spec: ArchiveSpec) -> tuple[list[int], list[int]]:
    """Return vehicle numbers (from 0) for training, and for testing in a random, fixed order."""
    training: list[int] = []
    testing: list[int] = []
    for vehicle in range(spec.vehicles):
        first = synthetic_crop(spec, vehicle * spec.sightings_per_vehicle)
        (training if first.training else testing).append(vehicle)
    return training, [int(v) for v in _rng(spec, 6).permutation(testing)]


def _spoiled(spec: ArchiveSpec, crop: SyntheticCrop) -> int | None:
    if not spec.spoiled_share:
        return None
    rng = _rng(spec, 7, crop.index)
    return int(rng.integers(3)) if rng.random() < spec.spoiled_share else None


def _rng(spec: ArchiveSpec, *path: int) -> np.random.Generator:
    return np.random.default_rng([spec.seed, *path])


@lru_cache(maxsize=1024)
def _camera(spec: ArchiveSpec, number: int) -> Camera:
    return make_camera(_rng(spec, 2, number), min_side=spec.min_side, max_side=spec.max_side)


@lru_cache(maxsize=512)
def _model(spec: ArchiveSpec, number: int) -> VehicleModel:
    return make_model(_rng(spec, 3, number))


@lru_cache(maxsize=256)
def _vehicle(spec: ArchiveSpec, number: int) -> Vehicle:
    model = _model(spec, number // spec.vehicles_per_model)
    return make_vehicle(model, _paint(spec, number), _rng(spec, 8, number))


@lru_cache(maxsize=1024)
def _paint(spec: ArchiveSpec, number: int) -> int:
    shares = _model(spec, number // spec.vehicles_per_model).paint_shares
    return int(_rng(spec, 9, number).choice(len(shares), p=shares))


def _colour(spec: ArchiveSpec, number: int) -> int:
    return _model(spec, number // spec.vehicles_per_model).paint_names[_paint(spec, number)]


def _model_name(spec: ArchiveSpec, number: int) -> str:
    return f"{_model(spec, number).body.style}-{number:03d}"
