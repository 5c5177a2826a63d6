"""The partitions of an archive: its day folders, and buckets of crop_ids where a folder holds too many crops.

A partition is what one step of planning holds in memory. Crops in a folder 'dt=yyyy-mm-dd' are of that day,
all others of the folder ''. A folder of more than MAX_PARTITION_ROWS crops is cut into 2^bits buckets by the
low bits of the crop_id, which is a hash, so buckets are equally full and none of them moves when others grow.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.digests import column_digest

MAX_PARTITION_ROWS = 1 << 18
"""Crops of a partition, about 50 MB of columns: it is cut in two when it holds more."""

LISTED_COLUMNS = ("uri", "etag", "size")
"""What a listing states of a crop: a partition in which none of it changed is not read."""


@dataclass(frozen=True, slots=True, order=True)
class PartitionId:
    """The crops of a folder whose crop_id has `bucket` in its lowest `bits` bits."""

    folder: str
    bits: int = 0
    bucket: int = 0


def day_of(key: str) -> date | None:
    """Return the day in the name of a key's first folder, such as 'dt=2026-11-22/…'."""
    name, _, text = key.partition("/")[0].partition("=")
    try:
        return date.fromisoformat(text) if name == "dt" else None
    except ValueError:
        return None


def bits_for(rows: int) -> int:
    """Return into how many buckets, as a power of two, a folder of so many crops is cut."""
    return max(0, (-(-rows // MAX_PARTITION_ROWS) - 1).bit_length())


def in_bucket(crop_ids: NDArray[np.int64], bits: int, bucket: int) -> NDArray[np.bool_]:
    """Return a mask (n,) of the crop_ids (n,) of a bucket."""
    mask: NDArray[np.bool_] = (crop_ids & ((1 << bits) - 1)) == bucket
    return mask


def split_by_folder(rows: pa.Table, archive: str) -> Iterator[tuple[str, pa.Table]]:
    """Yield (folder, its rows) for rows with a column `uri`, below the URI of an archive."""
    folders = _day_folders(rows["uri"], archive)
    names = pc.unique(folders).to_pylist()
    if len(names) == 1:
        yield names[0], rows
        return
    for name in names:
        yield name, rows.filter(pc.equal(folders, name))


def listing_digest(rows: pa.Table) -> str:
    """Return 32 hex digits over uri, etag and size of rows sorted by URI."""
    return "-".join(
        column_digest(rows[name].chunks or [pa.array([], rows.schema.field(name).type)])
        for name in LISTED_COLUMNS
    )


def _day_folders(uris: Any, archive: str) -> Any:
    """Return the folder of each URI (n): 'dt=…' if it names a day, else ''."""
    first = len(archive.rstrip("/")) + 1
    head = pc.utf8_slice_codeunits(uris, first, first + 4)
    if not pc.any(pc.starts_with(head, "dt="), min_count=0).as_py():
        return pa.repeat("", len(uris))
    keys = pc.utf8_slice_codeunits(uris, first)
    folders = pc.struct_field(pc.extract_regex(keys, r"\A(?P<folder>dt=[^/]*)/"), "folder")
    days = [name for name in pc.unique(folders).to_pylist() if name is not None and day_of(f"{name}/")]
    is_day = pc.is_in(folders, value_set=pa.array(days, pa.string()))
    return pc.if_else(is_day, folders, "")
