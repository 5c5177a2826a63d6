"""Reader of VeRi-776's training list and test lists.

    name_query.txt, name_test.txt       file names such as 0002_c002_00030600_0.jpg: vehicle, camera, time
    train_label.xml                     <Item imageName= vehicleID= cameraID= colorID= typeID=/> an image
    image_query/, image_test/, image_train/     the images

Source: the VeRi release (Liu et al., ECCV 2016). The probes are test images too; the
same-camera rule excludes each from its own results. VeRi has no models: its nine body types relocation them.
"""

import re
from typing import Any, Final
from xml.parsers import expat

from clvr_model.datasets.labelled import UNKNOWN_MODEL, LabeledImages, TrainingList
from clvr_model.datasets.test_lists import TestList, lines_of
from infra.errors import BadLabels, ObjectMissing

_NAME: Final = re.compile(r"([0-9]{1,9})_c([0-9]{1,9})_.*\.jpg")
_LABELS: Final = "train_label.xml"
# Numbered from 1. Older copies have 0, no type, for three vehicles.
TYPES: Final = ("sedan", "suv", "van", "hatchback", "mpv", "pickup", "bus", "truck", "estate")


def read_veri(root: str) -> TestList:
    """Read the 1,678 probes and 11,579 test images. Raises BadLabels for an invalid name."""
    from infra.store import open_store

    store = open_store(root)
    test_list = TestList("veri", "veri-776")
    for name, folder, role in (
        ("name_query.txt", "image_query", "probe"),
        ("name_test.txt", "image_test", "gallery"),
    ):
        for where, text in lines_of(store, name):
            match = _NAME.fullmatch(text)
            if match is None:
                raise BadLabels(f"{where}: {text[:60]!r} is not a name like 0002_c002_00030600_0.jpg")
            test_list.add(store.uri_of(f"{folder}/{text}"), int(match[1]), match[2], role)
    return test_list


def read_veri_training(root: str) -> LabeledImages:
    """Read the 37,778 training images, with their body type as the model; type 0 is unknown.

    Raises BadLabels, with the line, for invalid XML and for invalid items.
    """
    from infra.store import open_store

    store = open_store(root)
    location = store.uri_of(_LABELS)
    try:
        data = store.get(_LABELS)
    except ObjectMissing:
        raise BadLabels(f"{location} is missing", remedy="Copy it from the release.") from None
    training = TrainingList()
    # expat does not support GB2312, which the file declares, so the file is decoded first.
    parser = expat.ParserCreate("utf-8")

    def element(name: str, attributes: dict[str, str]) -> None:
        where = f"{location}, line {parser.CurrentLineNumber}"
        if name != "Item":
            return
        match = _NAME.fullmatch(attributes.get("imageName", ""))
        kind = attributes.get("typeID", "")
        if match is None:
            raise BadLabels(f"{where}: an item without a name like 0002_c002_00030600_0.jpg")
        if not kind.isdecimal() or int(kind) > len(TYPES):
            raise BadLabels(f"{where}: typeID is {kind[:20]!r}, not a number from 0 to {len(TYPES)}")
        uri = store.uri_of(f"image_train/{match[0]}")
        training.add(where, uri, int(kind) or UNKNOWN_MODEL, int(match[1]), match[2])

    def refuse_doctype(*_: Any) -> None:  # its entities could expand without limit
        raise BadLabels(f"{location}, line {parser.CurrentLineNumber}: a document type is not allowed")

    parser.StartElementHandler = element
    parser.StartDoctypeDeclHandler = refuse_doctype
    try:
        parser.Parse(_decoded(data, location).encode(), True)
    except expat.ExpatError as error:
        raise BadLabels(f"{location}, line {error.lineno}: {expat.ErrorString(error.code)}") from None
    return training.to_images(dict(enumerate(TYPES, start=1)), location)


def _decoded(data: bytes, location: str) -> str:
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise BadLabels(f"{location} is neither UTF-8 nor GB2312")
