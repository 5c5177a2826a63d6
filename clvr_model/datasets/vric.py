"""Reader of VRIC's test lists.

    vric_probe.txt, vric_gallery.txt        image, vehicle and camera, separated by spaces
    probe_images/, gallery_images/          the images

Source: the VRIC release (Kanaci et al., GCPR 2018): 2,811 vehicles, one image each way.
"""

from typing import NoReturn

from clvr_model.datasets.test_lists import TestList, lines_of
from infra.errors import BadLabels


def read_vric(root: str) -> TestList:
    """Read probes and gallery. Raises BadLabels for lines that are not 'image vehicle camera'."""
    from infra.store import open_store

    store = open_store(root)
    test_list = TestList("vric", "vric")
    for role in ("probe", "gallery"):
        for where, text in lines_of(store, f"vric_{role}.txt"):
            fields = text.split()
            if len(fields) != 3 or not fields[1].isdecimal():
                raise BadLabels(f"{where}: {text[:60]!r} is not 'image vehicle camera'")
            test_list.add(store.uri_of(f"{role}_images/{fields[0]}"), int(fields[1]), fields[2], role)
    return test_list


def refuse_vric_training(root: str) -> NoReturn:
    """Raise BadLabels: VRIC's training list has vehicles and cameras, but no models."""
    raise BadLabels(
        f"{root} is VRIC, which has no vehicle models to train on",
        remedy="Train on another dataset and evaluate on VRIC, or give a table with your model_id.",
    )
