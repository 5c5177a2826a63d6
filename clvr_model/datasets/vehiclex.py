"""Reader of VehicleX, the synthetic training set of the AI City Challenge: 1,362 vehicles.

    train_label.xml     <Item typeID= imageName= cameraID= vehicleID= colorID= orientation= lightInt=
                        lightDir= camHei= camDis=/> an image; the copies differ in the last five
    sys_image_train/    00001_c001_33.jpg: vehicle, camera, number; sys_image_train_tr/ is the same in
                        CityFlow's style; the sets in VeRi's and VehicleID's style have image_train/

Types and colours are numbered from 0, with two more of each than VeRi-776, whose layout it shares: the names
have three parts instead of four. VehicleX has no models: its eleven body types replace them.
Source: the generator that writes the labels (github.com/yorkeyao/VehicleX, inference.py) and its README.
"""

import re
from typing import TYPE_CHECKING, Final

from clvr_model.datasets.label_xml import number_of, read_items
from clvr_model.datasets.labelled import Attributes, LabeledImages, TrainingList
from infra.errors import BadLabels

if TYPE_CHECKING:
    from infra.store import Store

LABELS: Final = "train_label.xml"
NAME: Final = re.compile(r"([0-9]{1,9})_c([0-9]{1,9})_[0-9]+\.jpg")
FOLDERS: Final = ("sys_image_train", "image_train", "sys_image_train_tr")
TYPES: Final = (
    "sedan", "suv", "van", "hatchback", "mpv", "pickup", "bus", "truck", "estate", "sportscar", "RV",
)  # fmt: skip
COLORS: Final = (
    "yellow", "orange", "green", "gray", "red", "blue", "white", "golden", "brown", "black", "purple", "pink",
)  # fmt: skip


def is_vehiclex(store: "Store") -> bool:
    """Whether the first item's name has three parts: vehicle, camera, number."""
    if store.head(LABELS) is None:
        return False
    return any(
        NAME.fullmatch(fields.get("imageName", "")) for _, fields in read_items(store, LABELS, limit=1)
    )


def read_vehiclex_training(root: str) -> LabeledImages:
    """Read the training images, with their body type as the model.

    Raises BadLabels, with the line, for invalid XML, invalid items and images that are in no known folder.
    """
    from infra.store import open_store

    store = open_store(root)
    items = read_items(store, LABELS)
    name = items[0][1].get("imageName", "") if items else ""
    folder = next((each for each in FOLDERS if store.head(f"{each}/{name}") is not None), FOLDERS[0])
    training = TrainingList()
    for item in items:
        where, fields = item
        match = NAME.fullmatch(fields.get("imageName", ""))
        if match is None:
            raise BadLabels(f"{where}: an item without a name like 00001_c001_33.jpg")
        kind = number_of(
            item, "typeID", lambda kind: kind < len(TYPES), f"a number from 0 to {len(TYPES) - 1}"
        )
        expected = f"a number from 0 to {len(COLORS) - 1}"
        color = number_of(item, "colorID", lambda color: color < len(COLORS), expected)
        known = Attributes(color=COLORS[color], body_type=TYPES[kind])
        training.add(where, store.uri_of(f"{folder}/{match[0]}"), kind, int(match[1]), match[2], known)
    return training.to_images(dict(enumerate(TYPES)), store.uri_of(LABELS))
