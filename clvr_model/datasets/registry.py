"""Registry of the public datasets: how each release is told by its content, and its readers.

A release is told by the files and the names that no other has; where two share file names (VeRi-776, VehicleX
and AI City; VERI-Wild and Vehicle-1M), by the lines. A folder that has traces of a release but is none of
them is refused with what is missing, so that its folders are not taken for vehicle models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from clvr_model.datasets import (
    ai_city,
    boxcars,
    compcars,
    pku_vd,
    vehicle_1m,
    vehicleid,
    vehiclex,
    veri,
    veri_carla,
    veri_wild,
    vric,
)
from clvr_model.datasets.label_xml import read_items
from clvr_model.datasets.labelled import LabeledImages
from clvr_model.datasets.test_lists import TestList, first_line
from infra.errors import BadLabels, BadSetting

if TYPE_CHECKING:
    from infra.store import Store

Training = Callable[[str, str], LabeledImages]
Tests = Callable[[str, str | None], list[TestList]]

MAX_SUBFOLDERS: Final = 8  # that are looked into for a release one level deeper
_MORE_HINTS: Final = ("data", "image", "images", "train_list.txt", "train_surveillance.txt", "dataset.pkl")


@dataclass(frozen=True, slots=True)
class Release:
    """A public dataset.

    needs: what tells it, for messages. traces: folders and files at its top, some of which other releases
    have too. read_training and read_tests take the root and the split.
    """

    name: str
    is_in: Callable[["Store"], bool]
    needs: str
    traces: tuple[str, ...]
    read_training: Training | None = None
    read_tests: Tests | None = None


def _only_train(name: str, read: Callable[[str], LabeledImages]) -> Training:
    def reader(root: str, split: str) -> LabeledImages:
        if split != "train":
            raise BadSetting(f"split is {split!r}", remedy=f"{name} has training labels for train only.")
        return read(root)

    return reader


def _one(read: Callable[[str], TestList]) -> Tests:
    return lambda root, _: [read(root)]


def _all(read: Callable[[str], list[TestList]]) -> Tests:
    return lambda root, _: read(root)


RELEASES: Final[tuple[Release, ...]] = (
    Release(
        "VehicleID",
        vehicleid.is_vehicleid,
        "attribute/img2vid.txt and train_test_split/test_list_800.txt",
        ("attribute", "train_test_split"),
        vehicleid.read_vehicleid,
        vehicleid.read_vehicleid_tests,
    ),
    Release(
        "VeRi-776",
        veri.is_veri,
        "train_label.xml or name_query.txt with names such as 0002_c002_00030600_0.jpg",
        ("image_train", "image_query", "image_test", "train_label.xml", "name_query.txt"),
        _only_train("VeRi-776", veri.read_veri_training),
        _one(veri.read_veri),
    ),
    Release(
        "VehicleX",
        vehiclex.is_vehiclex,
        "train_label.xml with names such as 00001_c001_33.jpg",
        ("sys_image_train", "sys_image_train_tr"),
        _only_train("VehicleX", vehiclex.read_vehiclex_training),
    ),
    Release(
        "AI City",
        ai_city.is_ai_city,
        "train_label.xml or name_query.txt with names such as 000001.jpg",
        ("train_track.txt", "train_track_id.txt"),
        _only_train("AI City", ai_city.read_ai_city_training),
        _one(ai_city.read_ai_city),
    ),
    Release(
        "VeRi-CARLA",
        veri_carla.is_veri_carla,
        "image_train with names such as 20220711212617_24_9.jpg",
        ("image_gallery",),
        _only_train("VeRi-CARLA", veri_carla.read_veri_carla_training),
        _one(veri_carla.read_veri_carla),
    ),
    Release(
        "VERI-Wild",
        veri_wild.is_veri_wild,
        "train_test_split/vehicle_info.txt and test_3000_id_query.txt",
        ("train_test_split", "vehicle_info.txt"),
        _only_train("VERI-Wild", veri_wild.read_veri_wild_training),
        _all(veri_wild.read_veri_wild),
    ),
    Release(
        "VERI-Wild 2.0",
        veri_wild.is_veri_wild_2,
        "test_split_V2/All_query.txt",
        ("test_split_V2", "test_split"),
        read_tests=_all(veri_wild.read_veri_wild_2),
    ),
    Release(
        "Vehicle-1M",
        vehicle_1m.is_vehicle_1m,
        "train-test-split/train_list.txt with lines such as 000001/000001.jpg 1 12",
        ("train-test-split",),
        _only_train("Vehicle-1M", vehicle_1m.read_vehicle_1m_training),
        _all(vehicle_1m.read_vehicle_1m),
    ),
    Release(
        "PKU-VD",
        pku_vd.is_pku_vd,
        "train_test/trainlist.txt or query_ref/querylist.txt",
        ("train_test", "query_ref"),
        _only_train("PKU-VD", pku_vd.read_pku_vd_training),
        _all(pku_vd.read_pku_vd),
    ),
    Release(
        "CompCars",
        compcars.is_compcars,
        "data/train_test_split/classification/train.txt or sv_data/train_surveillance.txt",
        ("sv_data", "train_test_split"),
        compcars.read_compcars,
    ),
    Release(
        "BoxCars116k",
        boxcars.is_boxcars,
        "json_data/dataset.json",
        ("json_data",),
        boxcars.read_boxcars,
    ),
    Release(
        "VRIC",
        vric.is_vric,
        "vric_train.txt or vric_probe.txt",
        ("train_images", "probe_images", "gallery_images"),
        _only_train("VRIC", vric.read_vric_training),
        _one(vric.read_vric),
    ),
)


def find_release(root: str) -> Release | None:
    """Return the release that is in the folder `root` (local or S3), or None if there is no trace of one.

    Raises BadLabels for a folder with the files of two releases, with a release one level deeper, and with
    traces of a release that it is not.
    """
    from infra.store import open_store

    store = open_store(root)
    found = [release for release in RELEASES if release.is_in(store)]
    if len(found) > 1:
        raise BadLabels(
            f"{store.uri} has the files of {_listed([release.name for release in found], 'and')}",
            remedy="Give a folder with one of them.",
        )
    if found:
        return found[0]
    _refuse_traces(store)
    return None


def read_release(root: str, split: str | None = None) -> LabeledImages | None:
    """Read the labelled images of the dataset under `root` (local or S3), or return None if it is unknown.

    split: 'train' by default. Images may have a vehicle and no model. Raises as `find_release` and as its
    reader does.
    """
    release = find_release(root)
    if release is None:
        return None
    if release.read_training is None:
        raise BadLabels(
            f"{root} is {release.name}, which has test lists only",
            remedy="Train on another dataset and evaluate on this one.",
        )
    return release.read_training(root, split or "train")


def read_test_lists(root: str, split: str | None = None) -> list[TestList] | None:
    """Read the test lists of the dataset under `root`, or return None if it is unknown.

    split: that of the lists which is needed; a reader may read the others too. Raises as `find_release` and
    as its reader does.
    """
    release = find_release(root)
    if release is None:
        return None
    if release.read_tests is None:
        raise BadLabels(
            f"{root} is {release.name}, which has no re-identification test",
            remedy="Give a table with vehicle_id, or another dataset.",
        )
    return release.read_tests(root, split)


def names_with_tests() -> str:
    """Return the names of the datasets with test lists, for messages."""
    return _listed([release.name for release in RELEASES if release.read_tests is not None], "or")


def _refuse_traces(store: "Store") -> None:
    folders = [folder for folder in store.folders() if not folder.startswith(".")]
    names = _top_names(store)
    hints = {*_MORE_HINTS, *(trace for release in RELEASES for trace in release.traces)}
    if folders and len(folders) <= MAX_SUBFOLDERS:
        for folder in folders:
            inner = _opened(store.uri_of(folder))
            below = _top_names(inner)
            is_release = any(name in hints or name.startswith("vric_") for name in below)
            found = [release.name for release in RELEASES if is_release and release.is_in(inner)]
            if found:
                raise BadLabels(
                    f"{store.uri} is not a dataset, but its folder {folder} is: {_listed(found, 'or')}",
                    remedy=f"Give {store.uri_of(folder)}.",
                )
    traces = {release.name: sorted(names & {*release.traces}) for release in RELEASES}
    similar = [release for release in RELEASES if traces[release.name]]
    if similar:
        most = max(len(traces[release.name]) for release in similar)
        nearest = [release for release in similar if len(traces[release.name]) == most]
        seen = sorted({trace for release in nearest for trace in traces[release.name]})
        needs = "; ".join(f"{release.name} needs {release.needs}" for release in nearest)
        raise BadLabels(
            f"{store.uri} has {_listed(seen, 'and')}, as {_listed([each.name for each in nearest], 'or')} "
            f"has, but is not it: {needs}{_first_label(store)}",
            remedy="Copy the missing files from the release, or give a table of labels.",
        )


def _top_names(store: "Store") -> set[str]:
    """The names of the folders and the files right below the root."""
    from infra.store import ObjectInfo

    top = store.level()
    return {*top.folders, *(listed.key for listed in top.objects if isinstance(listed, ObjectInfo))}


def _first_label(store: "Store") -> str:
    """How the images of a label file are named that is of no known release."""
    if store.head(veri.LABELS) is not None:
        items = read_items(store, veri.LABELS, limit=1)
        name = items[0][1].get("imageName", "") if items else ""
        return f". {veri.LABELS} begins with {name[:60]!r}"
    line = first_line(store, "name_query.txt")
    return f". name_query.txt begins with {line[:60]!r}" if line else ""


def _opened(uri: str) -> "Store":
    from infra.store import open_store

    return open_store(uri)


def _listed(names: Sequence[str], word: str) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
