"""Training lists of the public datasets: models where a dataset has them, and wrong lines named, for all."""

from pathlib import Path

import pytest

from clvr_model.datasets.labelled import UNKNOWN_MODEL
from clvr_model.datasets.registry import read_release
from infra.errors import BadLabels, BadSetting
from infra.servers import SeaweedFs
from infra.store import Store, open_store

Files = dict[str, str | bytes]

VERI_XML = (
    '<?xml version="1.0" encoding="gb2312"?>\n<TrainingImages Version="1.0">\n<Items number="3">\n'
    '<Item imageName="0001_c001_00016450_0.jpg" vehicleID="0001" cameraID="c001" colorID="7" typeID="5"/>\n'
    '<Item imageName="0003_c002_00016450_0.jpg" vehicleID="0003" cameraID="c002" colorID="7" typeID="0"/>\n'
    '<Item imageName="0004_c002_00016450_0.jpg" vehicleID="0004" cameraID="c002" colorID="1" typeID="9"/>\n'
    "</Items>\n</TrainingImages>\n"
)
WILD_INFO = (
    "id/image;Camera ID;Time;Model;Type;Color\n00001/000001;12;2018-03-11 10:39:27;大众 朗逸;sedan;white\n"
    "00001/000002;7;2018-03-11 10:39:27;大众 朗逸;sedan;white\n"
    "00002/000003;7;2018-03-11 10:39:27;Audi A6;sedan;white\n"
    "00002/000004;7;2018-03-11 10:39:27;;sedan;white\n"
)
WEB, SURVEILLANCE = "train_test_split/classification/train.txt", "train_surveillance.txt"
XML, INFO, LIST = "train_label.xml", "train_test_split/vehicle_info.txt", "train_test_split/train_list.txt"

GOOD: dict[str, Files] = {
    "veri": {XML: VERI_XML},
    "veri-wild": {
        INFO: WILD_INFO,
        LIST: "00001/000001.jpg\n00002/000003\n00002/000004.jpg 1 7\n",
    },
    "compcars web": {WEB: "78/1/2014/3ac218c0c6c378.jpg\n78/3/unknown/b.jpg\n80/1999/2012/c.jpg\n"},
    "compcars surveillance": {SURVEILLANCE: "1/a.jpg\n2/b.jpg\n2/c.jpg\n"},
    "vehicleid": {
        "attribute/img2vid.txt": "0000001 7\n0000002 7\n0000003 9\n",
        "attribute/model_attr.txt": "7 4\n9 2\n",
        LIST: "0000001 7\n0000002 7\n0000003 9\n",
    },
}
MODELS = {
    "veri": [5, UNKNOWN_MODEL, 9],
    "veri-wild": [1, 0, UNKNOWN_MODEL],  # Audi before 大众
    "compcars web": [1, 3, 1999],
    "compcars surveillance": [1, 2, 2],
    "vehicleid": [4, 4, 2],
}


def put(store: Store, files: Files) -> str:
    for name, text in files.items():
        store.put(name, text if isinstance(text, bytes) else text.encode())
    return store.uri


@pytest.mark.parametrize("name", GOOD)
def test_a_release_is_known_by_its_files_and_gives_its_models(name: str, tmp_path: Path) -> None:
    images = read_release(put(open_store(str(tmp_path)), GOOD[name]))
    assert images is not None
    assert images.model_ids.tolist() == MODELS[name]
    assert len(set(images.uris)) == len(images) == 3
    assert all(uri.startswith(f"{tmp_path}/image") for uri in images.uris)
    assert len(images.with_known_model()) == sum(model != UNKNOWN_MODEL for model in MODELS[name])


