"""Reader of BoxCars116k: 116,286 images of 27,496 tracks, with make, model, body and generation.

    json_data/dataset.json                  {"samples": [{"annotation": "skoda octavia combi mk1",
                                            "camera": 4, "instances": [{"path": "uvoz/1/000001_000.png"}]}]}
    json_data/classification_splits.json    {"hard": {"train": [[track, class]], "validation": [], "test": [],
                                            "types_mapping": {name: class}}, "medium": …, "body", "make"}
    images/<path>                           the images, cropped

The hard split's classes are the models: make, model, body and generation. A track is one pass of a vehicle
by one camera, so the vehicle numbers say nothing across cameras, and there is no re-identification test.
The release has the same data as pickle (dataset.pkl), which is not read: a pickle can run any program.
Source: the release (Sochor et al., T-ITS 2018), github.com/JakubSochor/BoxCars, boxcars_dataset.py.
"""

import json
from typing import TYPE_CHECKING, Any, Final

from clvr_model.datasets.labelled import Attributes, LabeledImages, TrainingList
from clvr_model.datasets.test_lists import bytes_of
from infra.errors import BadLabels, BadSetting

if TYPE_CHECKING:
    from infra.store import Store

DATASET: Final = "json_data/dataset.json"
SPLITS: Final = "json_data/classification_splits.json"
PICKLES: Final = ("dataset.pkl", "classification_splits.pkl")
PARTS: Final = ("train", "validation", "test")


def is_boxcars(store: "Store") -> bool:
    """Whether its JSON or its pickle is there."""
    return any(store.head(name) is not None for name in (DATASET, SPLITS, *PICKLES))


def read_boxcars(root: str, split: str = "train") -> LabeledImages:
    """Read one part of the hard split: 'train', 'validation' or 'test', which has other cameras.

    Raises BadSetting for another part, BadLabels for a copy with pickles only and for invalid entries.
    """
    from infra.store import open_store

    if split not in PARTS:
        raise BadSetting(f"split is {split!r}", remedy=f"BoxCars116k has {', '.join(PARTS)}.")
    store = open_store(root)
    if store.head(DATASET) is None and store.head(PICKLES[0]) is not None:
        raise BadLabels(
            f"{store.uri} has {PICKLES[0]} but no {DATASET}; pickles can run any program and are not read",
            remedy="Copy json_data/ from the release.",
        )
    samples = _field(_json(store, DATASET), "samples", list, store.uri_of(DATASET))
    hard = _field(_json(store, SPLITS), "hard", dict, store.uri_of(SPLITS))
    where = f"{store.uri_of(SPLITS)}, hard"
    classes = _field(hard, "types_mapping", dict, where)
    names = {number: name for name, number in classes.items() if isinstance(number, int)}
    training = TrainingList()
    for position, pair in enumerate(_field(hard, split, list, where)):
        place = f"{where}, {split}, entry {position}"
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(each) is int for each in pair)):
            raise BadLabels(f"{place}: {str(pair)[:60]} is not [track, class]")
        track, model = pair
        if not 0 <= track < len(samples) or model not in names:
            raise BadLabels(f"{place}: {pair} names no track or no class")
        _add_track(training, store, samples[track], track, model)
    return training.to_images(names, f"{where}, {split}")


def _add_track(training: TrainingList, store: "Store", sample: Any, track: int, model: int) -> None:
    where = f"{store.uri_of(DATASET)}, sample {track}"
    words = _field(sample, "annotation", str, where).split()
    camera = sample.get("camera", "")
    for instance in _field(sample, "instances", list, where):
        path = _field(instance, "path", str, where)
        if path.startswith("/") or ".." in path.split("/"):
            raise BadLabels(f"{where}: {path[:60]!r} is not a path below images/")
        known = Attributes(body_type=words[-2] if len(words) >= 4 else "", track=str(track))
        training.add(where, store.uri_of(f"images/{path}"), model, track, str(camera), known)


def _json(store: "Store", name: str) -> Any:
    try:
        return json.loads(bytes_of(store, name))
    except (ValueError, RecursionError) as error:
        raise BadLabels(f"{store.uri_of(name)} is not valid JSON: {str(error)[:80]}") from None


def _field(document: Any, name: str, kind: type, where: str) -> Any:
    value = document.get(name) if isinstance(document, dict) else None
    if not isinstance(value, kind):
        raise BadLabels(f"{where}: no {name!r}")
    return value
