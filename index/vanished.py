"""Crops that an incremental run found to be gone from the archive, `runs/<run_id>/vanished.parquet`.

The file is optional; a column `uri` names the crops.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.crops import crop_id_of
from index.parquet import opened
from index.runs import Run
from infra.errors import ObjectMissing, SchemaMismatch

NAME = "vanished.parquet"
_SCHEMA = pa.schema([("uri", pa.string())])


def vanished_ids(run: Run) -> NDArray[np.int64]:
    """Return the crop_ids (n,) that the run lists as vanished, ascending; none if it lists none.

    Raises SchemaMismatch for a file without URIs, CorruptShard.
    """
    uris = vanished_uris(run)["uri"].to_pylist()
    return np.unique(np.fromiter(map(crop_id_of, uris), np.int64, len(uris)))


def vanished_uris(run: Run) -> pa.Table:
    """Return what the run lists as vanished, one column `uri`. Raises what `vanished_ids` raises."""
    key = run.folder.key(NAME)
    try:
        with opened(run.store, key) as file:
            if "uri" not in file.schema_arrow.names:
                raise SchemaMismatch(f"{run.store.uri_of(key)} has no column uri")
            return file.read(columns=["uri"]).cast(_SCHEMA)
    except ObjectMissing:
        return _SCHEMA.empty_table()
