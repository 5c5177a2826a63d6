import hashlib
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clvr_model.datasets.labelled import read_table
from clvr_model.datasets.vehicleid import list_test_splits, read_vehicleid
from clvr_model.preprocessing import decode
from clvr_model.synthetic.archive import encode_crop, generate, render_crop, write_labels
from clvr_model.synthetic.body import STYLES
from clvr_model.synthetic.camera import light_at, make_camera
from clvr_model.synthetic.parts import VehicleModel, make_model
from clvr_model.synthetic.render import draw
from clvr_model.synthetic.trips import ArchiveSpec, synthetic_crop, synthetic_crops
from clvr_model.synthetic.vehicle import make_vehicle
from index.search.probe import Sighting
from index.search.travel_time import read_cameras
from infra.errors import BadSetting, UnreadableImage
from infra.store import open_store

SMALL = ArchiveSpec(seed=5, models=3, vehicles_per_model=4, sightings_per_vehicle=4, cameras=5, days=2)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class TestGenerate:
    def test_one_object_per_sighting_is_written_and_nothing_else(self, tmp_path: Path) -> None:
        steps: list[int] = []
        summary = generate(open_store(str(tmp_path)), SMALL, progress=steps.append)
        written = contents(tmp_path)
        assert set(written) == {crop.key for crop in synthetic_crops(SMALL)}
        assert (summary.images, summary.bytes, summary.spoiled) == (48, sum(map(len, written.values())), 0)
        assert sum(steps) == 48

    def test_ranges_generated_separately_and_twice_equal_the_whole_archive(self, tmp_path: Path) -> None:
        generate(open_store(str(tmp_path / "whole")), SMALL)
        for start, stop in ((30, None), (0, 17), (17, 30), (10, 20)):
            generate(open_store(str(tmp_path / "parts")), SMALL, start=start, stop=stop)
        assert contents(tmp_path / "parts") == contents(tmp_path / "whole")

    def test_another_seed_gives_another_archive(self, tmp_path: Path) -> None:
        other = ArchiveSpec(seed=6, models=3, vehicles_per_model=4, sightings_per_vehicle=4)
        assert encode_crop(SMALL, synthetic_crop(SMALL, 0)) != encode_crop(other, synthetic_crop(other, 0))

    def test_a_range_outside_the_archive_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(BadSetting):
            generate(open_store(str(tmp_path)), SMALL, stop=49)

    def test_every_image_is_different(self) -> None:
        spec = ArchiveSpec(models=2, vehicles_per_model=10, sightings_per_vehicle=15)
        digests = {hashlib.sha256(encode_crop(spec, crop)).digest() for crop in synthetic_crops(spec)}
        assert len(digests) == spec.images

    def test_the_requested_share_of_images_is_spoiled(self) -> None:
        spec = ArchiveSpec(models=4, vehicles_per_model=10, sightings_per_vehicle=5, spoiled_share=0.2)
        causes = []
        for crop in synthetic_crops(spec):
            try:
                decode(encode_crop(spec, crop))
            except UnreadableImage as error:
                causes.append(error.cause)
        assert 20 <= len(causes) <= 60
        assert set(causes) == {"empty", "truncated", "not-a-picture"}


class TestLabels:
    def test_the_vehicleid_layout_is_read_by_its_reader(self, tmp_path: Path) -> None:
        store = open_store(str(tmp_path))
        generate(store, SMALL, layout="vehicleid")
        write_labels(store, SMALL, layout="vehicleid")
        train = read_vehicleid(str(tmp_path))
        assert train.classes == [0, 1, 2]
        assert len(train) == 24
        assert list_test_splits(str(tmp_path)) == ["test_2", "test_4", "test_6"]
        test = read_vehicleid(str(tmp_path), "test_6")
        assert train.vehicle_ids is not None
        assert test.vehicle_ids is not None
        assert not set(train.vehicle_ids.tolist()) & set(test.vehicle_ids.tolist())
        assert all(Path(uri.removeprefix("file://")).is_file() for uri in [*train.uris, *test.uris])

    def test_the_label_table_lists_every_image_of_the_archive(self, tmp_path: Path) -> None:
        write_labels(open_store(str(tmp_path)), SMALL, prefix="labels/")
        rows = pq.read_table(tmp_path / "labels" / "labels.parquet").to_pylist()
        for row, crop in zip(rows, synthetic_crops(SMALL), strict=True):
            assert row["key"] == crop.key
            assert (row["vehicle_id"], row["model_id"]) == (crop.vehicle_id, crop.model_id)
            assert (row["camera_id"], row["track_id"]) == (crop.camera_id, crop.track_id)
        train = read_table(str(tmp_path / "labels" / "labels.parquet"), root="s3://archive", split="train")
        assert len(train) == 24
        assert train.uris[0] == f"s3://archive/{synthetic_crop(SMALL, 0).key}"

    def test_the_lists_hold_a_third_two_thirds_and_all_of_the_test_vehicles(self, tmp_path: Path) -> None:
        def vehicles(spec: ArchiveSpec) -> dict[str, int]:
            write_labels(open_store(str(tmp_path)), spec)
            rows = pq.read_table(tmp_path / "labels.parquet").to_pylist()
            assert all((row["test_list"] == "") == (row["split"] == "train") for row in rows)
            found = {row["vehicle_id"]: row["test_list"] for row in rows}
            return {name: list(found.values()).count(name) for name in ("small", "medium", "large")}

        assert vehicles(SMALL) == {"small": 2, "medium": 2, "large": 2}
        few = ArchiveSpec(seed=5, models=1, vehicles_per_model=4, sightings_per_vehicle=2)
        assert vehicles(few) == {"small": 0, "medium": 0, "large": 2}

    def test_an_archive_of_training_vehicles_only_has_no_test_lists(self, tmp_path: Path) -> None:
        spec = ArchiveSpec(models=1, vehicles_per_model=2, sightings_per_vehicle=1, train_share=1.0)
        keys = write_labels(open_store(str(tmp_path)), spec)
        assert not [key for key in keys if "test_list" in key]

    def test_two_minutes_are_enough_for_the_way_between_any_two_cameras(self, tmp_path: Path) -> None:
        write_labels(open_store(str(tmp_path)), SMALL)
        cameras = read_cameras(str(tmp_path / "cameras.csv"))
        assert len(cameras.positions) == SMALL.cameras
        for first, second in permutations(cameras.positions, 2):
            leg = cameras.travel(Sighting(first, "", 0), Sighting(second, "", 120_000))
            assert leg is not None and leg.possible


