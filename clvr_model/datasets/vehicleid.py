"""Reader of PKU VehicleID's layout.

    image/0000001.jpg                           the images
    attribute/img2vid.txt                       image, vehicle
    attribute/model_attr.txt                    vehicle, model (training vehicles only)
    attribute/model_names.txt                   name, model (optional)
    attribute/color_attr.txt                    vehicle, colour (10,086 vehicles; optional)
    attribute/color_names.txt                   name, colour: seven (optional)
    train_test_split/train_list.txt             image, vehicle
    train_test_split/test_list_{800,1600,2400}.txt

Two fields a line, separated by a space. Source: the VehicleID V1.0 release (Liu et al., CVPR 2016).
"""

import re
from typing import TYPE_CHECKING, Final

import numpy as np

from clvr_model.datasets.labelled import UNKNOWN_MODEL, Attributes, LabeledImages
from clvr_model.datasets.test_lists import TestList
from infra.errors import BadLabels, BadSetting, ObjectMissing

if TYPE_CHECKING:
    from infra.store import Store

_IMAGES: Final = "attribute/img2vid.txt"
_MODELS: Final = "attribute/model_attr.txt"
_NAMES: Final = "attribute/model_names.txt"
_COLORS: Final = "attribute/color_attr.txt"
_COLOR_NAMES: Final = "attribute/color_names.txt"
_LISTS: Final = "train_test_split/"
_SPLIT: Final = re.compile(r"train|labelled|test_[0-9]{1,9}")
_DIGITS: Final = re.compile(r"[0-9]{1,18}")


def read_vehicleid(root: str, split: str = "train") -> LabeledImages:
    """Read one split under `root` (a local folder or S3), with VehicleID's own vehicle and model ids.

    - 'train': the images of train_list.txt, 113,346 of 13,164 vehicles by the paper's count; 90,168 of them
      are of vehicles with one of 228 models, the others have an unknown model
    - 'labelled': all images outside of the test lists whose vehicle has a model; the same images as 'train',
      for releases without train_list.txt
    - 'test_800', 'test_1600', 'test_2400' (or any test list there is): its images; their models are unknown

    Raises BadLabels for a missing file, a malformed or repeated line (with its number), and lists that
    contradict img2vid.txt. Does not check that the images exist.
    """
    from infra.store import open_store

    if not _SPLIT.fullmatch(split):
        raise BadSetting(f"split is {split!r}", remedy="Give train, labelled, or test_<n> such as test_800.")
    store = open_store(root)
    store.ensure()
    by_model = split == "labelled"
    images = _labelled_images(store) if by_model else _listed_images(store, _list_name(split))
    models = _attributes(store, _MODELS) if not split.startswith("test_") else _attributes_if_any(store)
    if not split.startswith("test_"):
        known = {image: vehicle for image, vehicle in images.items() if vehicle in models}
        if not known:
            raise BadLabels(f"no image of split {split!r} has a model in {store.uri_of(_MODELS)}")
        images = known if by_model else images
    vehicles = np.fromiter(images.values(), dtype=np.int64, count=len(images))
    colors = _colors_of(store)
    return LabeledImages(
        uris=[store.uri_of(f"image/{image}.jpg") for image in images],
        model_ids=np.array([models.get(int(vehicle), UNKNOWN_MODEL) for vehicle in vehicles], dtype=np.int64),
        vehicle_ids=vehicles,
        model_names=_numbered_names(store, _NAMES),
        colors=[colors.get(vehicle, "") for vehicle in images.values()] if colors else None,
    )


def is_vehicleid(store: "Store") -> bool:
    """Whether its list of all images or one of its test lists is there."""
    return store.head(_IMAGES) is not None or bool(_test_splits(store))


def read_vehicleid_tests(root: str, split: str | None = None) -> list[TestList]:
    """Read one split, or all test lists, smallest first; they give no roles.

    Raises as `read_vehicleid` does.
    """
    lists = []
    for name in list_test_splits(root) if split is None else [split]:
        images = read_vehicleid(root, name)
        test_list = TestList("vehicleid-paper", name, dataset="VehicleID")
        colors = images.colors or [""] * len(images)
        vehicles = () if images.vehicle_ids is None else images.vehicle_ids.tolist()
        for uri, vehicle, color in zip(images.uris, vehicles, colors, strict=True):
            test_list.add(uri, vehicle, "", "", Attributes(color=color))
        lists.append(test_list)
    return lists


def list_test_splits(root: str) -> list[str]:
    """List the test splits under `root`, smallest first."""
    from infra.store import open_store

    return _test_splits(open_store(root))


def _list_name(split: str) -> str:
    return f"{_LISTS}train_list.txt" if split == "train" else f"{_LISTS}test_list_{split[5:]}.txt"


