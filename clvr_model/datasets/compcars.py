"""Reader of CompCars' training lists, of its web part and of its surveillance part.

    train_test_split/classification/train.txt   make/model/year/image.jpg a line: the web part
    train_surveillance.txt                      model/image.jpg a line: the surveillance part (sv_data)
    image/<the same path>                       the images

Test lists have `test` for `train`. The two parts number their models differently: train on one of them. Only
the images of the surveillance part are cropped to the car.
Source: the CompCars release (Yang et al., CVPR 2015).
"""

import re
from typing import Final

from clvr_model.datasets.labelled import LabeledImages, TrainingList
from clvr_model.datasets.test_lists import lines_of
from infra.errors import BadLabels, BadSetting

WEB: Final = "train_test_split/classification/{}.txt"
SURVEILLANCE: Final = "{}_surveillance.txt"
_WEB_LINE: Final = re.compile(r"([0-9]{1,9})/([0-9]{1,9})/([0-9]{1,9}|unknown)/[^/]+\.(?:jpg|jpeg|png)", re.I)
_SURVEILLANCE_LINE: Final = re.compile(r"([0-9]{1,9})/[^/]+\.(?:jpg|jpeg|png)", re.I)


def read_compcars(root: str, split: str = "train") -> LabeledImages:
    """Read the images of one part's list, with the model numbers of their paths.

    Raises BadLabels, with the line, for a missing list and for invalid paths.
    """
    from infra.store import open_store

    if split not in ("train", "test"):
        raise BadSetting(f"split is {split!r}", remedy="CompCars has train and test.")
    store = open_store(root)
    web = store.head(SURVEILLANCE.format(split)) is None
    name = (WEB if web else SURVEILLANCE).format(split)
    form = "make/model/year/image.jpg" if web else "model/image.jpg"
    pattern = _WEB_LINE if web else _SURVEILLANCE_LINE
    training, names = TrainingList(), {}
    for where, text in lines_of(store, name):
        match = pattern.fullmatch(text)
        if match is None:
            raise BadLabels(f"{where}: {text[:60]!r} is not {form!r}")
        model = int(match[2] if web else match[1])
        names[model] = f"make {match[1]}, model {model}" if web else f"model {model}"
        training.add(where, store.uri_of(f"image/{text}"), model)
    return training.to_images(names, store.uri_of(name))
