"""Crops that an incremental run found to be gone from the archive, `runs/<run_id>/vanished.parquet`.

The file is optional; a column `uri` names the crops.
"""

import numpy as np
from numpy.typing import NDArray

from index.crops import crop_id_of
from index.parquet import opened
from index.runs import Run
from infra.errors import ObjectMissing, SchemaMismatch

NAME = "vanished.parquet"


def vanished_ids(run: Run) -> NDArray[np.int64]:
    """Return the crop_ids (n,) that the run lists as vanished, ascending; none if it lists none.

    Raises SchemaMismatch for a file without URIs, CorruptShard.
    """
    key = run.folder.key(NAME)
    try:
        with opened(run.store, key) as file:
            if "uri" not in file.schema_arrow.names:
                raise SchemaMismatch(f"{run.store.uri_of(key)} has no column uri")
            uris = file.read(columns=["uri"])["uri"].to_pylist()
    except ObjectMissing:
        return np.empty(0, np.int64)
    return np.unique(np.fromiter(map(crop_id_of, uris), np.int64, len(uris)))