def _test_splits(store: "Store") -> list[str]:
    names = (re.fullmatch(r".*test_list_([0-9]{1,9})\.txt", info.key) for info in store.list(_LISTS))
    return [f"test_{size}" for size in sorted(int(name[1]) for name in names if name)]


def _listed_images(store: "Store", name: str) -> dict[str, int]:
    images = _vehicles_of_images(store, name)
    if store.head(_IMAGES) is None:
        return {image: vehicle for image, (vehicle, _) in images.items()}
    owners = _vehicles_of_images(store, _IMAGES)
    for image, (vehicle, line) in images.items():
        owner = owners.get(image)
        if owner is None:
            raise BadLabels(f"{store.uri_of(name)}, line {line}: image {image} is not in {_IMAGES}")
        if owner[0] != vehicle:
            raise BadLabels(
                f"{store.uri_of(name)}, line {line}: image {image} is of vehicle {vehicle}, "
                f"but of {owner[0]} in {_IMAGES}, line {owner[1]}"
            )
    return {image: vehicle for image, (vehicle, _) in images.items()}


def _labelled_images(store: "Store") -> dict[str, int]:
    in_tests = {p for split in _test_splits(store) for p in _vehicles_of_images(store, _list_name(split))}
    owners = _vehicles_of_images(store, _IMAGES)
    return {image: vehicle for image, (vehicle, _) in owners.items() if image not in in_tests}


def _vehicles_of_images(store: "Store", name: str) -> dict[str, tuple[int, int]]:
    """Image -> (vehicle, line)."""
    owners: dict[str, tuple[int, int]] = {}
    for line, (image, vehicle) in _pairs(store, name):
        if image in owners:
            raise BadLabels(
                f"{store.uri_of(name)}, line {line}: image {image} is already in line {owners[image][1]}"
            )
        owners[image] = vehicle, line
    return owners


def _attributes(store: "Store", name: str, kind: str = "model") -> dict[int, int]:
    """Vehicle -> model, or colour."""
    numbers: dict[int, int] = {}
    for line, (vehicle, number) in _pairs(store, name):
        if numbers.setdefault(int(vehicle), number) != number:
            raise BadLabels(
                f"{store.uri_of(name)}, line {line}: vehicle {vehicle} has {kind} {number}, "
                f"but {numbers[int(vehicle)]} in an earlier line"
            )
    return numbers


def _attributes_if_any(store: "Store") -> dict[int, int]:
    return _attributes(store, _MODELS) if store.head(_MODELS) is not None else {}


def _pairs(store: "Store", name: str) -> list[tuple[int, tuple[str, int]]]:
    """(line number, (first field, second field)) of each line; both fields are decimal numbers."""
    pairs = []
    for line, text in enumerate(_text(store, name).splitlines(), start=1):
        fields = text.split()
        if not fields:
            continue
        if len(fields) != 2 or not all(_DIGITS.fullmatch(part) for part in fields):
            raise BadLabels(
                f"{store.uri_of(name)}, line {line}: {text[:60]!r} is not two numbers separated by a space"
            )
        pairs.append((line, (fields[0], int(fields[1]))))
    if not pairs:
        raise BadLabels(f"{store.uri_of(name)} is empty")
    return pairs


def _numbered_names(store: "Store", file: str) -> dict[int, str]:
    """Number -> name; names may contain spaces; the last field of a line is the model or the colour."""
    if store.head(file) is None:
        return {}
    names = {}
    for line, text in enumerate(_text(store, file).splitlines(), start=1):
        name, _, number = text.strip().rpartition(" ")
        if not text.strip():
            continue
        if not name or not _DIGITS.fullmatch(number):
            kind = "model" if file == _NAMES else "colour"
            raise BadLabels(
                f"{store.uri_of(file)}, line {line}: {text[:60]!r} does not end in a {kind} number"
            )
        names[int(number)] = name.strip()
    return names


def _colors_of(store: "Store") -> dict[int, str]:
    """Vehicle -> colour, or nothing for a copy without colours."""
    if store.head(_COLORS) is None:
        return {}
    names = _numbered_names(store, _COLOR_NAMES)
    colors = _attributes(store, _COLORS, "colour")
    return {vehicle: names.get(color, f"color {color}") for vehicle, color in colors.items()}


def _text(store: "Store", name: str) -> str:
    try:
        data = store.get(name)
    except ObjectMissing:
        remedy = "Copy it from the VehicleID release."
        if name.endswith("train_list.txt"):
            remedy += " Without it, split 'labelled' gives the images whose vehicle has a model."
        elif name.startswith(_LISTS):
            remedy += f" There are: {', '.join(_test_splits(store)) or 'no test lists'}."
        raise BadLabels(f"{store.uri_of(name)} is missing", remedy=remedy) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BadLabels(f"{store.uri_of(name)}, line {line}: not UTF-8") from None
