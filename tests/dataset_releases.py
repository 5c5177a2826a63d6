"""Small copies of the public datasets, with the file names, separators, header lines and encodings of each.

Nothing in them is from a dataset: names and numbers are made up.
"""

import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy.io import savemat

from infra.store import Store, open_store

Files = Mapping[str, str | bytes]


def write_release(root: str, files: Files) -> str:
    """Write the files into the folder or the bucket's folder, and return its URI."""
    store: Store = open_store(root)
    for name, content in files.items():
        store.put(name, content if isinstance(content, bytes) else content.encode())
    return store.uri


def mat(compressed: bool = True, **tables: Iterable[Iterable[Any]]) -> bytes:
    """Return a MATLAB 5 file with cell arrays, as MATLAB writes it: compressed since version 7."""
    arrays = {}
    for name, rows in tables.items():
        cells = [list(row) for row in rows]
        array = np.empty((len(cells), len(cells[0])), dtype=object)
        for position in np.ndindex(array.shape):
            cell = cells[position[0]][position[1]]
            array[position] = np.array([[cell]], dtype=np.float64) if isinstance(cell, float | int) else cell
        arrays[name] = array
    file = io.BytesIO()
    savemat(file, arrays, do_compression=compressed)
    return file.getvalue()


def _label_xml(items: str, encoding: str = "gb2312") -> bytes:
    count = items.count("<Item ")
    text = (
        f'<?xml version="1.0" encoding="{encoding}"?>\n<TrainingImages Version="1.0">\n'
        f'<Items number="{count}">\n<!-- 车辆 -->\n{items}</Items>\n</TrainingImages>\n'
    )
    return text.replace("\n", "\r\n").encode("gb2312")


VEHICLEID: Files = {
    "attribute/img2vid.txt": "0000001 7\n0000002 7\n0000003 9\n0000004 20\n0000005 20\n",
    "attribute/model_attr.txt": "7 4\n9 2\n",
    "attribute/model_names.txt": "五菱荣光2008款 2\n大众-朗逸 2006-2011 4\n",
    "attribute/color_attr.txt": "7 0\n20 1\n",
    "attribute/color_names.txt": "black 0\nblue 1\n",
    "train_test_split/train_list.txt": "0000001 7\n0000002 7\n0000003 9\n",
    "train_test_split/test_list_800.txt": "0000004 20\n0000005 20\n",
    "image/0000001.jpg": b"",
}

_VERI_ITEM = (
    '<Item imageName="{0}_{1}_00016450_0.jpg" vehicleID="{0}" cameraID="{1}" colorID="{2}" typeID="{3}"/>\n'
)
VERI: Files = {
    "train_label.xml": _label_xml(
        _VERI_ITEM.format("0001", "c001", 7, 5)
        + _VERI_ITEM.format("0003", "c002", 7, 0)
        + _VERI_ITEM.format("0004", "c002", 1, 9)
    ),
    "test_label.xml": _label_xml(
        _VERI_ITEM.format("0002", "c002", 4, 2) + _VERI_ITEM.format("0002", "c003", 4, 2)
    ),
    "name_query.txt": "0002_c002_00016450_0.jpg\r\n",
    "name_test.txt": "0002_c002_00016450_0.jpg\r\n0002_c003_00016450_0.jpg\r\n",
    "test_track.txt": "0002_c002_00016450_0.jpg 0002_c002_00016455_0.jpg \r\n0002_c003_00016450_0.jpg \r\n",
    "image_train/0001_c001_00016450_0.jpg": b"",
    "image_test/0002_c002_00016450_0.jpg": b"",
    "image_query/0002_c002_00016450_0.jpg": b"",
}

_VEHICLEX_ITEM = (
    '\t\t<Item typeID="{}" imageName="{}" cameraID="c001" vehicleID="0001" colorID="{}" '
    'orientation="200.4" lightInt="1.4" lightDir="64.1" camHei="4.9" camDis="9.3"/>\n'
)
VEHICLEX: Files = {
    "train_label.xml": '<?xml version="1.0" encoding="utf-8"?>\n<TrainingImages Version="1.0">\n'
    '\t<Items number="-">\n'
    + _VEHICLEX_ITEM.format(0, "00001_c001_1.jpg", 11)
    + _VEHICLEX_ITEM.format(10, "00002_c006_33.jpg", 0)
    + "\t</Items>\n</TrainingImages>\n",
    "sys_image_train/00001_c001_1.jpg": b"",
}