@pytest.mark.parametrize("name", GOOD)
def test_a_release_may_be_in_object_storage(
    name: str, bucket: str, seaweedfs: SeaweedFs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in seaweedfs.environment.items():
        monkeypatch.setenv(variable, value)
    images = read_release(put(open_store(f"{bucket}/{name.replace(' ', '-')}"), GOOD[name]))
    assert images is not None
    assert images.model_ids.tolist() == MODELS[name]
    assert all(uri.startswith("s3://") for uri in images.uris)


def test_a_release_gives_its_vehicles_and_cameras_if_it_has_them(tmp_path: Path) -> None:
    veri = read_release(put(open_store(str(tmp_path / "veri")), GOOD["veri"]))
    wild = read_release(put(open_store(str(tmp_path / "wild")), GOOD["veri-wild"]))
    cars = read_release(put(open_store(str(tmp_path / "cars")), GOOD["compcars web"]))
    assert veri is not None
    assert veri.vehicle_ids is not None
    assert (veri.vehicle_ids.tolist(), veri.camera_ids) == ([1, 3, 4], ["001", "002", "002"])
    assert veri.uris[0] == f"{tmp_path}/veri/image_train/0001_c001_00016450_0.jpg"
    assert veri.model_names[5] == "mpv"
    assert wild is not None
    assert wild.vehicle_ids is not None
    assert (wild.vehicle_ids.tolist(), wild.camera_ids) == ([1, 2, 2], ["12", "7", "7"])
    assert wild.uris[0] == f"{tmp_path}/wild/images/00001/000001.jpg"
    assert wild.model_names == {0: "Audi A6", 1: "大众 朗逸"}
    assert cars is not None
    assert cars.vehicle_ids is None
    assert cars.camera_ids is None


def test_labels_of_veri_may_be_in_their_declared_encoding(tmp_path: Path) -> None:
    data = VERI_XML.replace("<Items", "<!-- 车辆 -->\n<Items").encode("gb2312")
    images = read_release(put(open_store(str(tmp_path)), {XML: data}))
    assert images is not None
    assert len(images) == 3


def test_the_web_part_of_compcars_has_a_test_list_too(tmp_path: Path) -> None:
    files = {**GOOD["compcars web"], WEB.replace("train.txt", "test.txt"): "78/1/2014/z.jpg\n"}
    images = read_release(put(open_store(str(tmp_path)), files), "test")
    assert images is not None
    assert images.uris == [f"{tmp_path}/image/78/1/2014/z.jpg"]


def test_an_unknown_folder_is_not_a_release(tmp_path: Path) -> None:
    assert read_release(put(open_store(str(tmp_path)), {"golf/1.jpg": "x"})) is None


def test_a_release_without_models_gives_its_vehicles(tmp_path: Path) -> None:
    images = read_release(put(open_store(str(tmp_path)), {"vric_train.txt": "a.jpg 3 15\n"}))
    assert images is not None
    assert images.vehicle_ids is not None
    assert (images.classes, images.vehicle_ids.tolist(), images.camera_ids) == ([], [3], ["15"])


@pytest.mark.parametrize("name", ["veri", "veri-wild"])
def test_a_test_split_is_refused_because_it_has_no_models(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="split is 'test'"):
        read_release(put(open_store(str(tmp_path)), GOOD[name]), "test")


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("veri", XML, VERI_XML.replace('"9"', '"10"'), r"line 6: typeID is '10', not .* to 9"),
        ("veri", XML, VERI_XML.replace("0003_c", "three_c"), r"line 5: an item without a name"),
        ("veri", XML, VERI_XML.replace("0004_c002", "0003_c002"), r"line 6: .* already listed in .*line 5"),
        ("veri", XML, VERI_XML[:300], r"line 6: unclosed token"),
        ("veri", XML, "<!DOCTYPE a [<!ENTITY b 'c'>]>\n<a/>", r"line 1: a document type"),
        ("veri", XML, "<a/>", "lists no image"),
        ("veri", XML, b"\xff\xff\xff", "neither UTF-8 nor GB2312"),
        ("veri-wild", INFO, "header\n1/2;7\n", r"info.txt, line 2: '1/2;7' is not"),
        ("veri-wild", LIST, "00001/000001\nx/1\n", r"list.txt, line 2: 'x/1' is not"),
        ("veri-wild", LIST, "00009/000001\n", r"line 1: image .* is not in"),
        ("veri-wild", LIST, "00001/000001\n00001/000001\n", r"line 2: .* already listed"),
        ("veri-wild", LIST, "", "lists no image"),
        ("compcars web", WEB, "78/1/2014/a.jpg\n78/a.jpg\n", r"line 2: '78/a.jpg' is not 'make/model/year"),
        ("compcars web", WEB, "78/1/2014/a.jpg\n\n78/1/2014/a.jpg\n", r"line 3: .* listed in .*line 1"),
        ("compcars web", WEB, "../../2014/a.jpg\n", r"line 1: .* is not"),
        ("compcars surveillance", SURVEILLANCE, "1/a.jpg\none/b.jpg\n", r"line 2: 'one/b.jpg' is not 'model"),
        ("vehicleid", "attribute/model_attr.txt", "7 4\nnine 2\n", r"line 2: 'nine 2' is not two numbers"),
    ],
)  # fmt: skip
def test_an_invalid_label_is_named_with_its_line(
    name: str, file: str, text: str | bytes, message: str, tmp_path: Path
) -> None:
    root = put(open_store(str(tmp_path)), {**GOOD[name], file: text})
    with pytest.raises(BadLabels, match=message):
        read_release(root)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("veri-wild", LIST),
        ("vehicleid", "attribute/model_attr.txt"),
        ("vehicleid", LIST),
    ],
)
def test_a_missing_file_is_named(name: str, file: str, tmp_path: Path) -> None:
    root = put(open_store(str(tmp_path)), {each: text for each, text in GOOD[name].items() if each != file})
    with pytest.raises(BadLabels, match=f"{file} is missing"):
        read_release(root)
