"""Reader of VERI-Wild's training list and test lists, and of the lists of VERI-Wild 2.0.

    train_test_split/vehicle_info.txt           vehicle/image;camera;time;model;type;colour, after a header
    train_test_split/test_3000_id_query.txt     probes of the small list; older copies: test_3000_query.txt
    train_test_split/test_3000_id.txt           its gallery (test_3000.txt); 5000 and 10000: medium and large
    train_test_split/train_list_start0.txt      training images; older copies: train_list.txt
    images/<vehicle>/<image>.jpg                the images
    test_split_V2/{All,A,B}_{query,gallery}.txt VERI-Wild 2.0; some copies have test_split/

A line is vehicle/image, with or without .jpg and followed by a number of the vehicle and the camera in the
release of today. The second number of the training list counts from 0 and is no vehicle: the path is. Some
copies have the lists at the top. vehicle_info.txt is UTF-8 or GBK, the models' names are Chinese.
A line of VERI-Wild 2.0 is path, vehicle, camera; the path is relative to the release or to query/, gallery/.
Source: the releases (Lou et al., CVPR 2019; Bai et al., TPAMI 2021) as fast-reid and MBR (Almeida et al.,
ITSC 2023) read them.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from clvr_model.datasets.labelled import NO_ATTRIBUTES, UNKNOWN_MODEL, Attributes, LabeledImages, TrainingList
from clvr_model.datasets.test_lists import TestList, first_line, lines_of
from infra.errors import BadLabels

if TYPE_CHECKING:
    from infra.store import Store

SIZES: Final = (3000, 5000, 10000)
_FOLDERS: Final = ("train_test_split/", "")
_INFO: Final = "vehicle_info.txt"
_TRAINING: Final = ("train_list.txt", "train_list_start0.txt")
_GALLERY: Final = ("test_{}_id.txt", "test_{}.txt")
_PROBES: Final = ("test_{}_id_query.txt", "test_{}_query.txt")
_IMAGES: Final = "images/"
_LINE: Final = re.compile(r"([0-9]{1,9})/([^/\s]+?)(?:\.jpg)?(?:\s+-?[0-9]{1,9}){0,2}")
_ENTRY: Final = re.compile(r"[0-9]{1,9}/[^/]+")

SPLITS_2: Final = ("test_split_V2/", "test_split/")
SETS_2: Final = ("All", "A", "B")
_LINE_2: Final = re.compile(r"(\S+\.(?:jpg|jpeg|png))\s+([0-9]{1,9})(?:\s+([0-9]{1,9}))?", re.I)


@dataclass(frozen=True, slots=True)
class _Info:
    camera: str = ""
    attributes: Attributes = NO_ATTRIBUTES


def is_veri_wild(store: "Store") -> bool:
    """Whether vehicle_info.txt, or a list whose name or folder no other release has, is there."""
    names = (_INFO, _TRAINING[1], *(form.format(size) for form in _PROBES for size in SIZES))
    if _find(store, names) is not None:
        return True
    # Vehicle-1M's lists have lines of the same form, but its images are in image/.
    listed = _find(store, _TRAINING)
    has_images = listed is not None and _IMAGES.rstrip("/") in store.folders()
    return has_images and _LINE.fullmatch(first_line(store, listed or "")) is not None


def is_veri_wild_2(store: "Store") -> bool:
    """Whether one of the test lists of VERI-Wild 2.0 is there."""
    return _folder_2(store) is not None


def read_veri_wild(root: str) -> list[TestList]:
    """Read the available test lists, small to large. Raises BadLabels for invalid lines."""
    from infra.store import open_store

    store = open_store(root)
    lists = {size: names for size in SIZES if (names := _names_of(store, size)) is not None}
    if not lists:
        raise BadLabels(f"{store.uri} has none of VERI-Wild's test lists {SIZES}")
    info = _read_info(store, fields=2) if _find(store, (_INFO,)) is not None else {}
    result = []
    for size, (probes, gallery) in lists.items():
        test_list = TestList("veri-wild", f"test_{size}", dataset="VERI-Wild")
        for name, role in ((probes, "probe"), (gallery, "gallery")):
            for where, text in lines_of(store, name):
                image, vehicle = _image_of(where, text)
                known = info.get(image)
                if known is None:
                    numbers = text.split()[1:]
                    if len(numbers) < 2:
                        raise BadLabels(f"{where}: image {image} is not in {_INFO}")
                    known = _Info(camera=numbers[1])
                uri = store.uri_of(f"{_IMAGES}{image}.jpg")
                test_list.add(uri, vehicle, known.camera, role, known.attributes)
        result.append(test_list)
    return result


def read_veri_wild_training(root: str) -> LabeledImages:
    """Read the images of the training list with their models, numbered from 0 in the order of their names.

    All models of vehicle_info.txt are numbered, so the numbers do not depend on the list. An empty model is
    unknown. Raises BadLabels, with the line, for invalid lines and for images not in vehicle_info.txt.
    """
    from infra.store import open_store

    store = open_store(root)
    info = _read_info(store, fields=4)
    names = sorted({known.attributes.model_name for known in info.values()} - {""})
    numbers = {name: number for number, name in enumerate(names)}
    name = _find(store, _TRAINING) or _FOLDERS[0] + _TRAINING[0]
    training = TrainingList()
    for where, text in lines_of(store, name):
        image, vehicle = _image_of(where, text)
        known = info.get(image)
        if known is None:
            raise BadLabels(f"{where}: image {image} is not in {_INFO}")
        model = numbers.get(known.attributes.model_name, UNKNOWN_MODEL)
        uri = store.uri_of(f"{_IMAGES}{image}.jpg")
        training.add(where, uri, model, vehicle, known.camera, known.attributes)
    return training.to_images(dict(enumerate(names)), store.uri_of(name))


def read_veri_wild_2(root: str) -> list[TestList]:
    """Read the available lists of VERI-Wild 2.0: All, A and B. Raises BadLabels for invalid lines."""
    from infra.store import open_store

    store = open_store(root)
    folder = _folder_2(store) or SPLITS_2[0]
    result = []
    for name in SETS_2:
        if store.head(f"{folder}{name}_query.txt") is None:
            continue
        test_list = TestList("veri-wild", name, dataset="VERI-Wild 2.0")
        for kind, role in (("query", "probe"), ("gallery", "gallery")):
            prefix = None
            for where, text in lines_of(store, f"{folder}{name}_{kind}.txt"):
                match = _LINE_2.fullmatch(text)
                if match is None or ".." in match[1].split("/") or match[1].startswith("/"):
                    raise BadLabels(f"{where}: {text[:60]!r} is not 'path vehicle camera'")
                if prefix is None:
                    prefix = _prefix_2(store, kind, match[1])
                test_list.add(store.uri_of(prefix + match[1]), int(match[2]), match[3] or "", role)
        if not all(test_list.camera_ids):
            test_list.protocol = "listed"  # without cameras there is no junk to leave out
        result.append(test_list)
    return result


def _folder_2(store: "Store") -> str | None:
    return next(
        (
            folder
            for folder in SPLITS_2
            for name in SETS_2
            if store.head(f"{folder}{name}_query.txt") is not None
        ),
        None,
    )


def _prefix_2(store: "Store", kind: str, path: str) -> str:
    prefixes = ("", f"{kind}/", f"{kind}/{kind}/", "images/")
    return next((prefix for prefix in prefixes if store.head(prefix + path) is not None), "")


def _find(store: "Store", names: tuple[str, ...]) -> str | None:
    found = (folder + name for folder in _FOLDERS for name in names)
    return next((name for name in found if store.head(name) is not None), None)


def _names_of(store: "Store", size: int) -> tuple[str, str] | None:
    """The probes' and the gallery's file of a size, or None if neither is there."""
    probes = _find(store, tuple(form.format(size) for form in _PROBES))
    gallery = _find(store, tuple(form.format(size) for form in _GALLERY))
    if probes is None and gallery is None:
        return None
    folder = _FOLDERS[0]
    return probes or folder + _PROBES[1].format(size), gallery or folder + _GALLERY[1].format(size)


def _image_of(where: str, text: str) -> tuple[str, int]:
    match = _LINE.fullmatch(text)
    if match is None:
        raise BadLabels(
            f"{where}: {text[:60]!r} is not 'vehicle/image' or 'vehicle/image.jpg vehicle camera'"
        )
    return f"{match[1]}/{match[2]}", int(match[1])


def _read_info(store: "Store", fields: int) -> dict[str, _Info]:
    """Image -> what vehicle_info.txt says; lines need at least `fields` fields."""
    form = "'vehicle/image;camera;…'" if fields < 4 else "'vehicle/image;camera;time;model;…'"
    info: dict[str, _Info] = {}
    name = _find(store, (_INFO,)) or _FOLDERS[0] + _INFO
    for number, (where, text) in enumerate(lines_of(store, name)):
        values = [value.strip() for value in text.split(";")]
        if number == 0 and not _ENTRY.fullmatch(values[0]):
            continue  # the header
        if len(values) < fields or not _ENTRY.fullmatch(values[0]):
            raise BadLabels(f"{where}: {text[:60]!r} is not {form}")
        model, body_type, color = (values[3:6] + [""] * 3)[:3]
        known = Attributes(color=color, body_type=body_type, model_name=model)
        info[values[0].removesuffix(".jpg")] = _Info(values[1], known)
    return info