class TestImages:
    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 2**31), st.integers(0, 199))
    def test_images_are_rgb_within_the_size_bounds_and_never_flat(self, seed: int, index: int) -> None:
        spec = ArchiveSpec(seed=seed, models=10, vehicles_per_model=5, sightings_per_vehicle=4)
        drawn = render_crop(spec, synthetic_crop(spec, index))
        assert drawn.dtype == np.uint8
        assert drawn.ndim == 3
        assert drawn.shape[2] == 3
        assert spec.min_side - 1 <= max(drawn.shape) <= spec.max_side + 1
        assert drawn.std() > 4

    def test_images_have_the_requested_size(self) -> None:
        for low, high in ((32, 40), (500, 600)):
            spec = ArchiveSpec(models=1, vehicles_per_model=1, min_side=low, max_side=high)
            assert low - 1 <= max(render_crop(spec, synthetic_crop(spec, 0)).shape) <= high + 1

    def test_every_body_style_renders_from_every_direction(self) -> None:
        models: dict[str, VehicleModel] = {}
        for seed in range(120):
            model = make_model(np.random.default_rng(seed))
            models.setdefault(model.body.style, model)
        assert set(models) == set(STYLES)
        rng = np.random.default_rng(0)
        for model in models.values():
            vehicle = make_vehicle(model, 0, rng)
            for _ in range(6):
                camera = make_camera(rng, min_side=64, max_side=96)
                drawn = draw(vehicle, camera, light_at(rng.uniform(0, 24), 0.5, camera), rng, sides=(64, 96))
                assert 63 <= max(drawn.shape) <= 97


class TestHierarchy:
    def test_vehicles_of_one_model_and_colour_differ_in_marks_only(self) -> None:
        model = make_model(np.random.default_rng(1))
        one, other = (make_vehicle(model, 0, np.random.default_rng(seed)) for seed in (2, 3))
        shared = len(model.mesh.points)
        assert one.colour_id == other.colour_id
        assert np.array_equal(one.mesh.points[:shared], other.mesh.points[:shared])
        assert not np.array_equal(one.mesh.points[shared:], other.mesh.points[shared:])

    def test_profiles_run_from_front_to_rear(self) -> None:
        for seed in range(100):
            body = make_model(np.random.default_rng(seed)).body
            assert np.all(np.diff(body.profile[:, 0]) <= 1e-9)
            assert body.sill < body.belt < body.height
            assert body.rear_axle < 0 < body.front_axle
            assert np.isclose(body.profile[0, 0] - body.profile[-1, 0], body.length)

    def test_every_two_models_differ(self) -> None:
        shapes = {make_model(np.random.default_rng(seed)).body.profile.tobytes() for seed in range(100)}
        assert len(shapes) == 100


class TestDeterminism:
    def test_the_geometry_of_a_vehicle_never_changes(self) -> None:
        vehicle = make_vehicle(make_model(np.random.default_rng(1)), 0, np.random.default_rng(2))
        digest = hashlib.sha256()
        for numbers in (vehicle.mesh.points, vehicle.palette):
            digest.update(np.round(numbers, 6).tobytes())
        digest.update(vehicle.mesh.materials.tobytes())
        digest.update(vehicle.mesh.layers.tobytes())
        assert digest.hexdigest() == "7983a35c6b62ac9531b3be2b820346d8686822353d00b680e123713f2c2bbe23"

    def test_the_rendering_of_a_crop_never_changes(self) -> None:
        crop = synthetic_crop(SMALL, 7)
        assert crop.key == "dt=2026-01-06/cam=002/1767687903029_7e6e126b6401.jpg"
        drawn = render_crop(SMALL, crop)
        assert drawn.shape == (109, 239, 3)
        # OpenCV rounds differently on other processors, so the means of nine parts are compared.
        means = [
            [float(part.mean()) for part in np.array_split(rows, 3, axis=1)]
            for rows in np.array_split(drawn, 3, axis=0)
        ]
        expected = [[106.0, 111.6, 109.1], [126.9, 95.4, 89.0], [94.2, 75.7, 78.2]]
        assert np.abs(np.array(means) - expected).max() < 0.5
