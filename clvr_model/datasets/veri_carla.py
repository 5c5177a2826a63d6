"""Reader of the CARLA re-identification dataset in VeRi's folders (VeRi-CARLA), synthetic, of 85 cameras.

    image_train/, image_query/, image_gallery/  20220711212617_24_9.jpg: time, camera, vehicle

There are no lists and no models. Source: the release's README and its training notebook
(github.com/sekilab/VehicleReIdentificationDataset): 50,949 training images of 600 vehicles, 424 probes and
3,823 gallery images of 50. Some public loaders take the second part for the vehicle; the release does not.
"""

import re
from typing import TYPE_CHECKING, Final

from clvr_model.datasets.labelled import UNKNOWN_MODEL, LabeledImages, TrainingList
from clvr_model.datasets.test_lists import TestList
from infra.errors import BadLabels

if TYPE_CHECKING:
    from infra.store import Store

FOLDERS: Final = ("image_train", "image_query", "image_gallery")
NAME: Final = re.compile(r"[0-9]{14}_([0-9]{1,9})_([0-9]{1,9})\.jpg")


def is_veri_carla(store: "Store") -> bool:
    """Whether the first image of a folder is named so."""
    from clvr_model.datasets.label_xml import LABEL_FILES

    if any(store.head(name) is not None for name in LABEL_FILES):
        return False
    for folder in FOLDERS:
        name = next((name for name in _names(store, folder)), "")
        if name:
            return NAME.fullmatch(name) is not None
    return False


def read_veri_carla_training(root: str) -> LabeledImages:
    """Read the training images with vehicles and cameras. Raises BadLabels for other names."""
    from infra.store import open_store

    store = open_store(root)
    training = TrainingList()
    for name in sorted(_names(store, FOLDERS[0])):
        uri, vehicle, camera = _image(store, FOLDERS[0], name)
        training.add(uri, uri, UNKNOWN_MODEL, vehicle, camera)
    return training.to_images({}, store.uri_of(FOLDERS[0]))


def read_veri_carla(root: str) -> TestList:
    """Read probes and gallery. Raises BadLabels for other names and for an empty folder."""
    from infra.store import open_store

    store = open_store(root)
    test_list = TestList("veri", "veri-carla", dataset="VeRi-CARLA")
    for folder, role in (("image_query", "probe"), ("image_gallery", "gallery")):
        names = sorted(_names(store, folder))
        if not names:
            raise BadLabels(f"{store.uri_of(folder)} has no image", remedy="Copy it from the release.")
        for name in names:
            uri, vehicle, camera = _image(store, folder, name)
            test_list.add(uri, vehicle, camera, role)
    return test_list


def _names(store: "Store", folder: str) -> list[str]:
    from infra.store import ObjectInfo, is_hidden

    keys = [listed.key for listed in store.level(folder).objects if isinstance(listed, ObjectInfo)]
    return [key.removeprefix(f"{folder}/") for key in keys if not is_hidden(key) and key.endswith(".jpg")]


def _image(store: "Store", folder: str, name: str) -> tuple[str, int, str]:
    match = NAME.fullmatch(name)
    uri = store.uri_of(f"{folder}/{name}")
    if match is None:
        raise BadLabels(f"{uri} is not named like 20220711212617_24_9.jpg: time, camera, vehicle")
    return uri, int(match[2]), match[1]
