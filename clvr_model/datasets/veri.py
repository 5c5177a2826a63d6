"""Reader of VeRi-776's training list and test lists.

    name_query.txt, name_test.txt       file names such as 0002_c002_00030600_0.jpg: vehicle, camera, time
    train_label.xml                     <Item imageName= vehicleID= cameraID= colorID= typeID=/> an image
    image_query/, image_test/, image_train/     the images

Source: the VeRi release (Liu et al., ECCV 2016). The queries are among the test images as well; the rule of
the same camera keeps them from finding themselves. VeRi knows no models: its nine body types stand in.
"""

import re
from typing import Any, Final
from xml.parsers import expat

from clvr_model.datasets.labelled import UNKNOWN_MODEL, LabeledImages, TrainingList
from clvr_model.datasets.test_lists import TestList, lines_of
from infra.errors import BadLabels, ObjectMissing

_NAME: Final = re.compile(r"([0-9]{1,9})_c([0-9]{1,9})_.*\.jpg")
_LABELS: Final = "train_label.xml"
# From 1; the release says that the 0 of three vehicles in older copies stands for no type.
TYPES: Final = ("sedan", "suv", "van", "hatchback", "mpv", "pickup", "bus", "truck", "estate")


def read_veri(root: str) -> TestList:
    """The 1,678 queries and 11,579 test images. Raises BadLabels for a name that is not VeRi's."""
    from infra.store import open_store

    store = open_store(root)
    found = TestList("veri", "veri-776")
    for name, folder, role in (
        ("name_query.txt", "image_query", "probe"),
        ("name_test.txt", "image_test", "gallery"),
    ):
        for where, text in lines_of(store, name):
            match = _NAME.fullmatch(text)
            if match is None:
                raise BadLabels(f"{where}: {text[:60]!r} is no name like 0002_c002_00030600_0.jpg")
            found.add(store.uri_of(f"{folder}/{text}"), int(match[1]), match[2], role)
    return found


def read_veri_training(root: str) -> LabeledImages:
    """The 37,778 training images, with their body type as the model; type 0 is unknown.

    Raises BadLabels, with the line, for a file that is no XML and for an item that is not VeRi's.
    """
    from infra.store import open_store

    store = open_store(root)
    place = store.uri_of(_LABELS)
    try:
        data = store.get(_LABELS)
    except ObjectMissing:
        raise BadLabels(f"{place} is missing", remedy="Copy it from the release.") from None
    found = TrainingList()
    # The encoding that the file declares, GB2312, is none that expat knows: it is read here instead.
    parser = expat.ParserCreate("utf-8")

    def element(name: str, facts: dict[str, str]) -> None:
        where = f"{place}, line {parser.CurrentLineNumber}"
        if name != "Item":
            return
        match = _NAME.fullmatch(facts.get("imageName", ""))
        kind = facts.get("typeID", "")
        if match is None:
            raise BadLabels(f"{where}: an item without a name like 0002_c002_00030600_0.jpg")
        if not kind.isdecimal() or int(kind) > len(TYPES):
            raise BadLabels(f"{where}: typeID is {kind[:20]!r}, not a number from 0 to {len(TYPES)}")
        uri = store.uri_of(f"image_train/{match[0]}")
        found.add(where, uri, int(kind) or UNKNOWN_MODEL, int(match[1]), match[2])

    def no_types(*_: Any) -> None:  # where entities would be declared that blow up
        raise BadLabels(f"{place}, line {parser.CurrentLineNumber}: a document type is not allowed here")

    parser.StartElementHandler = element
    parser.StartDoctypeDeclHandler = no_types
    try:
        parser.Parse(_decoded(data, place).encode(), True)
    except expat.ExpatError as error:
        raise BadLabels(f"{place}, line {error.lineno}: {expat.ErrorString(error.code)}") from None
    return found.to_images(dict(enumerate(TYPES, start=1)), place)


def _decoded(data: bytes, place: str) -> str:
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise BadLabels(f"{place} is neither UTF-8 nor GB2312")
