"""Reader of Vehicle-1M: 936,051 images of 55,527 vehicles and 400 models.

    train-test-split/train_list.txt         path, vehicle, model, separated by spaces: 844,571 images
    train-test-split/test_1000.txt          the small list; 2000 and 3000 are medium and large
    image/000001/000001.jpg                 the images; some copies have image_jpg/

Some copies have train_test_split/, or the lists at the top. The release names no columns. Loaders read the
first two; the third is the model if each vehicle has one of them, which no number of a camera has. The lists
give no roles: one image of each vehicle is drawn, as for VehicleID.
Source: the release (Guo et al., AAAI 2018) as forks of fast-reid and of torchreid read it.
"""

import re
from typing import TYPE_CHECKING, Final

from clvr_model.datasets.labelled import UNKNOWN_MODEL, LabeledImages, TrainingList
from clvr_model.datasets.test_lists import TestList, first_line, lines_of
from infra.errors import BadLabels

if TYPE_CHECKING:
    from infra.store import Store

FOLDERS: Final = ("train-test-split/", "train_test_split/", "")
_TRAINING: Final = "train_list.txt"
_IMAGES: Final = ("image/", "image_jpg/")
_LINE: Final = re.compile(r"([0-9]{1,9}/[^/\s]+?)(?:\.jpg)?\s+([0-9]{1,9})(?:\s+([0-9]{1,9}))?(?:\s+\S+)*")
_TEST: Final = re.compile(r"(?:.*/)?(test_(?:1000|2000|3000|full))\.txt")


def is_vehicle_1m(store: "Store") -> bool:
    """Whether a list of its form is there, and none of VERI-Wild's files, whose lines have the same form."""
    from clvr_model.datasets.veri_wild import is_veri_wild

    names = [folder + _TRAINING for folder in FOLDERS]
    names += [f"{folder}test_1000.txt" for folder in FOLDERS]
    return any(_LINE.fullmatch(first_line(store, name)) for name in names) and not is_veri_wild(store)


def read_vehicle_1m_training(root: str) -> LabeledImages:
    """Read the training images with the model numbers of the third column.

    Raises BadLabels, with the line, for invalid lines, and for a vehicle with two numbers in that column.
    """
    from infra.store import open_store

    store = open_store(root)
    name = next((each + _TRAINING for each in FOLDERS if store.head(each + _TRAINING) is not None), "")
    name = name or FOLDERS[0] + _TRAINING
    images: str | None = None
    models: dict[int, int] = {}
    training = TrainingList()
    for where, text in lines_of(store, name):
        path, vehicle, model = _fields(where, text)
        images = images or _images_folder(store, path)
        if models.setdefault(vehicle, model) != model:
            raise BadLabels(
                f"{where}: vehicle {vehicle} has {model} in the third column, but {models[vehicle]} in an "
                "earlier line, so the column is not the model",
                remedy="Give a table with your model_id.",
            )
        training.add(where, store.uri_of(images + path), model, vehicle)
    known = {model: f"model {model}" for model in sorted({*models.values()} - {UNKNOWN_MODEL})}
    return training.to_images(known, store.uri_of(name))


def read_vehicle_1m(root: str) -> list[TestList]:
    """Read the available test lists, small to large. Raises BadLabels without one and for invalid lines."""
    from infra.store import open_store

    store = open_store(root)
    names: dict[str, str] = {}
    for folder in FOLDERS:
        for listed in store.level(folder.rstrip("/")).objects:
            match = _TEST.fullmatch(getattr(listed, "key", ""))
            if match is not None:
                names.setdefault(match[1], match[0])
    if not names:
        raise BadLabels(f"{store.uri} has none of Vehicle-1M's test lists, such as test_1000.txt")
    result = []
    for title, name in sorted(names.items()):
        test_list = TestList("vehicleid-paper", title, dataset="Vehicle-1M")
        images: str | None = None
        for where, text in lines_of(store, name):
            path, vehicle, _ = _fields(where, text)
            images = images or _images_folder(store, path)
            test_list.add(store.uri_of(images + path), vehicle, "", "")
        result.append(test_list)
    return result


def _fields(where: str, text: str) -> tuple[str, int, int]:
    match = _LINE.fullmatch(text)
    if match is None:
        raise BadLabels(f"{where}: {text[:60]!r} is not 'vehicle/image.jpg vehicle model'")
    return f"{match[1]}.jpg", int(match[2]), int(match[3]) if match[3] else UNKNOWN_MODEL


def _images_folder(store: "Store", path: str) -> str:
    return next((folder for folder in _IMAGES if store.head(folder + path) is not None), _IMAGES[0])
