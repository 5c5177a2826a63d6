"""Reader of CompCars' two parts: images of the web, and of surveillance cameras (seen from the front).

    data/train_test_split/classification/train.txt  make/model/year/image.jpg a line; test.txt
    data/image/<the same path>                      the images, not cropped
    data/label/<the same path>.txt                  viewpoint; number of boxes; left top right bottom, from 1
    data/misc/make_model_name.mat                   cell arrays make_names, model_names: by number
    data/misc/attributes.txt, car_type.mat          each model's body type by number; the cell array types
    sv_data/train_surveillance.txt                  model/image.jpg a line; test_surveillance.txt
    sv_data/image/<the same path>                   the images, cropped to the car
    sv_data/sv_make_model_name.mat                  make, model, the web part's model number, by row
    sv_data/color_list.mat                          image, colour number; -1: not recognised

The root is the top folder, data/ or sv_data/. The parts number their models differently: train on one.
Splits of the web part: train, test; of the other: surveillance-train, surveillance-test, and train, test
where it is alone. Source: the CompCars release (Yang et al., CVPR 2015), its README, and public readers.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from clvr_model.datasets.labelled import Attributes, LabeledImages, TrainingList
from clvr_model.datasets.mat_cells import Cell, read_cells
from clvr_model.datasets.test_lists import bytes_of, lines_of
from infra.errors import BadLabels, BadSetting, ClvrError, ObjectMissing

if TYPE_CHECKING:
    from infra.store import Store

WEB: Final = "train_test_split/classification/{}.txt"
SURVEILLANCE: Final = "{}_surveillance.txt"
_PREFIX: Final = "surveillance-"
_PARTS: Final = ("train", "test")
_WEB_LINE: Final = re.compile(r"([0-9]{1,9})/([0-9]{1,9})/([0-9]{1,9}|unknown)/[^/]+\.(?:jpg|jpeg|png)", re.I)
_SURVEILLANCE_LINE: Final = re.compile(r"([0-9]{1,9})/[^/]+\.(?:jpg|jpeg|png)", re.I)
COLORS: Final = (
    "black", "white", "red", "yellow", "blue", "green", "purple", "brown", "champagne", "silver",
)  # fmt: skip

_MAX_LABEL_BYTES: Final = 1024

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Folders:
    """Where the parts are below the root, with a slash at the end; None if a part is not there."""

    web: str | None
    surveillance: str | None
    misc: str


def is_compcars(store: "Store") -> bool:
    """Whether one of the parts is there."""
    folders = _folders(store)
    return folders.web is not None or folders.surveillance is not None


def read_compcars(root: str, split: str = "train") -> LabeledImages:
    """Read the images of one part's list, with the model numbers of their paths.

    Names, boxes, body types and colours are read where their files are there.
    Raises BadLabels, with the line, for a missing list and for invalid paths, tables and boxes.
    """
    from infra.store import open_store

    store = open_store(root)
    folders = _folders(store)
    part = split.removeprefix(_PREFIX)
    is_web = folders.web is not None and part == split
    known = [*_PARTS] if folders.web is not None or folders.surveillance is not None else []
    known += [_PREFIX + each for each in _PARTS] if folders.surveillance is not None else []
    if split not in known:
        raise BadSetting(f"split is {split!r}", remedy=f"CompCars has {', '.join(known)} in this folder.")
    if is_web:
        return _read_web(store, folders, part)
    return _read_surveillance(store, folders, part)


def _folders(store: "Store") -> _Folders:
    def first(names: tuple[str, ...], listed: str) -> str | None:
        found = (
            name for name in names for part in _PARTS if store.head(name + listed.format(part)) is not None
        )
        return next(found, None)

    web = first(("data/", ""), WEB)
    misc = "misc/" if web == "" or store.head("misc/make_model_name.mat") is not None else "data/misc/"
    return _Folders(web=web, surveillance=first(("sv_data/", ""), SURVEILLANCE), misc=misc)


def _read_web(store: "Store", folders: _Folders, part: str) -> LabeledImages:
    folder = folders.web or ""
    name = folder + WEB.format(part)
    names, types = _web_names(store, folders.misc), _web_types(store, folders.misc)
    training, model_names = TrainingList(), {}
    paths = []
    for where, text in lines_of(store, name):
        match = _match(_WEB_LINE, where, text, "make/model/year/image.jpg")
        make, model = int(match[1]), int(match[2])
        model_names[model] = names(make, model)
        known = Attributes(body_type=types.get(model, ""))
        training.add(where, store.uri_of(f"{folder}image/{text}"), model, attributes=known)
        paths.append(f"{folder}label/{text.rpartition('.')[0]}.txt")
    images = training.to_images(model_names, store.uri_of(name))
    has_boxes = f"{folder}label" in store.folders(folder.rstrip("/"))
    return replace(images, boxes=_read_boxes(store, paths)) if has_boxes else images


def _read_surveillance(store: "Store", folders: _Folders, part: str) -> LabeledImages:
    folder = folders.surveillance or ""
    name = folder + SURVEILLANCE.format(part)
    table = _table(store, f"{folder}sv_make_model_name.mat", "sv_make_model_name", columns=3)
    types = _web_types(store, folders.misc)
    colors = _colors(store, folder)
    training, model_names = TrainingList(), {}
    for where, text in lines_of(store, name):
        model = int(_match(_SURVEILLANCE_LINE, where, text, "model/image.jpg")[1])
        row = table[model - 1] if 0 < model <= len(table) else ["", "", -1.0]
        model_names[model] = _full_name(str(row[0]), str(row[1]), f"model {model}")
        web = int(row[2]) if isinstance(row[2], float) else -1
        known = Attributes(color=colors.get(text, ""), body_type=types.get(web, ""))
        training.add(where, store.uri_of(f"{folder}image/{text}"), model, attributes=known)
    return training.to_images(model_names, store.uri_of(name))


def _match(pattern: re.Pattern[str], where: str, text: str, form: str) -> re.Match[str]:
    match = pattern.fullmatch(text)
    if match is None:
        raise BadLabels(f"{where}: {text[:60]!r} is not {form!r}")
    return match


def _full_name(make: str, model: str, otherwise: str) -> str:
    """The name of a model with its make once; many of the release's models begin with their make."""
    if not model:
        return f"{make} {otherwise}".strip()
    return model if model.lower().startswith(make.lower()) else f"{make} {model}"


