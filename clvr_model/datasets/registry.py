"""Registry of the public datasets: a file that identifies each, and its reader."""

from collections.abc import Callable
from typing import Final

from clvr_model.datasets import compcars, vehicleid, veri, veri_wild, vric
from clvr_model.datasets.labelled import LabeledImages
from infra.errors import BadSetting

Reader = Callable[[str, str], LabeledImages]


def _training_only(name: str, read: Callable[[str], LabeledImages]) -> Reader:
    def reader(root: str, split: str) -> LabeledImages:
        if split != "train":
            raise BadSetting(f"split is {split!r}", remedy=f"{name} has model labels for train only.")
        return read(root)

    return reader


RELEASES: Final[dict[str, Reader]] = {
    "attribute/img2vid.txt": vehicleid.read_vehicleid,
    "train_label.xml": _training_only("VeRi-776", veri.read_veri_training),
    "train_test_split/vehicle_info.txt": _training_only("VERI-Wild", veri_wild.read_veri_wild_training),
    compcars.WEB.format("train"): compcars.read_compcars,
    compcars.SURVEILLANCE.format("train"): compcars.read_compcars,
    "vric_train.txt": _training_only("VRIC", vric.refuse_vric_training),
    "vric_probe.txt": _training_only("VRIC", vric.refuse_vric_training),
}


def read_release(root: str, split: str | None = None) -> LabeledImages | None:
    """Read the labelled images of the dataset under `root` (local or S3), or return None if it is unknown.

    split: 'train' by default. Raises BadLabels and BadSetting as its reader does.
    """
    from infra.store import open_store

    store = open_store(root)
    for mark, read in RELEASES.items():
        if store.head(mark) is not None:
            return read(root, split or "train")
    return None