AI_CITY: Files = {
    "train_label.xml": _label_xml(
        '<Item imageName="000001.jpg" vehicleID="001" cameraID="c036"/>\n'
        '<Item imageName="000002.jpg" vehicleID="441" cameraID="c043"/>\n'
    ),
    "train_track.txt": "000001.jpg \n000002.jpg \n",
    "query_label.xml": _label_xml('<Item imageName="000001.jpg" cameraID="c006"/>\n'),
    "test_label.xml": _label_xml('<Item imageName="000001.jpg" cameraID="c007"/>\n'),
    "name_query.txt": "000001.jpg\n",
    "name_test.txt": "000001.jpg\n",
    "image_train/000001.jpg": b"",
    "image_test/000001.jpg": b"",
    "image_query/000001.jpg": b"",
}

VERI_CARLA: Files = {
    "image_train/20220711212617_24_9.jpg": b"",
    "image_train/20220711212618_25_9.jpg": b"",
    "image_query/20220711212617_1_601.jpg": b"",
    "image_gallery/20220711212619_2_601.jpg": b"",
}

WILD_INFO = (
    "id/image;Camera ID;Time;Model;Type;Color\n00001/000001;12;2018-03-11 10:39:27;大众 朗逸;sedan;white\n"
    "00001/000002;7;2018-03-11 10:39:27;大众 朗逸;sedan;white\n"
    "00002/000003;7;2018-03-11 10:39:27;Audi A6;suv;black\n"
    "00002/000004;7;2018-03-11 10:39:27;;suv;black\n"
)
VERI_WILD_OLD: Files = {
    "train_test_split/vehicle_info.txt": WILD_INFO,
    "train_test_split/train_list.txt": "00001/000001\n00002/000003\n00002/000004\n",
    "train_test_split/test_3000_query.txt": "00001/000001\n",
    "train_test_split/test_3000.txt": "00001/000002\n00002/000003\n",
    "images/00001/000001.jpg": b"",
}
VERI_WILD: Files = {
    "train_test_split/vehicle_info.txt": WILD_INFO.encode("gbk"),
    "train_test_split/train_list_start0.txt": "00001/000001.jpg 0 12\n00002/000003.jpg 1 7\n"
    "00002/000004.jpg 1 7\n",
    "train_test_split/test_3000_id_query.txt": "00001/000001.jpg 1 12\n",
    "train_test_split/test_3000_id.txt": "00001/000002.jpg 1 7\n00002/000003.jpg 2 7\n",
    "train_test_split/test_10000_id_query.txt": "00001/000002.jpg 1 7\n",
    "train_test_split/test_10000_id.txt": "00001/000001.jpg 1 12\n",
    "images/00001/000001.jpg": b"",
}
VERI_WILD_TOP: Files = {name.removeprefix("train_test_split/"): text for name, text in VERI_WILD.items()}

VERI_WILD_2: Files = {
    **{f"test_split_V2/{name}_query.txt": "query_final/a1.jpg 40001 3\n" for name in ("All", "A", "B")},
    **{
        f"test_split_V2/{name}_gallery.txt": "gallery_final/b1.jpg 40001 4\ngallery_final/b2.jpg 40002 4\n"
        for name in ("All", "A", "B")
    },
    "query/query_final/a1.jpg": b"",
    "gallery/gallery_final/b1.jpg": b"",
}

VEHICLE_1M: Files = {
    "train-test-split/train_list.txt": "000001/000001.jpg 1 12\n000001/000002.jpg 1 12\n"
    "000002/000003.jpg 2 399\n",
    "train-test-split/test_1000.txt": "050001/844572.jpg 50001 12\n050001/844573.jpg 50001 12\n",
    "train-test-split/test_3000.txt": "050001/844572.jpg 50001 12\n050002/844580.jpg 50002 7\n",
    "image/000001/000001.jpg": b"",
}

PKU_VD: Files = {
    "train_test/trainlist.txt": "0000001 1 1001 3\n0000002 1 1001 3\n0000003 2 7 -1\n",
    "query_ref/querylist.txt": "0000010 90001 5 1\n",
    "query_ref/small_set.txt": "0000011 90001 5 1\n0000012 90002 5 2\n",
    "query_ref/large_set.txt": "0000011 90001 5 1\n0000012 90002 5 2\n0000013 90003 6 2\n",
    "image/0000001.jpg": b"",
}

