"""Split files: who was probe and who gallery in each repeat, by crop_id, for other toolboxes to follow."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index.evaluation.cmc import Split
from infra.errors import BadInput

SPLIT_SCHEMA = pa.schema(
    [("protocol", pa.string()), ("repeat", pa.int32()), ("role", pa.string()), ("crop_id", pa.int64())]
)


def write_splits(path: Path, splits: Mapping[str, list[Split]], crop_ids: NDArray[np.int64]) -> None:
    """Write the splits of each protocol as Parquet, of the crops with these ids (n,)."""
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
    unfinished = path.with_suffix(".part")
    pq.write_table(pa.concat_tables(tables), unfinished, compression="zstd")
    unfinished.replace(path)


def read_splits(path: Path, crop_ids: NDArray[np.int64]) -> dict[str, list[Split]]:
    """Read splits back as rows of `crop_ids`, in the order they were written.

    Raises BadInput for a file that is no split file, that names crops which are not at hand, or whose repeats
    lack probes or a gallery.
    """
    try:
        table = pq.read_table(path, schema=SPLIT_SCHEMA)
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"{path} is not a split file: {str(error).splitlines()[0]}") from error
    order = np.argsort(crop_ids, kind="stable")
    wanted = table["crop_id"].to_numpy()
    place = np.minimum(np.searchsorted(crop_ids, wanted, sorter=order), len(crop_ids) - 1)
    rows = order[place] if len(crop_ids) else place
    missing = np.flatnonzero(crop_ids[rows] != wanted) if len(crop_ids) else np.arange(len(wanted))
    if len(missing):
        raise BadInput(
            f"{path} names {len(missing)} crops that have no embedding here, the first {wanted[missing[0]]}",
            remedy="evaluate the run that the splits were written for",
        )
    repeat = table["repeat"].to_numpy()
    names = np.asarray(table["protocol"].to_pylist())
    roles = np.asarray(table["role"].to_pylist())
    strange = set(roles.tolist()) - {"probe", "gallery"}
    if strange or not len(rows):
        raise BadInput(
            f"{path} has roles other than probe and gallery: {sorted(strange)}"
            if strange
            else f"{path} is empty"
        )
    splits: dict[str, list[Split]] = {}
    for name in dict.fromkeys(names.tolist()):
        for number in np.unique(repeat[names == name]):
            here = (names == name) & (repeat == number)
            split = Split(rows[here & (roles == "probe")], rows[here & (roles == "gallery")])
            if not len(split.probes) or not len(split.gallery):
                raise BadInput(f"{path}: repeat {number} of {name} lacks probes or a gallery")
            splits.setdefault(name, []).append(split)
    return splits
