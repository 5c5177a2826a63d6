"""Reader of AI City's re-identification track, CityFlow-ReID: vehicles and cameras, no models.

    train_label.xml                     <Item imageName="000001.jpg" vehicleID="001" cameraID="c036"/>
    query_label.xml, test_label.xml     the same; the Challenge's copies have no vehicleID in them
    name_query.txt, name_test.txt       the names alone
    train_track.txt, test_track.txt     the images of a track a line
    image_train/, image_query/, image_test/     the images

The Challenge keeps the test vehicles for its own server, so only copies with vehicleID can be evaluated.
Source: CityFlow (Tang et al., CVPR 2019), the Challenge's ReadMe.txt, and public loaders of
its copies of 2019 to 2022.
"""

import re
from typing import TYPE_CHECKING, Final

from clvr_model.datasets.label_xml import Item, number_of, read_items
from clvr_model.datasets.labelled import UNKNOWN_MODEL, Attributes, LabeledImages, TrainingList
from clvr_model.datasets.test_lists import TestList, first_line, tracks_of
from infra.errors import BadLabels

if TYPE_CHECKING:
    from infra.store import Store

LABELS: Final = "train_label.xml"
NAME: Final = re.compile(r"[0-9]{1,9}\.jpg")
_CAMERA: Final = re.compile(r"c([0-9]{1,9})")


def is_ai_city(store: "Store") -> bool:
    """Whether the images are named by a number alone."""
    for name in (LABELS, "query_label.xml"):
        if store.head(name) is not None:
            return any(
                NAME.fullmatch(fields.get("imageName", "")) for _, fields in read_items(store, name, limit=1)
            )
    return NAME.fullmatch(first_line(store, "name_query.txt")) is not None


def read_ai_city_training(root: str) -> LabeledImages:
    """Read the training images with vehicles, cameras and tracks; models are unknown.

    Raises BadLabels, with the line, for invalid XML and for invalid items.
    """
    from infra.store import open_store

    store = open_store(root)
    tracks = tracks_of(store, "train_track.txt")
    training = TrainingList()
    for item in read_items(store, LABELS):
        name, camera = _name_and_camera(item)
        known = Attributes(track=tracks.get(name, ""))
        uri = store.uri_of(f"image_train/{name}")
        training.add(item[0], uri, UNKNOWN_MODEL, _vehicle_of(item), camera, known)
    return training.to_images({}, store.uri_of(LABELS))


def read_ai_city(root: str) -> TestList:
    """Read probes and gallery of a copy whose test labels have vehicles.

    Raises BadLabels without test labels and for test labels without vehicleID.
    """
    from infra.store import open_store

    store = open_store(root)
    test_list = TestList("veri", "cityflow", dataset="AI City")
    tracks = tracks_of(store, "test_track.txt")
    for file, folder, role in (
        ("query_label.xml", "image_query", "probe"),
        ("test_label.xml", "image_test", "gallery"),
    ):
        for item in read_items(store, file):
            if "vehicleID" not in item[1]:
                raise BadLabels(
                    f"{item[0]}: no vehicleID: the AI City Challenge keeps the test vehicles for its server",
                    remedy="Evaluate a table of the training images, or a copy with vehicleID.",
                )
            name, camera = _name_and_camera(item)
            known = Attributes(track=tracks.get(name, "") if role == "gallery" else "")
            test_list.add(store.uri_of(f"{folder}/{name}"), _vehicle_of(item), camera, role, known)
    return test_list


def _vehicle_of(item: Item) -> int:
    return number_of(item, "vehicleID", lambda _: True, "a number")


def _name_and_camera(item: Item) -> tuple[str, str]:
    where, fields = item
    name, camera = fields.get("imageName", ""), _CAMERA.fullmatch(fields.get("cameraID", ""))
    if NAME.fullmatch(name) is None:
        raise BadLabels(f"{where}: an item without a name like 000001.jpg")
    if camera is None:
        raise BadLabels(f"{where}: cameraID is {fields.get('cameraID', '')[:20]!r}, not like c001")
    return name, camera[1]
