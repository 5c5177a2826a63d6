"""Reader of VERI-Wild's training list and test lists.

    train_test_split/vehicle_info.txt           vehicle/image;camera;time;model;type;colour, after a header
    train_test_split/test_3000_query.txt        probes of the small list, vehicle/image a line
    train_test_split/test_3000.txt              its gallery; 5000 and 10000 are medium and large
    train_test_split/train_list.txt             training images; some copies say train_list_start0.txt
    images/<vehicle>/<image>.jpg                the images

Source: the VERI-Wild release (Lou et al., CVPR 2019) as fast-reid reads it.
"""

from typing import Final

from clvr_model.datasets.labelled import UNKNOWN_MODEL, LabeledImages, TrainingList
from clvr_model.datasets.test_lists import TestList, lines_of
from infra.errors import BadLabels

SIZES: Final = (3000, 5000, 10000)
_INFO: Final = "train_test_split/vehicle_info.txt"
_TRAINING: Final = ("train_test_split/train_list.txt", "train_test_split/train_list_start0.txt")


def read_veri_wild(root: str) -> list[TestList]:
    """Read the available test lists, small to large. Raises BadLabels for invalid lines."""
    from infra.store import open_store

    store = open_store(root)
    sizes = [size for size in SIZES if store.head(f"train_test_split/test_{size}.txt") is not None]
    if not sizes:
        raise BadLabels(f"{store.uri} has none of VERI-Wild's test lists {SIZES}")
    cameras = {}
    for where, text in list(lines_of(store, _INFO))[1:]:
        fields = text.split(";")
        if len(fields) < 2:
            raise BadLabels(f"{where}: {text[:60]!r} is not 'vehicle/image;camera;…'")
        cameras[fields[0].strip()] = fields[1].strip()
    lists = []
    for size in sizes:
        test_list = TestList("veri-wild", f"test_{size}")
        for name, role in ((f"test_{size}_query.txt", "probe"), (f"test_{size}.txt", "gallery")):
            for where, text in lines_of(store, f"train_test_split/{name}"):
                image = text.removesuffix(".jpg")
                vehicle = image.split("/")[0]
                if not vehicle.isdecimal() or image.count("/") != 1:
                    raise BadLabels(f"{where}: {text[:60]!r} is not 'vehicle/image'")
                if image not in cameras:
                    raise BadLabels(f"{where}: image {image} is not in {_INFO}")
                test_list.add(store.uri_of(f"images/{image}.jpg"), int(vehicle), cameras[image], role)
        lists.append(test_list)
    return lists


def read_veri_wild_training(root: str) -> LabeledImages:
    """Read the images of the training list with their models, numbered from 0 in the order of their names.

    All models of vehicle_info.txt are numbered, so the numbers do not depend on the list. An empty model is
    unknown. Raises BadLabels, with the line, for invalid lines and for images not in vehicle_info.txt.
    """
    from infra.store import open_store

    store = open_store(root)
    attributes: dict[str, tuple[str, str]] = {}
    for where, text in list(lines_of(store, _INFO))[1:]:
        fields = [field.strip() for field in text.split(";")]
        if len(fields) < 4:
            raise BadLabels(f"{where}: {text[:60]!r} is not 'vehicle/image;camera;time;model;…'")
        attributes[fields[0].removesuffix(".jpg")] = fields[1], fields[3]
    names = sorted({model for _, model in attributes.values() if model})
    numbers = {name: number for number, name in enumerate(names)}
    name = next((path for path in _TRAINING if store.head(path) is not None), _TRAINING[0])
    training = TrainingList()
    for where, text in lines_of(store, name):
        image = text.split()[0].removesuffix(".jpg")
        vehicle = image.split("/")[0]
        if not vehicle.isdecimal() or image.count("/") != 1:
            raise BadLabels(f"{where}: {text[:60]!r} is not 'vehicle/image'")
        if image not in attributes:
            raise BadLabels(f"{where}: image {image} is not in {_INFO}")
        camera, model = attributes[image]
        uri = store.uri_of(f"images/{image}.jpg")
        training.add(where, uri, numbers.get(model, UNKNOWN_MODEL), int(vehicle), camera)
    return training.to_images(dict(enumerate(names)), store.uri_of(name))
