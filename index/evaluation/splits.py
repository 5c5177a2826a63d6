"""Split files: the probes and the gallery of each repeat by crop_id, for use by other toolboxes."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.evaluation.cmc import Split
from index.parquet import INDEX_KEY, open_parquet, write_table
from infra.errors import BadInput, StoreError
from infra.store import open_store, read_user_table
from infra.store.cells import Kind

SPLIT_SCHEMA = pa.schema(
    [("protocol", pa.string()), ("repeat", pa.int32()), ("role", pa.string()), ("crop_id", pa.int64())]
)

_SPLIT_KINDS: dict[str, Kind] = {
    "protocol": "text",
    "repeat": "integer",
    "role": "text",
    "crop_id": "integer",
}


def write_splits(path: Path, splits: Mapping[str, list[Split]], crop_ids: NDArray[np.int64]) -> None:
    """Write the splits of each protocol as Parquet; `crop_ids` (n,) are those of the rows."""
    tables = [
        pa.table(
            {
                "protocol": pa.array([name] * len(rows), pa.string()),
                "repeat": pa.array(np.full(len(rows), repeat, dtype=np.int32)),
                "role": pa.array([role] * len(rows), pa.string()),
                "crop_id": pa.array(crop_ids[rows]),
            },
            schema=SPLIT_SCHEMA,
        )
        for name, repeats in splits.items()
        for repeat, split in enumerate(repeats)
        for role, rows in (("probe", split.probes), ("gallery", split.gallery))
    ]
    write_table(open_store(str(path.parent)), path.name, pa.concat_tables(tables), metadata={})


def read_splits(path: Path, crop_ids: NDArray[np.int64]) -> dict[str, list[Split]]:
    """Read splits as rows of `crop_ids` (n,), in the order of the file.

    Raises BadInput for a file that is not a split file, that names other crops, or that has a repeat without
    probes or without gallery; CorruptObject for one of this system that was altered.
    """
    table = _read_table(path)
    order = np.argsort(crop_ids, kind="stable")
    split_ids = table["crop_id"].to_numpy()
    position = np.minimum(np.searchsorted(crop_ids, split_ids, sorter=order), len(crop_ids) - 1)
    rows = order[position] if len(crop_ids) else position
    missing = np.flatnonzero(crop_ids[rows] != split_ids) if len(crop_ids) else np.arange(len(split_ids))
    if len(missing):
        raise BadInput(
            f"{path} names {len(missing)} crops without an embedding in this run, "
            f"the first is {split_ids[missing[0]]}",
            remedy="evaluate the run that the splits were written for",
        )
    repeat = table["repeat"].to_numpy()
    names = np.asarray(table["protocol"].to_pylist())
    roles = np.asarray(table["role"].to_pylist())
    unknown_roles = set(roles.tolist()) - {"probe", "gallery"}
    if unknown_roles:
        raise BadInput(f"{path} has roles other than probe and gallery: {sorted(unknown_roles)}")
    if not len(rows):
        raise BadInput(f"{path} is empty")
    splits: dict[str, list[Split]] = {}
    for name in dict.fromkeys(names.tolist()):
        for number in np.unique(repeat[names == name]):
            in_repeat = (names == name) & (repeat == number)
            split = Split(rows[in_repeat & (roles == "probe")], rows[in_repeat & (roles == "gallery")])
            if not len(split.probes) or not len(split.gallery):
                raise BadInput(f"{path}: repeat {number} of {name} has no probes or no gallery")
            splits.setdefault(name, []).append(split)
    return splits


def _read_table(path: Path) -> pa.Table:
    """Read a file of this system, whose digests are checked, or a table that a user wrote."""
    if path.is_file() and INDEX_KEY.encode() in path.read_bytes():
        with open_parquet(open_store(str(path.parent)), path.name) as file:
            return file.read(SPLIT_SCHEMA.names).select(SPLIT_SCHEMA.names).cast(SPLIT_SCHEMA)
    try:
        table = read_user_table(str(path), _SPLIT_KINDS, required=list(_SPLIT_KINDS))
    except StoreError as error:
        raise BadInput(f"{path} is not a split file: {error.message}", remedy=error.remedy) from error
    for column in table.column_names:
        if table[column].null_count:
            row = pc.index(table[column].is_null(), True).as_py() + 1
            raise BadInput(f"{path}, data row {row}: empty {column}", remedy="Write the file again.")
    return table
