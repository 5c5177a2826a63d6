"""Which public dataset lies in a folder, told by a file that only it has, and its training images."""

from collections.abc import Callable
from typing import Final

from clvr_model.datasets import compcars, vehicleid, veri, veri_wild, vric
from clvr_model.datasets.labelled import LabeledImages
from infra.errors import BadSetting

Reader = Callable[[str, str], LabeledImages]


def _training_alone(name: str, read: Callable[[str], LabeledImages]) -> Reader:
    def reader(root: str, split: str) -> LabeledImages:
        if split != "train":
            raise BadSetting(f"split is {split!r}", remedy=f"{name} has model labels for train alone.")
        return read(root)

    return reader


RELEASES: Final[dict[str, Reader]] = {
    "attribute/img2vid.txt": vehicleid.read_vehicleid,
    "train_label.xml": _training_alone("VeRi-776", veri.read_veri_training),
    "train_test_split/vehicle_info.txt": _training_alone("VERI-Wild", veri_wild.read_veri_wild_training),
    compcars.WEB.format("train"): compcars.read_compcars,
    compcars.SURVEILLANCE.format("train"): compcars.read_compcars,
    "vric_train.txt": _training_alone("VRIC", vric.refuse_vric_training),
    "vric_probe.txt": _training_alone("VRIC", vric.refuse_vric_training),
}


def read_release(root: str, split: str | None = None) -> LabeledImages | None:
    """The labelled images of the dataset that lies under `root` (local or S3); None if it is none of ours.

    split: 'train' if not given. Raises BadLabels and BadSetting as its reader does.
    """
    from infra.store import open_store

    store = open_store(root)
    for mark, read in RELEASES.items():
        if store.head(mark) is not None:
            return read(root, split or "train")
    return None
