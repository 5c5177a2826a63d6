"""Each release is told by its content, and its reader gives what the release says of every image."""

from pathlib import Path
from typing import Any

import pytest
from dataset_releases import (
    AI_CITY,
    BOXCARS,
    COMPCARS,
    LAYOUTS,
    PKU_VD,
    VEHICLE_1M,
    VEHICLEID,
    VEHICLEX,
    VERI,
    VERI_CARLA,
    VERI_WILD,
    VERI_WILD_2,
    VRIC,
    WEB,
    Files,
    write_release,
)

from clvr_model.datasets import test_lists
from clvr_model.datasets.labelled import UNKNOWN_MODEL, LabeledImages
from clvr_model.datasets.registry import RELEASES, find_release, read_release, read_test_lists
from infra.errors import BadLabels, BadSetting
from infra.servers import SeaweedFs
from infra.store import open_store


def training(root: Path, files: Files, split: str | None = None) -> LabeledImages:
    images = read_release(write_release(str(root), files), split)
    assert images is not None
    return images


def lists_of(root: Path, files: Files) -> list[test_lists.TestList]:
    lists = read_test_lists(write_release(str(root), files))
    assert lists is not None
    return lists


def vehicles_of(images: LabeledImages) -> list[int] | None:
    return None if images.vehicle_ids is None else images.vehicle_ids.tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_told_as_its_release_and_as_no_other(layout: str, tmp_path: Path) -> None:
    name, files = LAYOUTS[layout]
    store = open_store(write_release(str(tmp_path), files))
    assert [release.name for release in RELEASES if release.is_in(store)] == [name]
    found = find_release(str(tmp_path))
    assert found is not None
    assert found.name == name


def test_every_release_has_a_layout_that_is_tested() -> None:
    assert {name for name, _ in LAYOUTS.values()} == {release.name for release in RELEASES}


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "VERI-Wild 2.0"])
def test_a_training_list_gives_images_of_the_release(layout: str, tmp_path: Path) -> None:
    images = training(tmp_path, LAYOUTS[layout][1])
    assert len(images) >= 2
    assert any(Path(uri).exists() for uri in images.uris)


