"""Reader of VRIC: its training list, which has vehicles and cameras but no models, and its test lists.

    vric_train.txt, vric_probe.txt, vric_gallery.txt    image, vehicle and camera, separated by spaces
    train_images/, probe_images/, gallery_images/       the images

Source: the VRIC release (Kanaci et al., GCPR 2018) and its README: 54,808 training images of 2,811 vehicles,
2,811 others with one image each way.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from clvr_model.datasets.labelled import UNKNOWN_MODEL, LabeledImages, TrainingList
from clvr_model.datasets.test_lists import TestList, lines_of
from infra.errors import BadLabels

if TYPE_CHECKING:
    from infra.store import Store

TRAINING: Final = "vric_train.txt"


def is_vric(store: "Store") -> bool:
    """Whether one of its lists is there."""
    return any(store.head(f"vric_{part}.txt") is not None for part in ("train", "probe", "gallery"))


def read_vric(root: str) -> TestList:
    """Read probes and gallery. Raises BadLabels for lines that are not 'image vehicle camera'."""
    from infra.store import open_store

    store = open_store(root)
    test_list = TestList("vric", "vric", dataset="VRIC")
    for role in ("probe", "gallery"):
        for _, image, vehicle, camera in _entries(store, f"vric_{role}.txt"):
            test_list.add(store.uri_of(f"{role}_images/{image}"), vehicle, camera, role)
    return test_list


def read_vric_training(root: str) -> LabeledImages:
    """Read the training images with vehicles and cameras; models are unknown. Raises as `read_vric`."""
    from infra.store import open_store

    store = open_store(root)
    training = TrainingList()
    for where, image, vehicle, camera in _entries(store, TRAINING):
        training.add(where, store.uri_of(f"train_images/{image}"), UNKNOWN_MODEL, vehicle, camera)
    return training.to_images({}, store.uri_of(TRAINING))


def _entries(store: "Store", name: str) -> Iterator[tuple[str, str, int, str]]:
    for where, text in lines_of(store, name):
        fields = text.split()
        is_name = len(fields) == 3 and "/" not in fields[0]
        if not is_name or not (fields[1].isascii() and fields[1].isdecimal() and len(fields[1]) <= 9):
            raise BadLabels(f"{where}: {text[:60]!r} is not 'image vehicle camera'")
        yield where, fields[0], int(fields[1]), fields[2]