def _table(store: "Store", name: str, variable: str, columns: int = 0) -> list[list[Cell]]:
    """The rows of a cell array, or none without the file."""
    if store.head(name) is None:
        return []
    rows = read_cells(bytes_of(store, name), variable, store.uri_of(name))
    if columns and any(len(row) < columns for row in rows):
        raise BadLabels(f"{store.uri_of(name)}: {variable} has fewer than {columns} columns")
    return rows


def _texts(rows: list[list[Cell]]) -> list[str]:
    """The cells of a column or of a row, as texts."""
    return [cell if isinstance(cell, str) else f"{cell:g}" for row in rows for cell in row]


def _web_names(store: "Store", misc: str) -> Callable[[int, int], str]:
    """Return the function that names the model of a make, both by number."""
    name = f"{misc}make_model_name.mat"
    makes, models = _texts(_table(store, name, "make_names")), _texts(_table(store, name, "model_names"))

    def full_name(make: int, model: int) -> str:
        if not makes:
            return f"make {make}, model {model}"
        of_make = makes[make - 1] if 0 < make <= len(makes) else f"make {make}"
        return _full_name(of_make, models[model - 1] if 0 < model <= len(models) else "", f"model {model}")

    return full_name


def _web_types(store: "Store", misc: str) -> dict[int, str]:
    """Model -> body type; type 0 is unknown."""
    types = _texts(_table(store, f"{misc}car_type.mat", "types"))
    name = f"{misc}attributes.txt"
    if not types or store.head(name) is None:
        return {}
    known = {}
    for number, (where, text) in enumerate(lines_of(store, name)):
        fields = text.split()
        if number == 0 and fields[0] == "model_id":
            continue
        is_row = len(fields) == 6 and all(
            each.isascii() and each.isdecimal() for each in (fields[0], fields[5])
        )
        if not is_row or int(fields[5]) > len(types):
            raise BadLabels(f"{where}: {text[:60]!r} is not 'model speed displacement doors seats type'")
        if int(fields[5]):
            known[int(fields[0])] = types[int(fields[5]) - 1]
    return known


def _colors(store: "Store", folder: str) -> dict[str, str]:
    """Image -> colour; -1 is unknown."""
    name = f"{folder}color_list.mat"
    colors = {}
    for image, number in (row[:2] for row in _table(store, name, "color_list", columns=2)):
        if not (isinstance(image, str) and isinstance(number, float) and -1 <= number < len(COLORS)):
            raise BadLabels(
                f"{store.uri_of(name)}: {image!r}, {number!r} is not an image and a colour number"
            )
        if number >= 0:
            colors[image] = COLORS[int(number)]
    return colors


def _read_boxes(store: "Store", names: list[str]) -> NDArray[np.int32]:
    """The boxes of the label files, (n, 4), -1 where a file is missing."""
    boxes = np.full((len(names), 4), -1, dtype=np.int32)
    for position, body in store.get_many(names):
        if isinstance(body, ObjectMissing):
            continue
        if isinstance(body, ClvrError):
            raise body
        boxes[position] = _box(body.data, store.uri_of(names[position]))
    return boxes


def _box(data: bytes, where: str) -> Box:
    lines = data[:_MAX_LABEL_BYTES].decode("ascii", errors="replace").split("\n")
    numbers = [line.split() for line in lines if line.strip()]
    values = numbers[-1] if numbers else []
    if len(numbers) < 3 or len(values) != 4 or not all(re.fullmatch(r"[0-9]{1,6}", each) for each in values):
        raise BadLabels(f"{where} is not a viewpoint, a number of boxes and 'left top right bottom'")
    left, top, right, bottom = map(int, values)
    if not (left < right and top < bottom):
        raise BadLabels(f"{where}: {' '.join(values)} is no box: left top right bottom")
    return max(left - 1, 0), max(top - 1, 0), right, bottom