WEB = "data/train_test_split/classification/train.txt"
COMPCARS: Files = {
    WEB: "2/1/2014/3ac218c0c6c378.jpg\n2/3/unknown/b.jpg\n1/2/2012/c.jpg\n",
    "data/train_test_split/classification/test.txt": "2/1/2014/z.jpg\n",
    "data/image/2/1/2014/3ac218c0c6c378.jpg": b"",
    "data/label/2/1/2014/3ac218c0c6c378.txt": "4\n1\n119 170 821 559\n",
    "data/label/2/3/unknown/b.txt": "-1\n1\n1 1 900 600\n",
    "data/misc/make_model_name.mat": mat(
        make_names=[["ABT"], ["Audi"]], model_names=[["Audi A3 hatchback"], ["R8"], [""]]
    ),
    "data/misc/car_type.mat": mat(types=[["MPV", "SUV", "sedan", "hatchback"]]),
    "data/misc/attributes.txt": "model_id maximum_speed displacement door_number seat_number type\n"
    "1 235 1.8 5 5 4\n2 301 4.2 2 2 0\n3 0 0 0 0 3\n",
    "sv_data/train_surveillance.txt": "1/d5dcefddcde927.jpg\n2/b.jpg\n2/c.jpg\n",
    "sv_data/test_surveillance.txt": "1/t.jpg\n",
    "sv_data/sv_make_model_name.mat": mat(
        sv_make_model_name=[["Audi", "Audi Q5", 3.0], ["BMW", "3 Series", -1.0]]
    ),
    "sv_data/color_list.mat": mat(
        color_list=[["1/d5dcefddcde927.jpg", 0.0], ["2/b.jpg", -1.0], ["2/c.jpg", 9.0]]
    ),
    "sv_data/image/1/d5dcefddcde927.jpg": b"",
}

BOXCARS: Files = {
    "json_data/dataset.json": json.dumps(
        {
            "cameras": {"4": {"pp": [1, 2]}},
            "samples": [
                {
                    "annotation": "skoda octavia combi mk1",
                    "camera": 4,
                    "to_camera": True,
                    "instances": [
                        {"path": "uvoz/1/000001_000.png", "2DBB": [30, 30, 51, 36], "instance_id": 0},
                        {"path": "uvoz/1/000001_001.png", "2DBB": [30, 30, 51, 36], "instance_id": 1},
                    ],
                },
                {
                    "annotation": "ford mondeo sedan mk3",
                    "camera": 5,
                    "to_camera": False,
                    "instances": [{"path": "uvoz/2/000002_000.png", "instance_id": 0}],
                },
            ],
        }
    ),
    "json_data/classification_splits.json": json.dumps(
        {
            "hard": {
                "train": [[0, 1]],
                "validation": [],
                "test": [[1, 0]],
                "types_mapping": {"ford mondeo sedan mk3": 0, "skoda octavia combi mk1": 1},
            }
        }
    ),
    "dataset.pkl": b"\x80\x02}q\x00.",
    "images/uvoz/1/000001_000.png": b"",
}

VRIC: Files = {
    "vric_train.txt": "a.jpg 3 15\nb.jpg 3 16\n",
    "vric_probe.txt": "c.jpg 9 15\n",
    "vric_gallery.txt": "d.jpg 9 16\n",
    "train_images/a.jpg": b"",
    "probe_images/c.jpg": b"",
    "gallery_images/d.jpg": b"",
}


def below(folder: str, files: Files) -> Files:
    """Return the files of one folder of a copy, as if it were the root."""
    return {name.removeprefix(folder): text for name, text in files.items() if name.startswith(folder)}


LAYOUTS: dict[str, tuple[str, Files]] = {
    "VehicleID": ("VehicleID", VEHICLEID),
    "VeRi-776": ("VeRi-776", VERI),
    "VehicleX": ("VehicleX", VEHICLEX),
    "AI City": ("AI City", AI_CITY),
    "VeRi-CARLA": ("VeRi-CARLA", VERI_CARLA),
    "VERI-Wild, fast-reid's names": ("VERI-Wild", VERI_WILD_OLD),
    "VERI-Wild": ("VERI-Wild", VERI_WILD),
    "VERI-Wild, lists at the top": ("VERI-Wild", VERI_WILD_TOP),
    "VERI-Wild 2.0": ("VERI-Wild 2.0", VERI_WILD_2),
    "Vehicle-1M": ("Vehicle-1M", VEHICLE_1M),
    "Vehicle-1M, other folder": (
        "Vehicle-1M",
        {name.replace("train-test-split", "train_test_split"): text for name, text in VEHICLE_1M.items()},
    ),
    "PKU-VD": ("PKU-VD", PKU_VD),
    "CompCars": ("CompCars", COMPCARS),
    "CompCars, web part": ("CompCars", below("data/", COMPCARS)),
    "CompCars, surveillance part": ("CompCars", below("sv_data/", COMPCARS)),
    "BoxCars116k": ("BoxCars116k", BOXCARS),
    "VRIC": ("VRIC", VRIC),
}
"""Layout -> the release that it is, and its files."""
