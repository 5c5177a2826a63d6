"""Reader of PKU-VD's two parts, VD1 (1,232 models) and VD2 (1,112 models), each in its own folder.

    train_test/trainlist.txt        image, vehicle, model, colour, separated by spaces
    query_ref/querylist.txt         the probes, in the same form
    query_ref/small_set.txt         the small gallery; medium_set.txt and large_set.txt
    image/<image>.jpg               the images

The parts number vehicles and models each for itself: train on one of them. There are no cameras.
Source: the release (Yan et al., ICCV 2017) as two forks of fast-reid read it.
"""

import re
from typing import TYPE_CHECKING, Final

from clvr_model.datasets.labelled import UNKNOWN_MODEL, Attributes, LabeledImages, TrainingList
from clvr_model.datasets.test_lists import TestList, lines_of
from infra.errors import BadLabels

if TYPE_CHECKING:
    from infra.store import Store

TRAINING: Final = "train_test/trainlist.txt"
PROBES: Final = "query_ref/querylist.txt"
SETS: Final = ("small", "medium", "large")
_LINE: Final = re.compile(r"(\w[\w.-]*?)(?:\.jpg)?\s+([0-9]{1,9})\s+(-1|[0-9]{1,9})\s+(\S+)")


def is_pku_vd(store: "Store") -> bool:
    """Whether the training list or the probes are there."""
    return store.head(TRAINING) is not None or store.head(PROBES) is not None


def read_pku_vd_training(root: str) -> LabeledImages:
    """Read the training images with models and colours. Raises BadLabels, with the line."""
    from infra.store import open_store

    store = open_store(root)
    training = TrainingList()
    for where, text in lines_of(store, TRAINING):
        image, vehicle, model, known = _fields(where, text)
        training.add(where, store.uri_of(f"image/{image}.jpg"), model, vehicle, "", known)
    images = training.to_images({}, store.uri_of(TRAINING))
    images.model_names.update({model: f"model {model}" for model in images.classes})
    return images


def read_pku_vd(root: str) -> list[TestList]:
    """Read the probes with each available gallery. Raises BadLabels without one and for invalid lines."""
    from infra.store import open_store

    store = open_store(root)
    sets = [name for name in SETS if store.head(f"query_ref/{name}_set.txt") is not None]
    if not sets:
        raise BadLabels(f"{store.uri} has none of PKU-VD's galleries, such as query_ref/small_set.txt")
    result = []
    for name in sets:
        test_list = TestList("listed", name, dataset="PKU-VD")
        for file, role in ((PROBES, "probe"), (f"query_ref/{name}_set.txt", "gallery")):
            for where, text in lines_of(store, file):
                image, vehicle, _, known = _fields(where, text)
                test_list.add(store.uri_of(f"image/{image}.jpg"), vehicle, "", role, known)
        result.append(test_list)
    return result


def _fields(where: str, text: str) -> tuple[str, int, int, Attributes]:
    match = _LINE.fullmatch(text)
    if match is None:
        raise BadLabels(f"{where}: {text[:60]!r} is not 'image vehicle model colour'")
    model, color = int(match[3]), match[4]
    known = Attributes(
        color="" if color == "-1" else f"color {color}" if color.isdecimal() else color,
        model_name="" if model == UNKNOWN_MODEL else f"model {model}",
    )
    return match[1], int(match[2]), model, known
