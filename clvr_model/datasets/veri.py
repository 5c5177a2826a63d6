"""Reader of VeRi-776's training list and test lists.

    name_query.txt, name_test.txt       file names such as 0002_c002_00030600_0.jpg: vehicle, camera, time
    train_label.xml, test_label.xml     <Item imageName= vehicleID= cameraID= colorID= typeID=/> an image
    test_track.txt, test_track_VeRi.txt the images of a track a line; the second begins with the track's name
    image_query/, image_test/, image_train/     the images

Source: the VeRi release (Liu et al., ECCV 2016) and its ReadMe.txt. The probes are test images too; the
same-camera rule excludes each from its own results. VeRi has no models: its nine body types replace them.
"""

import re
from typing import TYPE_CHECKING, Final

from clvr_model.datasets.label_xml import Item, number_of, read_items
from clvr_model.datasets.labelled import NO_ATTRIBUTES, UNKNOWN_MODEL, Attributes, LabeledImages, TrainingList
from clvr_model.datasets.test_lists import TestList, first_line, lines_of, tracks_of
from infra.errors import BadLabels

if TYPE_CHECKING:
    from infra.store import Store

NAME: Final = re.compile(r"([0-9]{1,9})_c([0-9]{1,9})_[^_/]+_.*\.jpg")
LABELS: Final = "train_label.xml"
_TEST_LABELS: Final = "test_label.xml"
_TRACKS: Final = ("test_track_VeRi.txt", "test_track.txt")
# Numbered from 1. Older copies have 0, no type, for three vehicles.
TYPES: Final = ("sedan", "suv", "van", "hatchback", "mpv", "pickup", "bus", "truck", "estate")
COLORS: Final = ("yellow", "orange", "green", "gray", "red", "blue", "white", "golden", "brown", "black")


def is_veri(store: "Store") -> bool:
    """Whether the names in the lists or the labels have VeRi's four parts: vehicle, camera, time, number."""
    if store.head(LABELS) is not None:
        items = read_items(store, LABELS, limit=1)
        # Without an item there is nothing to tell it by, and its reader reports that.
        return not items or NAME.fullmatch(items[0][1].get("imageName", "")) is not None
    return NAME.fullmatch(first_line(store, "name_query.txt")) is not None


def read_veri(root: str) -> TestList:
    """Read the 1,678 probes and 11,579 test images. Raises BadLabels for an invalid name."""
    from infra.store import open_store

    store = open_store(root)
    test_list = TestList("veri", "veri-776", dataset="VeRi-776")
    attributes = _test_attributes(store)
    for name, folder, role in (
        ("name_query.txt", "image_query", "probe"),
        ("name_test.txt", "image_test", "gallery"),
    ):
        for where, text in lines_of(store, name):
            match = NAME.fullmatch(text)
            if match is None:
                raise BadLabels(f"{where}: {text[:60]!r} is not a name like 0002_c002_00030600_0.jpg")
            known = attributes.get(text, NO_ATTRIBUTES)
            test_list.add(store.uri_of(f"{folder}/{text}"), int(match[1]), match[2], role, known)
    return test_list


def read_veri_training(root: str) -> LabeledImages:
    """Read the 37,778 training images, with their body type as the model; type 0 is unknown.

    Raises BadLabels, with the line, for invalid XML and for invalid items.
    """
    from infra.store import open_store

    store = open_store(root)
    training = TrainingList()
    for item in read_items(store, LABELS):
        where, fields = item
        match = NAME.fullmatch(fields.get("imageName", ""))
        if match is None:
            raise BadLabels(f"{where}: an item without a name like 0002_c002_00030600_0.jpg")
        kind = _type_of(item)
        training.add(
            where,
            store.uri_of(f"image_train/{match[0]}"),
            kind or UNKNOWN_MODEL,
            int(match[1]),
            match[2],
            Attributes(color=_color_of(item), body_type=TYPES[kind - 1] if kind else ""),
        )
    return training.to_images(dict(enumerate(TYPES, start=1)), store.uri_of(LABELS))


def _type_of(item: Item) -> int:
    return number_of(item, "typeID", lambda kind: kind <= len(TYPES), f"a number from 0 to {len(TYPES)}")


def _color_of(item: Item) -> str:
    if "colorID" not in item[1]:
        return ""
    expected = f"a number from 0 to {len(COLORS)}"
    color = number_of(item, "colorID", lambda color: color <= len(COLORS), expected)
    return COLORS[color - 1] if color else ""


def _test_attributes(store: "Store") -> dict[str, Attributes]:
    """Image -> colour, type and track of the test images, as far as the copy has them."""
    tracks = tracks_of(store, next((name for name in _TRACKS if store.head(name) is not None), _TRACKS[0]))
    known = {image: Attributes(track=track) for image, track in tracks.items()}
    for item in read_items(store, _TEST_LABELS) if store.head(_TEST_LABELS) is not None else []:
        name, kind = item[1].get("imageName", ""), _type_of(item) if "typeID" in item[1] else 0
        known[name] = Attributes(
            color=_color_of(item), body_type=TYPES[kind - 1] if kind else "", track=tracks.get(name, "")
        )
    return known