@pytest.mark.parametrize("layout", ["VERI-Wild", "CompCars", "VeRi-CARLA", "PKU-VD"])
def test_a_layout_may_be_in_object_storage(
    layout: str, bucket: str, seaweedfs: SeaweedFs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in seaweedfs.environment.items():
        monkeypatch.setenv(variable, value)
    name, files = LAYOUTS[layout]
    root = write_release(f"{bucket}/{layout}", files)
    images = read_release(root)
    assert images is not None
    assert (find_release(root) or RELEASES[0]).name == name
    assert all(uri.startswith("s3://") for uri in images.uris)


class TestTrainingLabels:
    def test_of_vehicleid_include_colours(self, tmp_path: Path) -> None:
        images = training(tmp_path, VEHICLEID)
        assert (images.model_ids.tolist(), vehicles_of(images)) == ([4, 4, 2], [7, 7, 9])
        assert (images.colors, images.body_types) == (["black", "black", ""], None)
        assert images.model_names[4] == "大众-朗逸 2006-2011"

    def test_of_veri_include_colours_and_types(self, tmp_path: Path) -> None:
        images = training(tmp_path, VERI)
        assert (images.model_ids.tolist(), vehicles_of(images)) == ([5, UNKNOWN_MODEL, 9], [1, 3, 4])
        assert images.colors == ["white", "white", "yellow"]
        assert images.body_types == ["mpv", "", "estate"]

    def test_of_vehiclex_have_its_own_types_and_its_own_folder(self, tmp_path: Path) -> None:
        images = training(tmp_path, VEHICLEX)
        assert images.uris[0] == f"{tmp_path}/sys_image_train/00001_c001_1.jpg"
        assert (images.model_ids.tolist(), vehicles_of(images)) == ([0, 10], [1, 2])
        assert (images.body_types, images.colors) == (["sedan", "RV"], ["pink", "yellow"])
        assert (images.camera_ids, len(images.model_names)) == (["001", "006"], 11)

    def test_of_vehiclex_in_the_style_of_veri_are_in_veris_folder(self, tmp_path: Path) -> None:
        files = {"train_label.xml": VEHICLEX["train_label.xml"], "image_train/00001_c001_1.jpg": b""}
        images = training(tmp_path, files)
        assert images.uris[0] == f"{tmp_path}/image_train/00001_c001_1.jpg"
        assert images.body_types == ["sedan", "RV"]

    def test_of_ai_city_are_vehicles_cameras_and_tracks(self, tmp_path: Path) -> None:
        images = training(tmp_path, AI_CITY)
        assert (images.classes, vehicles_of(images)) == ([], [1, 441])
        assert (images.camera_ids, images.track_ids) == (["036", "043"], ["1", "2"])

    def test_of_veri_carla_are_in_the_names(self, tmp_path: Path) -> None:
        images = training(tmp_path, VERI_CARLA)
        assert (images.classes, vehicles_of(images), images.camera_ids) == ([], [9, 9], ["24", "25"])

    @pytest.mark.parametrize(
        "layout", ["VERI-Wild, fast-reid's names", "VERI-Wild", "VERI-Wild, lists at the top"]
    )
    def test_of_veri_wild_are_the_same_in_every_copy(self, layout: str, tmp_path: Path) -> None:
        images = training(tmp_path, LAYOUTS[layout][1])
        assert images.uris[0] == f"{tmp_path}/images/00001/000001.jpg"
        assert (images.model_ids.tolist(), vehicles_of(images)) == ([1, 0, UNKNOWN_MODEL], [1, 2, 2])
        assert images.model_names == {0: "Audi A6", 1: "大众 朗逸"}
        assert (images.camera_ids, images.colors) == (["12", "7", "7"], ["white", "black", "black"])
        assert images.body_types == ["sedan", "suv", "suv"]

    def test_of_veri_wild_need_no_header(self, tmp_path: Path) -> None:
        info = "train_test_split/vehicle_info.txt"
        whole = training(tmp_path / "a", VERI_WILD)
        text = bytes(VERI_WILD[info]).decode("gbk").split("\n", 1)[1]  # type: ignore[arg-type]
        assert (
            training(tmp_path / "b", {**VERI_WILD, info: text}).model_ids.tolist() == whole.model_ids.tolist()
        )

    @pytest.mark.parametrize("layout", ["Vehicle-1M", "Vehicle-1M, other folder"])
    def test_of_vehicle_1m_are_in_the_third_column(self, layout: str, tmp_path: Path) -> None:
        images = training(tmp_path, LAYOUTS[layout][1])
        assert images.uris[0] == f"{tmp_path}/image/000001/000001.jpg"
        assert (images.model_ids.tolist(), vehicles_of(images)) == ([12, 12, 399], [1, 1, 2])

    def test_of_vehicle_1m_are_refused_if_the_third_column_is_no_model(self, tmp_path: Path) -> None:
        lines = "000001/000001.jpg 1 12\n000001/000002.jpg 1 13\n"
        with pytest.raises(BadLabels, match=r"line 2: vehicle 1 has 13 .* but 12 .* not the model"):
            training(tmp_path, {**VEHICLE_1M, "train-test-split/train_list.txt": lines})

    def test_of_pku_vd_include_colours(self, tmp_path: Path) -> None:
        images = training(tmp_path, PKU_VD)
        assert images.uris[0] == f"{tmp_path}/image/0000001.jpg"
        assert (images.model_ids.tolist(), vehicles_of(images)) == ([1001, 1001, 7], [1, 1, 2])
        assert (images.colors, images.model_names[7]) == (["color 3", "color 3", ""], "model 7")

    def test_of_compcars_have_names_boxes_and_types(self, tmp_path: Path) -> None:
        images = training(tmp_path, COMPCARS)
        assert images.uris[0] == f"{tmp_path}/data/image/2/1/2014/3ac218c0c6c378.jpg"
        assert images.model_names == {1: "Audi A3 hatchback", 2: "ABT R8", 3: "Audi model 3"}
        assert images.body_types == ["hatchback", "sedan", ""]
        assert images.boxes is not None
        assert images.boxes.tolist() == [[118, 169, 821, 559], [0, 0, 900, 600], [-1] * 4]

    def test_of_compcars_surveillance_part_have_names_and_colours(self, tmp_path: Path) -> None:
        images = training(tmp_path, COMPCARS, "surveillance-train")
        assert images.uris[0] == f"{tmp_path}/sv_data/image/1/d5dcefddcde927.jpg"
        assert images.model_names == {1: "Audi Q5", 2: "BMW 3 Series"}
        assert (images.colors, images.boxes) == (["black", "", "silver"], None)
        assert images.body_types == ["sedan", "", ""]  # by the number of the web part, where it has one

    def test_of_compcars_test_lists_are_read_by_their_names(self, tmp_path: Path) -> None:
        assert training(tmp_path, COMPCARS, "test").uris == [f"{tmp_path}/data/image/2/1/2014/z.jpg"]
        assert training(tmp_path, COMPCARS, "surveillance-test").model_ids.tolist() == [1]
        with pytest.raises(BadSetting, match="split is 'valid'") as caught:
            training(tmp_path, COMPCARS, "valid")
        assert "surveillance-train" in caught.value.remedy

    def test_of_compcars_without_tables_have_numbers_as_names(self, tmp_path: Path) -> None:
        images = training(tmp_path, {WEB.removeprefix("data/"): COMPCARS[WEB]})
        assert images.model_names[1] == "make 2, model 1"
        assert (images.boxes, images.body_types) == (None, None)

    def test_of_boxcars_are_those_of_the_hard_split(self, tmp_path: Path) -> None:
        images = training(tmp_path, BOXCARS)
        assert images.uris == [f"{tmp_path}/images/uvoz/1/00000{i}.png" for i in ("1_000", "1_001")]
        assert (images.model_ids.tolist(), vehicles_of(images), images.camera_ids) == (
            [1, 1],
            [0, 0],
            ["4"] * 2,
        )
        assert images.model_names[1] == "skoda octavia combi mk1"
        assert (images.body_types, images.track_ids) == (["combi"] * 2, ["0"] * 2)
        assert training(tmp_path, BOXCARS, "test").model_ids.tolist() == [0]

    def test_of_vric_are_vehicles_and_cameras(self, tmp_path: Path) -> None:
        images = training(tmp_path, VRIC)
        assert images.uris[0] == f"{tmp_path}/train_images/a.jpg"
        assert (images.classes, vehicles_of(images), images.camera_ids) == ([], [3, 3], ["15", "16"])

    def test_stay_with_their_images_when_some_are_taken(self, tmp_path: Path) -> None:
        images = training(tmp_path, COMPCARS).take(training(tmp_path, COMPCARS).model_ids.argsort()[::-1])
        assert images.model_ids.tolist() == [3, 2, 1]
        assert images.body_types == ["sedan", "", "hatchback"]
        assert images.boxes is not None
        assert images.boxes[2].tolist() == [118, 169, 821, 559]


class TestTestLists:
    def test_of_vehicleid_have_no_roles_and_colours(self, tmp_path: Path) -> None:
        (small,) = lists_of(tmp_path, VEHICLEID)
        assert (small.name, small.protocol, small.roles) == ("test_800", "vehicleid-paper", ["", ""])
        assert [each.color for each in small.attributes] == ["blue", "blue"]

    def test_of_veri_have_colours_types_and_tracks(self, tmp_path: Path) -> None:
        (listed,) = lists_of(tmp_path, VERI)
        assert (listed.roles, listed.camera_ids) == (["probe", "gallery", "gallery"], ["002", "002", "003"])
        assert [each.track for each in listed.attributes] == ["1", "1", "2"]
        assert {(each.color, each.body_type) for each in listed.attributes} == {("gray", "suv")}

    def test_of_veri_take_the_names_of_tracks_where_there_are_some(self, tmp_path: Path) -> None:
        named = {"test_track_VeRi.txt": "0002_c003_t00084280 0002_c003_00016450_0.jpg\n"}
        (listed,) = lists_of(tmp_path, {**VERI, **named})
        assert [each.track for each in listed.attributes] == ["", "", "0002_c003_t00084280"]

    @pytest.mark.parametrize(
        ("text", "tracks"),
        [
            ("0002_c002_00016450_0 0002_c003_00016450_0\n", ["1", "1", "1"]),
            ("0002_c002_00016450_0.jpg\n0002_c002_00016450_0.jpg\n", ["1", "1", ""]),
        ],
    )
    def test_of_veri_are_read_whatever_its_tracks_are(
        self, text: str, tracks: list[str], tmp_path: Path
    ) -> None:
        (listed,) = lists_of(tmp_path, {**VERI, "test_track.txt": text})
        assert [each.track for each in listed.attributes] == tracks

    def test_of_ai_city_are_refused_without_vehicles(self, tmp_path: Path) -> None:
        with pytest.raises(BadLabels, match=r"query_label.xml, line 5: no vehicleID: the AI City Challenge"):
            lists_of(tmp_path, AI_CITY)

    def test_of_ai_city_are_read_with_vehicles(self, tmp_path: Path) -> None:
        labels = {
            name: bytes(AI_CITY[name]).replace(b" cameraID", b' vehicleID="5" cameraID')  # type: ignore[arg-type]
            for name in ("query_label.xml", "test_label.xml")
        }
        (listed,) = lists_of(tmp_path, {**AI_CITY, **labels, "test_track.txt": "000001.jpg \n"})
        assert listed.uris == [f"{tmp_path}/image_query/000001.jpg", f"{tmp_path}/image_test/000001.jpg"]
        assert (listed.vehicle_ids, listed.camera_ids) == ([5, 5], ["006", "007"])
        assert [each.track for each in listed.attributes] == ["", "1"]

    def test_of_veri_carla_are_its_folders(self, tmp_path: Path) -> None:
        (listed,) = lists_of(tmp_path, VERI_CARLA)
        assert (listed.roles, listed.vehicle_ids, listed.camera_ids) == (
            ["probe", "gallery"],
            [601, 601],
            ["1", "2"],
        )

    @pytest.mark.parametrize("layout", ["VERI-Wild", "VERI-Wild, lists at the top"])
    def test_of_veri_wild_are_those_of_today(self, layout: str, tmp_path: Path) -> None:
        small, large = lists_of(tmp_path, LAYOUTS[layout][1])
        assert (small.name, large.name, small.dataset) == ("test_3000", "test_10000", "VERI-Wild")
        assert (small.vehicle_ids, small.camera_ids) == ([1, 1, 2], ["12", "7", "7"])
        assert [each.model_name for each in small.attributes] == ["大众 朗逸", "大众 朗逸", "Audi A6"]
        assert small.uris[0] == f"{tmp_path}/images/00001/000001.jpg"

    def test_of_veri_wild_take_cameras_from_the_lists_without_the_information(self, tmp_path: Path) -> None:
        files = {name: text for name, text in VERI_WILD.items() if "vehicle_info" not in name}
        small, _ = lists_of(tmp_path, files)
        assert small.camera_ids == ["12", "7", "7"]

    def test_of_veri_wild_2_are_three(self, tmp_path: Path) -> None:
        lists = lists_of(tmp_path, VERI_WILD_2)
        assert [(each.name, each.protocol) for each in lists] == [
            (name, "veri-wild") for name in ("All", "A", "B")
        ]
        assert lists[0].uris[:2] == [
            f"{tmp_path}/query/query_final/a1.jpg",
            f"{tmp_path}/gallery/gallery_final/b1.jpg",
        ]
        assert (lists[0].vehicle_ids, lists[0].camera_ids) == ([40001, 40001, 40002], ["3", "4", "4"])

    def test_of_veri_wild_2_without_cameras_have_no_junk(self, tmp_path: Path) -> None:
        files = {name: b"" if name.endswith("jpg") else text for name, text in VERI_WILD_2.items()}
        short = {"test_split_V2/A_query.txt": "query_final/a1.jpg 40001\n"}
        assert [each.protocol for each in lists_of(tmp_path, {**files, **short})] == [
            "veri-wild",
            "listed",
            "veri-wild",
        ]

    def test_of_vehicle_1m_have_no_roles(self, tmp_path: Path) -> None:
        small, large = lists_of(tmp_path, VEHICLE_1M)
        assert (small.name, small.protocol, large.name) == ("test_1000", "vehicleid-paper", "test_3000")
        assert (small.vehicle_ids, small.roles) == ([50001, 50001], ["", ""])

    def test_of_pku_vd_have_the_same_probes(self, tmp_path: Path) -> None:
        small, large = lists_of(tmp_path, PKU_VD)
        assert (small.name, large.name, small.protocol) == ("small", "large", "listed")
        assert small.roles == ["probe", "gallery", "gallery"]
        assert (large.vehicle_ids, large.uris[0]) == ([90001, 90001, 90002, 90003], small.uris[0])
        assert [each.model_name for each in small.attributes] == ["model 5"] * 3

    @pytest.mark.parametrize("layout", ["CompCars", "BoxCars116k", "VehicleX"])
    def test_of_a_release_without_vehicles_in_a_test_are_refused(self, layout: str, tmp_path: Path) -> None:
        with pytest.raises(BadLabels, match=f"is {layout}, which has no re-identification test"):
            lists_of(tmp_path, LAYOUTS[layout][1])


WILD_LIST = "train_test_split/train_list_start0.txt"

ALMOST: dict[str, tuple[Files, str]] = {
    "VehicleID without attributes and tests": (
        {"train_test_split/train_list.txt": "0000001 7\n", "image/0000001.jpg": b"", "attribute/x.txt": ""},
        r"has attribute and train_test_split, as VehicleID has, but .*: VehicleID needs attribute/img2vid",
    ),
    "VeRi without lists": (
        {name: text for name, text in VERI.items() if name.startswith("image")},
        r"has image_query, image_test and image_train, as VeRi-776 has, .* needs train_label.xml or name_q",
    ),
    "VeRi with other names": (
        {**VERI, "train_label.xml": b'<a><Item imageName="car.jpg"/></a>'},
        r"as VeRi-776 has, but is not it: .* train_label.xml begins with 'car.jpg'",
    ),
    "AI City without labels": (
        {"train_track.txt": "000001.jpg\n", "train_track_id.txt": "1\n"},
        "has train_track.txt and train_track_id.txt, as AI City has",
    ),
    "VERI-Wild 2.0 without lists": ({"test_split_V2/README": "x"}, "needs test_split_V2/All_query.txt"),
    "Vehicle-1M with other lines": (
        {"train-test-split/train_list.txt": "a b c\n"},
        "as Vehicle-1M has, but is not it: .* with lines such as 000001/000001.jpg 1 12",
    ),
    "PKU-VD without lists": (
        {"query_ref/small_set.txt": "1 2 3 4\n"},
        "PKU-VD needs train_test/trainlist.txt",
    ),
    "CompCars without lists": ({"misc/a": "x", "sv_data/b": "x"}, "has sv_data, as CompCars has"),
    "VRIC one level deeper": (
        {f"VRIC/{name}": text for name, text in VRIC.items()},
        "its folder VRIC is: VRIC",
    ),
    "CompCars one level deeper": (
        {f"CompCars/{name}": text for name, text in COMPCARS.items()},
        "its folder CompCars is: CompCars",
    ),
    "BoxCars116k without its table": (
        {"json_data/atlas.json": "{}"},
        "BoxCars116k needs json_data/dataset.json",
    ),
    "VRIC without lists": (
        {name: text for name, text in VRIC.items() if name.endswith(".jpg")},
        "VRIC needs vric_train.txt or vric_probe.txt",
    ),
    "PKU-VD's two parts": (
        {f"VD1/{name}": text for name, text in PKU_VD.items()},
        "is not a dataset, but its folder VD1 is: PKU-VD",
    ),
    "VeRi one level deeper": (
        {f"VeRi/{name}": text for name, text in VERI.items()},
        "its folder VeRi is: VeRi-776",
    ),
    "two releases": ({**VRIC, **PKU_VD}, "has the files of PKU-VD and VRIC"),
}


@pytest.mark.parametrize("name", ALMOST)
def test_a_folder_that_is_almost_a_release_is_refused_with_the_difference(name: str, tmp_path: Path) -> None:
    files, message = ALMOST[name]
    root = write_release(str(tmp_path), files)
    for read in (read_release, read_test_lists):
        with pytest.raises(BadLabels, match=message):
            read(root)


@pytest.mark.parametrize(
    "names",
    [("golf", "polo"), ("1", "2"), ("misc", "data"), ("train", "test"), ("image", "other"), ("大众", "奥迪")],
)
def test_folders_named_after_models_are_no_release(names: tuple[str, ...], tmp_path: Path) -> None:
    assert find_release(write_release(str(tmp_path), {f"{name}/1.jpg": b"" for name in names})) is None


@pytest.mark.parametrize(
    ("layout", "file", "text", "message"),
    [
        ("VehicleX", "train_label.xml", '<Item imageName="1_c1_1.jpg" typeID="11"/>', "typeID is '11'"),
        ("AI City", "train_label.xml", '<Item imageName="1.jpg" vehicleID="x" cameraID="c1"/>', "is 'x'"),
        ("VeRi-CARLA", "image_train/a.jpg", "", "a.jpg is not named like"),
        ("VERI-Wild", WILD_LIST, "1/2.jpg 0 1 9\n", "line 1: .* is not 'vehicle/image"),
        ("VERI-Wild", WILD_LIST, "../2.jpg 0 1\n", "line 1: '../2.jpg 0 1' is not"),
        ("Vehicle-1M", "train-test-split/train_list.txt", "1/2.jpg 1 1\nx\n", "line 2: 'x' is not"),
        ("PKU-VD", "train_test/trainlist.txt", "1 2 3\n", "line 1: '1 2 3' is not 'image vehicle"),
        ("PKU-VD", "train_test/trainlist.txt", "../1 2 3 4\n", "line 1: .* is not"),
        ("CompCars", "data/label/2/1/2014/3ac218c0c6c378.txt", "4\n1\n9 9 1 1\n", "9 9 1 1 is no box"),
        ("CompCars", "data/label/2/1/2014/3ac218c0c6c378.txt", "4\n", "is not a viewpoint"),
        ("CompCars", "data/misc/make_model_name.mat", "MATLAB", "not a MATLAB 5 file with the table"),
        ("CompCars", "data/misc/attributes.txt", "1 2 3\n", "line 1: '1 2 3' is not 'model speed"),
        ("BoxCars116k", "json_data/dataset.json", "{", "is not valid JSON"),
        ("BoxCars116k", "json_data/dataset.json", "[" * 100_000, "is not valid JSON"),
        ("BoxCars116k", "json_data/dataset.json", '{"samples": []}', r"entry 0: \[0, 1\] names no track"),
        ("BoxCars116k", "json_data/classification_splits.json", '{"hard": {}}', "no 'types_mapping'"),
        ("VRIC", "vric_train.txt", "a.jpg 3 15\na.jpg 3 15\n", "line 2: .* already listed"),
        ("VRIC", "vric_train.txt", "../a.jpg 3 15\n", "line 1: '../a.jpg 3 15' is not"),
    ],
)  # fmt: skip
def test_an_invalid_label_of_a_layout_is_named(
    layout: str, file: str, text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(BadLabels, match=message):
        training(tmp_path, {**LAYOUTS[layout][1], file: text})


def test_a_path_of_boxcars_stays_below_the_images(tmp_path: Path) -> None:
    outside = str(BOXCARS["json_data/dataset.json"]).replace("uvoz/1/000001_000.png", "../../secret.png")
    with pytest.raises(BadLabels, match=r"sample 0: '../../secret.png' is not a path below"):
        training(tmp_path, {**BOXCARS, "json_data/dataset.json": outside})


def test_a_copy_of_boxcars_with_pickles_only_is_refused_and_not_unpickled(tmp_path: Path) -> None:
    files: dict[str, Any] = {"dataset.pkl": b"cos\nsystem\n(S'touch owned'\ntR.", "images/a.png": b""}
    with pytest.raises(BadLabels, match=r"dataset.pkl but no json_data/dataset.json; pickles") as caught:
        training(tmp_path, files)
    assert "json_data/" in caught.value.remedy
    assert not list(tmp_path.rglob("owned"))


def test_a_label_file_above_the_budget_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clvr_model.datasets.test_lists.MAX_FILE_BYTES", 10)
    with pytest.raises(BadLabels, match=r"vric_train.txt has 22 bytes, more than the 10 of a label file"):
        training(tmp_path, VRIC)
