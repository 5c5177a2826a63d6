"""VeRi-776, VERI-Wild and VRIC: their lists give probes, gallery, vehicles, cameras; bad lines are named."""

from pathlib import Path

import pytest

from clvr_model.datasets.veri import read_veri
from clvr_model.datasets.veri_wild import read_veri_wild
from clvr_model.datasets.vric import read_vric
from infra.errors import BadLabels


def write(root: Path, **files: str) -> str:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_txt", ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


def test_veri_reads_vehicle_and_camera_from_the_names(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        name_query_txt="0002_c002_00030600_0.jpg\n",
        name_test_txt="0002_c002_00030600_0.jpg\n0002_c003_00084280_0.jpg\n\n",
    )
    test_list = read_veri(root)
    assert (test_list.protocol, test_list.roles) == ("veri", ["probe", "gallery", "gallery"])
    assert test_list.uris[0] == f"{root}/image_query/0002_c002_00030600_0.jpg"
    assert (test_list.vehicle_ids, test_list.camera_ids) == ([2, 2, 2], ["002", "002", "003"])


def test_veri_wild_reads_every_available_list(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        train_test_split__vehicle_info_txt="id/image;Camera ID;Time;Model;Type;Color\n"
        "00001/000001;12;2018-03-11 10:39:27;a;b;c\n00001/000002;7;2018-03-11 10:39:27;a;b;c\n",
        train_test_split__test_3000_query_txt="00001/000001\n",
        train_test_split__test_3000_txt="00001/000002\n",
        train_test_split__test_10000_query_txt="00001/000002\n",
        train_test_split__test_10000_txt="00001/000001\n",
    )
    small, large = read_veri_wild(root)
    assert (small.name, large.name) == ("test_3000", "test_10000")
    assert small.uris == [f"{root}/images/00001/000001.jpg", f"{root}/images/00001/000002.jpg"]
    assert (small.vehicle_ids, small.camera_ids, small.roles) == ([1, 1], ["12", "7"], ["probe", "gallery"])


def test_vric_reads_image_vehicle_and_camera(tmp_path: Path) -> None:
    root = write(tmp_path, vric_probe_txt="a.jpg 3 15\n", vric_gallery_txt="b.jpg 3 16\n")
    test_list = read_vric(root)
    assert test_list.uris == [f"{root}/probe_images/a.jpg", f"{root}/gallery_images/b.jpg"]
    assert (test_list.vehicle_ids, test_list.camera_ids) == ([3, 3], ["15", "16"])


def test_bad_lines_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadLabels, match=r"name_query\.txt is missing"):
        read_veri(str(tmp_path))
    with pytest.raises(BadLabels, match=r"name_query.txt, line 2: 'nonsense'"):
        read_veri(write(tmp_path, name_query_txt="0002_c002_00030600_0.jpg\nnonsense\n", name_test_txt=""))
    with pytest.raises(BadLabels, match=r"vric_probe.txt, line 1"):
        read_vric(write(tmp_path, vric_probe_txt="a.jpg 3\n"))
    with pytest.raises(BadLabels, match="none of VERI-Wild's test lists"):
        read_veri_wild(str(tmp_path))
    write(tmp_path, train_test_split__vehicle_info_txt="header\n", train_test_split__test_3000_txt="1/2\n")
    with pytest.raises(BadLabels, match=r"test_3000.txt, line 1: image 1/2 is not in"):
        read_veri_wild(write(tmp_path, train_test_split__test_3000_query_txt=""))
