"""Where labelled pictures come from: the kinds of source that `clvr train` takes, told apart."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from clvr_model.datasets.labelled import Labelled, read_folder, read_table
from clvr_model.datasets.releases import read_release


def read_labelled(data: str, *, root: str = "", split: str | None = None) -> Labelled:
    """Read pictures whose vehicle model is known.

    data: a `.csv` or `.parquet` table (whose `key` column lies below `root`, and of which `split` picks the
    rows of one split), a folder as VehicleID, VeRi-776, VERI-Wild or CompCars is released, or a folder of one
    folder a model.
    Raises BadLabels, EmptyArchive, StoreError.
    """
    if data.lower().endswith((".csv", ".parquet")):
        labelled = read_table(data, root=root, split=split).with_known_model()
        # Workers run in folders of their own, and equal data shall have equal digests wherever it is named.
        return replace(labelled, uris=[_absolute(uri) for uri in labelled.uris])
    release = read_release(data, split)
    return read_folder(data) if release is None else release.with_known_model()


def _absolute(uri: str) -> str:
    return uri if "://" in uri else str(Path(uri).absolute())


def data_digest(labelled: Labelled) -> str:
    """SHA-256 over the URIs and the model ids, in order: equal data, equal digest."""
    digest = hashlib.sha256("\n".join(labelled.uris).encode())
    digest.update(np.ascontiguousarray(labelled.model_ids, np.int64).tobytes())
    return digest.hexdigest()
